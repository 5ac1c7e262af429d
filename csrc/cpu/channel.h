// What happens once a channel: parameters in, statistics and running statistics out. Both layouts use it.
#pragma once

#include <cmath>

#include "common/activation.h"
#include "common/moments.h"
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

template <class T>
void write_element(void* data, int64_t i, double value) {
  if constexpr (sizeof(T) == 2) {
    static_cast<T*>(data)[i].bits =
        narrow(broadcast(static_cast<float>(value)), static_cast<T*>(nullptr))[0];
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

inline double read(const ChannelVector& v, int64_t c, double absent) {
  if (v.data == nullptr) return absent;
  return with_type(v.dtype, [&](auto* type) {
    return read_element<std::remove_pointer_t<decltype(type)>>(v.data, c * v.stride);
  });
}

inline void write(const ChannelVector& v, int64_t c, double value) {
  if (v.data == nullptr) return;
  with_type(v.dtype, [&](auto* type) {
    write_element<std::remove_pointer_t<decltype(type)>>(v.data, c * v.stride, value);
  });
}

// z = fma(x - mean, scale, shift). The mean is subtracted first, because shift - mean * scale would lose all
// digits where the mean is much larger than the deviation; what the mean's rounding left over, mean_lo, is
// small enough to be folded into the shift.
template <class V>
struct Affine {
  V mean, scale, shift;

  FUSED_BN_INLINE V centre(V x) const { return x - mean; }
  FUSED_BN_INLINE V transform(V centred) const { return fma(centred, scale, shift); }
};

// xhat = fma(x - mean, invstd, shift), with the same fold.
template <class V>
struct Standardise {
  V invstd, shift;

  FUSED_BN_INLINE V xhat(V centred) const { return fma(centred, invstd, shift); }
};

// The saved statistics, [3, C].
template <class A>
struct Statistics {
  A* mean_hi;
  A* mean_lo;
  A* invstd;

  Statistics(void* data, int64_t C)
      : mean_hi(static_cast<A*>(data)), mean_lo(mean_hi + C), invstd(mean_lo + C) {}

  Affine<A> affine(int64_t c, const ChannelVector& weight, const ChannelVector& bias) const {
    const A scale = static_cast<A>(read(weight, c, 1.0)) * invstd[c];
    const double shift = read(bias, c, 0.0) - static_cast<double>(mean_lo[c]) * static_cast<double>(scale);
    return {mean_hi[c], scale, static_cast<A>(shift)};
  }

  Standardise<A> standardise(int64_t c) const { return {invstd[c], -mean_lo[c] * invstd[c]}; }
};

template <class A>
FUSED_BN_INLINE Affine<Vec<A>> spread(const Affine<A>& a) {
  return {broadcast(a.mean), broadcast(a.scale), broadcast(a.shift)};
}

template <class A>
FUSED_BN_INLINE Standardise<Vec<A>> spread(const Standardise<A>& s) {
  return {broadcast(s.invstd), broadcast(s.shift)};
}

template <class A>
void save(const Statistics<A>& statistics, int64_t c, double mean, double variance, double eps) {
  statistics.mean_hi[c] = static_cast<A>(mean);
  statistics.mean_lo[c] = static_cast<A>(mean - static_cast<double>(statistics.mean_hi[c]));
  statistics.invstd[c] = static_cast<A>(1.0 / std::sqrt(variance + eps));
}

// Evaluation: the running statistics are the statistics.
template <class A>
void save_running_statistics(const ForwardParams& p) {
  const Statistics<A> statistics(p.statistics, p.view.C);
  for (int64_t c = 0; c < p.view.C; ++c) {
    save(statistics, c, read(p.running_mean, c, 0), read(p.running_var, c, 0), p.eps);
  }
}

// Exact to double rounding whatever the values: for channels in which float sums overflowed or met inf or
// NaN. An infinite value makes the mean infinite and the variance NaN, as in PyTorch.
template <class T>
Moments exact_moments(const ForwardParams& p, int64_t c) {
  const View& v = p.view;
  const auto sum = [&](auto term) {
    double total = 0;
    for (int64_t n = 0; n < v.N; ++n) {
      for (int64_t s = 0; s < v.S; ++s) total += term(read_element<T>(p.input, v.offset(n, c, s)));
    }
    return total;
  };
  const double count = static_cast<double>(v.values_per_channel());
  const double mean = sum([](double value) { return value; }) / count;
  return {count, mean, sum([=](double value) { return (value - mean) * (value - mean); })};
}

// Saves a channel's batch statistics and blends them into the running ones.
template <class T>
void finish_channel(const ForwardParams& p, int64_t c, Moments moments) {
  if (!std::isfinite(moments.m2)) moments = exact_moments<T>(p, c);
  save(Statistics<Compute<T>>(p.statistics, p.view.C), c, moments.mean, moments.m2 / moments.count, p.eps);
  const double unbiased = moments.m2 / (moments.count - 1);
  const double keep = 1 - p.momentum;
  write(p.running_mean, c, keep * read(p.running_mean, c, 0) + p.momentum * moments.mean);
  write(p.running_var, c, keep * read(p.running_var, c, 0) + p.momentum * unbiased);
}

struct GradSums {
  double grad = 0;
  double grad_xhat = 0;

  void add(const GradSums& other) {
    grad += other.grad;
    grad_xhat += other.grad_xhat;
  }
};

// dx = fma(g, scale, fma(xhat, along_xhat, constant)): Ioffe and Szegedy 2015, section 3, with the sums over
// the batch folded into two factors a channel.
template <class V>
struct GradFactors {
  V along_xhat, constant;
};

template <class A>
GradFactors<A> grad_factors(const BackwardParams& p, A scale, const GradSums& sums) {
  if (!p.training) return {0, 0};
  const double each = -static_cast<double>(scale) / static_cast<double>(p.view.values_per_channel());
  return {static_cast<A>(each * sums.grad_xhat), static_cast<A>(each * sums.grad)};
}

template <class A>
FUSED_BN_INLINE GradFactors<Vec<A>> spread(const GradFactors<A>& f) {
  return {broadcast(f.along_xhat), broadcast(f.constant)};
}

// The two sums of backward, over the values that a vector's lanes have seen.
template <class V, Activation activation>
FUSED_BN_INLINE void add_grad(V dy, V x, const Affine<V>& affine, const Standardise<V>& standardise, V& sum,
                              V& sum_xhat) {
  const V centred = affine.centre(x);
  const V g = activate_backward<activation>(affine.transform(centred), dy);
  sum += g;
  sum_xhat = fma(g, standardise.xhat(centred), sum_xhat);
}

template <class V, Activation activation>
FUSED_BN_INLINE V grad_input(V dy, V x, const Affine<V>& affine, const Standardise<V>& standardise,
                             const GradFactors<V>& factors) {
  const V centred = affine.centre(x);
  const V g = activate_backward<activation>(affine.transform(centred), dy);
  return fma(g, affine.scale, fma(standardise.xhat(centred), factors.along_xhat, factors.constant));
}

inline bool needs_sums(const BackwardParams& p) {
  return p.grad_weight.data != nullptr || p.grad_bias.data != nullptr ||
         (p.training && p.grad_input != nullptr);
}

}  // namespace
}  // namespace fused_bn::cpu
