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
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "block.h"

namespace simt {

thread_local Scheduler* scheduler = nullptr;

namespace {

constexpr uint64_t kBusy = UINT64_MAX - 1, kDone = UINT64_MAX;

// What the workers of a launch share.
struct Run {
  const Launch& launch;
  const std::function<void()>& kernel;
  std::vector<int64_t> gangs;  // blocks that must run at once begin at these; in the order in which they run
  std::atomic<size_t> next_gang{0};
  bool failed = false;
  std::mutex mutex;
  std::string error;
  // Grows after anybody ran. A worker whose fibers all wait says at which count it looked. Where all workers
  // say the count that still holds, whoever ran since would be the first one, and had nobody to wake it.
  std::atomic<uint64_t> progress{0};
  std::vector<std::atomic<uint64_t>> idle_at;
  char finished = 0;  // announced by every fiber

  Run(const Launch& launch, const std::function<void()>& kernel, int workers)
      : launch(launch), kernel(kernel), idle_at(workers) {
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

// Fibers of one worker, kept for the next launch.
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
    current_run->kernel();
  } catch (const std::exception& error) {
    std::snprintf(text, sizeof text, "exception: %s", error.what());
  }
  if (text[0] != 0) fault("%s", text);
  block.end_thread();
  announce_release(&current_run->finished);
  Fiber& fiber = *scheduler->current;
  fiber.wait = Wait::the_end;
  change(fiber.context, scheduler->context);
}

// One OS thread, which runs one gang of blocks after another: a block, a cluster, or its share of all blocks.
class Worker {
 public:
  Worker(Run& run, int index, Pool& pool) : run_(run), index_(index), pool_(pool) {
    scheduler_.random = Random(run.launch.seed * 1000003 + index);
    scheduler_.shuffled = run.launch.seed != 0;
    scheduler_.draw_visit();
  }

  void work() {
    announce_current(scheduler_.context);
    scheduler = &scheduler_;
    here.grid = run_.launch.grid;
    const auto alternate = std::make_unique<char[]>(kSignalStack);
    const stack_t ours = {alternate.get(), 0, kSignalStack};
    stack_t theirs;
    sigaltstack(&ours, &theirs);
    try {
      if (run_.launch.cooperative) {
        std::vector<int64_t> share;
        for (int64_t b = index_; b < run_.launch.grid; b += static_cast<int64_t>(run_.idle_at.size())) {
          share.push_back(b);
        }
        run_gang(share);
      } else {
        for (size_t i; !run_.has_failed() && (i = run_.next_gang++) < run_.gangs.size();) {
          std::vector<int64_t> gang(run_.launch.cluster);
          std::iota(gang.begin(), gang.end(), run_.gangs[i]);
          run_gang(gang);
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

  // A clean piece of shared memory. A new one for ThreadSanitizer, which else would see races between blocks
  // that merely use the same memory one after the other.
  GuardedMemory& shared_memory(size_t i) {
    const int64_t bytes = (run_.launch.shared_bytes + 15) / 16 * 16;
    if (shared_.size() <= i) shared_.resize(i + 1);
    if (shared_[i] == nullptr || kAnnounced) {
      shared_[i].reset();
      shared_[i] = std::make_unique<GuardedMemory>(GuardedMemory::Kind::shared, bytes, 16);
    } else {
      shared_[i]->fill();
    }
    return *shared_[i];
  }

  void run_gang(const std::vector<int64_t>& indices) {
    const int threads = run_.launch.threads;
    pool_.grow(indices.size() * threads);
    std::vector<Fiber*> fibers;
    for (size_t i = 0; i < indices.size() * threads; ++i) {
      Fiber& fiber = pool_.fibers[i];
      prepare(fiber.context, fiber.stack, Stacks::kBytes, entry);
      fibers.push_back(&fiber);
    }
    // In a launch without clusters every block is one of its own.
    std::deque<Cluster> clusters(indices.size() / run_.launch.cluster);
    std::deque<Block> blocks;
    std::vector<Block*> running;
    for (size_t i = 0; i < indices.size(); ++i) {
      Cluster& cluster = clusters[i / run_.launch.cluster];
      Block& block = blocks.emplace_back(scheduler_, indices[i], threads, &fibers[i * threads],
                                         shared_memory(i), cluster);
      cluster.threads += threads;
      cluster.blocks.push_back(&block);
      running.push_back(&block);
    }
    while (!running.empty() && !run_.has_failed()) take_turns(running);
  }

  void take_turns(std::vector<Block*>& running) {
    const uint64_t looked_at = run_.progress;
    if (scheduler_.shuffled) {
      std::swap(running.front(), running[scheduler_.random.below(static_cast<int>(running.size()))]);
    }
    bool ran = false;
    for (Block* block : running) {
      // Blocks are not equally fast.
      const int rounds = scheduler_.shuffled ? 1 + scheduler_.random.below(4) : 1;
      for (int i = 0; i < rounds && !block->ended(); ++i) {
        if (!block->round(&run_.failed)) {
          if (block->stuck()) run_.fail("threads wait in different places; " + block->describe());
          break;
        }
        ran = true;
      }
      if (run_.has_failed()) return;
    }
    for (Block* block : running) {
      if (!block->ended()) continue;
      const std::string wrong = block->epilogue();
      if (!wrong.empty()) run_.fail(wrong);
    }
    running.erase(std::remove_if(running.begin(), running.end(), [](Block* b) { return b->ended(); }),
                  running.end());
    if (ran) {
      ++run_.progress;
    } else if (run_.deadlocked(index_, looked_at)) {
      run_.fail("deadlock: no thread of the launch can go on; " + running.front()->describe());
    } else {
      sched_yield();
    }
  }

  Run& run_;
  int index_;
  Pool& pool_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<GuardedMemory>> shared_;
};

// Turns a bad access of a kernel into a fault. Anybody else's goes to the handler that was there before.
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
  announce_release(&current_run->finished);
  change(fiber.context, scheduler->context);
  std::abort();
}

void visit_memory() {
  if (--scheduler->until_visit != 0) return;
  scheduler->draw_visit();
  suspend();
}

void check_pack(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    fault("pack at %s is not aligned to 16 bytes", describe_address(address).c_str());
  }
  visit_memory();
}

void check_shared_pack(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0 ||
      !scheduler->current->block->shared().contains(address, 16)) {
    fault("copy_async to %s", describe_address(address).c_str());
  }
}

void sync_block() { scheduler->current->block->barrier(Wait::sync_block, false); }

bool any_in_block(bool condition) {
  return scheduler->current->block->barrier(Wait::any_in_block, condition);
}

uint64_t shuffle_xor(uint64_t value, int bytes, int distance) {
  return scheduler->current->block->shuffle(value, bytes, distance);
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

void wait_for_flip(const uint32_t* word, uint32_t before) {
  Fiber& fiber = *scheduler->current;
  fiber.wait = Wait::wait_flip;
  fiber.word = word;
  fiber.before = before;
  suspend();
}

void sync_cluster() { scheduler->current->block->cluster_barrier(); }

const void* cluster_address(const void* shared, int bytes, int rank) {
  return scheduler->current->block->cluster_address(shared, bytes, rank);
}

void launch(const Launch& launch, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  static std::deque<Pool> pools;

  check(launch.grid >= 1 && launch.grid <= INT32_MAX, "grid must be in [1, 2^31)");
  check(launch.threads >= 1 && launch.threads <= 1024, "threads must be in [1, 1024]");
  check(launch.cluster >= 1 && launch.cluster <= 16, "cluster must be in [1, 16]");
  check(launch.grid % launch.cluster == 0, "grid must be a multiple of cluster");
  check(!launch.cooperative || launch.cluster == 1, "cooperative launches have no clusters");
  check(launch.shared_bytes >= 0, "shared_bytes is negative");

  const int64_t gangs = launch.grid / launch.cluster;
  const int64_t wanted = launch.workers > 0 ? launch.workers : std::thread::hardware_concurrency();
  const int workers = static_cast<int>(std::clamp<int64_t>(wanted, 1, gangs));
  const int64_t at_once = (launch.cooperative ? launch.grid : workers * launch.cluster) * launch.threads;
  check(!kAnnounced || at_once <= kMostAnnounced, "more threads at once than ThreadSanitizer can tell apart");

  Run run(launch, kernel, workers);
  run.gangs.resize(gangs);
  for (int64_t i = 0; i < gangs; ++i) run.gangs[i] = i * launch.cluster;
  Random random(launch.seed);
  for (int64_t i = gangs - 1; launch.seed != 0 && i > 0; --i) {
    std::swap(run.gangs[i], run.gangs[random.next() % (i + 1)]);
  }

  while (pools.size() < static_cast<size_t>(workers)) pools.emplace_back();
  std::deque<Worker> crew;
  for (int i = 0; i < workers; ++i) crew.emplace_back(run, i, pools[i]);
  current_run = &run;
  {
    const SignalGuard guard;
    std::vector<std::thread> others;
    for (int i = 1; i < workers; ++i) others.emplace_back([&crew, i] { crew[i].work(); });
    crew[0].work();
    for (auto& other : others) other.join();
  }
  current_run = nullptr;
  announce_acquire(&run.finished);

  size_t fibers = 0;
  for (const Pool& pool : pools) fibers += pool.fibers.size();
  // Where fibers were left standing ThreadSanitizer keeps their calls; and much memory should not stay taken.
  if (run.failed || fibers > (kAnnounced ? 2048 : 8192)) pools.clear();
  if (run.failed) throw std::runtime_error(run.error);
}

}  // namespace simt
