#include "cuda/host/scratch.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace fused_bn::cuda {
namespace {

struct Memory {
  Word words[kMostWords];
  uint32_t arrivals[kMostGroups];
  uint32_t epoch[2];
};

using Key = std::tuple<c10::DeviceIndex, uint64_t, int64_t>;  // device; capture, 0 if none; stream

// One set for each stream of torch and each live graph. Never freed, because the driver may be gone at exit.
struct Pool {
  std::mutex mutex;  // not held during calls of CUDA, which may be waiting for give_back()
  std::map<Key, void*> sets;
  std::multimap<c10::DeviceIndex, void*> spare;  // from destroyed graphs
};
auto& pool = *new Pool;

// Does not use torch's allocator, which during a capture returns blocks that other nodes of the graph share.
// Waits for the zeroing, because a graph cannot be ordered after it.
void* allocate() {
  const c10::cuda::CUDAStreamCaptureModeGuard anyone_may_be_capturing(cudaStreamCaptureModeRelaxed);
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  C10_CUDA_CHECK(cudaMalloc(&memory, sizeof(Memory)));
  C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  C10_CUDA_CHECK(cudaMemsetAsync(memory, 0, sizeof(Memory), stream));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  C10_CUDA_CHECK(cudaStreamDestroy(stream));
  return memory;
}

Scratch scratch_in(void* memory) {
  auto& all = *static_cast<Memory*>(memory);
  return {all.epoch, all.arrivals, all.words};
}

// CUDA calls this when a graph and its executable graphs are destroyed and no replay runs; may not call CUDA.
void give_back(void* user_data) {
  const std::unique_ptr<Key> key(static_cast<Key*>(user_data));
  const std::lock_guard lock(pool.mutex);
  const auto found = pool.sets.find(*key);
  if (found == pool.sets.end()) return;
  pool.spare.emplace(std::get<c10::DeviceIndex>(*key), found->second);
  pool.sets.erase(found);
}

// The graph is null outside a capture.
void* set_of(const Key& key, cudaGraph_t graph) {
  const auto device = std::get<c10::DeviceIndex>(key);
  void* memory = nullptr;
  {
    const std::lock_guard lock(pool.mutex);
    if (const auto found = pool.sets.find(key); found != pool.sets.end()) return found->second;
    if (const auto node = pool.spare.extract(device)) memory = node.mapped();
  }
  if (memory == nullptr) memory = allocate();
  if (graph != nullptr) {
    cudaUserObject_t object = nullptr;
    C10_CUDA_CHECK(cudaUserObjectCreate(&object, new Key(key), give_back, /*initialRefcount=*/1,
                                        cudaUserObjectNoDestructorSync));
    C10_CUDA_CHECK(cudaGraphRetainUserObject(graph, object, /*count=*/1, cudaGraphUserObjectMove));
  }
  const std::lock_guard lock(pool.mutex);
  const auto [at, is_new] = pool.sets.emplace(key, memory);
  if (!is_new) pool.spare.emplace(device, memory);  // another thread added one meanwhile
  return at->second;
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

}  // namespace

cudaError_t with_scratch(c10::cuda::CUDAStream stream,
                         c10::function_ref<cudaError_t(const Scratch&)> launch) {
  unsigned long long capture = 0;
  const cudaGraph_t graph = graph_of_capture(stream, capture);
  // A stream that is not torch's may be destroyed and its address used again, so that its scratch cannot be
  // kept. c10 uses the address of such a stream as its id.
  const bool foreign =
      stream.stream() != nullptr && stream.id() == reinterpret_cast<int64_t>(stream.stream());
  if (graph == nullptr && foreign) {
    const c10::DataPtr memory = c10::cuda::CUDACachingAllocator::get()->allocate(sizeof(Memory));
    C10_CUDA_CHECK(cudaMemsetAsync(memory.get(), 0, sizeof(Memory), stream));
    return launch(scratch_in(memory.get()));
  }
  const Key key{stream.device_index(), graph == nullptr ? 0 : capture, stream.id()};
  // A refused launch has not touched the scratch, and a fault on the device destroys all of its memory.
  return launch(scratch_in(set_of(key, graph)));
}

}  // namespace fused_bn::cuda
