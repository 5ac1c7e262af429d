// What a channel's elements are computed with, shared by forward and backward so that the masks of both agree
// bit for bit.
#pragma once

#include "cuda/reduce.cuh"

namespace fused_bn::cuda {

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
  FUSED_BN_DEVICE ChannelStatistics(const Statistics<A>& saved, int64_t c)
      : mean_hi(saved.mean_hi[c]), mean_lo(saved.mean_lo[c]), invstd(saved.invstd[c]) {}

  FUSED_BN_DEVICE void save(const Statistics<A>& to, int64_t c) const {
    to.mean_hi[c] = mean_hi;
    to.mean_lo[c] = mean_lo;
    to.invstd[c] = invstd;
  }
};

// The weight of this batch in the running statistics, of Params that count it.
template <class Params>
FUSED_BN_DEVICE double momentum_of(const Params& p) {
  if (!p.cumulative) return p.momentum;
  return p.num_batches_tracked == nullptr ? 0.0 : 1.0 / static_cast<double>(*p.num_batches_tracked + 1);
}

FUSED_BN_DEVICE void blend(const ChannelVector& running, int64_t c, double value, double momentum) {
  if (running.data == nullptr) return;
  write(running, c, (1 - momentum) * read(running, c, 0) + momentum * value);
}

enum Number { kMean, kScale, kShift, kSlope, kConstant, kNumbers };

// A slab's numbers in shared memory, [kNumbers, slab_channels].
template <class A>
class Numbers {
 public:
  FUSED_BN_DEVICE Numbers(const Geometry& g, const SharedLayout& layout) : g_(g), layout_(layout) {}

  FUSED_BN_DEVICE A& at(Number number, int c) const {
    return shared_part<A>(layout_.numbers)[number * g_.slab_channels + c];
  }

  // z = fma(x - mean_hi, scale, shift). The mean is subtracted first, because shift - mean * scale would lose
  // all digits where the mean is much larger than the deviation; what the mean's rounding left over, mean_lo,
  // is small enough to be folded into the shift.
  FUSED_BN_DEVICE void set_affine(int c, const ChannelStatistics<A>& s, double weight, double bias) const {
    const A scale = multiply(static_cast<A>(weight), s.invstd);
    // By one rounding, whatever the compiler would make of a product and a difference.
    if (is_finite(scale)) bias = fma(-static_cast<double>(s.mean_lo), static_cast<double>(scale), bias);
    at(kMean, c) = s.mean_hi;
    at(kScale, c) = scale;
    at(kShift, c) = static_cast<A>(bias);
  }

 private:
  const Geometry& g_;
  const SharedLayout& layout_;
};

// Which channel of a slab each column belongs to, looked up in shared memory: a division each time would cost
// more than the rest.
template <Mapping mapping>
class ChannelOf {
 public:
  FUSED_BN_DEVICE ChannelOf(const Geometry& g, const SharedLayout& layout) : layout_(layout) {
    if constexpr (mapping == Mapping::columns) {
      for (int i = thread_index(); i < g.slab_columns; i += g.threads) {
        table()[i] = static_cast<uint16_t>(g.channel_of_column(i));
      }
    }
  }
  // The channel of the thread's k-th value; 0 for one it lacks.
  FUSED_BN_DEVICE int operator()(const ThreadView<mapping>& view, int k) const {
    if constexpr (mapping == Mapping::rows) {
      return 0;
    } else {
      return k < view.width() ? table()[view.column() + k] : 0;
    }
  }

 private:
  FUSED_BN_DEVICE uint16_t* table() const { return shared_part<uint16_t>(layout_.channels); }

  const SharedLayout& layout_;
};

// One of the numbers for each of a thread's columns.
template <class A, Mapping mapping>
struct OwnNumbers {
  A value[kOwn<mapping>];

  FUSED_BN_DEVICE OwnNumbers(const Numbers<A>& numbers, Number which, const ChannelOf<mapping>& channel_of,
                             const ThreadView<mapping>& view) {
    FUSED_BN_UNROLL
    for (int k = 0; k < kOwn<mapping>; ++k) value[k] = numbers.at(which, channel_of(view, k));
  }
  FUSED_BN_DEVICE A operator()(int k) const { return value[own<mapping>(k)]; }
};

template <class A, Mapping mapping>
struct OwnAffine {
  OwnNumbers<A, mapping> mean, scale, shift;

  FUSED_BN_DEVICE OwnAffine(const Numbers<A>& numbers, const ChannelOf<mapping>& channel_of,
                            const ThreadView<mapping>& view)
      : mean(numbers, kMean, channel_of, view),
        scale(numbers, kScale, channel_of, view),
        shift(numbers, kShift, channel_of, view) {}

  FUSED_BN_DEVICE A centre(A x, int k) const { return subtract(x, mean(k)); }
  FUSED_BN_DEVICE A transform(A centred, int k) const { return fma(centred, scale(k), shift(k)); }
};

// Sums that overflow are gathered again from values this much smaller: by a power of two, which rounds
// nothing.
template <class A>
constexpr A kSmaller = sizeof(A) == 8 ? static_cast<A>(0x1p-600) : static_cast<A>(0x1p-80);

// Which channels of a slab are finished: those whose sums are finite, then the others; or all of them.
enum class Try { first, again, only };

}  // namespace fused_bn::cuda
