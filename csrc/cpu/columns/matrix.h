// The input as a matrix, each column of which belongs to one channel. Vectors span neighbouring columns.
//
// channels_last: a row is a pixel's C channels. If C is small, several pixels form one row, so that every
// vector is full: LeNet's 6 channels become rows of 48 columns.
//
// channels_first with short rows: a row is one n with C * S columns.
//
// channels_first is cut into tiles of whole channels, whose second read comes from cache. channels_last is
// one tile unless it has few rows, because prefetchers cannot follow many short pieces. The rows of a tile
// are cut into parts. All this depends on the shape only.
#pragma once

#include <numeric>

#include "cpu/elements.h"
#include "cpu/execution.h"
#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// Float sums this short keep full accuracy. Double sums are cut only for the cache.
template <class T>
constexpr int64_t kFlushRows = kWiderSums<T> ? 1024 : 128;
constexpr int64_t kTileColumns = 512;  // at least; 100 KB with 32 rows, which stays in L2

// At least, per part: with half as many, 8x1024x14x14 took 7% longer for its sums. If there are too few rows
// for two parts, the matrix is cut into tiles.
constexpr int64_t kPartRows = 128;

// A rectangle of the matrix: neighbouring columns of some rows.
struct Block {
  int64_t first, rows, columns, stride;

  FUSED_BN_INLINE int64_t row(int64_t r) const { return first + r * stride; }
  Block rows_between(int64_t begin, int64_t end) const { return {row(begin), end - begin, columns, stride}; }
  Block every(int64_t n, int64_t count) const { return {first, count, columns, n * stride}; }
};

// The columns of one channel within a block.
struct ChannelColumns {
  int64_t first, stride, count;

  FUSED_BN_INLINE int64_t at(int64_t i) const { return first + i * stride; }
};

class Matrix {
 public:
  Matrix(const View& view, int64_t vector) : view_(view) {
    // At least 8: tiles share no byte of the mask if rows are whole bytes.
    const int64_t lanes = std::max<int64_t>(vector, 8);
    if (view.layout == Layout::channels_first) {
      per_channel_ = view.S;
      rows_ = view.N;
      stride_ = view.C * view.S;
      tile_channels_ = std::min<int64_t>(divide_up(kTileColumns / view.S, lanes) * lanes, view.C);
    } else {
      rows_ = view.values_per_channel();
      tile_channels_ = view.C;
      pixels_ = pixels_in_one_row(lanes);
      stride_ = view.C * pixels_;
      short_row_ = view.elements() % stride_;
      rows_ /= pixels_;
      if (rows_ < 2 * kPartRows && pixels_ == 1) tile_channels_ = std::min(kTileColumns, view.C);
    }
    const int64_t values = view.elements() / tiles();
    const int64_t most = std::min({values / 16384, rows_ / kPartRows, int64_t{64}});
    while (2 * full_parts_ <= most) full_parts_ *= 2;
  }

  int64_t tiles() const { return divide_up(view_.C, tile_channels_); }
  int64_t parts() const { return full_parts_ + (short_row_ > 0); }
  int64_t first_channel(int64_t tile) const { return tile * tile_channels_; }
  int64_t channels(int64_t tile) const { return std::min(tile_channels_, view_.C - first_channel(tile)); }
  int64_t columns(int64_t tile) const { return channels(tile) * per_channel_ * pixels_; }
  int64_t stride() const { return stride_; }

  // A short last row is its own part.
  Block block(int64_t tile, int64_t part) const {
    const int64_t origin = first_channel(tile) * per_channel_;
    if (part == full_parts_) return {rows_ * stride_, 1, short_row_, stride_};
    const int64_t first = rows_ * part / full_parts_;
    return {first * stride_ + origin, rows_ * (part + 1) / full_parts_ - first, columns(tile), stride_};
  }

  // Adds a row of `columns` numbers to the sums of their channels.
  template <class A>
  void fold(int64_t tile, int64_t columns, const A* row, double* sums) const {
    const int64_t count = channels(tile);
    if (view_.layout == Layout::channels_first) {
      for (int64_t c = 0; c < count; ++c, row += view_.S)
        sums[c] = std::accumulate(row, row + view_.S, sums[c]);
      return;
    }
    for (int64_t pixel = 0; pixel < columns; pixel += count) {
      for (int64_t c = 0; c < count; ++c) sums[c] += row[pixel + c];
    }
  }

  // Copies the tile's channels' numbers, with which the row starts, to all of their columns.
  template <class A>
  void spread(int64_t tile, A* row) const {
    const int64_t count = channels(tile);
    if (view_.layout == Layout::channels_first) {
      for (int64_t c = count - 1; c >= 0; --c) std::fill_n(row + c * view_.S, view_.S, A{row[c]});
    } else {
      for (int64_t pixel = 1; pixel < pixels_; ++pixel) std::copy_n(row, count, row + pixel * count);
    }
  }

  // Channel c of the tile, in a block of `columns` columns.
  ChannelColumns channel(int64_t tile, int64_t c, int64_t columns) const {
    if (view_.layout == Layout::channels_first) return {c * per_channel_, 1, per_channel_};
    return {c, channels(tile), columns / channels(tile)};
  }

 private:
  // Enough for a row to be a multiple of a vector, or of four vectors if that is cheap.
  int64_t pixels_in_one_row(int64_t lanes) const {
    const int64_t full = lanes / std::gcd(view_.C, lanes);
    if (view_.C * full > 1024) return 1;
    return full * std::max<int64_t>(1, 4 * lanes / (view_.C * full));
  }

  View view_;
  int64_t per_channel_ = 1, pixels_ = 1;
  int64_t rows_ = 0, stride_ = 0, short_row_ = 0, tile_channels_ = 1, full_parts_ = 1;
};

}  // namespace
}  // namespace fused_bn::cpu
