#include "cuda/host/scratch.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/host/launch.h"

namespace fused_bn::cuda {
namespace {

constexpr size_t kWordBytes = kMostWords * sizeof(Word);
constexpr size_t kArrivalBytes = kMostGroups * sizeof(uint32_t);
constexpr size_t kBytes = kWordBytes + kArrivalBytes + 2 * sizeof(uint32_t);

constexpr int kMostForeign = 64;

// Of a stream that torch does not own: it may end at any time, and its address come back.
struct ForeignSet {
  char* memory;
  cudaEvent_t last_use;
  int64_t stream;
};

using Key = std::pair<uint64_t, int64_t>;  // the capture, 0 outside of any, and the stream

// The sets of one device. They are never freed: at exit the driver may be gone first.
struct Pool {
  std::mutex mutex;  // is not held while CUDA is called, which may be waiting for give_back()
  std::map<Key, char*> sets;
  std::vector<char*> spare;        // of graphs that are gone
  std::deque<ForeignSet> foreign;  // that are not being launched with, least recently used first
  int foreign_count = 0;
};

Pool& pool_of(c10::DeviceIndex device) {
  static auto& pools = *new std::array<Pool, kMostDevices>;
  return pools.at(static_cast<size_t>(device));
}

// Not from torch's allocator, which during a capture gives blocks that other nodes of the graph share. The
// wait is for the zeroing alone: a graph has no other way to come behind it.
char* allocate() {
  const c10::cuda::CUDAStreamCaptureModeGuard anyone_may_be_capturing(cudaStreamCaptureModeRelaxed);
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  C10_CUDA_CHECK(cudaMalloc(&memory, kBytes));
  C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  C10_CUDA_CHECK(cudaMemsetAsync(memory, 0, kBytes, stream));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  C10_CUDA_CHECK(cudaStreamDestroy(stream));
  return static_cast<char*>(memory);
}

Scratch scratch_in(char* memory) {
  char* const arrivals = memory + kWordBytes;
  char* const epoch = arrivals + kArrivalBytes;
  return {reinterpret_cast<uint32_t*>(epoch), reinterpret_cast<uint32_t*>(arrivals),
          reinterpret_cast<Word*>(memory)};
}

char* spare_or_new(Pool& pool) {
  {
    const std::lock_guard lock(pool.mutex);
    if (!pool.spare.empty()) {
      char* const memory = pool.spare.back();
      pool.spare.pop_back();
      return memory;
    }
  }
  return allocate();
}

struct Owner {
  Pool& pool;
  Key key;
};

// Called by CUDA when a graph and all that was made of it are gone and no replay runs; may not call CUDA.
void give_back(void* user_data) {
  const std::unique_ptr<Owner> owner(static_cast<Owner*>(user_data));
  const std::lock_guard lock(owner->pool.mutex);
  const auto found = owner->pool.sets.find(owner->key);
  if (found == owner->pool.sets.end()) return;
  owner->pool.spare.push_back(found->second);
  owner->pool.sets.erase(found);
}

void keep_with(cudaGraph_t graph, Pool& pool, const Key& key) {
  cudaUserObject_t object = nullptr;
  C10_CUDA_CHECK(cudaUserObjectCreate(&object, new Owner{pool, key}, give_back, /*initialRefcount=*/1,
                                      cudaUserObjectNoDestructorSync));
  C10_CUDA_CHECK(cudaGraphRetainUserObject(graph, object, /*count=*/1, cudaGraphUserObjectMove));
}

// The graph is null outside of a capture.
char* set_of(Pool& pool, const Key& key, cudaGraph_t graph) {
  {
    const std::lock_guard lock(pool.mutex);
    if (const auto found = pool.sets.find(key); found != pool.sets.end()) return found->second;
  }
  char* const memory = spare_or_new(pool);
  {
    const std::lock_guard lock(pool.mutex);
    if (const auto [at, is_new] = pool.sets.emplace(key, memory); !is_new) {  // by another thread meanwhile
      pool.spare.push_back(memory);
      return at->second;
    }
  }
  if (graph != nullptr) keep_with(graph, pool, key);
  return memory;
}

ForeignSet take_foreign(Pool& pool, int64_t stream) {
  {
    const std::lock_guard lock(pool.mutex);
    auto& sets = pool.foreign;
    auto found =
        std::find_if(sets.begin(), sets.end(), [&](const ForeignSet& set) { return set.stream == stream; });
    if (found == sets.end() && pool.foreign_count >= kMostForeign) found = sets.begin();
    if (found != sets.end()) {
      const ForeignSet set{found->memory, found->last_use, stream};
      sets.erase(found);
      return set;
    }
    ++pool.foreign_count;
  }
  ForeignSet set{spare_or_new(pool), nullptr, stream};
  C10_CUDA_CHECK(cudaEventCreateWithFlags(&set.last_use, cudaEventDisableTiming));
  return set;
}

// The event says when the last use is over, even of a stream that has ended. It is not asked of torch's
// streams, whose launches would each pay for it.
cudaError_t with_foreign_set(Pool& pool, c10::cuda::CUDAStream stream,
                             c10::function_ref<cudaError_t(const Scratch&)> launch) {
  const ForeignSet set = take_foreign(pool, stream.id());
  cudaError_t error = cudaStreamWaitEvent(stream, set.last_use, 0);
  if (error == cudaSuccess) error = launch(scratch_in(set.memory));
  const cudaError_t recorded = cudaEventRecord(set.last_use, stream);
  const std::lock_guard lock(pool.mutex);
  pool.foreign.push_back(set);
  return error == cudaSuccess ? recorded : error;
}

cudaGraph_t graph_of_capture(cudaStream_t stream, unsigned long long& id) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &id, &graph));
#else
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream, &status, &id, &graph));
#endif
  return status == cudaStreamCaptureStatusActive ? graph : nullptr;
}

// c10 numbers others' streams by their addresses.
bool is_foreign(c10::cuda::CUDAStream stream) {
  return stream.stream() != nullptr && stream.id() == reinterpret_cast<int64_t>(stream.stream());
}

}  // namespace

cudaError_t with_scratch(c10::cuda::CUDAStream stream,
                         c10::function_ref<cudaError_t(const Scratch&)> launch) {
  Pool& pool = pool_of(stream.device_index());
  unsigned long long capture = 0;
  const cudaGraph_t graph = graph_of_capture(stream, capture);
  if (graph == nullptr && is_foreign(stream)) return with_foreign_set(pool, stream, launch);
  const Key key{graph == nullptr ? 0 : capture, stream.id()};
  // What the driver refuses has not touched it, and what dies on the device takes all of its memory along.
  return launch(scratch_in(set_of(pool, key, graph)));
}

}  // namespace fused_bn::cuda
