// Chooses among the kernels of one instruction set by dtype, layout, activation and kind of store.
#pragma once

#include "cpu/channels_first.h"
#include "cpu/channels_last.h"

namespace fused_bn::cpu {
namespace {

// An output this large has left the caches before anything reads it again.
constexpr int64_t kStreamedBytes = int64_t{8} << 20;

// Aligned rows only: channels first aligns each row itself, channels last relies on it.
template <class T>
bool streams(const View& view, const void* output) {
  if (view.elements() * static_cast<int64_t>(sizeof(T)) < kStreamedBytes) return false;
  constexpr int64_t bytes = kLanes<Compute<T>> * sizeof(T);
  if (view.layout == Layout::channels_first) return view.S * static_cast<int64_t>(sizeof(T)) >= 8 * bytes;
  const int64_t row = view.C * rows_in_one<Compute<T>>(view.C) * static_cast<int64_t>(sizeof(T));
  return row % bytes == 0 && reinterpret_cast<uintptr_t>(output) % bytes == 0;
}

// Calls body with a value of the kernel class that fits.
template <class T, Activation activation, class Body>
void with_layout(const View& view, const void* output, Body body) {
  const bool streaming = streams<T>(view, output);
  if (view.layout == Layout::channels_first) {
    streaming ? body(ChannelsFirst<T, activation, true>{}) : body(ChannelsFirst<T, activation, false>{});
  } else {
    streaming ? body(ChannelsLast<T, activation, true>{}) : body(ChannelsLast<T, activation, false>{});
  }
}

template <class Params, class Body>
void with_kernel(const Params& p, const void* output, Body body) {
  with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    switch (p.activation) {
      case Activation::relu:
        return with_layout<T, Activation::relu>(p.view, output, body);
      case Activation::none:
        return with_layout<T, Activation::none>(p.view, output, body);
    }
  });
}

void forward(const ForwardParams& p) {
  with_kernel(p, p.output, [&](auto kernel) { decltype(kernel)::forward(p); });
}

void backward(const BackwardParams& p) {
  with_kernel(p, p.grad_input, [&](auto kernel) { decltype(kernel)::backward(p); });
}

}  // namespace
}  // namespace fused_bn::cpu
