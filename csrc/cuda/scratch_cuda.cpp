#include "cuda/scratch.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <map>
#include <mutex>

namespace fused_bn::cuda {
namespace {

constexpr int64_t kLine = 256;
constexpr int64_t kLeastWords = 256;  // more than most devices have multiprocessors: 32 KB a stream

int64_t words_bytes(int64_t words) { return (words * kWordStride * 4 + kLine - 1) / kLine * kLine; }

at::Tensor allocate(int64_t bytes) { return at::empty({bytes}, at::device(at::kCUDA).dtype(at::kByte)); }

void zero_words(void* words, int64_t count) {
  C10_CUDA_CHECK(cudaMemsetAsync(words, 0, static_cast<size_t>(words_bytes(count)),
                                 c10::cuda::getCurrentCUDAStream().stream()));
}

// Of the current stream. Not from the caching allocator, which may at any time be allocating for a graph that
// must not hold what outlives it; kept for good, because at exit the driver may be gone first.
uint32_t* words_of_stream(int64_t count) {
  struct Words {
    void* memory = nullptr;
    int64_t count = 0;
  };
  static std::mutex mutex;
  static auto& all = *new std::map<std::pair<int, int64_t>, Words>;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const std::lock_guard lock(mutex);
  Words& words = all[{stream.device_index(), stream.id()}];
  if (words.count < count) {
    count = std::max(count, kLeastWords);
    void* larger = nullptr;
    C10_CUDA_CHECK(cudaMalloc(&larger, static_cast<size_t>(words_bytes(count))));
    zero_words(larger, count);
    words = {larger, count};  // launches that are under way may still use the smaller ones
  }
  return static_cast<uint32_t*>(words.memory);
}

}  // namespace

Scratch::Scratch(const Plan& plan, bool counts) {
  if (plan.workspace_bytes > 0) {
    partials_ = allocate(plan.workspace_bytes);
    workspace_.partials = partials_.data_ptr();
  }
  if (!counts && plan.exchange != Exchange::barrier) return;
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None) {
    workspace_.words = words_of_stream(plan.words);
    return;
  }
  words_ = allocate(words_bytes(plan.words));
  zero_words(words_.data_ptr(), plan.words);
  workspace_.words = static_cast<uint32_t*>(words_.data_ptr());
}

}  // namespace fused_bn::cuda
