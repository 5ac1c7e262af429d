// The backward direction, for Resident, Reduce and Apply. g is the gradient with respect to z.
#pragma once

#include "cuda/kernels/activate.cuh"
#include "cuda/kernels/finish.cuh"
#include "cuda/kernels/mask.cuh"

namespace fused_bn::cuda {

// resident: the resident kernel, which runs in training only.
template <class T, int vector_, bool mixed_, ActivationKind kind_, bool resident = false>
class Backward {
 public:
  using Params = BackwardParams;
  using Element = T;
  using A = Compute<T>;
  static constexpr int vector = vector_;
  static constexpr bool mixed = mixed_;
  static constexpr ActivationKind kind = kind_;
  static constexpr bool backward = true;
  using Vector = Raw<T, vector>;
  using Sums = ThreadSums<A, vector, mixed>;

  static constexpr int kSummed = 2, kSumAhead = 4, kApplyAhead = 4;
  static constexpr int kSumUnroll = 4;
  template <bool special>
  static constexpr int kApplyUnroll = special ? 1
                                      : mixed ? 2
                                              : 4;

  FUSED_BN_DEVICE explicit Backward(const BackwardParams& p)
      : p_(p), t_(p.tiling), numbers_(p.tiling, p.layout), activation_(p.activation, p.activation_param) {}

  FUSED_BN_DEVICE const void* data(int i) const { return i == 0 ? p_.input : p_.grad_output; }
  FUSED_BN_DEVICE bool has_second() const { return true; }

  // ---- sums of g and of g * (x - mean_hi)

  // Special sums read a mask. Special results also write a residual's gradient, or no input's.
  FUSED_BN_DEVICE bool has_special_sums() const { return p_.mask != nullptr; }
  FUSED_BN_DEVICE bool has_special_results() const {
    return p_.mask != nullptr || p_.grad_residual != nullptr || p_.grad_input == nullptr;
  }

  FUSED_BN_DEVICE void prepare(int c, int channel, bool) const { statistics(c) = prepare_affine(c, channel); }
  template <class Load>
  FUSED_BN_DEVICE void choose_pivot(int, int64_t, Load) const {}

  template <bool scaled, bool has_mask>
  class Summation {
   public:
    FUSED_BN_DEVICE Summation(const Backward& b, int column) : b_(b), affine_(b.t_, b.numbers_, column) {}

    FUSED_BN_DEVICE void add(const Vector& x, const Vector& dy, const Vectors<mixed>& at, Sums& sums) const {
      const Gradients own = b_.differentiate<has_mask>(x, dy, at, affine_);
      FUSED_BN_UNROLL
      for (int k = 0; k < vector; ++k) {
        A g = scaled ? own.g[k] * kSmaller<A> : own.g[k];
        // In evaluation 0 * inf must be NaN, as in PyTorch. In training the rest of the channel is NaN
        // anyway.
        if (!resident && !own.keeps[k]) g = 0;
        if (!resident || own.keeps[k])
          sums.add(k, g, g, scaled ? own.centred[k] * kSmaller<A> : own.centred[k]);
      }
    }

   private:
    const Backward& b_;
    const OwnNumbers<A, vector, mixed, 3> affine_;
  };

  // Sums g * (x - mean_hi) * invstd, which overflows only if the gradient of the weight does.
  FUSED_BN_DEVICE Partial<A> partial(const BlockSums& sums, int c, A) const {
    const double larger = sums.scaled ? 1.0 / static_cast<double>(kSmaller<A>) : 1.0;
    const double grad_xhat = sums.second * larger * static_cast<double>(statistics(c).invstd) * larger;
    return {static_cast<A>(sums.first * larger), static_cast<A>(grad_xhat), A{0}, A{0}};
  }

  template <class Fetch>
  FUSED_BN_DEVICE MergedSums merge(const LaneGroup& lanes, int c, Fetch fetch) const {
    return MergedSums::of<A>(t_, lanes, statistics(c), fetch);
  }

  // ---- a channel's results

  FUSED_BN_DEVICE Word finish(int c, const MergedSums& merged, bool writes, int channel) const {
    numbers_.set_slope(c, statistics(c), merged.grad, merged.grad_xhat, p_.inverse_count);
    if (writes) write(c, merged, channel);
    return numbers_.told(c, kSlope, 2);
  }
  FUSED_BN_DEVICE void take(int c, const Word& word) const { numbers_.take(c, kSlope, 2, word); }
  FUSED_BN_DEVICE void write(int, const MergedSums& merged, int channel) const {
    fused_bn::cuda::write(p_.grad_weight, channel, merged.grad_xhat);
    fused_bn::cuda::write(p_.grad_bias, channel, merged.grad);
    if (p_.sums == nullptr) return;
    p_.sums[channel] = merged.grad;
    p_.sums[t_.C + channel] = merged.grad_xhat;
  }
  FUSED_BN_DEVICE void count_batch() const {}

  FUSED_BN_DEVICE void prepare_results(int c, int channel, bool) const {
    const ChannelStatistics<A> s = prepare_affine(c, channel);
    if (!p_.training) return;
    const double inverse_count = p_.total_count == nullptr ? p_.inverse_count : 1.0 / *p_.total_count;
    numbers_.set_slope(c, s, p_.sums[channel], p_.sums[t_.C + channel], inverse_count);
  }

  // ---- results

  FUSED_BN_DEVICE bool needs_all_lanes() const { return false; }

  template <bool has_residual>
  class Results {
   public:
    FUSED_BN_DEVICE Results(const Backward& b, const Vectors<mixed>& at)
        : b_(b), numbers_(b.t_, b.numbers_, at.column()) {
      rebase(at);
    }

    FUSED_BN_DEVICE void apply(const Vector& x, const Vector& dy, const Vectors<mixed>& at,
                               bool exists) const {
      if (!exists) return;
      if (has_residual && b_.p_.grad_residual != nullptr) {
        const Gradients own = b_.differentiate<has_residual>(x, dy, at, numbers_);
        A kept[vector];
        FUSED_BN_UNROLL
        for (int k = 0; k < vector; ++k) kept[k] = own.keeps[k] ? own.g[k] : A{0};
        store_global(vectors_of<T, vector>(b_.p_.grad_residual, at.position()), pack<T, vector>(kept));
      }
      if ((!resident || has_residual) && b_.p_.grad_input == nullptr) return;
      // Computed again, because it would not fit into registers.
      const Gradients own =
          b_.differentiate<has_residual>(has_residual ? optimisation_barrier(x) : x,
                                         has_residual ? optimisation_barrier(dy) : dy, at, numbers_);
      A gradient[vector];
      FUSED_BN_UNROLL
      for (int k = 0; k < vector; ++k) {
        // In evaluation the statistics are constants. 0, not 0 * inf.
        gradient[k] = resident || b_.p_.training
                          ? fma(own.centred[k], numbers_(kSlope, k), numbers_(kConstant, k))
                          : A{0};
        if (own.keeps[k]) gradient[k] += own.g[k];
        gradient[k] *= numbers_(kScale, k);
      }
      store_global(grad_input_ + at.offset(), pack<T, vector>(gradient));
    }
    FUSED_BN_DEVICE void rebase(const Vectors<mixed>& at) {
      grad_input_ = optimisation_barrier(vectors_of<T, vector>(b_.p_.grad_input, at.start()));
    }

   private:
    const Backward& b_;
    const OwnNumbers<A, vector, mixed, 5> numbers_;
    Vector* grad_input_;
  };

 private:
  // ReLU's g is 0 if keeps is false: to skip the addition is cheaper than to add 0.
  struct Gradients {
    A g[vector], centred[vector];
    bool keeps[vector];
  };

  // has_mask: the mask, if there is one, determines the slopes.
  template <bool has_mask, int count>
  FUSED_BN_DEVICE Gradients differentiate(const Vector& x, const Vector& dy, const Vectors<mixed>& at,
                                          const OwnNumbers<A, vector, mixed, count>& affine) const {
    Gradients own;
    unpack<T, vector>(x, own.centred);
    unpack<T, vector>(dy, own.g);
    A z[vector];
    const bool by_mask = has_mask && p_.mask != nullptr;
    const uint32_t bits = by_mask ? load_bits<vector>(p_.mask, at.position()) : 0;
    FUSED_BN_UNROLL
    for (int k = 0; k < vector; ++k) {
      own.centred[k] = affine.centre(own.centred[k], k);
      z[k] = affine.transform(own.centred[k], k);
      if (by_mask) z[k] = (bits >> k & 1u) != 0 ? A{1} : A{0};  // has the same slope
      own.keeps[k] = kind != ActivationKind::relu || !(z[k] <= 0);
    }
    if constexpr (kind != ActivationKind::relu) {
      if (kind == ActivationKind::other && p_.residual != nullptr) {
        A residual[vector];
        unpack<T, vector>(load_global<Vector>(vectors_of<T, vector>(p_.residual, at.position())), residual);
        FUSED_BN_UNROLL
        for (int k = 0; k < vector; ++k) z[k] += residual[k];
      }
      if (!activation_.is_prelu()) {
        activation_.backward(z, own.g);
      } else {
        with_negative_slopes<vector, mixed>(t_, numbers_, at.column(), [&](int k, A slope) {
          own.g[k] = prelu_backward(z[k], own.g[k], slope);
        });
      }
    }
    return own;
  }

  FUSED_BN_DEVICE ChannelStatistics<A> prepare_affine(int c, int channel) const {
    const uint64_t weight = load_value(p_.weight, channel), bias = load_value(p_.bias, channel);
    const ChannelStatistics<A> saved(p_.statistics, t_.C, channel);
    numbers_.set_affine(c, saved, read(p_.weight, weight, 1), read(p_.bias, bias, 0));
    if constexpr (kind == ActivationKind::other) numbers_.set_negative_slope(c, p_.negative_slope, channel);
    return saved;
  }
  FUSED_BN_DEVICE ChannelStatistics<A>& statistics(int c) const {
    return shared_part<ChannelStatistics<A>>(p_.layout.parameters)[c];
  }

  const BackwardParams& p_;
  const Tiling& t_;
  const Numbers<A> numbers_;
  const VectorActivation<T, vector, kind> activation_;
};

}  // namespace fused_bn::cuda
