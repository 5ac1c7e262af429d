// Races that only ThreadSanitizer finds.
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

void result_of_another_block() {
  double result = 0, sum = 0;
  simt::launch(cooperative(2, 32), [&] {
    if (thread_index() != 0) return;
    if (block_index() == 0) result = 1;
    if (block_index() == 1) sum = load_result(&result);
  });
}

// The last block to count reads what thread 40 of the other one wrote without a barrier before its count.
void missing_barrier_before_the_count() {
  double result = 0, sum = 0;
  uint32_t count = 0;
  simt::launch(blocks(2, 64), [&] {
    if (thread_index() == 40) result = 1;
    if (thread_index() == 0 && count_around(&count, 1) == 1) sum = load_result(&result);
  });
}

void word_that_brings_more_than_itself() {
  double result = 0, sum = 0;
  Word word{};
  simt::launch(cooperative(2, 32), [&] {
    if (thread_index() != 0) return;
    if (block_index() == 0) {
      result = 1;
      store_word(&word, {{1}, 1});
    } else {
      await_word(&word, 0, 1);
      sum = load_result(&result);
    }
  });
}

void cluster_barrier_that_orders_memory() {
  float result = 0, sum = 0;
  simt::launch(cluster(2, 2, 32), [&] {
    if (thread_index() == 0 && block_index() == 0) result = 1;
    arrive_cluster();
    wait_cluster();
    if (thread_index() == 0 && block_index() == 1) sum = result;
  });
}

void push_that_is_read_without_a_wait() {
  std::vector<float> out(2);
  simt::launch(cluster(2, 2, 32, 64), [&] {
    push_to_the_other(1, 16);
    if (thread_index() == 5) wait_barrier(barrier_at(0));
    if (thread_index() == 7) out[block_index()] = shared_floats()[4];
  });
}

void push_that_brings_more_than_itself() {
  float result = 0, sum = 0;
  simt::launch(cluster(2, 2, 32, 64), [&] {
    if (thread_index() == 0 && block_index() == 0) result = 1;
    push_to_the_other(1, 16);
    wait_barrier(barrier_at(0));
    if (thread_index() == 0 && block_index() == 1) sum = result;
  });
}

void second_launch_reads_before_it_waits() {
  float result = 0, sum = 0;
  Launch first = blocks(1, 32);
  first.seed = 1;
  simt::launch(
      first,
      [&] {
        launch_dependents();
        if (thread_index() == 0) result = 1;
      },
      blocks(1, 32),
      [&] {
        if (thread_index() == 0) sum = result;
        wait_for_primary();
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
    {"result_of_another_block", result_of_another_block},
    {"missing_barrier_before_the_count", missing_barrier_before_the_count},
    {"word_that_brings_more_than_itself", word_that_brings_more_than_itself},
    {"cluster_barrier_that_orders_memory", cluster_barrier_that_orders_memory},
    {"push_that_is_read_without_a_wait", push_that_is_read_without_a_wait},
    {"push_that_brings_more_than_itself", push_that_brings_more_than_itself},
    {"second_launch_reads_before_it_waits", second_launch_reads_before_it_waits},
    {"copy_read_by_another_thread", copy_read_by_another_thread},
    {"race_across_plain_blocks", race_across_plain_blocks},
};

}  // namespace selftest
