// Chooses among the kernels of one instruction set: by dtype, path, layout and kind of store.
#pragma once

#include "cpu/columns/kernels.h"
#include "cpu/merge.h"
#include "cpu/rows/kernels.h"

namespace fused_bn::cpu {
namespace {

// An output this large leaves the caches before it is read again. With 12 MB and one thread, streaming took
// 0.55 to 0.9 of the time, even with a last-level cache of 32 MB (Zen 5).
constexpr int64_t kStreamedBytes = int64_t{8} << 20;

// A streaming store to a part of a cache line costs a read of memory, and a row's first and last lines are
// rarely whole: with it rows of 392 bytes took 1.7 times as long, rows of 784 bytes 0.8 (Zen 5, evaluation,
// 1024x14x14).
constexpr int64_t kStreamedRowBytes = 768;

inline bool has_long_rows(const View& view) {
  return view.layout == Layout::channels_first && view.S >= kShortRow;
}

// The one or two tensors that a kernel writes.
struct Outputs {
  const void* first;
  const void* second;
  bool gradients;
  bool mask;

  explicit Outputs(const ForwardParams& p)
      : first(p.output), second(nullptr), gradients(false), mask(p.mask != nullptr) {}
  explicit Outputs(const BackwardParams& p)
      : first(p.grad_input), second(p.grad_residual), gradients(true), mask(false) {
    if (first == nullptr) std::swap(first, second);
  }

  // Whether both outputs have the same offset from an aligned address.
  bool aligned_alike(uintptr_t bytes) const {
    return second == nullptr || offset(first, bytes) == offset(second, bytes);
  }
  bool aligned(uintptr_t bytes) const { return aligned_alike(bytes) && offset(first, bytes) == 0; }

 private:
  static uintptr_t offset(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes; }
};

// Whether stores bypass the caches. They need whole aligned vectors. Kernels for rows align each row
// themselves, unless there is a mask; otherwise the tensor, and a matrix' rows, must be aligned.
template <class T>
bool streams(const View& view, const Outputs& outputs) {
  constexpr int64_t bytes = kLanes<Compute<T>> * sizeof(T);
  const int64_t size = sizeof(T);
  if (view.elements() * size < kStreamedBytes) return false;
  if (has_long_rows(view)) {
    return view.S * size >= kStreamedRowBytes &&
           (outputs.mask ? outputs.aligned(bytes) : outputs.aligned_alike(bytes));
  }
  const Matrix m(view, kLanes<Compute<T>>);
  return outputs.aligned(bytes) && m.stride() * size % bytes == 0 && m.columns(0) * size % bytes == 0;
}

// Backward over columns needs five or six coefficients per column, which costs more than full vectors save if
// there are few rows: by rows 8x512x7x7 takes 0.89 of the time, but 1.10 in forward.
inline bool has_few_rows(const View& view, const Outputs& outputs) {
  return outputs.gradients && view.layout == Layout::channels_first && view.N <= 16 && view.S >= 32;
}

inline bool has_plain_input(const ForwardParams& p) { return p.residual == nullptr && p.mask == nullptr; }
inline bool has_plain_input(const BackwardParams& p) {
  return p.residual == nullptr && p.mask == nullptr && p.grad_residual == nullptr;
}

template <class Params>
using Kernel = void (*)(const Params&);

// The kernels of one element type and direction: [path][whether by rows][whether streaming].
template <class Params>
struct KernelTable {
  Kernel<Params> kernels[kPaths][2][2];
};

template <class T, class Params, int8_t... path>
constexpr KernelTable<Params> make_table(std::integer_sequence<int8_t, path...>) {
  return {{{{ColumnKernels<T, Path{path}, false>::run, ColumnKernels<T, Path{path}, kCanStream>::run},
            {RowKernels<T, Path{path}, false>::run, RowKernels<T, Path{path}, kCanStream>::run}}...}};
}
template <class T, class Params>
constexpr KernelTable<Params> kTable = make_table<T, Params>(std::make_integer_sequence<int8_t, kPaths>{});

template <class T, class Params>
void run_kernel(const Params& p) {
  const Outputs outputs(p);
  const bool streaming = kCanStream && streams<T>(p.view, outputs);
  const bool rows = has_long_rows(p.view) || (!streaming && has_few_rows(p.view, outputs));
  const Path path = path_of(p.activation, has_plain_input(p));
  kTable<T, Params>.kernels[static_cast<int>(path)][rows][streaming](p);
}

// Updates the running statistics last, when nothing can fail.
template <class T>
void run(const ForwardParams& given) {
  ForwardParams p = given;
  const bool blends = p.training && p.running_mean.data != nullptr;
  std::vector<double> moments(blends ? 2 * p.view.C : 0);
  if (blends) p.moments = moments.data();
  run_kernel<T>(p);
  if (blends) blend_moments(p);
}

template <class T>
void run(const BackwardParams& p) {
  run_kernel<T>(p);
}

#if FUSED_BN_NATIVE_BF16
// Other dtypes gain nothing from the instruction.
inline void run_any(const ForwardParams& p) {
  p.dtype == DType::bf16 ? run<BFloat16>(p) : kernels_avx512()->forward(p);
}
inline void run_any(const BackwardParams& p) {
  p.dtype == DType::bf16 ? run<BFloat16>(p) : kernels_avx512()->backward(p);
}
inline void merge_any(const MergeParams& p) { kernels_avx512()->merge(p); }
#else
template <class Params>
void run_any(const Params& p) {
  with_type(p.dtype, [&](auto* type) { run<std::remove_pointer_t<decltype(type)>>(p); });
}
inline void merge_any(const MergeParams& p) {
  p.dtype == DType::f64 ? merge_processes<double>(p) : merge_processes<float>(p);
}
#endif

inline const Kernels* compiled_kernels(const char* capability) {
  static const Kernels kernels{capability, run_any, run_any, merge_any};
  return &kernels;
}

}  // namespace
}  // namespace fused_bn::cpu
