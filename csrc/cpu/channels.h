// The work per channel of channel.h for many channels, in loops that the compiler vectorises. One by one, the
// channels of a (32, 2048) input took longer than its elements.
#pragma once

#include "cpu/channel.h"

namespace fused_bn::cpu {
namespace {

// Small enough for a few buffers to stay in L1.
constexpr int64_t kChannelsAtOnce = 64;
using ChannelBuffer = double[kChannelsAtOnce];

// Calls body(first, count) for channels that fit a buffer.
template <class Body>
void for_each_buffer(int64_t channels, Body body) {
  for (int64_t c = 0; c < channels; c += kChannelsAtOnce) body(c, std::min(kChannelsAtOnce, channels - c));
}

inline bool is_plain(const ChannelVector& v) { return v.dtype == DType::f32 && v.stride == 1; }

inline void read(const ChannelVector& v, int64_t first, int64_t count, double absent, ChannelBuffer& values) {
  if (v.data != nullptr && is_plain(v)) {
    const float* data = static_cast<const float*>(v.data) + first;
    for (int64_t i = 0; i < count; ++i) values[i] = data[i];
  } else {
    for (int64_t i = 0; i < count; ++i) values[i] = read(v, first + i, absent);
  }
}

inline void write(const ChannelVector& v, int64_t first, int64_t count, const double* values) {
  if (v.data != nullptr && is_plain(v)) {
    float* data = static_cast<float*>(v.data) + first;
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<float>(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) write(v, first + i, values[i]);
  }
}

inline bool all_finite(const double* values, int64_t count) {
  int64_t others = 0;  // as wide as the values, or the loop is not vectorised
  for (int64_t i = 0; i < count; ++i) others |= !std::isfinite(values[i]);
  return others == 0;
}

// Processes at most kChannelsAtOnce channels. __restrict, because the compiler cannot prove that the pointers
// do not alias.
template <class T, class A = Compute<T>>
void affine_buffer(Statistics<T> statistics, const ChannelBuffer& weight, const ChannelBuffer& bias,
                   int64_t count, A* __restrict origin, A* __restrict scale, A* __restrict shift) {
  for (int64_t i = 0; i < count; ++i) {
    const Affine<A> a = statistics.affine(i, weight[i], bias[i]);
    origin[i] = a.origin;
    scale[i] = a.scale;
    shift[i] = a.shift;
  }
}

template <class T, class A = Compute<T>>
void affine_channels(const Statistics<T>& statistics, const ChannelVector& weight, const ChannelVector& bias,
                     int64_t first, int64_t channels, A* origin, A* scale, A* shift) {
  for_each_buffer(channels, [&](int64_t begin, int64_t count) {
    ChannelBuffer weights, biases;
    read(weight, first + begin, count, 1.0, weights);
    read(bias, first + begin, count, 0.0, biases);
    affine_buffer(statistics.from(first + begin), weights, biases, count, origin + begin, scale + begin,
                  shift + begin);
  });
}

// finish_channel() for each channel, from means and sums of squared deviations over `values` values.
template <class T>
void finish_channels(const ForwardParams& p, int64_t first, int64_t channels, double values, double* mean,
                     double* m2) {
  const Statistics<T> statistics(p.statistics, p.view.C);
  for_each_buffer(channels, [&](int64_t begin, int64_t count) {
    const int64_t c = first + begin;
    double *const means = mean + begin, *const m2s = m2 + begin;
    for (int64_t i = all_finite(m2s, count) ? count : 0; i < count; ++i) {
      if (std::isfinite(m2s[i])) continue;
      const Moments exact = exact_moments<T>(p, c + i);
      means[i] = exact.mean;
      m2s[i] = exact.m2;
    }
    const double eps = p.eps;
    for (int64_t i = 0; i < count; ++i) save(statistics, c + i, means[i], m2s[i] / values, eps);
    if (p.moments == nullptr) return;
    std::copy_n(means, count, p.moments + c);
    std::copy_n(m2s, count, p.moments + p.view.C + c);
  });
}

// Blends the moments of all channels into the running statistics.
inline void blend_moments(const ForwardParams& p) {
  for_each_buffer(p.view.C, [&](int64_t c, int64_t count) {
    const double *const mean = p.moments + c, *const m2 = p.moments + p.view.C + c;
    ChannelBuffer running{};
    read(p.running_mean, c, count, 0, running);
    for (int64_t i = 0; i < count; ++i) running[i] = blended(running[i], p.momentum, mean[i]);
    write(p.running_mean, c, count, running);
    read(p.running_var, c, count, 0, running);
    for (int64_t i = 0; i < count; ++i) running[i] = blended(running[i], p.momentum, m2[i] / p.divisor);
    write(p.running_var, c, count, running);
  });
}

// finish_grad_channel() for each channel, from the sums of g and of g * (x - origin).
template <class T, Path path>
void finish_grad_channels(const BackwardParams& p, int64_t first, int64_t channels, double* grad,
                          double* grad_centred, Compute<T>* slope, Compute<T>* constant) {
  const Statistics<T> statistics(const_cast<void*>(p.statistics), p.view.C);
  const double values = values_summed(p);
  for_each_buffer(channels, [&](int64_t begin, int64_t count) {
    const int64_t c = first + begin;
    double *const grads = grad + begin, *const centred = grad_centred + begin;
    ChannelBuffer weights, grads_xhat;
    read(p.weight, c, count, 1.0, weights);
    if (p.total == nullptr) {
      for (int64_t i = 0; i < count; ++i) {
        grads_xhat[i] = statistics.grad_xhat(c + i, weights[i], grads[i], centred[i]);
      }
      const bool finite = all_finite(grads, count) && all_finite(centred, count);
      for (int64_t i = finite ? count : 0; i < count; ++i) {
        if (std::isfinite(grads[i] + centred[i])) continue;
        const GradTotals exact = exact_totals<T, path>(p, c + i, {grads[i], centred[i]});
        grads[i] = exact.grad;
        grads_xhat[i] = exact.grad_xhat;
      }
    } else {
      std::copy_n(p.total + c, count, grads);
      std::copy_n(p.total + p.view.C + c, count, grads_xhat);
    }
    write(p.grad_weight, c, count, grads_xhat);
    write(p.grad_bias, c, count, grads);
    for (int64_t i = 0; i < count; ++i) {
      const GradFactors<Compute<T>> f =
          statistics.grad_factors(c + i, weights[i], grads[i], grads_xhat[i], values);
      slope[begin + i] = f.slope;
      constant[begin + i] = f.constant;
    }
  });
}

}  // namespace
}  // namespace fused_bn::cpu
