#include "cuda/scratch.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>

namespace fused_bn::cuda {
namespace {

constexpr int64_t kLine = 256;

int64_t words_bytes(int64_t words) { return (words * kWordStride * 4 + kLine - 1) / kLine * kLine; }

at::Tensor allocate(int64_t bytes) { return at::empty({bytes}, at::device(at::kCUDA).dtype(at::kByte)); }

void zero_words(const at::Tensor& memory, int64_t words) {
  C10_CUDA_CHECK(cudaMemsetAsync(memory.data_ptr(), 0, static_cast<size_t>(words_bytes(words)),
                                 c10::cuda::getCurrentCUDAStream().stream()));
}

struct Buffer {
  at::Tensor words, partials;
  int64_t word_count = 0;
};

}  // namespace

Scratch::Scratch(const Plan& plan, bool counts) {
  const bool needs_words = counts || plan.exchange == Exchange::barrier;
  if (!needs_words && plan.workspace_bytes == 0) return;
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    const at::Tensor words = allocate(words_bytes(plan.words));
    if (needs_words) zero_words(words, plan.words);
    use(words, allocate(plan.workspace_bytes));
    return;
  }
  // Leaked on purpose: at exit the driver may be gone before the tensors.
  static std::mutex mutex;
  static auto& buffers = *new std::map<std::pair<int, int64_t>, Buffer>;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const std::lock_guard lock(mutex);
  Buffer& buffer = buffers[{stream.device_index(), stream.id()}];
  if (buffer.word_count < plan.words) {
    buffer.words = allocate(words_bytes(plan.words));
    zero_words(buffer.words, plan.words);
    buffer.word_count = plan.words;
  }
  if (!buffer.partials.defined() || buffer.partials.numel() < plan.workspace_bytes) {
    buffer.partials = allocate(plan.workspace_bytes);
  }
  use(buffer.words, buffer.partials);
}

void Scratch::use(const at::Tensor& words, const at::Tensor& partials) {
  words_ = words;
  partials_ = partials;
  workspace_ = {partials.data_ptr(), static_cast<uint32_t*>(words.data_ptr())};
}

}  // namespace fused_bn::cuda
