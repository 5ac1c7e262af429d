// The streamed kernels: a reduce pass, and an apply pass that goes backwards, so that L2 serves its
// beginning.
#pragma once

#include "cuda/kernels/backward.cuh"
#include "cuda/kernels/forward.cuh"

namespace fused_bn::cuda {

// Some of a thread's vectors, of one or two tensors. All are loaded before the first is used.
template <class Direction, int tensors, int count>
struct Chunk {
  using Vector = typename Direction::Vector;
  Vector raw[count][tensors];

  FUSED_BN_DEVICE Chunk(const Direction& direction, Vectors<Direction::mixed> at, int64_t left) {
    // One branch for all: not all loads with their own predicates are issued before the first use.
    left >= count ? load<true>(direction, at, left) : load<false>(direction, at, left);
  }
  FUSED_BN_DEVICE const Vector& second(int i) const { return raw[i][tensors - 1]; }

 private:
  template <bool all>
  FUSED_BN_DEVICE void load(const Direction& direction, Vectors<Direction::mixed> at, int64_t left) {
    using T = typename Direction::Element;
    FUSED_BN_UNROLL
    for (int i = 0; i < count; ++i) {
      FUSED_BN_UNROLL
      for (int t = 0; t < tensors; ++t) {
        if (!all && i >= left) continue;
        raw[i][t] = load_global<Vector>(vectors_of<T, Direction::vector>(direction.data(t), at.start()) +
                                        at.offset());
      }
      at.next();
    }
  }
};

// A block's tile and its rank in the tile's group. Consecutive blocks have consecutive tiles.
struct Place {
  int tile, rank;

  FUSED_BN_DEVICE Place(const Tiling& t, int index) : rank(index / t.tiles) { tile = index - rank * t.tiles; }
};

template <class Direction_>
class Reduce {
 public:
  using Direction = Direction_;
  using Params = typename Direction::Params;
  using T = typename Direction::Element;
  using A = typename Direction::A;
  static constexpr Kernel kernel = Kernel::reduce;
  static constexpr int vector = Direction::vector;
  static constexpr bool mixed = Direction::mixed;

  FUSED_BN_DEVICE explicit Reduce(const Params& p)
      : p_(p), t_(p.tiling), place_(p.tiling, block_index()), direction_(p) {}

  FUSED_BN_DEVICE void run() const {
    direction_.count_batch();
    const int channels = t_.channels(place_.tile), own = thread_index();
    if (own < channels) {
      direction_.prepare(own, t_.first_channel(place_.tile) + own, true);
      direction_.choose_pivot(own, t_.units, [&](int64_t unit) { return element(unit, own); });
    }
    sync_block();
    finish(channels);
  }

 private:
  // Returns channel c's first value in a unit of the tile.
  FUSED_BN_DEVICE A element(int64_t unit, int c) const {
    const bool along = t_.walk == Walk::along_rows;
    const int64_t row =
        along ? static_cast<int64_t>(t_.by_tile_vectors.quotient(static_cast<uint64_t>(unit))) : unit;
    const int64_t column = along ? (unit - row * t_.tile_vectors) * vector : c * t_.channel_length;
    const int64_t start = (row * t_.row_vectors + int64_t{place_.tile} * t_.tile_vectors) * vector;
    return widen(static_cast<const T*>(p_.input)[start + column]);
  }

  template <bool scaled, bool special>
  FUSED_BN_DEVICE typename Direction::Sums sum() const {
    constexpr int kAhead = Direction::kSumAhead, tensors = Direction::kSummed;
    Vectors<mixed> at(t_, place_.tile, place_.rank, thread_index());
    const typename Direction::template Summation<scaled, special> summation(direction_, at.column());
    typename Direction::Sums sums;
    for (int64_t left = at.count(); left > 0; left -= kAhead) {
      const Chunk<Direction, tensors, kAhead> chunk(direction_, at, left);
      typename Direction::Sums part;
      FUSED_BN_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (i < left) summation.add(chunk.raw[i][0], chunk.second(i), at, part);
        at.next();
      }
      sums.add(part);
      at.rebase();
    }
    return sums;
  }

  // The last block of a tile to get here merges all partial results, so that no block waits for another.
  FUSED_BN_DEVICE void finish(int channels) const {
    const LaneGroup lanes(channels);
    const int c = lanes.has_channel() ? lanes.index : 0, channel = t_.first_channel(place_.tile) + c;
    const auto sums =
        BlockSums::of<A, vector, mixed>(t_, shared_part<A>(p_.layout.sums), lanes, c, [&](auto scaled) {
          return direction_.has_special_sums() ? sum<scaled.value, true>() : sum<scaled.value, false>();
        });
    launch_dependents();
    const bool on = lanes.has_channel();
    const A inverse_count = A{1} / static_cast<A>(t_.block_values(place_.rank));
    const Partial<A> own = direction_.partial(sums, c, inverse_count);
    Partial<A>* const partials =
        static_cast<Partial<A>*>(p_.partials) + static_cast<int64_t>(channel) * t_.group;
    if (t_.group > 1) {
      if (on && lanes.rank == 0) partials[place_.rank] = own;
      sync_block();
      const uint32_t last = static_cast<uint32_t>(t_.group - 1);
      const bool counts = thread_index() == 0;
      if (!any_in_block(counts && count_around(p_.scratch.arrivals + place_.tile, last) == last)) return;
    }
    const auto merged = direction_.merge(lanes, c, [&](int first, Partial<A>(&batch)[kBatch]) {
      FUSED_BN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int block = first + i * lanes.size;
        if (on && block < t_.group) batch[i] = t_.group == 1 ? own : load_result(partials + block);
      }
    });
    if (on && lanes.rank == 0) direction_.write(c, merged, channel);
  }

  const Params& p_;
  const Tiling& t_;
  const Place place_;
  const Direction direction_;
};

template <class Direction_>
class Apply {
 public:
  using Direction = Direction_;
  using Params = typename Direction::Params;
  static constexpr Kernel kernel = Kernel::apply;

  FUSED_BN_DEVICE explicit Apply(const Params& p)
      : t_(p.tiling), place_(p.tiling, grid_blocks() - 1 - block_index()), direction_(p) {}

  FUSED_BN_DEVICE void run() const { direction_.has_special_results() ? run<true>() : run<false>(); }

 private:
  template <bool special>
  FUSED_BN_DEVICE void run() const {
    constexpr int kAhead = Direction::kApplyAhead, tensors = Direction::kSummed == 2 || special ? 2 : 1;
    using Ahead = Chunk<Direction, tensors, kAhead>;
    Vectors<Direction::mixed> at(t_, place_.tile, place_.rank, thread_index());
    const int64_t count = at.count(), passes = special && direction_.needs_all_lanes() ? t_.passes : count;
    Ahead chunk(direction_, at, count);
    wait_for_primary();
    for (int c = thread_index(); c < t_.channels(place_.tile); c += kThreads) {
      direction_.prepare_results(c, t_.first_channel(place_.tile) + c, place_.rank == 0);
    }
    sync_block();
    typename Direction::template Results<special> results(direction_, at);
    for (int64_t first = 0; first < passes;) {
      FUSED_BN_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const bool exists = first + i < count;
        if (special || exists) results.apply(chunk.raw[i][0], chunk.second(i), at, exists);
        at.next();
      }
      first += kAhead;
      if (first >= passes) return;
      at.rebase();
      results.rebase(at);
      chunk = Ahead(direction_, at, count - first);
    }
  }

  const Tiling& t_;
  const Place place_;
  const Direction direction_;
};

}  // namespace fused_bn::cuda
