// Forward in training and in evaluation: statistics, running statistics, normalise, affine, residual,
// activation.
#pragma once

#include "cuda/activate.cuh"
#include "cuda/affine.cuh"
#include "cuda/exchange.cuh"
#include "cuda/moments.cuh"

namespace fused_bn::cuda {

template <class T, Mapping mapping, bool whole, Curve curve>
class ForwardKernel {
  using A = Compute<T>;
  using Slab = Sweep<T, mapping, whole, 1, curve>;
  static constexpr int kColumns = kOwn<mapping>;

 public:
  FUSED_BN_DEVICE explicit ForwardKernel(const ForwardParams& p)
      : p_(p),
        g_(p.geometry),
        numbers_(p.geometry, p.layout),
        channel_of_(p.geometry, p.layout),
        reduction_(p.geometry, p.layout),
        exchange_(p.geometry, p.exchange, p.workspace, p.layout) {}

  FUSED_BN_DEVICE void run() {
    const bool gathers = p_.training && p_.phase != Phase::emit, emits = p_.phase != Phase::gather;
    const Try first = p_.training ? Try::first : Try::only;
    for (int b = thread_index(); p_.training && b < g_.group; b += g_.threads) {
      counts()[b] =
          static_cast<A>(g_.values_before(g_.first_step(b + 1)) - g_.values_before(g_.first_step(b)));
    }
    sync_block();
    for (int slab = exchange_.team(); slab < g_.slabs; slab += g_.groups) {
      const void* const data[1] = {p_.input};
      Slab sweep(g_, p_.layout, slab, exchange_.rank(), data);
      if (gathers) sweep.start();
      bool fails = true;
      for (Try which = first; fails; which = Try::again) {
        const A scale = which == Try::again ? kSmaller<A> : A{1};
        fails = gathers && gather(sweep, slab, scale);
        if (emits) {
          if (p_.training && p_.exchange != Exchange::none) merge_blocks(slab, scale);
          fails = finish(slab, which);
        }
        fails = any_in_block(fails && which == Try::first);
      }
      if (emits && p_.output != nullptr) emit(sweep);
      sync_block();  // the next slab overwrites the numbers
    }
    exchange_.leave();
    if (emits && p_.training) count_batch();
  }

 private:
  // [2, slab_channels]: what the slab's channels sum up to.
  FUSED_BN_DEVICE double* totals(int field) const {
    return shared_part<double>(p_.layout.totals) + field * g_.slab_channels;
  }

  // Values of a channel in each block of the group.
  FUSED_BN_DEVICE A* counts() const { return shared_part<A>(p_.layout.counts); }

  // Every block reads the counter before it counts itself as finished, and the last one of all increments it.
  FUSED_BN_DEVICE void count_batch() const {
    if (p_.num_batches_tracked == nullptr || thread_index() != 0) return;
    bool counts = block_index() == 0;
    if (p_.cumulative) {
      const uint32_t last = static_cast<uint32_t>(grid_blocks() - 1);
      counts = count_around(p_.workspace.words, last) == last;
    }
    if (counts) *p_.num_batches_tracked += 1;
  }

  // A value of the channel from which all deviations are taken; any finite one is right, a typical one
  // precise.
  FUSED_BN_DEVICE A pivot(int channel) const {
    const A value = widen(static_cast<const T*>(p_.input)[g_.first_value(channel)]);
    return is_finite(value) ? value : A{0};
  }

  // Leaves in totals_ the sum of (x - pivot) * scale of each channel, and of the squared deviations. True
  // where what is published of them has overflowed.
  FUSED_BN_DEVICE bool gather(Slab& sweep, int slab, A scale) {
    A values[kColumns];
    FUSED_BN_UNROLL
    for (int k = 0; k < kColumns; ++k) {
      values[k] = multiply(-pivot(g_.first_channel(slab) + channel_of_(sweep.view, k)), scale);
    }
    ThreadMoments<T, mapping, whole> moments(values, scale);
    sweep.gather([&](auto& raw, const Stretch& stretch) { moments.add(raw, stretch, sweep.view); });
    const int channels = g_.channels(slab);
    const A count = counts()[exchange_.rank()], inverse = count == 0 ? A{0} : reciprocal(count);
    FUSED_BN_ROLLED
    for (int field = 0; field < 2; ++field) {
      FUSED_BN_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        if (field == 0) {
          values[k] = moments.sum(k);
        } else {
          values[k] = moments.m2_about(static_cast<A>(totals(0)[channel_of_(sweep.view, k)]) * inverse, k);
        }
      }
      reduction_.template over_block<mapping>(channels, values, totals(field));
    }
    if (p_.exchange == Exchange::none) return false;
    bool overflows = false;
    for (int c = thread_index(); c < channels; c += g_.threads) {
      const A mean = static_cast<A>(totals(0)[c]) * inverse, m2 = static_cast<A>(totals(1)[c]);
      overflows |= exchange_.publish(slab, c, mean, m2, scale);
    }
    if (p_.phase == Phase::both) exchange_.wait();
    return overflows;
  }

  // All blocks merge all partial results, in the same order.
  FUSED_BN_DEVICE void merge_blocks(int slab, A scale) {
    const A inverse = static_cast<A>(p_.inverse_count);
    FUSED_BN_ROLLED
    for (int field = 0; field < 2; ++field) {
      reduction_.over_rows(
          g_.group, g_.channels(slab),
          [&](int b, int c) {
            const A mean = exchange_.read(slab, b, 0, c, scale);
            if (field == 0) return counts()[b] * mean;
            const A delta = mean - static_cast<A>(totals(0)[c]) * inverse;
            return exchange_.read(slab, b, 1, c, scale) + counts()[b] * delta * delta;
          },
          totals(field));
    }
    exchange_.next_turn();
  }

  // From the totals, the running or the known statistics to those that are saved and used. True where the
  // first try fails for a channel: its sums have overflowed, or it holds inf or NaN.
  FUSED_BN_DEVICE bool finish(int slab, Try which) {
    bool fails = false;
    const double larger = which == Try::again ? 1.0 / kSmaller<A> : 1.0;
    for (int c = thread_index(); c < g_.channels(slab); c += g_.threads) {
      A& failed = numbers_.at(kConstant, c);
      if (which == Try::first) failed = is_finite(static_cast<A>(totals(1)[c])) ? A{0} : A{1};
      if (which == Try::first && failed != 0) fails = true;
      if (which != Try::only && (failed != 0) != (which == Try::again)) continue;
      const int channel = g_.first_channel(slab) + c;
      double mean, variance;
      if (p_.training) {
        mean = static_cast<double>(pivot(channel)) + totals(0)[c] * p_.inverse_count * larger;
        variance = totals(1)[c] * p_.inverse_count * larger * larger;
      } else {
        mean = read(p_.running_mean, channel, 0);
        variance = read(p_.running_var, channel, 0);
      }
      ChannelStatistics<A> statistics(mean, variance, p_.eps);
      if (p_.known != nullptr) {
        statistics = ChannelStatistics<A>(Statistics<A>(const_cast<void*>(p_.known), g_.C), channel);
      }
      numbers_.set_affine(c, statistics, read(p_.weight, channel, 1), read(p_.bias, channel, 0));
      if (exchange_.rank() == 0) {
        statistics.save(Statistics<A>(p_.statistics, g_.C), channel);
        if (!p_.training) continue;
        blend(p_.running_mean, channel, mean, momentum_of(p_));
        blend(p_.running_var, channel, variance * p_.unbiased, momentum_of(p_));
      }
    }
    return fails;
  }

  FUSED_BN_DEVICE void emit(Slab& sweep) {
    const OwnAffine<A, mapping> affine(numbers_, channel_of_, sweep.view);
    const VectorActivation<A, curve> activation(p_.activation, p_.activation_param);
    sweep.emit([&](const auto& raw, int step) {
      const Vector at = sweep.view.vector(step);
      A values[kVector];
      unpack(raw[0], values);
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) values[k] = affine.transform(affine.centre(values[k], k), k);
      if (p_.residual != nullptr) {
        A residual[kVector];
        unpack(load_vector<T, whole, true>(p_.residual, at), residual);
        FUSED_BN_UNROLL
        for (int k = 0; k < kVector; ++k) values[k] += residual[k];
      }
      if (p_.mask != nullptr) {
        p_.mask[sweep.mask_byte(at, step)] = static_cast<uint8_t>(activation.bits(values));
      }
      activation.forward(values);
      store_vector<T, whole>(p_.output, at, pack<T>(values));
    });
  }

  const ForwardParams& p_;
  const Geometry& g_;
  const Numbers<A> numbers_;
  const ChannelOf<mapping> channel_of_;
  Reduction<A> reduction_;
  GroupExchange<A> exchange_;
};

template <class T, Mapping mapping, bool whole, Curve curve>
FUSED_BN_DEVICE void forward_kernel(const ForwardParams& p) {
  ForwardKernel<T, mapping, whole, curve>(p).run();
}

}  // namespace fused_bn::cuda
