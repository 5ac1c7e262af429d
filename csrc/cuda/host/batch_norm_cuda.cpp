// The torch operators of the CUDA kernels.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/host/plans.h"
#include "cuda/host/scratch.h"
#include "operators.h"

namespace fused_bn::cuda {
namespace {

// Returns the largest power of two up to 16 that divides all addresses.
int64_t alignment_of(std::initializer_list<const void*> addresses) {
  uintptr_t bits = 16;
  for (const void* address : addresses) bits |= reinterpret_cast<uintptr_t>(address);
  return static_cast<int64_t>(bits & (~bits + 1));
}

Problem problem_of(const Tensor& x, const ForwardParams& p, Part part) {
  const int64_t alignment = alignment_of({p.input, p.residual, p.output});
  const bool residual = p.residual != nullptr;
  return {view_of(x), dtype_of(x), Direction::forward, part, p.activation, residual, alignment};
}

// Does not depend on which gradients are wanted: that must not change their bits.
Problem problem_of(const Tensor& x, const BackwardParams& p, Part part) {
  const int64_t alignment = alignment_of({p.grad_output, p.input, p.residual, p.grad_input, p.grad_residual});
  const bool residual = p.mask != nullptr || p.residual != nullptr;
  return {view_of(x), dtype_of(x), Direction::backward, part, p.activation, residual, alignment};
}

template <class Params>
cudaError_t launch_by(const PreparedPlan& prepared, const Tensor& x, Params& p, bool results_wanted) {
  const Plan& plan = prepared.plan;
  p.inverse_count = 1 / static_cast<double>(view_of(x).values_per_channel());
  Tensor partials, sums;  // may be freed after the launch, because the stream orders their reuse
  if (plan.partials_bytes > 0) {
    partials = at::empty({plan.partials_bytes}, x.options().dtype(at::kByte));
    p.partials = partials.data_ptr();
  }
  if constexpr (std::is_same_v<Params, BackwardParams>) {
    if (p.sums == nullptr && !plan.resident && plan.first.grid() > 0) {
      sums = at::empty({2 * x.size(1)}, x.options().dtype(at::kDouble));
      p.sums = sums.template data_ptr<double>();
    }
  }
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto launch_with = [&](const Scratch& scratch) {
    p.scratch = scratch;
    return launch(prepared, p, results_wanted, stream);
  };
  const bool needs_scratch = plan.first.exchange == Exchange::words || plan.partials_bytes > 0;
  return needs_scratch ? with_scratch(stream, launch_with) : launch_with({});
}

template <class Params>
void run(const Problem& problem, bool streamed, const Tensor& x, Params& p, bool results_wanted = true) {
  auto plan = plan_for(problem, streamed);
  cudaError_t error = launch_by(*plan, x, p, results_wanted);
  if (error == cudaErrorCooperativeLaunchTooLarge) {  // of a resident plan, which has no partials and no sums
    cudaGetLastError();
    plan = plan_for(problem, streamed, /*refused=*/true);
    error = launch_by(*plan, x, p, results_wanted);
  }
  if (error != cudaSuccess) check_launch(error, "; the plan was " + describe(plan->plan));
}

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;

  static std::tuple<Tensor, Tensor> forward(const ForwardArguments& a, const Tensor& statistics,
                                            const Tensor& bias_copy) {
    const auto format = a.input.suggest_memory_format();
    const Tensor x = a.input.contiguous(format);
    const Tensor residual = present(a.residual) ? a.residual->contiguous(format) : Tensor();
    Tensor output = at::empty_like(x, x.options(), format);
    Tensor mask = empty_mask(a);
    const bool counts = a.training && present(a.num_batches_tracked);
    const bool cumulative = counts && !a.momentum.has_value();
    if (x.numel() == 0) {
      if (counts) Tensor(*a.num_batches_tracked).add_(1);
      if (bias_copy.defined()) bias_copy.copy_(*a.bias);
      return {output, mask};
    }
    auto p = forward_params<ForwardParams>(a, x, residual, output, statistics, mask);
    const Problem problem = problem_of(x, p, a.training ? Part::both : Part::apply);
    if (bias_copy.defined()) p.bias_copy = channel_vector(bias_copy);
    p.num_batches_tracked = counts ? a.num_batches_tracked->data_ptr<int64_t>() : nullptr;
    p.cumulative = cumulative;
    p.momentum = a.momentum.value_or(0);
    p.source = a.training ? Source::batch : present(a.running_mean) ? Source::running : Source::given;
    const double n = static_cast<double>(view_of(x).values_per_channel());
    p.unbiased = n / (n - 1);
    run(problem, false, x, p);
    if (cumulative) Tensor(*a.num_batches_tracked).add_(1);  // the kernel's blocks all read it
    return {output, mask};
  }

  static void moments(const Tensor& input, const Tensor& result) {
    const Tensor x = input.contiguous(input.suggest_memory_format());
    ForwardParams p{};
    p.input = x.const_data_ptr();
    p.moments = result.data_ptr<double>();
    run(problem_of(x, p, Part::reduce), false, x, p);
  }

  static void merge(const MergeArguments& a, const Tensor& moments, const Tensor& statistics,
                    const Tensor& count) {
    auto p = merge_params<MergeParams>(a, moments, statistics, count);
    if (present(a.num_batches_tracked)) p.num_batches_tracked = a.num_batches_tracked->data_ptr<int64_t>();
    p.cumulative = !a.momentum.has_value();
    p.momentum = a.momentum.value_or(0);
    check_launch(launch(p, c10::cuda::getCurrentCUDAStream()), "");
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
    auto p = backward_params<BackwardParams>(a, dense, grad_input, grad_residual, gradients);
    // In evaluation only the parameters' gradients need the sums.
    const bool sums_wanted = a.training ? !totals.sums.defined() : a.output_mask[2] || a.output_mask[3];
    p.sums = totals.sums.defined() ? totals.sums.data_ptr<double>() : nullptr;
    p.total_count = totals.count.defined() ? totals.count.const_data_ptr<double>() : nullptr;
    run(problem_of(x, p, sums_wanted ? Part::both : Part::apply), !a.training, x, p,
        p.grad_input != nullptr || p.grad_residual != nullptr);
    return {grad_input, grad_residual};
  }

  static void backward_sums(const BackwardArguments& a, const Gradients& gradients, const Tensor& sums) {
    const DenseBackward dense(a, a.input.suggest_memory_format());
    auto p = backward_params<BackwardParams>(a, dense, {}, {}, gradients);
    p.sums = sums.data_ptr<double>();
    run(problem_of(dense.input, p, Part::reduce), false, dense.input, p);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, CUDA, m) { Operators<Cuda>::add_to(m); }

}  // namespace fused_bn::cuda
