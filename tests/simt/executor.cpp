#include "executor.h"

#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block.h"

namespace simt {

thread_local Scheduler* scheduler = nullptr;

namespace {

constexpr uint64_t kBusy = UINT64_MAX - 1, kDone = UINT64_MAX;

// Shared by the workers of a launch.
struct Run {
  std::deque<Grid> grids;
  bool failed = false;
  std::mutex mutex;
  std::string error;
  // Grows after any fiber ran. A worker whose fibers all wait stores the count at which it looked. If all
  // workers stored the current count, nothing can wake a fiber: a deadlock.
  std::atomic<uint64_t> progress{0};
  std::vector<std::atomic<uint64_t>> idle_at;

  explicit Run(int workers) : idle_at(workers) {
    for (auto& at : idle_at) at = kBusy;
  }

  void fail(const std::string& text) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (failed) return;
    error = text;
    __atomic_store_n(&failed, true, __ATOMIC_RELEASE);
  }
  bool has_failed() const { return __atomic_load_n(&failed, __ATOMIC_ACQUIRE); }

  bool deadlocked(int worker, uint64_t looked_at) {
    idle_at[worker] = looked_at;
    for (const auto& at : idle_at) {
      const uint64_t other = at;
      if (other != looked_at && other != kDone) return false;
    }
    return progress == looked_at;
  }
};

Run* current_run = nullptr;

// One worker's fibers, kept for the next launch.
struct Pool {
  std::vector<Stacks> stacks;
  std::deque<Fiber> fibers;

  ~Pool() {
    for (Fiber& fiber : fibers) announce_end(fiber.context);
  }
  void grow(size_t count) {
    if (count <= fibers.size()) return;
    const size_t more = count - fibers.size();
    stacks.emplace_back(more);
    for (size_t i = 0; i < more; ++i) {
      Fiber& fiber = fibers.emplace_back();
      fiber.stack = stacks.back().stack(i);
      announce_fiber(fiber.context);
    }
  }
};

void entry() {
  Block& block = *scheduler->current->block;
  block.begin_thread();
  char text[400] = "";
  try {
    block.grid().kernel();
  } catch (const std::exception& error) {
    std::snprintf(text, sizeof text, "exception: %s", error.what());
  }
  if (text[0] != 0) fault("%s", text);
  block.end_thread();
  Fiber& fiber = *scheduler->current;
  fiber.wait = Wait::the_end;
  change(fiber.context, scheduler->context);
}

// The fibers and memory that a block runs in.
struct Room {
  std::vector<Fiber*> fibers;
  std::unique_ptr<GuardedMemory> shared;
  bool taken = false;
};

struct RunningCluster {
  Cluster cluster;
  std::deque<Block> blocks;
  std::vector<Room*> rooms;
};

// One OS thread, which runs every nth cluster. Without clusters, each block is one.
class Worker {
 public:
  Worker(Run& run, int index, Pool& pool)
      : run_(run), index_(index), pool_(pool), next_(run.grids.size(), index) {
    const Launch& launch = run.grids[0].launch;
    scheduler_.random = Random(launch.seed * 1000003 + index);
    scheduler_.shuffled = launch.seed != 0;
    scheduler_.draw_visit();
    for (const Grid& grid : run.grids) most_threads_ = std::max(most_threads_, grid.launch.threads);
  }

  void work() {
    announce_current(scheduler_.context);
    scheduler = &scheduler_;
    const auto alternate = std::make_unique<char[]>(kSignalStack);
    const stack_t ours = {alternate.get(), 0, kSignalStack};
    stack_t theirs;
    sigaltstack(&ours, &theirs);
    try {
      while (!run_.has_failed()) {
        const uint64_t looked_at = run_.progress;
        const bool more = start_clusters();
        if (running_.empty() && !more) break;
        if (take_turns() || deliver(true)) {
          ++run_.progress;
        } else if (run_.deadlocked(index_, looked_at)) {
          run_.fail("deadlock: no thread of the launch can go on" + describe());
        } else {
          sched_yield();
        }
      }
    } catch (const std::exception& error) {
      run_.fail(error.what());
    }
    run_.idle_at[index_] = kDone;
    if ((theirs.ss_flags & SS_DISABLE) != 0) theirs.ss_size = kSignalStack;
    sigaltstack(&theirs, nullptr);
    scheduler = nullptr;
  }

 private:
  static constexpr size_t kSignalStack = 64 * 1024;

  // Returns whether more are to be started.
  bool start_clusters() {
    bool more = false;
    for (size_t i = 0; i < run_.grids.size(); ++i) {
      Grid& grid = run_.grids[i];
      const bool early =
          grid.primary != nullptr && __atomic_load_n(&grid.primary->quiet, __ATOMIC_ACQUIRE) > 0;
      const bool overlaps = scheduler_.shuffled && run_.grids.size() > 1;
      const int64_t most = grid.launch.cooperative ? grid.launch.grid : overlaps ? kOverlapping : 1;
      int64_t at_once = std::count_if(running_.begin(), running_.end(), [&](const RunningCluster& each) {
        return &each.blocks[0].grid() == &grid;
      });
      for (; !early && at_once < most && next_[i] < grid.first_blocks.size(); ++at_once) {
        start(grid, grid.first_blocks[next_[i]]);
        next_[i] += run_.idle_at.size();
      }
      more |= next_[i] < grid.first_blocks.size();
    }
    return more;
  }

  void start(Grid& grid, int64_t first_block) {
    RunningCluster& running = running_.emplace_back();
    if (grid.launch.cluster > 1) running.cluster.pushes.reserve(Cluster::kMostPushes);
    for (int i = 0; i < grid.launch.cluster; ++i) {
      Room& room = free_room(grid.launch.shared_bytes);
      running.rooms.push_back(&room);
      for (int thread = 0; thread < grid.launch.threads; ++thread) {
        Fiber& fiber = *room.fibers[thread];
        prepare(fiber.context, fiber.stack, Stacks::kBytes, entry);
      }
      Block& block = running.blocks.emplace_back(scheduler_, grid, first_block + i, room.fibers.data(),
                                                 *room.shared, running.cluster);
      running.cluster.threads += grid.launch.threads;
      running.cluster.blocks.push_back(&block);
      blocks_.push_back(&block);
    }
  }

  // Gives a block clean shared memory. With ThreadSanitizer it is new, because blocks that use the same
  // memory one after the other would look like a race.
  Room& free_room(int64_t shared_bytes) {
    size_t i = 0;
    while (i < rooms_.size() && rooms_[i].taken) ++i;
    if (i == rooms_.size()) {
      Room& room = rooms_.emplace_back();
      const size_t fibers = (i + 1) * most_threads_;
      if (kAnnounced && fibers * run_.idle_at.size() > kMostAnnounced) {
        throw std::runtime_error("more threads at once than ThreadSanitizer can tell apart");
      }
      pool_.grow(fibers);
      for (size_t k = i * most_threads_; k < fibers; ++k) room.fibers.push_back(&pool_.fibers[k]);
    }
    Room& room = rooms_[i];
    room.taken = true;
    const int64_t bytes = (shared_bytes + 15) / 16 * 16;
    if (room.shared == nullptr || room.shared->bytes() != bytes || kAnnounced) {
      room.shared.reset();
      room.shared = std::make_unique<GuardedMemory>(GuardedMemory::Kind::shared, bytes, 16);
    } else {
      room.shared->fill();
    }
    return room;
  }

  // Returns whether anything happened.
  bool take_turns() {
    if (scheduler_.shuffled && !blocks_.empty()) {
      std::swap(blocks_.front(), blocks_[scheduler_.random.below(static_cast<int>(blocks_.size()))]);
    }
    bool any = false;
    for (Block* block : blocks_) {
      if (block->stands_still()) {
        any = true;
        continue;
      }
      // Blocks are not equally fast.
      const int rounds = scheduler_.shuffled ? 1 + scheduler_.random.below(4) : 1;
      for (int i = 0; i < rounds && !block->ended() && block->round(&run_.failed); ++i) {
        any = true;
        if (run_.has_failed()) return true;
      }
    }
    if (scheduler_.shuffled) any |= deliver(false);
    for (Block* block : blocks_) {
      if (!block->ended()) continue;
      const std::string wrong = block->epilogue();
      if (!wrong.empty()) run_.fail(wrong);
    }
    const auto ended = [](const auto* block) { return block->ended(); };
    blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), ended), blocks_.end());
    running_.remove_if([&](RunningCluster& each) {
      const auto& blocks = each.cluster.blocks;
      const bool all = std::all_of(blocks.begin(), blocks.end(), ended);
      for (Room* room : each.rooms) room->taken = !all;
      return all;
    });
    return any;
  }

  // Delivers some or all pushes, in any order. Returns whether there were any.
  bool deliver(bool all) {
    bool any = false;
    for (RunningCluster& each : running_) {
      auto& pushes = each.cluster.pushes;
      const auto size = static_cast<int>(pushes.size());
      for (int n = all ? size : scheduler_.random.below(size + 1); n > 0; --n) {
        const auto left = static_cast<int>(pushes.size());
        const std::string wrong =
            each.cluster.deliver(scheduler_.shuffled ? scheduler_.random.below(left) : left - 1);
        if (!wrong.empty()) run_.fail(wrong);
        any = true;
      }
    }
    return any;
  }

  std::string describe() const {
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(blocks_.size(), 3); ++i) text += "; " + blocks_[i]->describe();
    return text;
  }

  static constexpr int64_t kOverlapping = 4;  // clusters of either grid

  Run& run_;
  int index_;
  Pool& pool_;
  Scheduler scheduler_;
  std::vector<size_t> next_;  // cluster of each grid
  int most_threads_ = 0;
  std::deque<Room> rooms_;
  std::list<RunningCluster> running_;
  std::vector<Block*> blocks_;
};

// Turns a bad access of a kernel into a fault. Other accesses go to the previous handler.
class SignalGuard {
 public:
  SignalGuard() {
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_[0]);
    sigaction(SIGBUS, &action, &before_[1]);
  }
  ~SignalGuard() { restore(); }

 private:
  static void restore() {
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
  }
  static void handle(int, siginfo_t* info, void*) {
    if (scheduler != nullptr && scheduler->current != nullptr) {
      fault("bad access at %s", describe_address(info->si_addr).c_str());
    }
    restore();
  }
  static inline struct sigaction before_[2];
};

void check(bool condition, const char* text) {
  if (!condition) throw std::invalid_argument(std::string("launch: ") + text);
}

}  // namespace

void fault(const char* format, ...) {
  char text[600];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Fiber& fiber = *scheduler->current;
  char who[700];
  std::snprintf(who, sizeof who, "block %" PRId64 ", thread %d: %s", fiber.block->index(), fiber.thread,
                text);
  current_run->fail(who);
  announce_release(&fiber.block->grid().announced);
  change(fiber.context, scheduler->context);
  std::abort();
}

void visit_memory() {
  if (--scheduler->until_visit != 0) return;
  scheduler->draw_visit();
  suspend();
}

void check_global(const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fault("%d bytes at %s are not aligned", bytes, describe_address(address).c_str());
  }
  visit_memory();
}

void check_shared(const char* what, const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0 ||
      !scheduler->current->block->shared().contains(address, bytes)) {
    fault("%s to %s", what, describe_address(address).c_str());
  }
}

void sync_block() { scheduler->current->block->barrier(Wait::sync_block, false); }

bool any_in_block(bool condition) {
  return scheduler->current->block->barrier(Wait::any_in_block, condition);
}

uint64_t shuffle(const char* what, uint64_t value, int bytes, int distance, int from) {
  return scheduler->current->block->exchange(what, value, bytes, distance)[from];
}

uint32_t ballot(bool condition) {
  const uint64_t* const lanes = scheduler->current->block->exchange("ballot", condition, 1, 0);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<uint32_t>(lanes[lane]) << lane;
  return bits;
}

void start_copy(void* to, const void* from) { scheduler->current->copies.push_back({to, from}); }

bool next_copy(void*& to, const void*& from) {
  Fiber& fiber = *scheduler->current;
  if (fiber.copied == fiber.copies.size()) {
    fiber.copies.clear();
    fiber.copied = 0;
    return false;
  }
  const Copy copy = fiber.copies[fiber.copied++];
  to = copy.to;
  from = copy.from;
  return true;
}

void init_barrier(const uint64_t* barrier, uint32_t bytes) {
  scheduler->current->block->init_barrier(barrier, bytes);
}
void arrive_cluster() { scheduler->current->block->arrive_cluster(); }
void wait_cluster() { scheduler->current->block->wait_cluster(); }
void push(const Bytes16& value, void* to, const uint64_t* barrier, int rank, Write write) {
  scheduler->current->block->push(value, to, barrier, rank, write);
}
void wait_barrier(const uint64_t* barrier) { scheduler->current->block->wait_barrier(barrier); }

// One at a time. A mutex would make ThreadSanitizer assume that words order other accesses.
static std::atomic_flag words_taken = ATOMIC_FLAG_INIT;

Bytes16 load_word(const void* address) {
  check_global(address, sizeof(Bytes16));
  while (words_taken.test_and_set(std::memory_order_acquire)) {
  }
  const Bytes16 word = *static_cast<const Bytes16*>(address);
  words_taken.clear(std::memory_order_release);
  return word;
}

void store_word(void* address, const Bytes16& word) {
  check_global(address, sizeof word);
  while (words_taken.test_and_set(std::memory_order_acquire)) {
  }
  *static_cast<Bytes16*>(address) = word;
  words_taken.clear(std::memory_order_release);
  __atomic_add_fetch(&words_stored, 1, __ATOMIC_RELEASE);
}

// Words stored before the last pause ended cannot wake a thread, because it has looked since.
void pause() {
  Fiber& fiber = *scheduler->current;
  if (!fiber.block->grid().launch.cooperative) fault("waits for other blocks, which need not run");
  wait(Wait::pause, &words_stored, fiber.words_seen);
  fiber.words_seen = __atomic_load_n(&words_stored, __ATOMIC_ACQUIRE);
}

void launch_dependents() { scheduler->current->block->launch_dependents(); }
void wait_for_primary() { scheduler->current->block->wait_for_primary(); }

namespace {

using Launches = std::vector<std::pair<const Launch*, const Kernel*>>;

void check(const Launch& launch) {
  check(launch.grid >= 1 && launch.grid <= INT32_MAX, "grid must be in [1, 2^31)");
  check(launch.threads >= 1 && launch.threads <= 1024, "threads must be in [1, 1024]");
  check(launch.cluster >= 1 && launch.cluster <= 16, "cluster must be in [1, 16]");
  check(launch.grid % launch.cluster == 0, "grid must be a multiple of cluster");
  check(!launch.cooperative || launch.cluster == 1, "cooperative launches have no clusters");
  check(launch.shared_bytes >= 0, "shared_bytes is negative");
}

void run_all(const Launches& launches) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  static std::deque<Pool> pools;

  const Launch& first = *launches[0].first;
  Random random(first.seed);
  const int64_t wanted = first.workers > 0 ? first.workers : std::thread::hardware_concurrency();
  const int workers = static_cast<int>(std::clamp<int64_t>(wanted, 1, first.grid / first.cluster));
  Run run(workers);
  for (const auto& [launch, kernel] : launches) {
    check(*launch);
    Grid* const primary = run.grids.empty() ? nullptr : &run.grids.back();
    if (primary != nullptr) primary->has_dependent = true;
    const auto blocks = static_cast<uint64_t>(launch->grid);
    Grid& grid = run.grids.emplace_back(Grid{*launch, *kernel, primary, false, {}, blocks, blocks});
    auto& order = grid.first_blocks;
    for (int64_t i = 0; i < launch->grid; i += launch->cluster) order.push_back(i);
    for (size_t i = order.size() - 1; first.seed != 0 && i > 0; --i) {
      std::swap(order[i], order[random.next() % (i + 1)]);
    }
  }

  while (pools.size() < static_cast<size_t>(workers)) pools.emplace_back();
  std::deque<Worker> all_workers;
  for (int i = 0; i < workers; ++i) all_workers.emplace_back(run, i, pools[i]);
  current_run = &run;
  {
    const SignalGuard guard;
    std::vector<std::thread> others;
    for (int i = 1; i < workers; ++i) others.emplace_back([&all_workers, i] { all_workers[i].work(); });
    all_workers[0].work();
    for (auto& other : others) other.join();
  }
  current_run = nullptr;
  for (Grid& grid : run.grids) announce_acquire(&grid.announced);

  size_t fibers = 0;
  for (const Pool& pool : pools) fibers += pool.fibers.size();
  // ThreadSanitizer keeps the calls of abandoned fibers, and much memory should not stay allocated.
  if (run.failed || fibers > (kAnnounced ? 2048 : 8192)) pools.clear();
  if (run.failed) throw std::runtime_error(run.error);
}

}  // namespace

void launch(const Launch& launch, const Kernel& kernel) { run_all({{&launch, &kernel}}); }

void launch(const Launch& first, const Kernel& first_kernel, const Launch& second,
            const Kernel& second_kernel) {
  run_all({{&first, &first_kernel}, {&second, &second_kernel}});
}

}  // namespace simt
