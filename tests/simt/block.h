// One block of a launch: its fibers, what they wait for, and its barriers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fiber.h"
#include "guarded.h"

namespace simt {

class Block;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": SplitMix64.
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int below(int limit) { return static_cast<int>(next() % static_cast<uint64_t>(limit)); }

 private:
  uint64_t state_;
};

enum class Wait : uint8_t {
  nothing,
  sync_block,
  any_in_block,
  shuffle_xor,
  sync_cluster,
  wait_flip,
  the_end
};

struct Copy {
  void* to;
  const void* from;
};

// A CUDA thread while its block runs; the stack and the context serve the threads of later blocks too.
struct Fiber {
  Context context;
  char* stack = nullptr;
  std::vector<Copy> copies;
  size_t copied = 0;

  Block* block = nullptr;
  int thread = 0;
  Wait wait = Wait::nothing;
  const uint64_t* generation = nullptr;  // of a barrier,
  uint64_t seen = 0;                     // and what it was on arrival
  const uint32_t* word = nullptr;        // of wait_flip
  uint32_t before = 0;

  bool can_run() const;
};

// Whoever arrives waits for the generation to change, so that nobody falls through the next barrier. What is
// announced alternates: who is ahead by one barrier has nothing to say to those who are behind.
struct Barrier {
  uint64_t generation = 0;
  int arrived = 0;
  char announced[2] = {};

  char* sync() { return &announced[generation & 1]; }
};

struct Warp {
  Barrier barrier;
  int distance = 0, bytes = 0;
  uint64_t values[2][32] = {};
};

struct Cluster {
  Barrier barrier;
  int threads = 0;
  std::vector<Block*> blocks;
};

// What the worker that runs a block shares with it.
struct Scheduler {
  Context context;
  Random random{0};
  uint64_t until_visit = 0;  // accesses to memory, until another thread goes first
  bool shuffled = false;
  Fiber* current = nullptr;

  void draw_visit();
};

class Block {
 public:
  // fibers[0 .. threads) are the block's until it has ended.
  Block(Scheduler& scheduler, int64_t index, int threads, Fiber* const* fibers, GuardedMemory& shared,
        Cluster& cluster);

  // Lets every fiber run that can; true where one did. Stops at a fault.
  bool round(const bool* failed);
  bool ended() const { return ended_ == threads_; }
  // After a round in which nobody ran: whether only threads of this block can help, so that none will.
  bool stuck() const;
  std::string describe() const;
  // What is wrong with a block that has ended, or nothing.
  std::string epilogue() const;

  int64_t index() const { return index_; }
  GuardedMemory& shared() const { return shared_; }

  // Called by its fibers.
  bool barrier(Wait kind, bool condition);
  uint64_t shuffle(uint64_t value, int bytes, int distance);
  void cluster_barrier();
  const void* cluster_address(const void* shared, int bytes, int rank);
  void begin_thread();
  void end_thread();

 private:
  void wait(Wait kind, const uint64_t* generation);
  int count(Wait kind) const;

  Scheduler& scheduler_;
  int64_t index_;
  int threads_;
  Fiber* const* fibers_;
  GuardedMemory& shared_;
  Cluster& cluster_;
  int ended_ = 0;
  Barrier barrier_;
  Wait barrier_kind_ = Wait::nothing;
  bool any_[2] = {};
  std::vector<Warp> warps_;
  int64_t read_by_others_at_ = -1;  // generation of the cluster's barrier
  char begun_ = 0;                  // announced to its fibers
};

// Changes to the scheduler, for good, with what is wrong with the current fiber.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lets others run, until the current fiber can again.
void suspend();

// Of the worker that runs here; null outside launch().
extern thread_local Scheduler* scheduler;

}  // namespace simt
