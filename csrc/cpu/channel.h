// What happens once a channel: parameters in, statistics and running statistics out. Both layouts use it.
#pragma once

#include <cmath>

#include "common/activation.h"
#include "common/moments.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

constexpr int64_t kSerialElements = 32768;  // below it a parallel region (about 3 us) costs more than it saves

inline bool runs_serially(const View& view, const Execution& execution) {
  return execution.threads == 1 || view.elements() <= kSerialElements;
}

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

// z = fma((x - mean_hi) - mean_lo, scale, shift). The mean in two parts keeps the digits of x - mean where
// the mean is much larger than the deviation; folding shift - mean * scale would lose them all.
template <class A>
struct Affine {
  A mean_hi, mean_lo, scale, shift;
};

template <class A>
struct AffineVec {
  Vec<A> mean_hi, mean_lo, scale, shift;

  explicit FUSED_BN_INLINE AffineVec(const Affine<A>& a)
      : mean_hi(broadcast(a.mean_hi)),
        mean_lo(broadcast(a.mean_lo)),
        scale(broadcast(a.scale)),
        shift(broadcast(a.shift)) {}

  FUSED_BN_INLINE AffineVec(Vec<A> hi, Vec<A> lo, Vec<A> scale_, Vec<A> shift_)
      : mean_hi(hi), mean_lo(lo), scale(scale_), shift(shift_) {}

  FUSED_BN_INLINE Vec<A> centre(Vec<A> x) const { return (x - mean_hi) - mean_lo; }
  FUSED_BN_INLINE Vec<A> transform(Vec<A> centred) const { return fma(centred, scale, shift); }
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
    return {mean_hi[c], mean_lo[c], static_cast<A>(read(weight, c, 1.0)) * invstd[c],
            static_cast<A>(read(bias, c, 0.0))};
  }
};

template <class A>
void save(const Statistics<A>& statistics, int64_t c, double mean, double variance, double eps) {
  statistics.mean_hi[c] = static_cast<A>(mean);
  // An infinite mean would make its low part NaN; the centred values are NaN either way.
  statistics.mean_lo[c] = static_cast<A>(mean - static_cast<double>(statistics.mean_hi[c]));
  statistics.invstd[c] = static_cast<A>(1.0 / std::sqrt(variance + eps));
}

// Saves a channel's batch statistics and blends them into the running ones.
template <class A>
void finish_channel(const ForwardParams& p, int64_t c, const Moments& moments) {
  const Statistics<A> statistics(p.statistics, p.view.C);
  save(statistics, c, moments.mean, moments.m2 / moments.count, p.eps);
  const double unbiased = moments.m2 / (moments.count - 1);
  const double keep = 1 - p.momentum;
  write(p.running_mean, c, keep * read(p.running_mean, c, 0) + p.momentum * moments.mean);
  write(p.running_var, c, keep * read(p.running_var, c, 0) + p.momentum * unbiased);
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
Moments exact_moments(const T* x, int64_t rows, int64_t row_stride, int64_t length, int64_t stride) {
  const auto sum = [&](auto term) {
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < length; ++i) total += term(read_element<T>(x, r * row_stride + i * stride));
    }
    return total;
  };
  const double count = static_cast<double>(rows * length);
  const double mean = sum([](double v) { return v; }) / count;
  return {count, mean, sum([=](double v) { return (v - mean) * (v - mean); })};
}

struct GradSums {
  double grad = 0;
  double grad_xhat = 0;

  void add(const GradSums& other) {
    grad += other.grad;
    grad_xhat += other.grad_xhat;
  }
};

// dx = fma(g, scale, fma(xhat, along_xhat, constant)) with xhat = centred * invstd: Ioffe and Szegedy 2015,
// section 3, with the sums over the batch folded into two factors a channel.
template <class A>
struct GradFactors {
  A along_xhat, constant;
};

template <class A>
GradFactors<A> grad_factors(const BackwardParams& p, A scale, const GradSums& sums) {
  if (!p.training) return {0, 0};
  const double each = -static_cast<double>(scale) / static_cast<double>(p.view.values_per_channel());
  return {static_cast<A>(each * sums.grad_xhat), static_cast<A>(each * sums.grad)};
}

template <class A, Activation activation>
struct GradVec {
  AffineVec<A> affine;
  Vec<A> invstd, along_xhat, constant;

  FUSED_BN_INLINE Vec<A> dx(Vec<A> dy, Vec<A> x) const {
    const Vec<A> centred = affine.centre(x);
    const Vec<A> g = activate_backward<activation>(affine.transform(centred), dy);
    return fma(g, affine.scale, fma(centred * invstd, along_xhat, constant));
  }
};

inline bool needs_sums(const BackwardParams& p) {
  return p.grad_weight.data != nullptr || p.grad_bias.data != nullptr ||
         (p.training && p.grad_input != nullptr);
}

}  // namespace
}  // namespace fused_bn::cpu
