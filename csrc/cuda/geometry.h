// Which thread touches which elements: shared by the launch planner, its tests and the kernels.
//
// The work is cut into slabs: channels whose statistics are computed together. The blocks of a group own a slab
// together, and every block takes a stretch of the slab's steps. In one step each thread of a block handles
// one vector of eight neighbouring elements. Two mappings say which:
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

enum class Mapping : int8_t { rows, columns };

// Division by a constant: Granlund and Montgomery 1994, "Division by invariant integers using multiplication".
// Exact where dividend * divisor < 2^64, which limit() gives. A multiplier of 0 divides by infinity.
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
  int64_t N, C, S, elements;
  Mapping mapping;
  bool channels_last;
  bool whole;  // every vector holds eight elements and is aligned to 16 bytes

  int64_t slabs, steps;  // steps of one slab, over all blocks of its group
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

  // Steps [first_step(b), first_step(b + 1)) are block b's.
  FUSED_BN_HOST_DEVICE int64_t first_step(int block) const { return steps * block / group; }
  FUSED_BN_HOST_DEVICE int64_t first_channel(int64_t slab) const { return slab * slab_channels; }
  FUSED_BN_HOST_DEVICE int channels(int64_t slab) const {
    const int64_t left = C - first_channel(slab);
    return left < slab_channels ? static_cast<int>(left) : slab_channels;
  }
  // Columns of one channel in a matrix row, and from one to the next: pixels apart, or side by side.
  FUSED_BN_HOST_DEVICE int columns_per_channel() const {
    return mapping == Mapping::rows ? 1 : static_cast<int>(slab_columns / slab_channels);
  }
  FUSED_BN_HOST_DEVICE int column_step(int64_t slab) const { return channels_last ? channels(slab) : 1; }
  FUSED_BN_HOST_DEVICE int first_column(int64_t slab, int channel) const {
    return channels_last ? channel : channel * columns_per_channel();
  }
  // The channel, counted within the slab, of one of its columns.
  FUSED_BN_HOST_DEVICE int channel_of_column(int64_t slab, int column) const {
    return channels_last ? column % channels(slab) : column / columns_per_channel();
  }
  // Where the channel's first value lies.
  FUSED_BN_HOST_DEVICE int64_t first_value(int64_t channel) const { return channels_last ? channel : channel * S; }

  // Values of each channel of a slab in its steps [0, step).
  FUSED_BN_HOST_DEVICE int64_t values_before(int64_t step) const {
    if (mapping == Mapping::rows) {
      const uint64_t vectors = static_cast<uint64_t>(step) * threads;
      const uint64_t row = row_vectors.quotient(vectors);
      if (row >= static_cast<uint64_t>(N)) return N * S;
      const int64_t within = static_cast<int64_t>(vectors - row * row_vectors.divisor) * kVector;
      return static_cast<int64_t>(row) * S + (within < S ? within : S);
    }
    const int64_t values = step * lanes * columns_per_channel();
    return values < N * S ? values : N * S;  // the last row may be short
  }
};

// A slab as one thread of a block sees it.
template <Mapping mapping>
class ThreadView;

template <>
class ThreadView<Mapping::rows> {
 public:
  FUSED_BN_HOST_DEVICE ThreadView(const Geometry& g, int64_t slab, int thread)
      : g_(g), channel_(slab), thread_(thread) {}

  FUSED_BN_HOST_DEVICE Vector vector(int64_t step) const {
    const uint64_t i = static_cast<uint64_t>(step) * g_.threads + thread_;
    const uint64_t n = g_.row_vectors.quotient(i);
    if (n >= static_cast<uint64_t>(g_.N)) return {0, 0};
    const int64_t s = static_cast<int64_t>(i - n * g_.row_vectors.divisor) * kVector;
    const int64_t left = g_.S - s;
    return {(static_cast<int64_t>(n) * g_.C + channel_) * g_.S + s,
            left < kVector ? static_cast<int>(left) : kVector};
  }
  // Where the bits of a vector lie in a mask. Each row begins a new byte, in either mapping.
  FUSED_BN_HOST_DEVICE int64_t mask_byte(int64_t step) const {
    const uint64_t i = static_cast<uint64_t>(step) * g_.threads + thread_;
    const uint64_t n = g_.row_vectors.quotient(i);
    return static_cast<int64_t>((n * g_.C + channel_) * g_.row_vectors.divisor + i - n * g_.row_vectors.divisor);
  }

 private:
  const Geometry& g_;
  int64_t channel_;
  int thread_;
};

template <>
class ThreadView<Mapping::columns> {
 public:
  FUSED_BN_HOST_DEVICE ThreadView(const Geometry& g, int64_t slab, int thread) : g_(g) {
    lane_ = thread / g.slab_vectors;
    column_ = (thread - lane_ * g.slab_vectors) * kVector;
    // The last slab may be narrower.
    const int64_t left = g.row_length - slab * g.slab_columns;
    const int columns = left < g.slab_columns ? static_cast<int>(left) : g.slab_columns;
    width_ = columns - column_ < kVector ? columns - column_ : kVector;
    if (lane_ >= g.lanes || width_ < 0) width_ = 0;
    origin_ = lane_ * g.row_length + slab * g.slab_columns + column_;
    stride_ = g.lanes * g.row_length;
    first_byte_ = (slab * g.slab_columns + column_) / kVector;
  }

  // The first of the thread's columns, counted within the slab.
  FUSED_BN_HOST_DEVICE int column() const { return column_; }
  FUSED_BN_HOST_DEVICE int width() const { return width_; }

  FUSED_BN_HOST_DEVICE Vector vector(int64_t step) const {
    if (step * g_.lanes + lane_ >= g_.rows) return {0, 0};
    const int64_t offset = origin_ + step * stride_;
    const int64_t left = g_.elements - offset;  // the last matrix row may be short
    return {offset, left < width_ ? (left < 0 ? 0 : static_cast<int>(left)) : width_};
  }
  FUSED_BN_HOST_DEVICE int64_t mask_byte(int64_t step) const {
    const int64_t bytes = (g_.row_length + kVector - 1) / kVector;
    return (step * g_.lanes + lane_) * bytes + first_byte_;
  }

 private:
  const Geometry& g_;
  int lane_, column_, width_;
  int64_t origin_, stride_, first_byte_;
};

}  // namespace fused_bn::cuda
