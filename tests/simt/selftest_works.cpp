// Kernels that must work.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

#include "selftest.h"

namespace selftest {
namespace {

// For cases that do not test the order.
template <class Kernel>
void run_seeds(Launch launch, Kernel kernel) {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    launch.seed = seed;
    simt::launch(launch, kernel);
  }
}

void indices() {
  std::vector<int> seen(7 * 96);
  run_seeds(blocks(7, 96), [&] {
    if (grid_blocks() == 7) ++seen[block_index() * 96 + thread_index()];
  });
  for (const int count : seen) expect(count == 4, "every thread once a launch");
}

void reversal_through_shared_memory() {
  std::vector<float> out(5 * 100);
  run_seeds(blocks(5, 100, 400), [&] {
    const int t = thread_index();
    for (int round = 0; round < 10; ++round) {
      shared_floats()[t] = static_cast<float>(t + round);
      sync_block();
      const float other = shared_floats()[99 - t];
      sync_block();
      out[block_index() * 100 + t] = other;
    }
  });
  for (int i = 0; i < 500; ++i) expect(out[i] == 99 - i % 100 + 9, "the other end's value");
}

void votes() {
  std::vector<int> wrong(64);
  run_seeds(blocks(1, 64), [&] {
    for (int round = 0; round < 64; ++round) {
      const bool expected = round % 3 == 0;
      if (any_in_block(expected && thread_index() == round) != expected) ++wrong[thread_index()];
    }
  });
  for (const int count : wrong) expect(count == 0, "the same vote in every thread");
}

void warp_sums() {
  std::vector<double> sums(64);
  run_seeds(blocks(1, 64), [&] {
    auto sum = static_cast<double>(thread_index());
    float one = 1;
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += shuffle_xor(sum, distance);
      one += shuffle_xor(one, distance);
    }
    sums[thread_index()] = sum + one;
  });
  for (int i = 0; i < 64; ++i) expect(sums[i] == (i < 32 ? 496 : 1520) + 32, "the sum over the warp");
}

void warp_shifts_and_votes() {
  std::vector<int> wrong(64);
  run_seeds(blocks(1, 64), [&] {
    const int t = thread_index();
    const int below = shuffle_down(t, 5);
    const uint32_t odd = ballot(t % 2 == 1);
    if (below != (t % 32 < 27 ? t + 5 : t) || odd != 0xAAAAAAAAu ||
        ballot(t < 40) != (t < 32 ? ~0u : 0xFFu)) {
      ++wrong[t];
    }
  });
  for (const int count : wrong)
    expect(count == 0, "lower lanes' values, one's own at the end, and all votes");
}

void shared_memory_starts_as_nan() {
  int numbers = 0;
  simt::launch(blocks(3, 1, 64), [&] {
    for (int i = 0; i < 16; ++i) {
      if (is_finite(shared_floats()[i])) ++numbers;
      shared_floats()[i] = 1;
    }
  });
  expect(numbers == 0, "NaN in every block's shared memory");
}

void copies_arrive_when_waited_for() {
  GuardedMemory global(GuardedMemory::Kind::global, 64 * 16, 16);
  auto* const words = reinterpret_cast<uint32_t*>(global.data());
  for (uint32_t i = 0; i < 256; ++i) words[i] = i;
  int early = 0, wrong = 0;
  Launch launch = blocks(1, 64, 64 * 16);
  launch.workers = 1;
  simt::launch(launch, [&] {
    const int t = thread_index();
    auto* const pack = reinterpret_cast<Pack*>(shared_memory()) + t;
    copy_async(pack, global.data() + t * 16);
    if (pack->words[3] != UINT32_MAX) ++early;
    wait_copies();
    if (pack->words[3] != static_cast<uint32_t>(t) * 4 + 3) ++wrong;
    wait_copies();
  });
  expect(early == 0 && wrong == 0, "bytes at wait_copies and not before");
}

void exchange_by_words() {
  for (const int workers : {1, 2, 4}) {
    const int grid = 8;
    std::vector<Word> words(2 * grid);
    std::vector<int> wrong(grid);
    uint32_t epoch = 1;
    Launch launch = cooperative(grid, 64);
    launch.workers = workers;
    run_seeds(launch, [&] {
      const uint32_t first = load_epoch(&epoch);
      for (int round = 0; round < 20; ++round) {
        Word* const half = words.data() + round % 2 * grid;
        const uint32_t now = first + static_cast<uint32_t>(round);
        if (thread_index() == 40) {
          store_word(half + block_index(), {{1.0f * static_cast<float>(round * block_index())}, now});
        }
        float sum = 0;
        for (int b = 0; b < grid; ++b) sum += await_word(half, b, now);
        if (thread_index() == 63 && sum != static_cast<float>(round) * 28) ++wrong[block_index()];
        sync_block();
      }
    });
    for (const int count : wrong) expect(count == 0, "the same sum in every block");
    epoch += 20;
  }
}

void last_block_counts_around() {
  uint32_t count = 0;
  int64_t lasts = 0;
  run_seeds(blocks(9, 32), [&] {
    if (thread_index() == 0 && count_around(&count, 8) == 8) __atomic_fetch_add(&lasts, 1, __ATOMIC_RELAXED);
  });
  expect(lasts == 4 && count == 0, "one last block a launch, and a count that starts anew");
}

void cluster_sums() {
  std::vector<float> sums(12);
  run_seeds(cluster(12, 4, 32, 96), [&] {
    if (thread_index() == 5) init_barrier(barrier_at(64), 64);
    arrive_cluster();
    const int rank = block_index() % 4;
    float* const place = shared_floats() + 4 * rank;
    wait_cluster();
    if (thread_index() < 4) {
      push(Word{{static_cast<float>(block_index())}, 0}, place, barrier_at(64), thread_index());
    }
    sync_block();
    wait_barrier(barrier_at(64));
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += shared_floats()[4 * i];
    if (thread_index() == 31) sums[block_index()] = sum;
  });
  for (int b = 0; b < 12; ++b) expect(sums[b] == 4 * (b / 4 * 4) + 6, "the cluster's sum");
}

// Without interruptions pushes arrive when a thread waits, else at any time and in any order.
void pushes_arrive_when_they_like() {
  std::map<int, int> seen;
  Launch launch = cluster(2, 2, 32, 256);
  launch.workers = 1;
  for (launch.seed = 0; launch.seed < 50; ++launch.seed) {
    int arrived = 0;
    simt::launch(launch, [&] {
      push_to_the_other(8, 128);
      sync_block();
      if (thread_index() == 0 && block_index() == 0) {
        for (int i = 0; i < 8; ++i) arrived |= is_finite(shared_floats()[4 + 4 * i]) << i;
      }
      wait_barrier(barrier_at(0));
      for (int i = 0; i < 8; ++i) {
        const bool here = bits_as<uint32_t>(shared_floats()[4 + 4 * i]) == 1;
        if (!here) arrived = -1;
      }
    });
    expect(arrived >= 0, "all of it after wait_barrier");
    expect(launch.seed > 0 || arrived == 0, "nothing before somebody waits");
    ++seen[arrived];
  }
  expect(seen.size() > 8 && seen.count(0xFF) > 0, "any part of it at any time");
}

// The dependent's blocks start while the first launch runs, and read too early without a wait.
void second_launch_overlaps_the_first() {
  int early = 0, late = 0;
  for (const int workers : {1, 2}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      std::vector<float> written(6), read(9);
      Launch first = blocks(6, 64);
      first.seed = seed;
      first.workers = workers;
      bool ended_early = false;
      simt::launch(
          first,
          [&] {
            launch_dependents();
            sync_block();
            if (thread_index() == 0) written[block_index()] = 1;
          },
          blocks(9, 32),
          [&] {
            if (thread_index() != 0) return wait_for_primary();
            const float before = load_result(&written[block_index() % 6]);
            if (before == 0 && workers == 1) ++early;
            if (before == 1 && workers == 1) ++late;
            wait_for_primary();
            for (const float& each : written) ended_early |= load_result(&each) != 1;
            read[block_index()] = before;
          });
      expect(!ended_early, "everything after wait_for_primary");
    }
  }
  expect(early > 20 && late > 20, "blocks that begin before the first launch has ended");
}

void seed_changes_the_order() {
  std::vector<std::vector<int>> orders;
  for (const uint64_t seed : {0, 7, 7, 8}) {
    std::vector<int> order;
    Launch launch = blocks(4, 32);
    launch.seed = seed;
    launch.workers = 1;
    simt::launch(launch, [&] { order.push_back(static_cast<int>(block_index()) * 32 + thread_index()); });
    orders.push_back(order);
  }
  for (int i = 0; i < 128; ++i) expect(orders[0][i] == i, "seed 0 in order");
  expect(orders[1] == orders[2], "the same order for the same seed");
  expect(orders[1] != orders[3] && orders[1] != orders[0], "another order for another seed");
}

// Without interruptions thread 0 would always finish before thread 1 starts.
void seed_interrupts_at_memory() {
  bool overlapped = false;
  for (uint64_t seed = 1; seed < 20; ++seed) {
    Pack pack{};
    int begun = 0;
    Launch launch = blocks(1, 2);
    launch.seed = seed;
    simt::launch(launch, [&] {
      ++begun;
      for (int i = 0; i < 1000; ++i) {
        load_global<Pack>(&pack);
        if (begun == 1 + (i == 999)) overlapped = overlapped || i > 0;
      }
    });
  }
  expect(overlapped, "threads that take turns");
}

// Tests rounding at every tie between two neighbours, and next to it.
template <class Half>
void check_rounding(uint32_t infinity) {
  const auto value = [](uint32_t bits) { return widen(Half{static_cast<uint16_t>(bits)}); };
  const auto rounded = [](float x) {
    Half half;
    narrow(x, half);
    return uint32_t{half.bits};
  };
  const double beyond = 2.0 * value(infinity - 1) - value(infinity - 2);  // what infinity stands in for
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    const double next = bits + 1 == infinity ? beyond : double{value(bits + 1)};
    const auto tie = static_cast<float>((value(bits) + next) / 2);
    for (const uint32_t sign : {0u, 0x8000u}) {
      const auto signed_tie = sign != 0 ? -tie : tie;
      expect(rounded(value(sign | bits)) == (sign | bits), "its own value back");
      expect(rounded(signed_tie) == (sign | (bits + (bits & 1))), "a tie to go to the even neighbour");
      expect(rounded(std::nextafterf(signed_tie, 0)) == (sign | bits), "less than a tie to go down");
      const float above = std::nextafterf(signed_tie, sign != 0 ? -INFINITY : INFINITY);
      expect(rounded(above) == (sign | (bits + 1)), "more than a tie to go up");
    }
  }
  expect(rounded(INFINITY) == infinity && rounded(-INFINITY) == (infinity | 0x8000u), "infinity to stay");
  expect(value(infinity) == INFINITY, "infinity to widen");
  for (uint32_t bits = infinity + 1; bits < 0x8000u; ++bits) {
    expect(std::isnan(value(bits)) && rounded(value(bits)) > infinity, "NaN to stay NaN");
  }
  for (const uint32_t bits : {0x7F800001u, 0xFF800001u, 0x7FFFFFFFu}) {
    expect((rounded(bits_as<float>(bits)) & 0x7FFFu) > infinity, "NaN of any payload to stay NaN");
  }
}

void rounding() {
  check_rounding<fused_bn::Float16>(0x7C00);
  check_rounding<fused_bn::BFloat16>(0x7F80);
  const auto pair = narrow_pair<fused_bn::BFloat16, true>(-1, NAN);
  expect(pair == 0x7FFF0000u && narrow_pair<fused_bn::Float16, false>(-1, 2) == 0x4000BC00u, "pairs");
  expect(relu(-1.0f) == 0 && relu(3.0f) == 3 && std::isnan(relu(NAN)), "ReLU to pass NaN");
  const volatile float a = 1 + 0x1p-23f, b = 1 - 0x1p-23f;
  expect(fma(a, b, -1.0f) == -0x1p-46f, "fma with one rounding");
  expect(subtract(multiply(a, b), 1.0f) == 0, "a product that is rounded");
}

void speed() {
  const int64_t grid = 2000;
  const int threads = 256;
  std::vector<float> out(grid * threads);
  const auto start = std::chrono::steady_clock::now();
  Launch launch = blocks(grid, threads, threads * 4);
  launch.seed = 1;
  simt::launch(launch, [&] {
    const int t = thread_index();
    float sum = 1;
    for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
    for (int round = 0; round < 4; ++round) {
      shared_floats()[t] = sum;
      sync_block();
      sum += shared_floats()[(t + 32) % threads];
      sync_block();
    }
    out[block_index() * threads + t] = sum;
  });
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  std::printf("%.2f M threads/s with 5 shuffles and 8 barriers\n", 1e-6 * grid * threads / time.count());
}

}  // namespace

const Cases kWorks = {
    {"indices", indices},
    {"reversal_through_shared_memory", reversal_through_shared_memory},
    {"votes", votes},
    {"warp_sums", warp_sums},
    {"warp_shifts_and_votes", warp_shifts_and_votes},
    {"shared_memory_starts_as_nan", shared_memory_starts_as_nan},
    {"copies_arrive_when_waited_for", copies_arrive_when_waited_for},
    {"exchange_by_words", exchange_by_words},
    {"last_block_counts_around", last_block_counts_around},
    {"cluster_sums", cluster_sums},
    {"pushes_arrive_when_they_like", pushes_arrive_when_they_like},
    {"second_launch_overlaps_the_first", second_launch_overlaps_the_first},
    {"seed_changes_the_order", seed_changes_the_order},
    {"seed_interrupts_at_memory", seed_interrupts_at_memory},
    {"rounding", rounding},
    {"speed", speed},
};

}  // namespace selftest
