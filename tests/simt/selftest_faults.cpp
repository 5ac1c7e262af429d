// Faults that must be caught.
#include <cstring>
#include <vector>

#include "selftest.h"

namespace selftest {
namespace {

void shared_read_behind_the_end() {
  simt::launch(blocks(1, 32, 64), [] { shared_floats()[20] = shared_floats()[16]; });
}

void shared_write_before_the_start() {
  simt::launch(blocks(1, 1, 64), [] { shared_floats()[-1] = 0; });
}

void global_read_behind_the_end() {
  const GuardedMemory global(GuardedMemory::Kind::global, 6, 1);
  uint16_t sum = 0;
  simt::launch(blocks(1, 4), [&] {
    std::memcpy(&sum, global.data() + 2 * thread_index(), 2);
    asm volatile("" : : "r"(sum));
  });
}

void null_pointer() {
  const float* volatile nothing = nullptr;
  float value = 0;
  simt::launch(blocks(1, 1), [&] { value = *nothing; });
}

void misaligned_pack() {
  const GuardedMemory global(GuardedMemory::Kind::global, 64, 16);
  simt::launch(blocks(1, 1), [&] { load_global<Pack>(global.data() + 8); });
}

void misaligned_copy() {
  const GuardedMemory global(GuardedMemory::Kind::global, 64, 16);
  simt::launch(blocks(1, 1, 64),
               [&] { copy_async(reinterpret_cast<Pack*>(shared_memory() + 4), global.data()); });
}

void copy_outside_shared_memory() {
  const GuardedMemory global(GuardedMemory::Kind::global, 64, 16);
  simt::launch(blocks(1, 1, 64),
               [&] { copy_async(reinterpret_cast<Pack*>(global.data() + 16), global.data()); });
}

void copy_never_waited_for() {
  const GuardedMemory global(GuardedMemory::Kind::global, 64, 16);
  simt::launch(blocks(1, 1, 64),
               [&] { copy_async(reinterpret_cast<Pack*>(shared_memory()), global.data()); });
}

void divergent_exit() {
  simt::launch(blocks(1, 64), [] {
    if (thread_index() != 5) sync_block();
  });
}

void barrier_and_shuffle() {
  simt::launch(blocks(1, 64), [] {
    if (thread_index() < 32) {
      sync_block();
    } else {
      shuffle_xor(1.0f, thread_index() == 40 ? 2 : 1);
    }
  });
}

void block_and_cluster_barrier() {
  simt::launch(cluster(2, 2, 32), [] {
    if (thread_index() < 31) {
      arrive_cluster();
      wait_cluster();
    } else {
      sync_block();
    }
  });
}

void two_kinds_of_block_barrier() {
  simt::launch(blocks(1, 32), [] {
    if (thread_index() == 0) {
      any_in_block(true);
    } else {
      sync_block();
    }
  });
}

void missing_lane() {
  simt::launch(blocks(1, 64), [] {
    if (thread_index() % 32 != 3) shuffle_xor(1.0f, 1);
  });
}

void lane_at_a_barrier() {
  simt::launch(blocks(1, 32), [] {
    if (thread_index() == 3) {
      sync_block();
    } else {
      shuffle_xor(1.0f, 1);
    }
  });
}

void partial_warp() {
  simt::launch(blocks(1, 48), [] { shuffle_xor(1.0f, 1); });
}

void wait_without_cooperation() {
  std::vector<Word> words(2);
  simt::launch(blocks(2, 32), [&] {
    store_word(&words[block_index()], {{1}, 1});
    if (thread_index() == 0) await_word(words.data(), 1 - block_index(), 1);
  });
}

void deadlock_across_blocks() {
  std::vector<Word> words(4);
  Launch launch = cooperative(3, 64);
  launch.workers = 3;
  simt::launch(launch, [&] {
    store_word(&words[block_index()], {{1}, 1});
    for (int i = 0; i < 4; ++i) await_word(words.data(), i, 1);
  });
}

// A polling thread does not hide a deadlock of the others.
void deadlock_of_two_epochs() {
  std::vector<Word> words(2);
  simt::launch(cooperative(2, 32), [&] {
    if (block_index() == 0) await_word(words.data(), 1, 2);
    if (thread_index() == 0) store_word(&words[block_index()], {{1}, 1});
  });
}

void cluster_block_that_leaves() {
  simt::launch(cluster(2, 2, 32), [] {
    if (block_index() == 1) return;
    arrive_cluster();
    wait_cluster();
  });
}

void wait_cluster_left_out() {
  simt::launch(cluster(2, 2, 32), [] { arrive_cluster(); });
}

void push_before_wait_cluster() {
  simt::launch(cluster(2, 2, 32, 32), [] {
    if (thread_index() == 0) init_barrier(barrier_at(0), 16);
    arrive_cluster();
    if (thread_index() == 0) push(Pack{}, shared_memory() + 16, barrier_at(0), 1 - block_index());
    wait_cluster();
    wait_barrier(barrier_at(0));
  });
}

void push_to_a_barrier_that_nobody_initialised() {
  simt::launch(cluster(2, 2, 32, 32), [] {
    arrive_cluster();
    wait_cluster();
    if (thread_index() == 0) push(Pack{}, shared_memory() + 16, barrier_at(0), 1 - block_index());
  });
}

void push_outside_shared_memory() {
  simt::launch(cluster(2, 2, 32, 32), [] {
    if (thread_index() == 0) init_barrier(barrier_at(0), 16);
    arrive_cluster();
    wait_cluster();
    if (thread_index() == 0) push(Pack{}, shared_memory() + 32, barrier_at(0), 1 - block_index());
  });
}

void wait_for_a_barrier_that_nobody_initialised() {
  simt::launch(blocks(1, 32, 32), [] { wait_barrier(barrier_at(8)); });
}

void barrier_that_expects_too_much() {
  simt::launch(cluster(2, 2, 32, 256), [] {
    push_to_the_other(2, 48);
    wait_barrier(barrier_at(0));
  });
}

void barrier_that_expects_too_little() {
  simt::launch(cluster(2, 2, 32, 256), [] {
    push_to_the_other(3, 32);
    wait_barrier(barrier_at(0));
  });
}

void wait_barrier_left_out() {
  simt::launch(cluster(2, 2, 32, 256), [] { push_to_the_other(0, 32); });
}

void push_to_a_block_that_has_ended() {
  simt::launch(cluster(2, 2, 32, 256), [] {
    if (thread_index() == 0) init_barrier(barrier_at(0), 0);
    arrive_cluster();
    wait_cluster();
    if (block_index() == 1) return;
    for (int i = 0; i < 3; ++i) sync_block();
    push(Pack{}, shared_memory() + 16, barrier_at(0), 1);
  });
}

void wait_for_primary_left_out() {
  const auto nothing = [] {};
  simt::launch(blocks(2, 32), nothing, blocks(2, 32), nothing);
}

void exception_in_a_kernel() {
  simt::launch(blocks(1, 1), [] { throw std::runtime_error("from within"); });
}

void stack_overflow() {
  simt::launch(blocks(1, 2), [] {
    char large[58 * 1024];
    asm volatile("" : : "r"(large) : "memory");
    sync_block();
    asm volatile("" : : "r"(large) : "memory");
  });
}

// A launch after a fault works.
void launch_after_a_fault() {
  for (const auto fault : {divergent_exit, shared_read_behind_the_end, null_pointer}) {
    bool thrown = false;
    try {
      fault();
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    expect(thrown, "a fault");
    float sum = 0;
    simt::launch(blocks(1, 32), [&] { sum = shuffle_xor(1.0f, 16) + 1; });
    expect(sum == 2, "a launch like any other");
  }
}

}  // namespace

const Cases kFaults = {
    {"shared_read_behind_the_end", shared_read_behind_the_end},
    {"shared_write_before_the_start", shared_write_before_the_start},
    {"global_read_behind_the_end", global_read_behind_the_end},
    {"null_pointer", null_pointer},
    {"misaligned_pack", misaligned_pack},
    {"misaligned_copy", misaligned_copy},
    {"copy_outside_shared_memory", copy_outside_shared_memory},
    {"copy_never_waited_for", copy_never_waited_for},
    {"divergent_exit", divergent_exit},
    {"barrier_and_shuffle", barrier_and_shuffle},
    {"block_and_cluster_barrier", block_and_cluster_barrier},
    {"two_kinds_of_block_barrier", two_kinds_of_block_barrier},
    {"missing_lane", missing_lane},
    {"lane_at_a_barrier", lane_at_a_barrier},
    {"partial_warp", partial_warp},
    {"wait_without_cooperation", wait_without_cooperation},
    {"deadlock_across_blocks", deadlock_across_blocks},
    {"deadlock_of_two_epochs", deadlock_of_two_epochs},
    {"cluster_block_that_leaves", cluster_block_that_leaves},
    {"wait_cluster_left_out", wait_cluster_left_out},
    {"push_before_wait_cluster", push_before_wait_cluster},
    {"push_to_a_barrier_that_nobody_initialised", push_to_a_barrier_that_nobody_initialised},
    {"push_outside_shared_memory", push_outside_shared_memory},
    {"wait_for_a_barrier_that_nobody_initialised", wait_for_a_barrier_that_nobody_initialised},
    {"barrier_that_expects_too_much", barrier_that_expects_too_much},
    {"barrier_that_expects_too_little", barrier_that_expects_too_little},
    {"wait_barrier_left_out", wait_barrier_left_out},
    {"push_to_a_block_that_has_ended", push_to_a_block_that_has_ended},
    {"wait_for_primary_left_out", wait_for_primary_left_out},
    {"exception_in_a_kernel", exception_in_a_kernel},
    {"stack_overflow", stack_overflow},
    {"launch_after_a_fault", launch_after_a_fault},
};

}  // namespace selftest
