// Maps the elements of a tile to threads: docs/cuda.md, "Tiles".
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace fused_bn::cuda {

// The order in which the threads of a block take the vectors of a tile.
enum class Walk : int32_t {
  along_rows,    // vector by vector; a tile is one channel, and a thread meets all of its columns
  down_columns,  // a thread stays in its column and goes down the rows
};

// Granlund and Montgomery 1994, "Division by invariant integers using multiplication". Exact if
// dividend * divisor < 2^64. A multiplier of 0 divides by infinity.
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

struct Tiling {
  int64_t N, C, S, elements;
  int32_t channels_last;
  int32_t vector;  // elements that a thread moves at once: 16 bytes, or one element
  int32_t mixed;   // a vector's elements may belong to several channels; the walk is then down_columns
  Walk walk;
  int32_t fold;            // rows of the tensor in one row of the matrix
  int64_t rows;            // of the matrix
  int64_t row_vectors;     // vectors in a row of the matrix
  int32_t tile_vectors;    // vectors in a row of a full tile
  int32_t tile_channels;   // of a full tile
  int32_t tiles;           // the last one may be narrower
  int32_t channel_length;  // contiguous elements of one channel: S, or 1 for channels_last
  int32_t threads;         // per block
  int32_t group;           // blocks that share a tile
  int32_t groups;          // groups that run at once; group i takes tiles i, i + groups, ...
  int32_t interleaved;     // the blocks of a group take passes in turn, instead of a range each

  // Computed by derive(), because a 64-bit division takes a hundred instructions.
  int64_t units;        // in a tile: rows if the walk is down_columns, else vectors
  int64_t unit_share;   // units of each block; unit_rest more go to the first blocks:
  int32_t unit_rest;    // one each, or up to a pass each if they are interleaved
  int32_t pass_units;   // units that a block takes in one pass
  int32_t pass_rows;    // rows in a pass, if the walk is down_columns
  int64_t passes;       // of the busiest block; some of its threads have one less
  int32_t unit_values;  // values of each channel in a unit
  int32_t iterations;   // the most tiles that a group takes
  Division by_tile_vectors;
  int64_t turn;  // units between two passes of a block
  Division by_turn;
  uint32_t row_multiplier, row_shift;  // the same for dividends below 2^31, see row_of()

  void derive() {
    const bool down = walk == Walk::down_columns;
    units = down ? rows : rows * tile_vectors;
    pass_rows = threads / tile_vectors;
    pass_units = down ? pass_rows : threads;
    unit_values = down ? fold * channel_length : vector;
    iterations = groups == 0 ? 0 : (tiles + groups - 1) / groups;
    turn = interleaved ? int64_t{group} * pass_units : pass_units;
    by_turn = Division::by(static_cast<uint64_t>(turn));
    unit_share = interleaved ? units / turn * pass_units : units / group;
    unit_rest = static_cast<int32_t>(interleaved ? units % turn : units % group);
    passes = (block_units(0) + pass_units - 1) / pass_units;
    by_tile_vectors = Division::by(static_cast<uint64_t>(tile_vectors));
    row_shift = 0;
    while (int64_t{2} << row_shift < tile_vectors) ++row_shift;
    row_multiplier = static_cast<uint32_t>(((uint64_t{1} << (32 + row_shift)) - 1) / tile_vectors + 1);
  }

  // Returns place / tile_vectors for place < 2^31 and tile_vectors > 1. Exact, because multiplier * divisor
  // exceeds 2^(32 + shift) by less than the divisor, which is at most 2^(shift + 1).
  FUSED_BN_HOST_DEVICE uint32_t row_of(uint32_t place) const {
#if defined(__CUDA_ARCH__)
    return __umulhi(place, row_multiplier) >> row_shift;
#else
    return static_cast<uint32_t>(uint64_t{place} * row_multiplier >> 32) >> row_shift;
#endif
  }

  FUSED_BN_HOST_DEVICE int64_t first_unit(int block) const {
    if (interleaved) return int64_t{block} * pass_units;
    return unit_share * block + (block < unit_rest ? block : unit_rest);
  }
  FUSED_BN_HOST_DEVICE int64_t block_units(int block) const {
    if (!interleaved) return unit_share + (block < unit_rest ? 1 : 0);
    const int64_t left = unit_rest - int64_t{block} * pass_units;
    return unit_share + (left < 0 ? 0 : left < pass_units ? left : pass_units);
  }
  FUSED_BN_HOST_DEVICE int64_t block_values(int block) const { return block_units(block) * unit_values; }

  FUSED_BN_HOST_DEVICE int first_channel(int tile) const { return tile * tile_channels; }
  FUSED_BN_HOST_DEVICE int channels(int tile) const {
    const int left = static_cast<int>(C) - first_channel(tile);
    return left < tile_channels ? left : tile_channels;
  }
};

// A thread's vectors in its block's part of a tile, one per pass. 32-bit offsets save an instruction per
// access. A place is a vector's index in the tile, from the start of the first row; for mixed vectors, the
// offset.
template <bool mixed>
class Vectors {
 public:
  FUSED_BN_HOST_DEVICE Vectors(const Tiling& t, int tile, int block, int thread) : t_(t) {
    const int64_t begin = t.first_unit(block), tile_start = int64_t{tile} * t.tile_vectors;
    const int64_t end = t.interleaved ? t.units : begin + t.block_units(block);
    const int64_t left = t.row_vectors - tile_start;
    const bool down = mixed || t.walk == Walk::down_columns;
    int64_t row, units;
    if (down) {
      const int lane_row = thread / t.tile_vectors;
      column_ = thread - lane_row * t.tile_vectors;
      row = begin + lane_row;
      units = lane_row < t.pass_rows && column_ < left ? end - row : 0;
    } else {
      const int64_t unit = begin + thread;
      row = static_cast<int64_t>(t.by_tile_vectors.quotient(static_cast<uint64_t>(unit)));
      column_ = static_cast<int>(unit - row * t.tile_vectors);
      units = end - unit;
    }
    count_ =
        units <= 0 ? 0 : static_cast<int64_t>(t.by_turn.quotient(static_cast<uint64_t>(units + t.turn - 1)));
    start_ = row * t.row_vectors + tile_start;
    if constexpr (mixed) {
      start_ += column_;
      place_ = 0;
      stride_ = static_cast<uint32_t>(t.turn * t.row_vectors);
    } else {
      place_ = static_cast<uint32_t>(column_);
      stride_ = static_cast<uint32_t>(down ? t.turn * t.tile_vectors : t.turn);
    }
  }

  FUSED_BN_HOST_DEVICE int64_t count() const { return count_; }
  // The current vector is number start() + offset() of the tensor.
  FUSED_BN_HOST_DEVICE int64_t start() const { return start_; }
  FUSED_BN_HOST_DEVICE uint32_t offset() const {
    if constexpr (mixed) return place_;
    return place_ + t_.row_of(place_) * static_cast<uint32_t>(t_.row_vectors - t_.tile_vectors);
  }
  FUSED_BN_HOST_DEVICE int64_t position() const { return start_ + offset(); }
  // The first vector's column in the tile. Down columns, all of a thread's vectors have it.
  FUSED_BN_HOST_DEVICE int column() const { return column_; }

  FUSED_BN_HOST_DEVICE void next() { place_ += stride_; }
  // Advances the start, before offsets exceed 32 bits.
  FUSED_BN_HOST_DEVICE void rebase() {
    if constexpr (mixed) {
      start_ += place_;
      place_ = 0;
    } else {
      const uint32_t row = t_.row_of(place_);
      start_ += row * t_.row_vectors;
      place_ -= row * static_cast<uint32_t>(t_.tile_vectors);
    }
  }

 private:
  const Tiling& t_;
  int64_t count_, start_;
  uint32_t place_, stride_;
  int column_;
};

}  // namespace fused_bn::cuda
