// The torch operators of the CPU kernels.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "common/activation.h"
#include "cpu/kernels.h"
#include "operators.h"

namespace fused_bn::cpu {
namespace {

#if defined(__SSE__)
// Gives this thread another one's rounding mode and treatment of subnormals (torch.set_flush_denormal) while
// it lives.
class FloatingPoint {
 public:
  explicit FloatingPoint(unsigned mode) : before_(_mm_getcsr()) {
    if (mode != before_) _mm_setcsr(mode);
  }
  ~FloatingPoint() { _mm_setcsr(before_); }

  static unsigned current() { return _mm_getcsr() & ~0x3fu; }  // without the exception flags

 private:
  const unsigned before_;
};
#else
struct FloatingPoint {
  explicit FloatingPoint(unsigned) {}
  static unsigned current() { return 0; }
};
#endif

// On x86 all threads use this one's mode, so that no bit depends on their number.
void parallel_for(int64_t tasks, const std::function<void(int64_t, int64_t)>& body) {
  at::parallel_for(0, tasks, 1, [&, mode = FloatingPoint::current()](int64_t begin, int64_t end) {
    const FloatingPoint same(mode);
    body(begin, end);
  });
}

Execution execution() { return {at::in_parallel_region() ? 1 : at::get_num_threads(), parallel_for}; }

// glibc's malloc returns larger blocks to the system, and page faults of 4 KiB cost more than writing the
// pages. Huge pages fault 512 times less often. Pages of smaller tensors are mapped already, and the hint
// made backward of a ResNet-50 take twice as long.
constexpr size_t kFreshBytes = size_t{32} << 20;

void hint_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (tensor.nbytes() < kFreshBytes) return;
  constexpr uintptr_t huge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + huge - 1) / huge * huge;
  const uintptr_t last = (begin + tensor.nbytes()) / huge * huge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

// Returns a dense tensor, whatever the strides of like's dimensions of size 1.
Tensor empty_output(const Tensor& like, at::MemoryFormat format) {
  Tensor output = at::empty_like(like, like.options(), format);
  hint_huge_pages(output);
  return output;
}

int64_t* counter_of(const ForwardArguments& a) {
  return a.training && present(a.num_batches_tracked) ? a.num_batches_tracked->data_ptr<int64_t>() : nullptr;
}

double momentum_of(const ForwardArguments& a) {
  if (a.momentum.has_value()) return *a.momentum;
  const int64_t* counter = counter_of(a);
  return counter == nullptr ? 0.0 : 1.0 / static_cast<double>(*counter + 1);
}

// A call of an operator would take a tenth of a small forward.
void copy_bias(const Tensor& from, const Tensor& to) {
  if (!from.is_contiguous()) {
    to.copy_(from);
  } else if (from.numel() > 0) {
    std::memcpy(to.data_ptr(), from.const_data_ptr(), from.nbytes());
  }
}

// Called last, so that a batch that was refused or failed is not counted.
void count_batch(const ForwardArguments& a) {
  if (int64_t* counter = counter_of(a)) ++*counter;
}

// If the activation takes an exponential, the reduce pass keeps g for the apply pass: half types have one
// half of each float in the output and the other one here.
Tensor empty_scratch(const BackwardArguments& a, const Tensor& x, const Totals& totals) {
  const bool half = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  const bool costly = takes_an_exponential(activation_from_name(a.activation));
  const bool both = !totals.sums.defined() && (a.output_mask[0] || a.output_mask[1]);
  return half && costly && both ? empty_output(x, x.suggest_memory_format()) : Tensor();
}

ForwardParams params_of(const ForwardArguments& a, const Tensor& x, const Tensor& residual,
                        const Tensor& output, const Tensor& statistics, const Tensor& mask) {
  auto p = forward_params<ForwardParams>(a, x, residual, output, statistics, mask);
  p.view = view_of(x);
  p.dtype = dtype_of(x);
  p.training = a.training;
  p.execution = execution();
  return p;
}

struct Cpu {
  struct Guard {
    explicit Guard(at::Device) {}
  };

  static std::tuple<Tensor, Tensor> forward(const ForwardArguments& a, const Tensor& statistics,
                                            const Tensor& bias_copy) {
    const auto format = a.input.suggest_memory_format();
    const Tensor x = a.input.contiguous(format);
    const Tensor residual = present(a.residual) ? a.residual->contiguous(format) : Tensor();
    Tensor output = empty_output(x, format);
    Tensor mask = empty_mask(a);
    const Kernels& kernels = active_kernels();  // throws before anything is written
    if (x.numel() > 0) {
      auto p = params_of(a, x, residual, output, statistics, mask);
      p.divisor = static_cast<double>(p.view.values_per_channel() - 1);
      p.momentum = momentum_of(a);
      kernels.forward(p);
    }
    if (bias_copy.defined()) copy_bias(*a.bias, bias_copy);
    count_batch(a);
    return {output, mask};
  }

  static void moments(const Tensor& input, const Tensor& result) {
    const Tensor x = input.contiguous(input.suggest_memory_format()), statistics = empty_statistics(input);
    auto p = params_of({input, kAbsent, kAbsent, kAbsent, kAbsent, kAbsent, kAbsent, true, std::nullopt,
                        /*eps=*/1.0, "none", 0.0},
                       x, {}, {}, statistics, {});
    p.moments = result.data_ptr<double>();
    active_kernels().forward(p);
  }

  static void merge(const MergeArguments& a, const Tensor& moments, const Tensor& statistics,
                    const Tensor& count) {
    auto p = merge_params<MergeParams>(a, moments, statistics, count);
    p.momentum = momentum_of(a.as_forward());
    active_kernels().merge(p);
    count_batch(a.as_forward());
  }

  static std::tuple<Tensor, Tensor> backward(const BackwardArguments& a, const Gradients& gradients,
                                             const Totals& totals) {
    const auto format = a.input.suggest_memory_format();
    const DenseBackward dense(a, format);
    const Tensor& x = dense.input;
    Tensor grad_input = a.output_mask[0] ? empty_output(x, format) : at::empty({0}, x.options());
    Tensor grad_residual = a.output_mask[1] ? empty_output(x, format) : at::empty({0}, x.options());
    if (x.numel() == 0) return {grad_input, grad_residual};
    auto p = backward_params<BackwardParams>(a, dense, grad_input, grad_residual, gradients);
    if (totals.sums.defined()) {
      p.total = totals.sums.const_data_ptr<double>();
      p.total_count = totals.count.const_data_ptr<double>();
    }
    p.view = view_of(x);
    p.dtype = dtype_of(x);
    const Tensor scratch = empty_scratch(a, x, totals);
    p.scratch = scratch.defined() ? scratch.data_ptr() : nullptr;
    p.execution = execution();
    active_kernels().backward(p);
    return {grad_input, grad_residual};
  }

  // The sums are the parameters' gradients in float64.
  static void backward_sums(const BackwardArguments& a, const Gradients& gradients, const Tensor& sums) {
    const int64_t C = a.input.size(1);
    const Tensor of_g = sums.narrow(0, 0, C), of_g_xhat = sums.narrow(0, C, C);
    BackwardArguments both = a;
    both.output_mask = {false, false, true, true, false};
    backward(both, {of_g_xhat, of_g}, {});
    if (a.output_mask[2]) gradients.weight.copy_(of_g_xhat);
    if (a.output_mask[3]) gradients.bias.copy_(of_g);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, CPU, m) { Operators<Cpu>::add_to(m); }

}  // namespace fused_bn::cpu
