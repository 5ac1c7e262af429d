// The work per channel, from parameters to statistics and running statistics. channels.h does it for many
// channels at once.
#pragma once

#include <cmath>

#include "common/moments.h"
#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

template <class T>
double read_element(const void* data, int64_t i) {
  const T element = static_cast<const T*>(data)[i];
  if constexpr (sizeof(T) == 2) {
    Bits16 bits{};
    bits[0] = element.bits;
    return widen(bits, static_cast<T*>(nullptr))[0];
  } else {
    return element;
  }
}

inline double median(const double (&values)[3]) {
  return std::max(std::min(values[0], values[1]), std::min(std::max(values[0], values[1]), values[2]));
}

template <class T>
void write_element(void* data, int64_t i, double value) {
  if constexpr (sizeof(T) == 2) {
    static_cast<T*>(data)[i].bits = narrow(broadcast(static_cast<float>(value)), static_cast<T*>(nullptr))[0];
  } else {
    static_cast<T*>(data)[i] = static_cast<T>(value);
  }
}

// Calls body with a null pointer of the element type.
template <class Body>
auto with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::f64:
      return body(static_cast<double*>(nullptr));
    case DType::bf16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::f16:
      return body(static_cast<Float16*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

// float comes first and needs no call, because one thread may read thousands of channels.
inline double read(const ChannelVector& v, int64_t c, double absent) {
  if (v.data == nullptr) return absent;
  if (v.dtype == DType::f32) return static_cast<const float*>(v.data)[c * v.stride];
  return with_type(v.dtype, [&](auto* type) {
    return read_element<std::remove_pointer_t<decltype(type)>>(v.data, c * v.stride);
  });
}

inline void write(const ChannelVector& v, int64_t c, double value) {
  if (v.data == nullptr) return;
  if (v.dtype == DType::f32) {
    static_cast<float*>(v.data)[c * v.stride] = static_cast<float>(value);
    return;
  }
  with_type(v.dtype, [&](auto* type) {
    write_element<std::remove_pointer_t<decltype(type)>>(v.data, c * v.stride, value);
  });
}

// Returns what is subtracted from the means of a channel's parts until they are merged: the median of its
// first, middle and last value. Without it float64 would lose the digits of a deviation much smaller than the
// mean. Other types are summed with digits to spare.
template <class T>
double origin_of(const T* x, const View& view, int64_t c) {
  if constexpr (!std::is_same_v<T, double>) return 0;
  double values[3];
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t at = (view.values_per_channel() - 1) * i / 2;
    values[i] = read_element<T>(x, view.offset(at / view.S, c, at % view.S));
  }
  return median(values);
}

// From the sums of values - pivot and of their squares. m2 may be negative.
inline Moments moments_of(double count, double pivot, double sum, double squares) {
  const double shift = sum / count;
  return {count, pivot + shift, squares - sum * shift};
}

// Whether sums without a pivot lost too many digits because the mean is much larger than the deviation. Up to
// here their relative error of 2^-53 becomes at most 2^-37 of m2.
inline bool cancels(const Moments& m) { return m.m2 < 0x1p-16 * m.count * m.mean * m.mean; }

// The saved statistics, [3, C], of an input of type T.
template <class T>
struct Statistics {
  using A = Compute<T>;

  A* mean_hi;
  A* mean_lo;
  A* invstd;

  Statistics(void* data, int64_t C)
      : mean_hi(static_cast<A*>(data)), mean_lo(mean_hi + C), invstd(mean_lo + C) {}

  Statistics(A* mean_hi_, A* mean_lo_, A* invstd_) : mean_hi(mean_hi_), mean_lo(mean_lo_), invstd(invstd_) {}

  // The statistics from channel c on.
  Statistics from(int64_t c) const { return {mean_hi + c, mean_lo + c, invstd + c}; }

  // Whether the mean is subtracted before scaling. A float32 mean of up to two standard deviations goes into
  // the shift instead. The largest errors of z, in ulps, with and without subtraction, of N(r, 1) inputs:
  // 2.0 and 1.9 for r = 0; 2.4 and 2.1 for 1; 2.2 and 2.4 for 2; 1.8 and 2.8 for 4. Sums of other types are
  // no wider than their terms and would lose digits. With an infinite scale the sign of x - mean matters.
  bool centres(int64_t c, A scale) const {
    return !std::is_same_v<T, float> || !(std::abs(mean_hi[c] * invstd[c]) <= 2) || !std::isfinite(scale);
  }

  A scale(int64_t c, double weight) const { return static_cast<A>(weight) * invstd[c]; }
  // The part of the mean that is not in the origin.
  double rest(int64_t c, A scale) const {
    const double left = mean_lo[c];
    return centres(c, scale) ? left : left + static_cast<double>(mean_hi[c]);
  }

  Affine<A> affine(int64_t c, double weight, double bias) const {
    const A own = scale(c, weight);
    const double moved = std::fma(-rest(c, own), static_cast<double>(own), bias);
    return {centres(c, own) ? mean_hi[c] : A{0}, own, static_cast<A>(std::isfinite(own) ? moved : bias)};
  }
  template <class Params>
  Affine<A> affine(int64_t c, const Params& p) const {
    Affine<A> a = affine(c, read(p.weight, c, 1.0), read(p.bias, c, 0.0));
    a.negative_slope = static_cast<A>(read(p.negative_slope, c, 0.0));
    return a;
  }

  // Returns the sum of g * xhat. g is the gradient with respect to z.
  double grad_xhat(int64_t c, double weight, double grad, double grad_centred) const {
    return (grad_centred - rest(c, scale(c, weight)) * grad) * invstd[c];
  }
  // From the sums of g and of g * xhat over `count` values.
  GradFactors<A> grad_factors(int64_t c, double weight, double grad, double grad_xhat, double count) const {
    const double slope = -grad_xhat / count * static_cast<double>(invstd[c]);
    return {static_cast<A>(slope), static_cast<A>(-rest(c, scale(c, weight)) * slope - grad / count)};
  }
};

template <class T>
void save(const Statistics<T>& statistics, int64_t c, double mean, double variance, double eps) {
  using A = Compute<T>;
  const A mean_hi = static_cast<A>(mean);
  const A mean_lo = static_cast<A>(mean - static_cast<double>(mean_hi));
  statistics.mean_hi[c] = mean_hi;
  statistics.mean_lo[c] = std::isinf(mean) ? A{0} : mean_lo;
  statistics.invstd[c] = static_cast<A>(1.0 / std::sqrt(variance + eps));
}

// Evaluation without running statistics reads saved ones.
inline bool reads_running_statistics(const ForwardParams& p) {
  return !p.training && p.running_mean.data != nullptr;
}

template <class T>
void save_running_statistics(const ForwardParams& p) {
  const Statistics<T> statistics(p.statistics, p.view.C);
  for (int64_t c = 0; c < p.view.C; ++c) {
    save(statistics, c, read(p.running_mean, c, 0), read(p.running_var, c, 0), p.eps);
  }
}

// Computes in double, for channels whose float sums overflowed or met inf or NaN. An infinite value makes the
// mean infinite and the variance NaN, as in PyTorch. Stops at NaN, because reading single elements is slow.
template <class T>
Moments exact_moments(const ForwardParams& p, int64_t c) {
  const View& v = p.view;
  const auto sum = [&](auto term) {
    double total = 0;
    for (int64_t n = 0; n < v.N && !std::isnan(total); ++n) {
      for (int64_t s = 0; s < v.S; ++s) total += term(read_element<T>(p.input, v.offset(n, c, s)));
    }
    return total;
  };
  const double count = static_cast<double>(v.values_per_channel());
  const double mean = sum([](double value) { return value; }) / count;
  if (std::isnan(mean)) return {count, mean, mean};
  return {count, mean, sum([=](double value) { return (value - mean) * (value - mean); })};
}

inline double blended(double running, double momentum, double of_batch) {
  return (1 - momentum) * running + momentum * of_batch;
}

template <class Params>
void blend(const Params& p, int64_t c, double mean, double variance) {
  write(p.running_mean, c, blended(read(p.running_mean, c, 0), p.momentum, mean));
  write(p.running_var, c, blended(read(p.running_var, c, 0), p.momentum, variance));
}

template <class T>
void finish_channel(const ForwardParams& p, int64_t c, Moments moments) {
  if (!std::isfinite(moments.m2)) moments = exact_moments<T>(p, c);
  save(Statistics<T>(p.statistics, p.view.C), c, moments.mean, moments.m2 / moments.count, p.eps);
  if (p.moments == nullptr) return;
  p.moments[c] = moments.mean;
  p.moments[p.view.C + c] = moments.m2;
}

// The two sums of backward: of g, the gradient with respect to z, and of g * (x - origin).
struct GradSums {
  double grad = 0;
  double grad_centred = 0;

  void add(const GradSums& other) {
    grad += other.grad;
    grad_centred += other.grad_centred;
  }
};

// The sums of g and of g * xhat.
struct GradTotals {
  double grad, grad_xhat;
};

// For channels whose `float_sums` overflowed or met inf or NaN. A finite one of them is right, and a sum that
// becomes NaN here stays NaN: the channel is read only until both are settled.
template <class T, Path path>
GradTotals exact_totals(const BackwardParams& p, int64_t c, const GradSums& float_sums) {
  const Statistics<T> statistics(const_cast<void*>(p.statistics), p.view.C);
  const Affine<Compute<T>> affine = statistics.affine(c, p);
  const double mean = affine.origin + statistics.rest(c, affine.scale);
  const BackwardElements<T, path> elements(p);
  const auto a = spread(affine);
  GradSums sums;
  const auto settled = [&] {
    return std::isnan(sums.grad_centred) && (std::isnan(sums.grad) || std::isfinite(float_sums.grad));
  };
  for (int64_t n = 0; n < p.view.N && !settled(); ++n) {
    for (int64_t s = 0; s < p.view.S; ++s) {
      const int64_t at = p.view.offset(n, c, s);
      const double g = elements.grad(at, a, elements.centred(at, a, First{1}), First{1})[0];
      sums.add({g, g * (read_element<T>(p.input, at) - mean)});
    }
  }
  return {std::isfinite(float_sums.grad) ? float_sums.grad : sums.grad,
          sums.grad_centred * statistics.invstd[c]};
}

// The number of values per channel, in all processes.
inline double values_summed(const BackwardParams& p) {
  return p.total == nullptr ? static_cast<double>(p.view.values_per_channel()) : *p.total_count;
}

// Writes a channel's parameter gradients and returns what its input gradient needs.
template <class T, Path path>
GradFactors<Compute<T>> finish_grad_channel(const BackwardParams& p, int64_t c, const GradSums& sums) {
  const Statistics<T> statistics(const_cast<void*>(p.statistics), p.view.C);
  const double weight = read(p.weight, c, 1.0);
  GradTotals totals;
  if (p.total != nullptr) {
    totals = {p.total[c], p.total[p.view.C + c]};
  } else if (std::isfinite(sums.grad + sums.grad_centred)) {
    totals = {sums.grad, statistics.grad_xhat(c, weight, sums.grad, sums.grad_centred)};
  } else {
    totals = exact_totals<T, path>(p, c, sums);
  }
  write(p.grad_weight, c, totals.grad_xhat);
  write(p.grad_bias, c, totals.grad);
  return statistics.grad_factors(c, weight, totals.grad, totals.grad_xhat, values_summed(p));
}

}  // namespace
}  // namespace fused_bn::cpu
