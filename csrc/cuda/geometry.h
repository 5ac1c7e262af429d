// Which thread touches which elements: shared by the launch planner, its tests and the kernels.
//
// The work is cut into slabs: channels whose statistics are computed together. The blocks of a group own a
// slab together, and every block takes a stretch of the slab's steps. In one step each thread of a block
// handles one vector of eight neighbouring elements. Two mappings say which:
//
// rows     channels_first with long rows. A slab is one channel; its N rows of S elements, cut into vectors,
//          lie one behind the other.
// columns  The tensor as a matrix whose columns each belong to one channel. channels_last: a matrix row is a
//          pixel's C channels, or several pixels' where that fills vectors. channels_first with short rows
//          (7x7): a matrix row is one n, and C * S columns lie side by side. A slab is some of the columns,
//          whole channels of them; a thread keeps its eight columns and goes down the rows.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace fused_bn::cuda {

constexpr int kVector = 8;  // elements: 16 bytes of a half type, and one byte of a mask of bits

enum class Mapping : int32_t { rows, columns };

// Division by a constant: Granlund and Montgomery 1994, "Division by invariant integers using
// multiplication". Exact where dividend * divisor < 2^64, which limit() gives. A multiplier of 0 divides by
// infinity.
struct Division {
  uint64_t divisor = 1, multiplier = 0;

  static Division by(uint64_t divisor) { return {divisor, divisor < 2 ? 0 : UINT64_MAX / divisor + 1}; }

  FUSED_BN_HOST_DEVICE uint64_t quotient(uint64_t dividend) const {
    if (divisor == 1) return dividend;
#if defined(__CUDA_ARCH__)
    return __umul64hi(dividend, multiplier);
#else
    __extension__ typedef unsigned __int128 wide;
    return static_cast<uint64_t>(static_cast<wide>(dividend) * multiplier >> 64);
#endif
  }
};

// A thread's share of a step: `count` elements from `offset` on; none where count is 0.
struct Vector {
  int64_t offset;
  int count;
};

struct Geometry {
  int64_t N, C, S, elements;  // C fits int
  Mapping mapping;
  int32_t channels_last;
  int32_t whole;  // every vector holds eight elements and is aligned to 16 bytes

  int slabs;
  int steps;             // of one slab, over all blocks of its group
  int last_lanes;        // that take part in the last step; 0 where all do
  int64_t rows;          // columns: of the matrix, the short one at the end included; rows: N
  int64_t row_length;    // elements from one row's start to the next one's: of the matrix, or S
  Division row_vectors;  // rows: vectors in a row of S elements
  int slab_columns;      // columns: of a full slab; rows: 1
  int slab_channels;     // of a full slab
  int slab_vectors;      // columns: of a matrix row within a full slab; rows: 1
  int lanes;             // matrix rows that the threads of a block handle in one step; rows: threads
  int threads;           // of a block
  int group;             // blocks that own a slab together
  int groups;            // that run side by side; group i takes slabs i, i + groups, ...
  int register_steps;    // of a block: kept in registers,
  int shared_steps;      // and in shared memory, from the first read to the second

  // Cuts the slab's vectors, or matrix rows, into steps.
  void cut_steps() {
    const int64_t taken = mapping == Mapping::rows ? N * static_cast<int64_t>(row_vectors.divisor) : rows;
    last_lanes = static_cast<int>(taken % lanes);
    steps = static_cast<int>(taken / lanes) + (last_lanes > 0);
  }
  // Of the thread or matrix row that is the lane-th of a step.
  FUSED_BN_HOST_DEVICE int steps_of_lane(int lane) const {
    return last_lanes == 0 || lane < last_lanes ? steps : steps - 1;
  }
  // Steps [first_step(b), first_step(b + 1)) are block b's: the first blocks may have one more than the
  // others.
  FUSED_BN_HOST_DEVICE int first_step(int block) const {
    const int each = steps / group, more = steps - each * group;
    return each * block + (block < more ? block : more);
  }
  FUSED_BN_HOST_DEVICE int first_channel(int slab) const { return slab * slab_channels; }
  FUSED_BN_HOST_DEVICE int channels(int slab) const {
    const int left = static_cast<int>(C) - first_channel(slab);
    return left < slab_channels ? left : slab_channels;
  }
  // Columns of one channel in a matrix row: of several pixels, or side by side.
  FUSED_BN_HOST_DEVICE int columns_per_channel() const {
    return mapping == Mapping::rows ? 1 : static_cast<int>(slab_columns / slab_channels);
  }
  // The channel, counted within the slab, of one of its columns. (More than one pixel side by side: one
  // slab.)
  FUSED_BN_HOST_DEVICE int channel_of_column(int column) const {
    return channels_last ? column % slab_channels : column / columns_per_channel();
  }
  // Where the channel's first value lies.
  FUSED_BN_HOST_DEVICE int64_t first_value(int channel) const {
    return channels_last ? channel : channel * S;
  }

  // Values of each channel of a slab in its steps [0, step).
  FUSED_BN_HOST_DEVICE int64_t values_before(int step) const {
    if (mapping == Mapping::rows) {
      const uint64_t vectors = static_cast<uint64_t>(step) * threads;
      const uint64_t row = row_vectors.quotient(vectors);
      if (row >= static_cast<uint64_t>(N)) return N * S;
      const int64_t within = static_cast<int64_t>(vectors - row * row_vectors.divisor) * kVector;
      return static_cast<int64_t>(row) * S + (within < S ? within : S);
    }
    const int64_t values = int64_t{step} * lanes * columns_per_channel();
    return values < N * S ? values : N * S;  // the last row may be short
  }
};

// A slab as one thread of a block sees it: in each of its steps [0, steps()) it has one vector.
template <Mapping mapping>
class ThreadView;

template <>
class ThreadView<Mapping::rows> {
 public:
  FUSED_BN_HOST_DEVICE ThreadView(const Geometry& g, int slab, int thread)
      : g_(g), channel_(slab), thread_(static_cast<unsigned>(thread)), steps_(g.steps_of_lane(thread)) {}

  FUSED_BN_HOST_DEVICE int steps() const { return steps_; }

  FUSED_BN_HOST_DEVICE Vector vector(int step) const {
    const uint64_t i = index(step);
    const uint64_t n = g_.row_vectors.quotient(i);
    const int64_t s = static_cast<int64_t>(i - n * g_.row_vectors.divisor) * kVector;
    const int64_t left = g_.whole ? kVector : g_.S - s;
    return {(static_cast<int64_t>(n) * g_.C + channel_) * g_.S + s,
            left < kVector ? static_cast<int>(left) : kVector};
  }

  // Where the bits of a vector lie in a mask. Each row begins a new byte, in either mapping.
  FUSED_BN_HOST_DEVICE int64_t mask_byte(int step) const {
    const uint64_t i = index(step);
    const uint64_t n = g_.row_vectors.quotient(i);
    return static_cast<int64_t>((n * g_.C + channel_) * g_.row_vectors.divisor + i -
                                n * g_.row_vectors.divisor);
  }

 private:
  FUSED_BN_HOST_DEVICE uint64_t index(int step) const {
    return static_cast<uint64_t>(static_cast<unsigned>(step)) * static_cast<unsigned>(g_.threads) + thread_;
  }

  const Geometry& g_;
  int channel_;
  unsigned thread_;
  int steps_;
};

template <>
class ThreadView<Mapping::columns> {
 public:
  FUSED_BN_HOST_DEVICE ThreadView(const Geometry& g, int slab, int thread) : g_(g) {
    const int lane = thread / g.slab_vectors;
    column_ = (thread - lane * g.slab_vectors) * kVector;
    // The last slab may be narrower.
    const int64_t left = g.row_length - int64_t{slab} * g.slab_columns - column_;
    const int space = g.slab_columns - column_;
    width_ = left < space ? static_cast<int>(left) : space;
    if (width_ > kVector) width_ = kVector;
    if (lane >= g.lanes || width_ < 0) width_ = 0;
    first_row_ = lane;
    steps_ = width_ == 0 ? 0 : g.steps_of_lane(lane);
    origin_ = lane * g.row_length + int64_t{slab} * g.slab_columns + column_;
    // The last matrix row may be short, and end before the thread's columns.
    if (!g.whole && steps_ > 0 && vector(steps_ - 1).count <= 0) --steps_;
  }

  FUSED_BN_HOST_DEVICE int steps() const { return steps_; }

  // The first of the thread's columns, counted within the slab, and how many it has.
  FUSED_BN_HOST_DEVICE int column() const { return column_; }
  FUSED_BN_HOST_DEVICE int width() const { return width_; }

  FUSED_BN_HOST_DEVICE Vector vector(int step) const {
    const int64_t offset = origin_ + static_cast<int64_t>(step) * g_.lanes * g_.row_length;
    if (g_.whole) return {offset, kVector};
    const int64_t left = g_.elements - offset;
    return {offset, left < width_ ? static_cast<int>(left) : width_};
  }

  FUSED_BN_HOST_DEVICE int64_t mask_byte(int step) const {
    const int64_t row = static_cast<int64_t>(step) * g_.lanes + first_row_;
    const int64_t bytes = (g_.row_length + kVector - 1) / kVector;
    return row * bytes + (origin_ - first_row_ * g_.row_length) / kVector;
  }

 private:
  const Geometry& g_;
  int column_, width_, first_row_, steps_;
  int64_t origin_;
};

}  // namespace fused_bn::cuda
