// The CPU kernels as torch operators: tensors in, params out.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "batch_norm.h"
#include "cpu/kernels.h"
#include "tensors.h"

namespace fused_bn::cpu {
namespace {

using at::Tensor;

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

std::tuple<Tensor, Tensor> forward(const Tensor& input, const OptionalTensor& weight,
                                   const OptionalTensor& bias, const OptionalTensor& running_mean,
                                   const OptionalTensor& running_var,
                                   const OptionalTensor& num_batches_tracked, bool training,
                                   std::optional<double> momentum, double eps, std::string_view activation) {
  const ForwardArguments arguments{input,    weight,   bias, running_mean, running_var, num_batches_tracked,
                                   training, momentum, eps,  activation};
  check(arguments);
  const auto format = input.suggest_memory_format();
  const Tensor x = input.contiguous(format);
  Tensor output = empty_output(x, format);
  Tensor statistics = at::empty({3, x.size(1)}, x.options().dtype(statistics_type(x)));
  const Kernels& kernels = active_kernels();  // first: it may refuse, and what is refused is not counted
  const double factor = count_batch(arguments);
  if (x.numel() == 0) return {output, statistics.zero_()};
  kernels.forward({view_of(x), dtype_of(x), x.const_data_ptr(), output.data_ptr(), channel_vector(weight),
                   channel_vector(bias), channel_vector(running_mean), channel_vector(running_var),
                   statistics.data_ptr(), training, factor, eps, activation_from_name(activation),
                   execution()});
  return {output, statistics};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                            const OptionalTensor& weight, const OptionalTensor& bias,
                                            const Tensor& statistics, bool training,
                                            std::string_view activation, std::array<bool, 3> output_mask) {
  const BackwardArguments arguments{grad_output, input, weight, bias, statistics, training, activation};
  check(arguments);
  const auto format = input.suggest_memory_format();
  const Tensor x = input.contiguous(format), dy = grad_output.contiguous(format);
  const Tensor saved = statistics.contiguous();
  Tensor grad_input = output_mask[0] ? empty_output(x, format) : at::empty({0}, x.options());
  const Gradients gradients(arguments, output_mask);
  if (x.numel() == 0) return {grad_input, gradients.weight.zero_(), gradients.bias.zero_()};
  active_kernels().backward({view_of(x), dtype_of(x), dy.const_data_ptr(), x.const_data_ptr(),
                             channel_vector(weight), channel_vector(bias), saved.const_data_ptr(),
                             output_mask[0] ? grad_input.data_ptr() : nullptr,
                             output_mask[1] ? channel_vector(gradients.weight) : ChannelVector{},
                             output_mask[2] ? channel_vector(gradients.bias) : ChannelVector{}, training,
                             activation_from_name(activation), execution()});
  return {grad_input, gradients.weight, gradients.bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, CPU, m) {
  m.impl("batch_norm_forward", forward);
  m.impl("batch_norm_backward", backward);
}

}  // namespace fused_bn::cpu
