// Small kernels that test what the executor runs and catches.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

#include "cuda/kernels/primitives.cuh"
#include "executor.h"
#include "guarded.h"

namespace selftest {

using namespace fused_bn::cuda;
using simt::GuardedMemory;
using simt::Launch;

using Cases = std::map<std::string, void (*)()>;
extern const Cases kWorks, kFaults, kRaces;

inline void expect(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string("expected ") + what);
}

inline float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }

inline Launch blocks(int64_t grid, int threads, int64_t shared_bytes = 0) {
  Launch launch;
  launch.grid = grid;
  launch.threads = threads;
  launch.shared_bytes = shared_bytes;
  return launch;
}
inline Launch cooperative(int64_t grid, int threads) {
  Launch launch = blocks(grid, threads);
  launch.cooperative = true;
  return launch;
}
inline Launch cluster(int64_t grid, int size, int threads, int64_t shared_bytes = 0) {
  Launch launch = blocks(grid, threads, shared_bytes);
  launch.cluster = size;
  return launch;
}

// Waits for the value that block `from` stores.
inline float await_word(const Word* words, int from, uint32_t epoch) {
  for (;;) {
    const Word word = load_word(words + from);
    if (word.epoch == epoch) return word.values[0];
    pause(words + from);
  }
}

inline uint64_t* barrier_at(int byte) { return reinterpret_cast<uint64_t*>(shared_memory() + byte); }

// Every block of a cluster of two pushes `packs` packs to the other one, whose barrier expects `bytes`.
inline void push_to_the_other(int packs, uint32_t bytes) {
  if (thread_index() == 0) init_barrier(barrier_at(0), bytes);
  arrive_cluster();
  wait_cluster();
  auto* const place = reinterpret_cast<Pack*>(shared_memory() + 16) + thread_index();
  if (thread_index() < packs) push(Pack{{1, 2, 3, 4}}, place, barrier_at(0), 1 - block_index() % 2);
}

}  // namespace selftest
