// The forward direction, for Resident, Reduce and Apply.
#pragma once

#include "cuda/kernels/activate.cuh"
#include "cuda/kernels/finish.cuh"
#include "cuda/kernels/mask.cuh"

namespace fused_bn::cuda {

template <class T, int vector_, bool mixed_, ActivationKind kind_>
class Forward {
 public:
  using Params = ForwardParams;
  using Element = T;
  using A = Compute<T>;
  static constexpr int vector = vector_;
  static constexpr bool mixed = mixed_;
  static constexpr ActivationKind kind = kind_;
  static constexpr bool backward = false;
  using Vector = Raw<T, vector>;
  using Sums = ThreadSums<A, vector, mixed>;

  // Tensors that are summed; vectors per thread that the streamed kernels load before they use one.
  static constexpr int kSummed = 1, kSumAhead = 8, kApplyAhead = 4;
  // Unrolled vectors in the resident kernel: as many as its registers allow.
  static constexpr int kSumUnroll = mixed && sizeof(T) == 4 ? 4 : 8;
  template <bool special>
  static constexpr int kApplyUnroll = special ? 2 : 8;

  FUSED_BN_DEVICE explicit Forward(const ForwardParams& p)
      : p_(p), t_(p.tiling), numbers_(p.tiling, p.layout) {}

  // The tensors that are read, the second one only by apply().
  FUSED_BN_DEVICE const void* data(int i) const { return i == 0 ? p_.input : p_.residual; }
  FUSED_BN_DEVICE bool has_second() const { return p_.residual != nullptr; }

  // ---- sums of deviations from a pivot and of their squares

  FUSED_BN_DEVICE bool has_special_sums() const { return false; }
  FUSED_BN_DEVICE bool has_special_results() const { return p_.residual != nullptr; }

  // Loads the parameters of the tile's channel c, in one thread. Only the block that writes the running
  // statistics reads them: another one might read what it has written.
  FUSED_BN_DEVICE void prepare(int c, int channel, bool writes) const {
    parameters(c) = ForwardParameters(p_, channel, writes);
    if constexpr (kind == ActivationKind::other) numbers_.set_negative_slope(c, p_.negative_slope, channel);
  }

  // The pivot is the median of three values. An outlier would cost the other values their digits.
  template <class Load>
  FUSED_BN_DEVICE void choose_pivot(int c, int64_t units, Load load) const {
    const A first = load(0), middle = load(units / 2), last = load(units - 1);
    const A low = first < middle ? first : middle, high = first < middle ? middle : first;
    numbers_.at(kPivot, c) = last < low ? low : (last > high ? high : last);
  }

  // scaled: sums values times kSmaller.
  template <bool scaled, bool special>
  class Summation {
   public:
    FUSED_BN_DEVICE Summation(const Forward& f, int column) {
      for_own_channels<vector, mixed>(f.t_, column, [&](int k, int c) {
        pivot_[k] = scaled ? f.numbers_.at(kPivot, c) * kSmaller<A> : f.numbers_.at(kPivot, c);
      });
    }

    FUSED_BN_DEVICE void add(const Vector& raw, const Vector&, const Vectors<mixed>&, Sums& sums) const {
      A x[vector];
      unpack<T, vector>(raw, x);
      FUSED_BN_UNROLL
      for (int k = 0; k < vector; ++k) {
        const A deviation = (scaled ? x[k] * kSmaller<A> : x[k]) - pivot_[mixed ? k : 0];
        sums.add(k, deviation, deviation, deviation);
      }
    }

   private:
    A pivot_[kOwn<vector, mixed>];
  };

  FUSED_BN_DEVICE Partial<A> partial(const BlockSums& sums, int c, A inverse_count) const {
    const double inverse = static_cast<double>(inverse_count), mean = sums.first * inverse;
    const A variance = static_cast<A>(sums.second * inverse - mean * mean);
    const A rms = square_root(variance < A{0} ? A{0} : variance);
    const A larger = sums.scaled ? A{1} / kSmaller<A> : A{1};
    return {numbers_.at(kPivot, c), static_cast<A>(mean) * larger, rms * larger, A{0}};
  }

  template <class Fetch>
  FUSED_BN_DEVICE MergedMoments merge(const LaneGroup& lanes, int, Fetch fetch) const {
    return MergedMoments::of<A>(t_, lanes, p_.inverse_count, fetch);
  }

  // ---- a channel's results, by one thread of each block; by one of the launch if it writes

  FUSED_BN_DEVICE Word finish(int c, const MergedMoments& merged, bool writes, int channel) const {
    const ChannelStatistics<A> statistics(merged.mean, merged.variance, p_.eps);
    numbers_.set_affine(c, statistics, parameters(c).weight, parameters(c).bias);
    if (writes) write(c, merged, channel);
    return numbers_.told(c, kMean, 3);
  }
  FUSED_BN_DEVICE void take(int c, const Word& word) const { numbers_.take(c, kMean, 3, word); }
  FUSED_BN_DEVICE void write(int c, const MergedMoments& merged, int channel) const {
    if (p_.moments != nullptr) {
      p_.moments[channel] = merged.mean;
      p_.moments[t_.C + channel] = merged.variance / p_.inverse_count;
      return;
    }
    ChannelStatistics<A>(merged.mean, merged.variance, p_.eps).save(p_.statistics, t_.C, channel);
    const ForwardParameters& before = parameters(c);
    fused_bn::cuda::write(p_.bias_copy, channel, before.bias);
    blend(p_.running_mean, channel, before.running_mean, merged.mean, before.momentum);
    blend(p_.running_var, channel, before.running_var, merged.variance * p_.unbiased, before.momentum);
  }
  // Once per launch. For a cumulative average the host counts, after the launch.
  FUSED_BN_DEVICE void count_batch() const {
    if (block_index() == 0 && thread_index() == 0 && p_.num_batches_tracked != nullptr && !p_.cumulative) {
      *p_.num_batches_tracked += 1;
    }
  }

  // For the apply pass, whose statistics exist already.
  FUSED_BN_DEVICE void prepare_results(int c, int channel, bool writes) const {
    const ForwardParameters own(p_, channel, true);
    const bool running = p_.source == Source::running;
    const auto statistics = running ? ChannelStatistics<A>(own.running_mean, own.running_var, p_.eps)
                                    : ChannelStatistics<A>(p_.statistics, t_.C, channel);
    if (running && writes) {
      statistics.save(p_.statistics, t_.C, channel);
      fused_bn::cuda::write(p_.bias_copy, channel, own.bias);
    }
    numbers_.set_affine(c, statistics, own.weight, own.bias);
    if constexpr (kind == ActivationKind::other) numbers_.set_negative_slope(c, p_.negative_slope, channel);
  }

  // ---- output. All lanes of a warp take part in writing a mask, even those without a vector.

  FUSED_BN_DEVICE bool needs_all_lanes() const { return p_.mask != nullptr; }

  template <bool has_residual>
  class Results {
   public:
    FUSED_BN_DEVICE Results(const Forward& f, const Vectors<mixed>& at)
        : f_(f),
          affine_(f.t_, f.numbers_, at.column()),
          activation_(f.p_.activation, f.p_.activation_param),
          output_(optimisation_barrier(vectors_of<T, vector>(f.p_.output, at.start()))) {}

    FUSED_BN_DEVICE void apply(const Vector& x, const Vector& residual, const Vectors<mixed>& at,
                               bool exists) const {
      A z[vector];
      unpack<T, vector>(x, z);
      FUSED_BN_UNROLL
      for (int k = 0; k < vector; ++k) z[k] = affine_.transform(affine_.centre(z[k], k), k);
      if constexpr (has_residual) {
        A added[vector];
        unpack<T, vector>(residual, added);
        FUSED_BN_UNROLL
        for (int k = 0; k < vector; ++k) z[k] += added[k];
        if (f_.p_.mask != nullptr) {
          store_bits<vector>(f_.p_.mask, at.position(), f_.t_.elements, activation_.bits(z), exists);
        }
      }
      if (!exists) return;
      if (!activation_.is_prelu()) return store_global(output_ + at.offset(), activation_.forward(z));
      with_negative_slopes<vector, mixed>(f_.t_, f_.numbers_, at.column(),
                                          [&](int k, A slope) { z[k] = prelu(z[k], slope); });
      store_global(output_ + at.offset(), pack<T, vector>(z));
    }
    FUSED_BN_DEVICE void rebase(const Vectors<mixed>& at) {
      output_ = optimisation_barrier(vectors_of<T, vector>(f_.p_.output, at.start()));
    }

   private:
    const Forward& f_;
    const OwnNumbers<A, vector, mixed, 3> affine_;
    const VectorActivation<T, vector, kind> activation_;
    Vector* output_;
  };

 private:
  FUSED_BN_DEVICE ForwardParameters& parameters(int c) const {
    return shared_part<ForwardParameters>(p_.layout.parameters)[c];
  }

  const ForwardParams& p_;
  const Tiling& t_;
  const Numbers<A> numbers_;
};

}  // namespace fused_bn::cuda
