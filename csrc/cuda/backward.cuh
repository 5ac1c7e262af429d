// Backward in training and in evaluation: the gradients of weight and bias, of the input and of a residual.
#pragma once

#include <cmath>

#include "cuda/activate.cuh"
#include "cuda/affine.cuh"
#include "cuda/exchange.cuh"
#include "cuda/sweep.cuh"

namespace fused_bn::cuda {

template <class T, Mapping mapping, bool whole, Curve curve>
class BackwardKernel {
  using A = Compute<T>;
  using Slab = Sweep<T, mapping, whole, 2, curve>;
  using Affine = OwnAffine<A, mapping>;
  static constexpr int kColumns = kOwn<mapping>;

 public:
  FUSED_BN_DEVICE explicit BackwardKernel(const BackwardParams& p)
      : p_(p),
        g_(p.geometry),
        numbers_(p.geometry, p.layout),
        channel_of_(p.geometry, p.layout),
        statistics_(const_cast<void*>(p.statistics), p.geometry.C),
        reduction_(p.geometry, p.layout),
        exchange_(p.geometry, p.exchange, p.workspace, p.layout) {}

  FUSED_BN_DEVICE void run() {
    const bool gathers = p_.total == nullptr && p_.phase != Phase::emit, emits = p_.phase != Phase::gather;
    for (int slab = exchange_.team(); slab < g_.slabs; slab += g_.groups) {
      const void* const data[2] = {p_.grad_output, p_.input};
      Slab sweep(g_, p_.layout, slab, exchange_.rank(), data);
      if (gathers) sweep.start();
      prepare(slab);
      sync_block();
      const Affine affine(numbers_, channel_of_, sweep.view);
      bool fails = true;
      for (Try which = Try::first; fails; which = Try::again) {
        const A scale = which == Try::again ? kSmaller<A> : A{1};
        fails = gathers && gather(sweep, affine, slab, scale);
        if (emits) {
          if (p_.exchange != Exchange::none) merge_blocks(slab, scale);
          fails = p_.total == nullptr ? finish(slab, which) : take_total(slab);
        }
        fails = any_in_block(fails && which == Try::first);
      }
      if (emits && (p_.grad_input != nullptr || p_.grad_residual != nullptr)) emit(sweep, affine);
      sync_block();  // the next slab overwrites the numbers
    }
    exchange_.leave();
  }

 private:
  // [2, slab_channels]: what the slab's channels sum up to.
  FUSED_BN_DEVICE double* totals(int field) const {
    return shared_part<double>(p_.layout.totals) + field * g_.slab_channels;
  }

  FUSED_BN_DEVICE void prepare(int slab) {
    for (int c = thread_index(); c < g_.channels(slab); c += g_.threads) {
      const int channel = g_.first_channel(slab) + c;
      numbers_.set_affine(c, ChannelStatistics<A>(statistics_, channel), read(p_.weight, channel, 1),
                          read(p_.bias, channel, 0));
    }
  }

  // x - mean_hi, and what forward gave to the activation, or a value with the same slope. `last`: of what is
  // read for it.
  template <bool last>
  FUSED_BN_DEVICE void before_activation(const Raw<T>& x, const Slab& sweep, int step, const Affine& affine,
                                         A (&centred)[kVector], A (&z)[kVector]) const {
    const uint32_t bits = p_.mask == nullptr ? 0 : p_.mask[sweep.mask_byte(sweep.view.vector(step), step)];
    unpack(x, centred);
    FUSED_BN_UNROLL
    for (int k = 0; k < kVector; ++k) {
      centred[k] = affine.centre(centred[k], k);
      if (p_.mask == nullptr) {
        z[k] = affine.transform(centred[k], k);
      } else {
        z[k] = (bits >> k & 1) != 0 ? A{1} : A{0};
      }
    }
    if (curve == Curve::other && p_.residual != nullptr) {
      A residual[kVector];
      unpack(load_vector<T, whole, last>(p_.residual, sweep.view.vector(step)), residual);
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) z[k] += residual[k];
    }
  }

  // The gradient behind the activation, from dy, and x - mean_hi.
  template <bool last>
  FUSED_BN_DEVICE void differentiate(const Raw<T> (&raw)[2], const Slab& sweep, int step,
                                     const Affine& affine, A (&g)[kVector], A (&centred)[kVector]) const {
    A z[kVector];
    before_activation<last>(raw[1], sweep, step, affine, centred, z);
    unpack(raw[0], g);
    VectorActivation<A, curve>(p_.activation, p_.activation_param).backward(z, g);
    if constexpr (curve == Curve::other) {  // computed again: kept, it would not fit into registers
      Raw<T> x = raw[1];
      forget(x);
      unpack(x, centred);
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) centred[k] = affine.centre(centred[k], k);
    }
  }

  // Leaves in totals_ the sums of g and of g * (x - mean_hi), in the units of scale. True where what is
  // published of them has overflowed.
  FUSED_BN_DEVICE bool gather(Slab& sweep, const Affine& affine, int slab, A scale) {
    A sum[kColumns] = {}, sum_centred[kColumns] = {};
    sweep.gather([&](auto& raw, const Stretch& stretch) {
      // Sums of a few steps first: shorter chains of additions round less than one long one. A curve other
      // than ReLU's leaves no registers for them.
      A part[kColumns] = {}, part_centred[kColumns] = {};
      A(&to)[kColumns] = curve == Curve::other ? sum : part;
      A(&to_centred)[kColumns] = curve == Curve::other ? sum_centred : part_centred;
      sweep.each(raw, stretch, [&](const auto& own_raw, int step) {
        const int values = whole ? kVector : sweep.view.vector(step).count;
        A g[kVector], centred[kVector];
        differentiate<false>(own_raw, sweep, step, affine, g, centred);
        FUSED_BN_UNROLL
        for (int k = 0; k < kVector; ++k) {
          const A each = whole || k < values ? g[k] * scale : A{0};
          const A x = whole || k < values ? centred[k] * scale : A{0};
          to[own<mapping>(k)] += each;
          to_centred[own<mapping>(k)] = fma(each, x, to_centred[own<mapping>(k)]);
        }
      });
      FUSED_BN_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        sum[k] += part[k];
        sum_centred[k] += part_centred[k];
      }
    });
    const int channels = g_.channels(slab);
    FUSED_BN_ROLLED
    for (int field = 0; field < 2; ++field) {
      FUSED_BN_UNROLL
      for (int k = 0; k < kColumns; ++k) sum[k] = field == 0 ? sum[k] : sum_centred[k];
      reduction_.template over_block<mapping>(channels, sum, totals(field));
    }
    if (p_.exchange == Exchange::none) return false;
    bool overflows = false;
    for (int c = thread_index(); c < channels; c += g_.threads) {
      const A grad = static_cast<A>(totals(0)[c]), grad_centred = static_cast<A>(totals(1)[c]);
      overflows |= exchange_.publish(slab, c, grad, grad_centred, scale);
    }
    if (p_.phase == Phase::both) exchange_.wait();
    return overflows;
  }

  FUSED_BN_DEVICE void merge_blocks(int slab, A scale) {
    FUSED_BN_ROLLED
    for (int field = 0; field < 2; ++field) {
      reduction_.over_rows(
          g_.group, g_.channels(slab), [&](int b, int c) { return exchange_.read(slab, b, field, c, scale); },
          totals(field));
    }
    exchange_.next_turn();
  }

  // dx = scale * (g - mean(g) - xhat * mean(g * xhat)): Ioffe and Szegedy 2015, section 3. What follows g is
  // fma(x - mean_hi, slope, constant), with the means over the batch folded into two numbers. True where the
  // first try fails for a channel.
  FUSED_BN_DEVICE bool finish(int slab, Try which) {
    bool fails = false;
    const double larger = which == Try::again ? 1.0 / kSmaller<A> : 1.0;
    for (int c = thread_index(); c < g_.channels(slab); c += g_.threads) {
      A& constant = numbers_.at(kConstant, c);  // NaN where the first try has failed
      const double grad = totals(0)[c] * larger;
      const double grad_centred = totals(1)[c] * larger * larger;
      if (which == Try::first && !is_finite(static_cast<A>(grad + grad_centred))) {
        constant = static_cast<A>(NAN);
        fails = true;
        continue;
      }
      if (which == Try::again && constant == constant) continue;
      const int channel = g_.first_channel(slab) + c;
      const ChannelStatistics<A> s(statistics_, channel);
      const double grad_xhat = (grad_centred - static_cast<double>(s.mean_lo) * grad) * s.invstd;
      if (exchange_.rank() == 0) {
        write(p_.grad_weight, channel, grad_xhat);
        write(p_.grad_bias, channel, grad);
      }
      set_factors(c, s, grad, grad_xhat, p_.inverse_count);
    }
    return fails;
  }

  FUSED_BN_DEVICE void set_factors(int c, const ChannelStatistics<A>& s, double grad, double grad_xhat,
                                   double inverse_count) const {
    const double slope = p_.training ? -grad_xhat * inverse_count * s.invstd : 0.0;
    numbers_.at(kSlope, c) = static_cast<A>(slope);
    numbers_.at(kConstant, c) =
        p_.training ? static_cast<A>(-static_cast<double>(s.mean_lo) * slope - grad * inverse_count) : A{0};
  }

  // In the place of finish(), where the sums are known.
  FUSED_BN_DEVICE bool take_total(int slab) {
    for (int c = thread_index(); c < g_.channels(slab); c += g_.threads) {
      const int channel = g_.first_channel(slab) + c;
      set_factors(c, ChannelStatistics<A>(statistics_, channel), p_.total[channel], p_.total[g_.C + channel],
                  1 / *p_.total_count);
    }
    return false;
  }

  FUSED_BN_DEVICE void emit(Slab& sweep, const Affine& affine) {
    const OwnNumbers<A, mapping> slope(numbers_, kSlope, channel_of_, sweep.view);
    const OwnNumbers<A, mapping> constant(numbers_, kConstant, channel_of_, sweep.view);
    sweep.emit([&](const auto& raw, int step) {
      const Vector at = sweep.view.vector(step);
      A g[kVector], centred[kVector];
      differentiate<true>(raw, sweep, step, affine, g, centred);
      if (p_.grad_residual != nullptr) store_vector<T, whole>(p_.grad_residual, at, pack<T>(g));
      if (p_.grad_input == nullptr) return;
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) {
        // In evaluation the statistics are constants; nothing may leak in where a slope of 0 meets inf.
        const A behind = p_.training ? fma(centred[k], slope(k), constant(k)) : A{0};
        g[k] = affine.scale(k) * (g[k] + behind);
      }
      store_vector<T, whole>(p_.grad_input, at, pack<T>(g));
    });
  }

  const BackwardParams& p_;
  const Geometry& g_;
  const Numbers<A> numbers_;
  const ChannelOf<mapping> channel_of_;
  const Statistics<A> statistics_;
  Reduction<A> reduction_;
  GroupExchange<A> exchange_;
};

template <class T, Mapping mapping, bool whole, Curve curve>
FUSED_BN_DEVICE void backward_kernel(const BackwardParams& p) {
  BackwardKernel<T, mapping, whole, curve>(p).run();
}

}  // namespace fused_bn::cuda
