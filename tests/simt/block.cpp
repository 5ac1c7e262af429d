#include "block.h"

#include <cinttypes>
#include <cstdio>
#include <numeric>
#include <utility>

#include "executor.h"

namespace simt {

uint64_t words_stored = 0;

namespace {

// There are no guard pages, so a kernel is stopped before the end of its stack.
constexpr size_t kStackReserve = 8 * 1024;

const char* name(Wait wait) {
  switch (wait) {
    case Wait::nothing:
      return "nothing";
    case Wait::sync_block:
      return "sync_block";
    case Wait::any_in_block:
      return "any_in_block";
    case Wait::shuffle:
      return "a shuffle";
    case Wait::wait_cluster:
      return "wait_cluster";
    case Wait::wait_barrier:
      return "wait_barrier";
    case Wait::pause:
      return "pause";
    case Wait::wait_for_primary:
      return "wait_for_primary";
    case Wait::the_end:
      return "the end";
  }
  return "";
}

uint64_t load(const uint64_t* counter) { return __atomic_load_n(counter, __ATOMIC_ACQUIRE); }

}  // namespace

void suspend() {
  Fiber& fiber = *scheduler->current;
  const char here = 0;
  if (&here < fiber.stack + kStackReserve) fault("needs a stack of more than %zu bytes", Stacks::kBytes);
  change(fiber.context, scheduler->context);
}

void wait(Wait kind, const uint64_t* counter, uint64_t seen) {
  Fiber& fiber = *scheduler->current;
  fiber.wait = kind;
  fiber.counter = counter;
  fiber.seen = seen;
  suspend();
}

bool Fiber::can_run() const {
  return wait == Wait::nothing || (wait != Wait::the_end && load(counter) != seen);
}

void Scheduler::draw_visit() { until_visit = shuffled ? 1 + random.below(200) : UINT64_MAX; }

std::string Cluster::deliver(size_t i) {
  std::swap(pushes[i], pushes.back());
  const Push push = pushes.back();
  pushes.pop_back();
  const std::string who = "block " + std::to_string(push.receiver->index_);
  if (push.receiver->ended()) return who + " has ended before what was pushed to it arrived";
  PushBarrier& barrier = push.receiver->push_barrier_;
  barrier.expected -= sizeof push.value;
  if (barrier.expected < 0) return "more bytes are pushed to " + who + " than its barrier expects";
  push.write(push.to, push.value);
  announce_release(&barrier.announced);
  if (barrier.expected == 0) barrier.complete = 1;
  return "";
}

Block::Block(Scheduler& scheduler, Grid& grid, int64_t index, Fiber* const* fibers, GuardedMemory& shared,
             Cluster& cluster)
    : scheduler_(scheduler),
      grid_(grid),
      index_(index),
      threads_(grid.launch.threads),
      fibers_(fibers),
      shared_(shared),
      cluster_(cluster),
      warps_((threads_ + 31) / 32) {
  std::vector<int> order(threads_);
  std::iota(order.begin(), order.end(), 0);
  for (int i = threads_ - 1; scheduler.shuffled && i > 0; --i) {
    std::swap(order[i], order[scheduler.random.below(i + 1)]);
  }
  for (int i = 0; i < threads_; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.block = this;
    fiber.thread = order[i];
    fiber.wait = Wait::nothing;
    fiber.copies.clear();
    fiber.copied = 0;
    fiber.arrived = false;
    fiber.cluster_barriers = 0;
    fiber.words_seen = load(&words_stored);
  }
  announce_release(&begun_);
}

bool Block::round(const bool* failed) {
  // Each round visits all fibers in another order: from a random one on, with a stride coprime to their
  // number.
  int i = 0, step = 1;
  if (scheduler_.shuffled) {
    i = scheduler_.random.below(threads_);
    do {
      step = 1 + scheduler_.random.below(threads_);
    } while (std::gcd(step, threads_) != 1);
  }
  here.block = index_;
  here.grid = grid_.launch.grid;
  here.shared = shared_.data();
  bool ran = false;
  for (int k = 0; k < threads_; ++k) {
    Fiber& fiber = *fibers_[i];
    i += step;
    if (i >= threads_) i -= threads_;
    if (!fiber.can_run()) continue;
    ran = true;
    fiber.wait = Wait::nothing;
    here.thread = fiber.thread;
    scheduler_.current = &fiber;
    change(scheduler_.context, fiber.context);
    scheduler_.current = nullptr;
    if (still_ > 0 || __atomic_load_n(failed, __ATOMIC_RELAXED)) break;
  }
  return ran;
}

int Block::count(Wait kind) const {
  int n = 0;
  for (int i = 0; i < threads_; ++i) n += fibers_[i]->wait == kind;
  return n;
}

std::string Block::describe() const {
  std::string text = "block " + std::to_string(index_) + ":";
  for (const Wait kind : {Wait::sync_block, Wait::any_in_block, Wait::shuffle, Wait::wait_cluster,
                          Wait::wait_barrier, Wait::pause, Wait::wait_for_primary, Wait::the_end}) {
    int first = threads_;
    for (int i = 0; i < threads_; ++i) {
      if (fibers_[i]->wait == kind && fibers_[i]->thread < first) first = fibers_[i]->thread;
    }
    if (first == threads_) continue;
    text += text.back() == ':' ? " " : ", ";
    text += std::to_string(count(kind)) + (count(kind) == 1 ? " thread" : " threads") + " at " + name(kind) +
            " (thread " + std::to_string(first) + (count(kind) == 1 ? ")" : " is the first)");
  }
  const int64_t expected = push_barrier_.expected;
  if (expected > 0) text += ", its barrier expects " + std::to_string(expected) + " bytes";
  return text;
}

std::string Block::epilogue() {
  const std::string who = "block " + std::to_string(index_);
  if (!launched_dependents_) __atomic_sub_fetch(&grid_.quiet, 1, __ATOMIC_RELEASE);
  __atomic_sub_fetch(&grid_.left, 1, __ATOMIC_RELEASE);
  if (!shared_.intact()) return who + " wrote beside its shared memory";
  const int64_t expected = push_barrier_.expected;
  if (expected > 0) return who + " ended while its barrier expects " + std::to_string(expected) + " bytes";
  if (grid_.primary != nullptr && !waited_for_primary_) return who + " ended without wait_for_primary";
  return "";
}

void Block::begin_thread() { announce_acquire(&begun_); }

void Block::end_thread() {
  const Fiber& fiber = *scheduler_.current;
  if (!fiber.copies.empty()) fault("ended with %zu copies that nobody waited for", fiber.copies.size());
  if (fiber.arrived) fault("ended without wait_cluster after arrive_cluster");
  announce_release(&grid_.announced);
  ++ended_;
}

void Block::meet(Barrier& barrier, int threads, Wait kind) {
  const uint64_t generation = barrier.generation;
  char* const announced = &barrier.announced[generation & 1];
  announce_release(announced);
  barrier.arrive(threads);
  if (barrier.generation == generation) wait(kind, &barrier.generation, generation);
  announce_acquire(announced);
}

bool Block::barrier(Wait kind, bool condition) {
  if (barrier_.arrived == 0) barrier_kind_ = kind;
  if (barrier_kind_ != kind) {
    fault("waits at %s, others of its block at %s", name(kind), name(barrier_kind_));
  }
  bool& any = any_[barrier_.generation & 1];
  if (barrier_.arrived == 0) any = false;
  any |= condition;
  meet(barrier_, threads_, kind);
  return any;
}

const uint64_t* Block::exchange(const char* what, uint64_t value, int bytes, int distance) {
  const int thread = scheduler_.current->thread;
  if (thread / 32 == threads_ / 32) fault("%s in a warp of %d threads", what, threads_ % 32);
  if (distance < 0 || distance >= 32) fault("%s by a distance of %d", what, distance);
  Warp& warp = warps_[thread / 32];
  if (warp.barrier.arrived == 0) {
    warp.what = what;
    warp.distance = distance;
    warp.bytes = bytes;
  } else if (warp.what != what || warp.distance != distance || warp.bytes != bytes) {
    fault("%s of %d bytes by %d, others of its warp %s of %d bytes by %d", what, bytes, distance, warp.what,
          warp.bytes, warp.distance);
  }
  uint64_t* const values = warp.values[warp.barrier.generation & 1];
  values[thread % 32] = value;
  meet(warp.barrier, 32, Wait::shuffle);
  return values;
}

void Block::init_barrier(const uint64_t* barrier, uint32_t bytes) {
  check_shared("init_barrier", barrier, sizeof *barrier);
  if (push_barrier_.place != nullptr) fault("init_barrier a second time");
  const Fiber& fiber = *scheduler_.current;
  push_barrier_.place = barrier;
  push_barrier_.complete = bytes == 0;
  push_barrier_.expected = bytes;
  push_barrier_.cluster_barriers = fiber.cluster_barriers + fiber.arrived;
}

// Relaxed, so that ThreadSanitizer sees no synchronisation.
void Block::arrive_cluster() {
  Fiber& fiber = *scheduler_.current;
  if (fiber.arrived) fault("arrive_cluster a second time without wait_cluster");
  fiber.arrived = true;
  fiber.cluster_barriers = cluster_.barrier.generation;
  cluster_.barrier.arrive(cluster_.threads);
}

void Block::wait_cluster() {
  Fiber& fiber = *scheduler_.current;
  if (!fiber.arrived) fault("wait_cluster without arrive_cluster");
  const uint64_t* const passed = &cluster_.barrier.generation;
  if (*passed == fiber.cluster_barriers) wait(Wait::wait_cluster, passed, *passed);
  fiber.arrived = false;
  ++fiber.cluster_barriers;
}

void Block::push(const Bytes16& value, void* to, const uint64_t* barrier, int rank, Write write) {
  check_shared("push", to, sizeof value);
  if (rank < 0 || rank >= static_cast<int>(cluster_.blocks.size())) {
    fault("push to rank %d in a cluster of %zu blocks", rank, cluster_.blocks.size());
  }
  Block& other = *cluster_.blocks[rank];
  if (other.ended()) fault("push to block %" PRId64 ", which has ended", other.index_);
  const Fiber& fiber = *scheduler_.current;
  const PushBarrier& its = other.push_barrier_;
  if (fiber.arrived || its.place != there(barrier, other) || fiber.cluster_barriers <= its.cluster_barriers) {
    fault("push to block %" PRId64 ", whose barrier may not be initialised: no wait_cluster before",
          other.index_);
  }
  cluster_.pushes.push_back({value, there(to, other), &other, write});
  if (cluster_.pushes.size() < Cluster::kMostPushes) return;
  const std::string wrong = cluster_.deliver(0);
  if (!wrong.empty()) fault("%s", wrong.c_str());
}

void Block::wait_barrier(const uint64_t* barrier) {
  if (push_barrier_.place != barrier) {
    fault("wait_barrier of one that is not initialised, %s", describe_address(barrier).c_str());
  }
  if (push_barrier_.complete == 0) wait(Wait::wait_barrier, &push_barrier_.complete, 0);
  announce_acquire(&push_barrier_.announced);
}

void Block::launch_dependents() {
  if (launched_dependents_) return;
  launched_dependents_ = true;
  __atomic_sub_fetch(&grid_.quiet, 1, __ATOMIC_RELEASE);
  if (!grid_.has_dependent || !scheduler_.shuffled) return;
  still_ = 1 + scheduler_.random.below(64);
  suspend();
}

void Block::wait_for_primary() {
  waited_for_primary_ = true;
  if (grid_.primary == nullptr) return;
  const uint64_t* const left = &grid_.primary->left;
  for (uint64_t now; (now = load(left)) != 0;) wait(Wait::wait_for_primary, left, now);
  announce_acquire(&grid_.primary->announced);
}

}  // namespace simt
