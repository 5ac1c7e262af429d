// The coefficients of a channel's elements. Both directions share them, so that their masks agree bit for
// bit.
#pragma once

#include "cuda/kernels/elements.cuh"

namespace fused_bn::cuda {

// Returns the part of the block's shared memory at an offset. Offsets take fewer registers than pointers.
template <class A>
FUSED_BN_DEVICE A* shared_part(int offset) {
  return reinterpret_cast<A*>(shared_memory() + offset);
}

// One channel's statistics, saved as [3, C].
template <class A>
struct ChannelStatistics {
  A mean_hi, mean_lo, invstd;

  FUSED_BN_DEVICE ChannelStatistics(double mean, double variance, double eps)
      : mean_hi(static_cast<A>(mean)),
        mean_lo(is_finite(mean) ? static_cast<A>(mean - static_cast<double>(mean_hi)) : A{0}),
        invstd(static_cast<A>(inverse_square_root(variance + eps))) {}
  FUSED_BN_DEVICE ChannelStatistics(const void* saved, int64_t C, int64_t c) {
    const A* at = static_cast<const A*>(saved) + c;
    mean_hi = at[0];
    mean_lo = at[C];
    invstd = at[2 * C];
  }

  FUSED_BN_DEVICE void save(void* to, int64_t C, int64_t c) const {
    A* at = static_cast<A*>(to) + c;
    at[0] = mean_hi;
    at[C] = mean_lo;
    at[2 * C] = invstd;
  }
};

// Forward stores its pivot in place of the slope. Only prelu has the last one.
enum Number { kMean, kScale, kShift, kSlope, kConstant, kNegativeSlope };
constexpr Number kPivot = kSlope;

// The coefficients of a tile's channels in shared memory, [numbers_of(), tile_channels].
template <class A>
class Numbers {
 public:
  FUSED_BN_DEVICE Numbers(const Tiling& t, const SharedLayout& at) : t_(t), at_(at) {}

  FUSED_BN_DEVICE A& at(int number, int c) const {
    return shared_part<A>(at_.numbers)[number * t_.tile_channels + c];
  }
  // z = fma(x - mean_hi, scale, shift). bias - mean * scale would lose all digits if the mean is much larger
  // than the deviation; mean_lo is small enough to be a part of the shift.
  FUSED_BN_DEVICE void set_affine(int c, const ChannelStatistics<A>& s, double weight, double bias) const {
    const A scale = multiply(static_cast<A>(weight), s.invstd);
    // fma, because the compiler might or might not contract a product and a difference.
    if (is_finite(scale)) bias = fma(-static_cast<double>(s.mean_lo), static_cast<double>(scale), bias);
    at(kMean, c) = s.mean_hi;
    at(kScale, c) = scale;
    at(kShift, c) = static_cast<A>(bias);
  }
  FUSED_BN_DEVICE void set_negative_slope(int c, const ChannelVector& slope, int channel) const {
    if (slope.data != nullptr)
      at(kNegativeSlope, c) = static_cast<A>(read(slope, load_value(slope, channel), 0));
  }
  // The gradient of the input is scale * (g + fma(x - mean_hi, slope, constant)). A slope that contains scale
  // would save a multiplication, but be 0 for values near 1e30.
  FUSED_BN_DEVICE void set_slope(int c, const ChannelStatistics<A>& s, double grad, double grad_xhat,
                                 double inverse_count) const {
    const double slope = -grad_xhat * inverse_count * s.invstd;
    at(kSlope, c) = static_cast<A>(slope);
    at(kConstant, c) = static_cast<A>(-static_cast<double>(s.mean_lo) * slope - grad * inverse_count);
  }
  FUSED_BN_DEVICE Word told(int c, int first, int count) const {
    Word word{};
    for (int i = 0; i < count; ++i) word.values[i] = static_cast<float>(at(first + i, c));
    return word;
  }
  FUSED_BN_DEVICE void take(int c, int first, int count, const Word& word) const {
    for (int i = 0; i < count; ++i) at(first + i, c) = word.values[i];
  }

 private:
  const Tiling& t_;
  const SharedLayout& at_;
};

// The number of channels of a thread's vectors: one, or one for each element.
template <int vector, bool mixed>
constexpr int kOwn = mixed ? vector : 1;

// Calls body(k, c) for each of a thread's channels; c counts within the tile.
template <int vector, bool mixed, class Body>
FUSED_BN_DEVICE void for_own_channels(const Tiling& t, int column, Body body) {
  if (!mixed && t.walk == Walk::along_rows) return body(0, 0);
  const int first = column * vector;
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

// Calls body(k, slope) for each element of a vector. Slopes in registers would slow down other activations.
template <int vector, bool mixed, class A, class Body>
FUSED_BN_DEVICE void with_negative_slopes(const Tiling& t, const Numbers<A>& numbers, int column, Body body) {
  A slope[kOwn<vector, mixed>];
  for_own_channels<vector, mixed>(t, column, [&](int k, int c) { slope[k] = numbers.at(kNegativeSlope, c); });
  FUSED_BN_UNROLL
  for (int k = 0; k < vector; ++k) body(k, slope[mixed ? k : 0]);
}

// The first `count` coefficients of each of a thread's channels, in registers.
template <class A, int vector, bool mixed, int count>
class OwnNumbers {
 public:
  FUSED_BN_DEVICE OwnNumbers(const Tiling& t, const Numbers<A>& numbers, int column) {
    for_own_channels<vector, mixed>(t, column, [&](int k, int c) {
      FUSED_BN_UNROLL
      for (int number = 0; number < count; ++number) value_[number][k] = numbers.at(number, c);
    });
  }

  FUSED_BN_DEVICE A operator()(Number number, int k) const { return value_[number][mixed ? k : 0]; }
  FUSED_BN_DEVICE A centre(A x, int k) const { return subtract(x, (*this)(kMean, k)); }
  FUSED_BN_DEVICE A transform(A centred, int k) const {
    return fma(centred, (*this)(kScale, k), (*this)(kShift, k));
  }

 private:
  A value_[count][kOwn<vector, mixed>];
};

}  // namespace fused_bn::cuda
