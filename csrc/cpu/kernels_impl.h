// Chooses among the kernels of one instruction set by dtype, layout, activation and kind of store.
#pragma once

#include "cpu/matrix_kernels.h"
#include "cpu/rows.h"

namespace fused_bn::cpu {
namespace {

// An output this large has left the caches before anything reads it again.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

inline bool has_long_rows(const View& view) {
  return view.layout == Layout::channels_first && view.S >= kShortRow;
}

// Stores past the caches take whole aligned vectors: long rows align themselves, a matrix must be aligned.
template <class T>
bool streams(const View& view, const void* output) {
  constexpr int64_t bytes = kLanes<Compute<T>> * sizeof(T);
  const int64_t size = sizeof(T);
  if (view.elements() * size < kStreamedBytes) return false;
  if (has_long_rows(view)) return view.S * size >= 8 * bytes;
  const Matrix m(view, kLanes<Compute<T>>);
  return reinterpret_cast<uintptr_t>(output) % bytes == 0 && m.stride() * size % bytes == 0 &&
         m.columns(0) * size % bytes == 0;
}

// Calls body with a value of the kernel class that fits.
template <class T, Activation activation, class Body>
void with_layout(const View& view, const void* output, Body body) {
  const bool streaming = streams<T>(view, output);
  if (has_long_rows(view)) {
    streaming ? body(RowKernels<T, activation, true>{}) : body(RowKernels<T, activation, false>{});
  } else {
    streaming ? body(MatrixKernels<T, activation, true>{}) : body(MatrixKernels<T, activation, false>{});
  }
}

template <class T, class Params, class Body>
void with_activation(const Params& p, const void* output, Body body) {
  switch (p.activation) {
    case Activation::none:
      return with_layout<T, Activation::none>(p.view, output, body);
    case Activation::relu:
      return with_layout<T, Activation::relu>(p.view, output, body);
    case Activation::leaky_relu:
      break;  // activation_from_name() knows no such name yet
  }
}

template <class T>
void run(const ForwardParams& p) {
  with_activation<T>(p, p.output, [&](auto kernel) { decltype(kernel)::forward(p); });
}

template <class T>
void run(const BackwardParams& p) {
  with_activation<T>(p, p.grad_input, [&](auto kernel) { decltype(kernel)::backward(p); });
}

template <class Params>
void run_any(const Params& p) {
  with_type(p.dtype, [&](auto* type) { run<std::remove_pointer_t<decltype(type)>>(p); });
}

}  // namespace
}  // namespace fused_bn::cpu
