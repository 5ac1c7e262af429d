// What only ThreadSanitizer sees: the values are right, or nobody asks.
#include <vector>

#include "selftest.h"

namespace selftest {
namespace {

void race_in_a_block() {
  Launch launch = blocks(1, 64, 256);
  simt::launch(launch, [] {
    shared_floats()[thread_index()] = 1;
    if (thread_index() == 0) shared_floats()[1] = shared_floats()[33];
  });
}

void race_after_a_shuffle() {
  simt::launch(blocks(1, 64, 256), [] {
    shared_floats()[thread_index()] = 1;
    shuffle_xor(1.0f, 1);
    if (thread_index() == 0) shared_floats()[0] = shared_floats()[33];
  });
}

void shared_result_race() {
  double result = 0, sum = 0;
  Launch launch = cooperative(2, 32);
  simt::launch(launch, [&] {
    if (thread_index() != 0) return;
    if (block_index() == 0) store_shared_result(&result, 1.0);
    if (block_index() == 1) sum = load_shared_result(&result);
  });
}

// An addition that releases nothing, seen by one who acquires.
void missing_release() {
  double result = 0, sum = 0;
  uint32_t word = 0;
  Launch launch = cooperative(2, 32);
  simt::launch(launch, [&] {
    if (thread_index() != 0) return;
    if (block_index() == 0) {
      store_shared_result(&result, 1.0);
      __atomic_fetch_add(&word, 0x80000000u, __ATOMIC_RELAXED);
    } else {
      wait_flip(&word, 0);
      sum = load_shared_result(&result);
    }
  });
}

// Thread 40 writes the partial sum, thread 0 releases it, and no barrier stands between.
void missing_barrier_before_release() {
  double result = 0, sum = 0;
  uint32_t word = 0;
  Launch launch = cooperative(2, 64);
  simt::launch(launch, [&] {
    if (block_index() == 0) {
      if (thread_index() == 40) store_shared_result(&result, 1.0);
      if (thread_index() == 0) add_release(&word, 0x80000000u);
    } else if (thread_index() == 0) {
      wait_flip(&word, 0);
      sum = load_shared_result(&result);
    }
  });
}

void missing_cluster_barrier() {
  std::vector<float> sums(2);
  simt::launch(cluster(2, 2, 32, 16), [&] {
    if (thread_index() == 0) shared_floats()[0] = 1;
    const float other = load_from_cluster(shared_floats(), 1 - static_cast<int>(block_index()));
    if (thread_index() == 0) sums[block_index()] = other;
    sync_cluster();
  });
}

void copy_read_by_another_thread() {
  const GuardedMemory global(GuardedMemory::Kind::global, 64 * 16, 16);
  std::vector<uint32_t> out(64);
  simt::launch(blocks(1, 64, 64 * 16), [&] {
    auto* const packs = reinterpret_cast<Pack*>(shared_memory());
    copy_async(packs + thread_index(), global.data() + thread_index() * 16);
    wait_copies();
    out[thread_index()] = packs[63 - thread_index()].words[0];
  });
}

// Two blocks of a plain launch that write the same element.
void race_across_plain_blocks() {
  int64_t owner = -1;
  Launch launch = blocks(2, 32);
  launch.workers = 1;
  simt::launch(launch, [&] {
    if (thread_index() == 5 + block_index()) owner = block_index();
  });
}

}  // namespace

const Cases kRaces = {
    {"race_in_a_block", race_in_a_block},
    {"race_after_a_shuffle", race_after_a_shuffle},
    {"shared_result_race", shared_result_race},
    {"missing_release", missing_release},
    {"missing_barrier_before_release", missing_barrier_before_release},
    {"missing_cluster_barrier", missing_cluster_barrier},
    {"copy_read_by_another_thread", copy_read_by_another_thread},
    {"race_across_plain_blocks", race_across_plain_blocks},
};

}  // namespace selftest
