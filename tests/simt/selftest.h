// Small kernels that show what the executor does and what it catches.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

#include "cuda/primitives.cuh"
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

// A barrier across blocks as the kernels build it: the highest bit flips once all have arrived.
inline void group_barrier(uint32_t* word, int64_t group) {
  sync_block();
  if (thread_index() == 0) {
    const uint32_t step = block_index() == 0 ? 0x80000000u - static_cast<uint32_t>(group - 1) : 1;
    wait_flip(word, add_release(word, step));
  }
  sync_block();
}

}  // namespace selftest
