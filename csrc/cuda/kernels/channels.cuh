// What a channel's elements are computed with, shared by forward and backward so that the masks of both agree
// bit for bit, and where a block and its threads keep it.
#pragma once

#include "cuda/kernels/elements.cuh"

namespace fused_bn::cuda {

// A part of the block's shared memory. By its offset, a constant of the launch: a pointer would take
// registers.
template <class A>
FUSED_BN_DEVICE A* shared_part(int offset) {
  return reinterpret_cast<A*>(shared_memory() + offset);
}

// The saved statistics, [3, C].
template <class A>
struct Statistics {
  A* mean_hi;
  A* mean_lo;
  A* invstd;

  FUSED_BN_DEVICE Statistics(void* data, int64_t C)
      : mean_hi(static_cast<A*>(data)), mean_lo(mean_hi + C), invstd(mean_lo + C) {}
};

template <class A>
struct ChannelStatistics {
  A mean_hi, mean_lo, invstd;

  FUSED_BN_DEVICE ChannelStatistics(double mean, double variance, double eps)
      : mean_hi(static_cast<A>(mean)),
        mean_lo(is_finite(mean) ? static_cast<A>(mean - static_cast<double>(mean_hi)) : A{0}),
        invstd(static_cast<A>(inverse_square_root(variance + eps))) {}
  FUSED_BN_DEVICE ChannelStatistics(const void* saved, int64_t C, int64_t c) {
    const Statistics<A> all(const_cast<void*>(saved), C);
    mean_hi = all.mean_hi[c];
    mean_lo = all.mean_lo[c];
    invstd = all.invstd[c];
  }

  FUSED_BN_DEVICE void save(void* to, int64_t C, int64_t c) const {
    const Statistics<A> all(to, C);
    all.mean_hi[c] = mean_hi;
    all.mean_lo[c] = mean_lo;
    all.invstd[c] = invstd;
  }
};

// z = fma(x - mean_hi, scale, shift). The mean is subtracted first, because shift - mean * scale would lose
// all digits where the mean is much larger than the deviation; what the mean's rounding left over, mean_lo,
// is small enough to be folded into the shift.
template <class A>
struct Affine {
  A mean, scale, shift;

  FUSED_BN_DEVICE Affine(A mean_, A scale_, A shift_) : mean(mean_), scale(scale_), shift(shift_) {}
  FUSED_BN_DEVICE Affine(const ChannelStatistics<A>& s, double weight, double bias)
      : mean(s.mean_hi), scale(multiply(static_cast<A>(weight), s.invstd)) {
    // By one rounding, whatever the compiler would make of a product and a difference.
    if (is_finite(scale)) bias = fma(-static_cast<double>(s.mean_lo), static_cast<double>(scale), bias);
    shift = static_cast<A>(bias);
  }
};

// The gradient of the input is scale * (g + fma(x - mean_hi, slope, constant)). With scale as a factor of the
// slope it would take a multiplication less, but the slope of values near 1e30 would be 0.
template <class A>
struct Slope {
  A slope, constant;

  FUSED_BN_DEVICE Slope(A slope_, A constant_) : slope(slope_), constant(constant_) {}
  // grad, grad_xhat: the sums of g and of g * xhat.
  FUSED_BN_DEVICE Slope(const ChannelStatistics<A>& s, double grad, double grad_xhat, double inverse_count) {
    const double exact = -grad_xhat * inverse_count * s.invstd;
    slope = static_cast<A>(exact);
    constant = static_cast<A>(-static_cast<double>(s.mean_lo) * exact - grad * inverse_count);
  }
};

// A tile's numbers in shared memory, [kNumbers, tile_channels]. Forward has a pivot in the place of the
// slope.
enum Number { kMean, kScale, kShift, kSlope, kConstant };
constexpr Number kPivot = kSlope;

template <class A>
class Numbers {
 public:
  FUSED_BN_DEVICE Numbers(const Tiling& t, const SharedLayout& at) : t_(t), at_(at) {}

  FUSED_BN_DEVICE A& at(Number number, int c) const {
    return shared_part<A>(at_.numbers)[number * t_.tile_channels + c];
  }
  FUSED_BN_DEVICE void set(int c, const Affine<A>& affine) const {
    at(kMean, c) = affine.mean;
    at(kScale, c) = affine.scale;
    at(kShift, c) = affine.shift;
  }
  FUSED_BN_DEVICE void set(int c, const Slope<A>& slope) const {
    at(kSlope, c) = slope.slope;
    at(kConstant, c) = slope.constant;
  }

 private:
  const Tiling& t_;
  const SharedLayout& at_;
};

// How many channels a thread's vectors have: the one of all their elements, or one for each.
template <int vector, bool mixed>
constexpr int kOwn = mixed ? vector : 1;

// body(k, c) for each of a thread's channels c, counted within the tile.
template <int vector, bool mixed, class Body>
FUSED_BN_DEVICE void for_own_channels(const Tiling& t, int column, Body body) {
  const int first = t.walk == Walk::along_rows ? 0 : column * vector;
  int c = first / t.channel_length, within = first - c * t.channel_length;
  if (t.fold > 1) c %= t.tile_channels;
  FUSED_BN_UNROLL
  for (int k = 0; k < kOwn<vector, mixed>; ++k) {
    body(k, c);
    if (++within == t.channel_length) {
      within = 0;
      if (++c == t.tile_channels) c = 0;
    }
  }
}

// Some of the numbers for each of a thread's channels.
template <class A, int vector, bool mixed>
struct OwnNumber {
  A value[kOwn<vector, mixed>];

  FUSED_BN_DEVICE A operator()(int k) const { return value[mixed ? k : 0]; }
};

template <class A, int vector, bool mixed>
struct OwnAffine {
  OwnNumber<A, vector, mixed> mean, scale, shift;

  FUSED_BN_DEVICE OwnAffine(const Tiling& t, const Numbers<A>& numbers, int column) {
    for_own_channels<vector, mixed>(t, column, [&](int k, int c) {
      mean.value[k] = numbers.at(kMean, c);
      scale.value[k] = numbers.at(kScale, c);
      shift.value[k] = numbers.at(kShift, c);
    });
  }

  FUSED_BN_DEVICE A centre(A x, int k) const { return subtract(x, mean(k)); }
  FUSED_BN_DEVICE A transform(A centred, int k) const { return fma(centred, scale(k), shift(k)); }
};

template <class A, int vector, bool mixed>
struct OwnSlope {
  OwnNumber<A, vector, mixed> slope, constant;

  FUSED_BN_DEVICE OwnSlope(const Tiling& t, const Numbers<A>& numbers, int column) {
    for_own_channels<vector, mixed>(t, column, [&](int k, int c) {
      slope.value[k] = numbers.at(kSlope, c);
      constant.value[k] = numbers.at(kConstant, c);
    });
  }

  FUSED_BN_DEVICE A operator()(A centred, int k) const { return fma(centred, slope(k), constant(k)); }
};

}  // namespace fused_bn::cuda
