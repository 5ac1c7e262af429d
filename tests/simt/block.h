// One block of a launch: its fibers, what they wait for, and its barriers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor.h"
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
  shuffle,
  wait_cluster,
  wait_barrier,
  pause,
  wait_for_primary,
  the_end
};

struct Copy {
  void* to;
  const void* from;
};

// A CUDA thread while its block runs. Threads of later blocks reuse its stack and context.
struct Fiber {
  Context context;
  char* stack = nullptr;

  Block* block = nullptr;
  int thread = 0;
  Wait wait = Wait::nothing;
  const uint64_t* counter = nullptr;  // it waits for a change of this
  uint64_t seen = 0;                  // from this value

  std::vector<Copy> copies;
  size_t copied = 0;
  bool arrived = false;           // at the cluster's barrier, but has not waited yet
  uint64_t cluster_barriers = 0;  // how many it has passed
  uint64_t words_seen = 0;        // how many were stored before it last looked

  bool can_run() const;
};

// Threads that arrive wait until the generation changes, so that none passes the next barrier too. Two
// announced objects alternate: a thread that is one barrier ahead must not synchronise with those behind it.
struct Barrier {
  uint64_t generation = 0;
  int arrived = 0;
  char announced[2] = {};

  void arrive(int expected) {
    if (++arrived < expected) return;
    arrived = 0;
    ++generation;
  }
};

struct Warp {
  Barrier barrier;
  const char* what = "";
  int distance = 0, bytes = 0;
  uint64_t values[2][32] = {};
};

// A block's mbarrier, in its first phase or complete.
struct PushBarrier {
  const void* place = nullptr;  // null until it is initialised
  uint64_t complete = 0;
  int64_t expected = 0;           // bytes
  uint64_t cluster_barriers = 0;  // those passed before others may rely on its initialisation
  char announced = 0;
};

// 16 bytes on the way from one block to another.
struct Push {
  Bytes16 value;
  void* to;
  Block* receiver;
  Write write;
};

// No fiber moves its memory, which ThreadSanitizer would report as a race.
struct Cluster {
  static constexpr size_t kMostPushes = 4096;

  Barrier barrier;
  int threads = 0;
  std::vector<Block*> blocks;
  std::vector<Push> pushes;

  // Delivers one of them. Returns an error text, or an empty string.
  std::string deliver(size_t i);
};

struct Grid {
  const Launch& launch;
  const Kernel& kernel;
  Grid* primary;  // the grid that this one depends on
  bool has_dependent;
  std::vector<int64_t> first_blocks;  // of the clusters, in starting order
  uint64_t quiet;                     // blocks that have not called launch_dependents()
  uint64_t left;                      // blocks that have not ended
  char announced = 0;                 // by ending threads
};

// Shared by a worker and the block that it runs.
struct Scheduler {
  Context context;
  Random random{0};
  uint64_t until_visit = 0;  // memory accesses until another thread runs
  bool shuffled = false;
  Fiber* current = nullptr;

  void draw_visit();
};

class Block {
 public:
  // The block uses fibers[0 .. threads) until it has ended.
  Block(Scheduler& scheduler, Grid& grid, int64_t index, Fiber* const* fibers, GuardedMemory& shared,
        Cluster& cluster);

  // Runs every fiber that can run. Returns whether one did. Stops at a fault.
  bool round(const bool* failed);
  bool ended() const { return ended_ == threads_; }
  std::string describe() const;
  // Returns an error text of a block that has ended, or an empty string.
  std::string epilogue();

  // After launch_dependents() a block may pause for some turns, so that dependents overtake it.
  bool stands_still() { return still_ > 0 && still_-- > 0; }

  Grid& grid() const { return grid_; }
  int64_t index() const { return index_; }
  const GuardedMemory& shared() const { return shared_; }

  // Called by its fibers.
  bool barrier(Wait kind, bool condition);
  const uint64_t* exchange(const char* what, uint64_t value, int bytes, int distance);
  void init_barrier(const uint64_t* barrier, uint32_t bytes);
  void arrive_cluster();
  void wait_cluster();
  void push(const Bytes16& value, void* to, const uint64_t* barrier, int rank, Write write);
  void wait_barrier(const uint64_t* barrier);
  void launch_dependents();
  void wait_for_primary();
  void begin_thread();
  void end_thread();

 private:
  friend struct Cluster;

  void meet(Barrier& barrier, int threads, Wait kind);
  int count(Wait kind) const;
  // Returns the same address in another block's shared memory.
  char* there(const void* shared, const Block& other) const {
    return other.shared_.data() + (static_cast<const char*>(shared) - shared_.data());
  }

  Scheduler& scheduler_;
  Grid& grid_;
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
  PushBarrier push_barrier_;
  bool launched_dependents_ = false;
  bool waited_for_primary_ = false;
  int still_ = 0;
  char begun_ = 0;  // announced to its fibers
};

// Switches to the scheduler with an error text of the current fiber. Does not return.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lets others run.
void suspend();
// Lets others run. Returns when *counter is no longer `seen`.
void wait(Wait kind, const uint64_t* counter, uint64_t seen);

// The number of words stored by all launches.
extern uint64_t words_stored;

// The worker of this OS thread; null outside launch().
extern thread_local Scheduler* scheduler;

}  // namespace simt
