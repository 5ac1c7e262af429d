// The CPU kernels as torch operators: tensors in, params out.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "batch_norm.h"
#include "common/activation.h"
#include "cpu/kernels.h"
#include "tensors.h"

namespace fused_bn::cpu {
namespace {

Execution execution() {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return {threads, [](int64_t tasks, const std::function<void(int64_t, int64_t)>& body) {
            at::parallel_for(0, tasks, 1, body);
          }};
}

// Fresh memory of this size comes from the kernel page by page, and faulting in 4 KiB pages costs more than
// writing them; huge pages fault 512 times less often. A hint: where it is refused nothing changes.
void hint_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + huge - 1) / huge * huge;
  const uintptr_t last = (begin + tensor.nbytes()) / huge * huge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

// With the strides of a dense tensor, whatever those of a dimension of one element are in `like`.
Tensor empty_output(const Tensor& like, at::MemoryFormat format) {
  Tensor output = at::empty_like(like, like.options(), format);
  hint_huge_pages(output);
  return output;
}

// The counter's step, and the momentum that follows from it.
double count_batch(const ForwardArguments& a) {
  if (!a.training) return 0;
  int64_t batches = 0;
  if (present(a.num_batches_tracked)) batches = ++*a.num_batches_tracked->data_ptr<int64_t>();
  if (a.momentum.has_value()) return *a.momentum;
  return batches == 0 ? 0.0 : 1.0 / static_cast<double>(batches);
}

// Output and mask. The statistics are written where they are the batch's or the running ones.
std::tuple<Tensor, Tensor> run_forward(const ForwardArguments& a, const Tensor& statistics) {
  const auto format = a.input.suggest_memory_format();
  const Tensor x = a.input.contiguous(format);
  const Tensor residual = present(a.residual) ? a.residual->contiguous(format) : Tensor();
  Tensor output = empty_output(x, format);
  Tensor mask = empty_mask(a);
  // Where rows end within a byte, or there are more than are written.
  if (mask.numel() > 0 && 8 * mask.numel() != x.numel()) mask.zero_();
  const Kernels& kernels = active_kernels();  // first: it may refuse, and what is refused is not counted
  const double factor = count_batch(a);
  if (x.numel() == 0) return {output, mask};
  auto p = forward_params<ForwardParams>(a, x, residual, output, statistics, mask);
  p.view = view_of(x);
  p.dtype = dtype_of(x);
  p.momentum = factor;
  p.execution = execution();
  kernels.forward(p);
  return {output, mask};
}

std::tuple<Tensor, Tensor, Tensor> forward(const ForwardArguments& a) {
  check(a);
  const Tensor statistics = empty_statistics(a.input);
  const auto [output, mask] = run_forward(a, statistics);
  return {output, statistics, mask};
}

std::tuple<Tensor, Tensor> elementwise(const ElementwiseArguments& a) {
  check(a);
  return run_forward(a.as_forward(), a.statistics.contiguous());
}

// Room for the half of a float that does not fit a gradient of a half type: where the activation takes an
// exponential, the kernels keep the gradient behind it, for which PyTorch too has a tensor.
Tensor empty_scratch(const BackwardArguments& a, const Tensor& x) {
  const bool half = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  const bool costly = activation_from_name(a.activation) >= Activation::elu;
  return half && costly ? empty_output(x, x.suggest_memory_format()) : Tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const BackwardArguments& a) {
  check(a);
  const auto format = a.input.suggest_memory_format();
  const DenseBackward dense(a, format);
  const Tensor& x = dense.input;
  Tensor grad_input = a.output_mask[0] ? empty_output(x, format) : at::empty({0}, x.options());
  Tensor grad_residual = a.output_mask[1] ? empty_output(x, format) : at::empty({0}, x.options());
  const Gradients gradients(a);
  if (x.numel() == 0) return {grad_input, grad_residual, gradients.weight.zero_(), gradients.bias.zero_()};
  auto p = backward_params<BackwardParams>(a, dense, grad_input, grad_residual, gradients);
  p.view = view_of(x);
  p.dtype = dtype_of(x);
  const Tensor scratch = empty_scratch(a, x);
  p.scratch = scratch.defined() ? scratch.data_ptr() : nullptr;
  p.execution = execution();
  active_kernels().backward(p);
  return {grad_input, grad_residual, gradients.weight, gradients.bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, CPU, m) {
  m.impl("batch_norm_forward", OneByOne<ForwardOperator, forward>::call);
  m.impl("batch_norm_elementwise", OneByOne<ElementwiseOperator, elementwise>::call);
  m.impl("batch_norm_backward", OneByOne<BackwardOperator, backward>::call);
}

}  // namespace fused_bn::cpu
