// Chooses among the kernels of one instruction set by dtype, layout, path and kind of store.
#pragma once

#include "cpu/matrix_kernels.h"
#include "cpu/merge.h"
#include "cpu/rows.h"

namespace fused_bn::cpu {
namespace {

// Together with what is read, an output this large leaves the caches before anything reads it again: of 12 MB
// streaming took 0.55 to 0.9 of the time with one thread, even where the last cache holds 32 MB (Zen 5).
constexpr int64_t kStreamedBytes = int64_t{8} << 20;

// A row's first and last cache lines are rarely whole, which costs a store past the caches a read of memory:
// rows of 392 bytes took 1.7 times as long so, rows of 784 bytes 0.8 times (Zen 5, evaluation of 1024x14x14).
constexpr int64_t kStreamedRowBytes = 768;

inline bool has_long_rows(const View& view) {
  return view.layout == Layout::channels_first && view.S >= kShortRow;
}

// What a kernel writes: one tensor or two of the view's shape, of backward gradients, and whether a mask.
struct Written {
  const void* tensor;
  const void* other;
  bool gradients;
  bool mask;

  explicit Written(const ForwardParams& p)
      : tensor(p.output), other(nullptr), gradients(false), mask(p.mask != nullptr) {}
  explicit Written(const BackwardParams& p)
      : tensor(p.grad_input), other(p.grad_residual), gradients(true), mask(false) {
    if (tensor == nullptr) std::swap(tensor, other);
  }

  // Both alike, so that where one is aligned the other is.
  bool aligned_alike(uintptr_t bytes) const {
    return other == nullptr || offset(tensor, bytes) == offset(other, bytes);
  }
  bool aligned(uintptr_t bytes) const { return aligned_alike(bytes) && offset(tensor, bytes) == 0; }

 private:
  static uintptr_t offset(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes; }
};

// Stores past the caches take whole aligned vectors: long rows align themselves, the tensor must be aligned
// where bits of a mask are to be so too; a matrix must be aligned.
template <class T>
bool streams(const View& view, const Written& written) {
  constexpr int64_t bytes = kLanes<Compute<T>> * sizeof(T);
  const int64_t size = sizeof(T);
  if (view.elements() * size < kStreamedBytes) return false;
  if (has_long_rows(view)) {
    return view.S * size >= kStreamedRowBytes &&
           (written.mask ? written.aligned(bytes) : written.aligned_alike(bytes));
  }
  const Matrix m(view, kLanes<Compute<T>>);
  return written.aligned(bytes) && m.stride() * size % bytes == 0 && m.columns(0) * size % bytes == 0;
}

// In backward a matrix of so few rows costs more to set up, five or six numbers a column, than its full
// vectors save: by rows 8x512x7x7 takes 0.89 of the time, but 1.10 in forward.
inline bool has_few_rows(const View& view, const Written& written) {
  return written.gradients && view.layout == Layout::channels_first && view.N <= 16 && view.S >= 32;
}

// Calls body with a value of the kernel class that fits.
template <class T, Path path, class Body>
void with_layout(const View& view, const Written& written, Body body) {
  if constexpr (kCanStream) {
    if (streams<T>(view, written)) {
      return has_long_rows(view) ? body(RowKernels<T, path, true>{}) : body(MatrixKernels<T, path, true>{});
    }
  }
  const bool rows = has_long_rows(view) || has_few_rows(view, written);
  rows ? body(RowKernels<T, path, false>{}) : body(MatrixKernels<T, path, false>{});
}

inline bool has_plain_input(const ForwardParams& p) { return p.residual == nullptr && p.mask == nullptr; }
inline bool has_plain_input(const BackwardParams& p) {
  return p.residual == nullptr && p.mask == nullptr && p.grad_residual == nullptr;
}

template <class T, class Params, class Body>
void with_path(const Params& p, Body body) {
  const Written written(p);
  switch (path_of(p.activation, has_plain_input(p))) {
    case Path::plain_none:
      return with_layout<T, Path::plain_none>(p.view, written, body);
    case Path::plain_relu:
      return with_layout<T, Path::plain_relu>(p.view, written, body);
    case Path::relu:
      return with_layout<T, Path::relu>(p.view, written, body);
    case Path::leaky_relu:
      return with_layout<T, Path::leaky_relu>(p.view, written, body);
    case Path::prelu:
      return with_layout<T, Path::prelu>(p.view, written, body);
    case Path::other:
      return with_layout<T, Path::other>(p.view, written, body);
  }
}

// The running statistics are written last: nothing fails then.
template <class T>
void run(const ForwardParams& given) {
  ForwardParams p = given;
  const bool blends = p.training && p.running_mean.data != nullptr;
  std::vector<double> moments(blends ? 2 * p.view.C : 0);
  if (blends) p.moments = moments.data();
  with_path<T>(p, [&](auto kernel) { decltype(kernel)::forward(p); });
  if (blends) blend_moments(p);
}

template <class T>
void run(const BackwardParams& p) {
  with_path<T>(p, [&](auto kernel) { decltype(kernel)::backward(p); });
}

template <class Params>
void run_any(const Params& p) {
  with_type(p.dtype, [&](auto* type) { run<std::remove_pointer_t<decltype(type)>>(p); });
}

inline void merge_any(const MergeParams& p) {
  p.dtype == DType::f64 ? merge_processes<double>(p) : merge_processes<float>(p);
}

}  // namespace
}  // namespace fused_bn::cpu
