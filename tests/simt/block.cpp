#include "block.h"

#include <cinttypes>
#include <cstdio>
#include <numeric>
#include <utility>

#include "executor.h"

namespace simt {
namespace {

// There is no guard page, so a kernel is stopped before the end of its stack.
constexpr size_t kStackReserve = 8 * 1024;

const char* name(Wait wait) {
  switch (wait) {
    case Wait::nothing:
      return "nothing";
    case Wait::sync_block:
      return "sync_block";
    case Wait::any_in_block:
      return "any_in_block";
    case Wait::shuffle_xor:
      return "shuffle_xor";
    case Wait::sync_cluster:
      return "sync_cluster";
    case Wait::wait_flip:
      return "wait_flip";
    case Wait::the_end:
      return "the end";
  }
  return "";
}

}  // namespace

void suspend() {
  Fiber& fiber = *scheduler->current;
  const char here = 0;
  if (&here < fiber.stack + kStackReserve) fault("needs a stack of more than %zu bytes", Stacks::kBytes);
  change(fiber.context, scheduler->context);
}

bool Fiber::can_run() const {
  switch (wait) {
    case Wait::nothing:
      return true;
    case Wait::the_end:
      return false;
    case Wait::wait_flip:
      return ((__atomic_load_n(word, __ATOMIC_RELAXED) ^ before) & 0x80000000u) != 0;
    default:
      return *generation != seen;
  }
}

void Scheduler::draw_visit() { until_visit = shuffled ? 1 + random.below(200) : UINT64_MAX; }

Block::Block(Scheduler& scheduler, int64_t index, int threads, Fiber* const* fibers, GuardedMemory& shared,
             Cluster& cluster)
    : scheduler_(scheduler),
      index_(index),
      threads_(threads),
      fibers_(fibers),
      shared_(shared),
      cluster_(cluster),
      warps_((threads + 31) / 32) {
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  for (int i = threads - 1; scheduler.shuffled && i > 0; --i) {
    std::swap(order[i], order[scheduler.random.below(i + 1)]);
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.block = this;
    fiber.thread = order[i];
    fiber.wait = Wait::nothing;
    fiber.copies.clear();
    fiber.copied = 0;
  }
  announce_release(&begun_);
}

bool Block::round(const bool* failed) {
  // Another walk over the fibers in each round: from anywhere, by a step that meets all of them.
  int i = 0, step = 1;
  if (scheduler_.shuffled) {
    i = scheduler_.random.below(threads_);
    do {
      step = 1 + scheduler_.random.below(threads_);
    } while (std::gcd(step, threads_) != 1);
  }
  here.block = index_;
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
    if (__atomic_load_n(failed, __ATOMIC_RELAXED)) break;
  }
  return ran;
}

int Block::count(Wait kind) const {
  int n = 0;
  for (int i = 0; i < threads_; ++i) n += fibers_[i]->wait == kind;
  return n;
}

bool Block::stuck() const {
  // Another block can flip a word, and can arrive at the cluster's barrier if all threads of this one have.
  return count(Wait::wait_flip) == 0 && count(Wait::sync_cluster) < threads_;
}

std::string Block::describe() const {
  std::string text = "block " + std::to_string(index_) + ":";
  for (const Wait kind : {Wait::sync_block, Wait::any_in_block, Wait::shuffle_xor, Wait::sync_cluster,
                          Wait::wait_flip, Wait::the_end}) {
    int first = threads_;
    for (int i = 0; i < threads_; ++i) {
      if (fibers_[i]->wait == kind && fibers_[i]->thread < first) first = fibers_[i]->thread;
    }
    if (first == threads_) continue;
    text += text.back() == ':' ? " " : ", ";
    text += std::to_string(count(kind)) + (count(kind) == 1 ? " thread" : " threads") + " at " + name(kind) +
            " (thread " + std::to_string(first) + (count(kind) == 1 ? ")" : " is the first)");
  }
  return text;
}

std::string Block::epilogue() const {
  const std::string who = "block " + std::to_string(index_);
  if (!shared_.intact()) return who + " wrote beside its shared memory";
  if (read_by_others_at_ == static_cast<int64_t>(cluster_.barrier.generation)) {
    return who + " ended without a sync_cluster after others read its shared memory";
  }
  return "";
}

void Block::begin_thread() { announce_acquire(&begun_); }

void Block::end_thread() {
  const Fiber& fiber = *scheduler_.current;
  if (!fiber.copies.empty()) fault("ended with %zu copies that nobody waited for", fiber.copies.size());
  ++ended_;
}

void Block::wait(Wait kind, const uint64_t* generation) {
  Fiber& fiber = *scheduler_.current;
  fiber.wait = kind;
  fiber.generation = generation;
  fiber.seen = *generation;
  suspend();
}

bool Block::barrier(Wait kind, bool condition) {
  if (barrier_.arrived == 0) barrier_kind_ = kind;
  if (barrier_kind_ != kind) {
    fault("waits at %s, others of its block at %s", name(kind), name(barrier_kind_));
  }
  char* const sync = barrier_.sync();
  bool& any = any_[barrier_.generation & 1];
  any |= condition;
  announce_release(sync);
  if (++barrier_.arrived == threads_) {
    barrier_.arrived = 0;
    ++barrier_.generation;
    any_[barrier_.generation & 1] = false;
  } else {
    wait(kind, &barrier_.generation);
  }
  announce_acquire(sync);
  return any;
}

uint64_t Block::shuffle(uint64_t value, int bytes, int distance) {
  const int thread = scheduler_.current->thread;
  const int lane = thread % 32;
  if (thread / 32 == threads_ / 32) fault("shuffle_xor in a warp of %d threads", threads_ % 32);
  if (distance < 0 || distance >= 32) fault("shuffle_xor by a distance of %d", distance);
  Warp& warp = warps_[thread / 32];
  if (warp.barrier.arrived == 0) {
    warp.distance = distance;
    warp.bytes = bytes;
  } else if (warp.distance != distance || warp.bytes != bytes) {
    fault("shuffle_xor of %d bytes by %d, others of its warp of %d bytes by %d", bytes, distance, warp.bytes,
          warp.distance);
  }
  char* const sync = warp.barrier.sync();
  uint64_t* const values = warp.values[warp.barrier.generation & 1];
  values[lane] = value;
  announce_release(sync);
  if (++warp.barrier.arrived == 32) {
    warp.barrier.arrived = 0;
    ++warp.barrier.generation;
  } else {
    wait(Wait::shuffle_xor, &warp.barrier.generation);
  }
  announce_acquire(sync);
  return values[lane ^ distance];
}

void Block::cluster_barrier() {
  Barrier& barrier = cluster_.barrier;
  char* const sync = barrier.sync();
  announce_release(sync);
  if (++barrier.arrived == cluster_.threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    wait(Wait::sync_cluster, &barrier.generation);
  }
  announce_acquire(sync);
}

const void* Block::cluster_address(const void* shared, int bytes, int rank) {
  if (rank < 0 || rank >= static_cast<int>(cluster_.blocks.size())) {
    fault("load_from_cluster of rank %d in a cluster of %zu blocks", rank, cluster_.blocks.size());
  }
  if (!shared_.contains(shared, bytes)) {
    fault("load_from_cluster at %s", describe_address(shared).c_str());
  }
  Block& other = *cluster_.blocks[rank];
  if (other.ended()) {
    fault("load_from_cluster of block %" PRId64 ", which has ended", other.index_);
  }
  if (&other != this) other.read_by_others_at_ = static_cast<int64_t>(cluster_.barrier.generation);
  return other.shared_.data() + (static_cast<const char*>(shared) - shared_.data());
}

}  // namespace simt
