// The CUDA kernels as torch operators: tensors in, plans and launches out.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#include "cuda/plans.h"
#include "cuda/scratch.h"
#include "operators.h"

namespace fused_bn::cuda {
namespace {

// The largest power of two up to 16 that divides all addresses.
int64_t alignment_of(std::initializer_list<const void*> addresses) {
  uintptr_t bits = 16;
  for (const void* address : addresses) bits |= reinterpret_cast<uintptr_t>(address);
  return static_cast<int64_t>(bits & (~bits + 1));
}

void check_launch(cudaError_t error, const std::string& how) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not find it
  TORCH_CHECK(false, "fused_bn: the launch failed: ", cudaGetErrorString(error), how);
}

template <class Params>
void run(const Plan& plan, DType dtype, const Params& params) {
  const cudaError_t error = launch(plan, dtype, params, c10::cuda::getCurrentCUDAStream().stream());
  if (error != cudaSuccess) check_launch(error, "; the plan was\n" + describe(plan));
}

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;

  static std::tuple<Tensor, Tensor> forward(const ForwardArguments& a, const Tensor& statistics,
                                            Result result) {
    const auto format = a.input.suggest_memory_format();
    const Tensor x = a.input.contiguous(format);
    const Tensor residual = present(a.residual) ? a.residual->contiguous(format) : Tensor();
    Tensor output = result == Result::moments ? Tensor() : at::empty_like(x, x.options(), format);
    Tensor mask = empty_mask(a);
    const bool counts = a.training && present(a.num_batches_tracked);
    if (x.numel() == 0) {
      if (counts) Tensor(*a.num_batches_tracked).add_(1);
      return {output, mask};
    }
    auto p = forward_params<ForwardParams>(a, x, residual, output, statistics, mask);
    Tensor scratch_statistics;  // the kernel writes some in any case
    if (!a.training && !present(a.running_mean)) {
      scratch_statistics = at::empty_like(statistics);
      p.known = p.statistics;
      p.statistics = scratch_statistics.data_ptr();
    }
    p.num_batches_tracked = counts ? a.num_batches_tracked->data_ptr<int64_t>() : nullptr;
    p.cumulative = a.training && !a.momentum.has_value();
    p.momentum = a.momentum.value_or(0);
    const View view = view_of(x);
    const double n = static_cast<double>(view.values_per_channel());
    p.inverse_count = 1 / n;
    p.unbiased = result == Result::moments ? n : n / (n - 1);
    const Direction direction = a.training ? Direction::forward : Direction::evaluation;
    const Plan plan = plan_for({view, dtype_of(x), direction, p.activation, residual.defined(),
                                alignment_of({p.input, p.residual, p.output})});
    const int64_t written = mask_bytes(plan.geometry);
    if (mask.numel() > written) mask.narrow(0, written, mask.numel() - written).zero_();
    const Scratch scratch(plan, p.cumulative);
    p.workspace = scratch.workspace();
    run(plan, dtype_of(x), p);
    return {output, mask};
  }

  static void merge(const MergeArguments& a, const Tensor& moments, const Tensor& statistics,
                    const Tensor& count) {
    auto p = merge_params<MergeParams>(a, moments, statistics, count);
    if (present(a.num_batches_tracked)) p.num_batches_tracked = a.num_batches_tracked->data_ptr<int64_t>();
    p.cumulative = !a.momentum.has_value();
    p.momentum = a.momentum.value_or(0);
    check_launch(launch(p, c10::cuda::getCurrentCUDAStream().stream()), "");
  }

  static std::tuple<Tensor, Tensor> backward(const BackwardArguments& a, const Gradients& gradients,
                                             const Totals& totals) {
    const auto format = a.input.suggest_memory_format();
    const DenseBackward dense(a, format);
    const Tensor& x = dense.input;
    const auto empty = [&](bool wanted) {
      return wanted ? at::empty_like(x, x.options(), format) : at::empty({0}, x.options());
    };
    Tensor grad_input = empty(a.output_mask[0]), grad_residual = empty(a.output_mask[1]);
    if (x.numel() == 0) return {grad_input, grad_residual};
    auto p = backward_params<BackwardParams>(a, dense, grad_input, grad_residual, gradients, totals);
    const View view = view_of(x);
    p.inverse_count = 1 / static_cast<double>(view.values_per_channel());
    const Problem problem{view,
                          dtype_of(x),
                          Direction::backward,
                          p.activation,
                          dense.mask.defined() || dense.residual.defined() || a.output_mask[1],
                          alignment_of({p.grad_output, p.input, p.residual, p.grad_input, p.grad_residual})};
    const Plan gathering = plan_for(problem);
    const Plan plan = p.total == nullptr ? gathering : without_gathering(problem, gathering);
    const Scratch scratch(plan, false);
    p.workspace = scratch.workspace();
    run(plan, dtype_of(x), p);
    return {grad_input, grad_residual};
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, CUDA, m) { Operators<Cuda>::add_to(m); }

}  // namespace fused_bn::cuda
