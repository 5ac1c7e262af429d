// The input as a matrix whose columns each belong to one channel; vectors run along the columns.
//
// channels_last: a row is a pixel's C channels. Where C is small, several pixels make one row, so that every
// vector is full: LeNet's 6 channels become rows of 48 columns.
// channels_first with short rows (S = 49, say, is no multiple of a vector): a row is one n, and C * S columns
// lie side by side.
//
// The latter are cut into tiles of whole channels, whose second read comes from cache; of channels_last a
// tile would be many short pieces, which the prefetchers cannot follow, so it is one tile unless its rows are
// few. The rows of a tile are cut into parts. All this depends on the shape alone.
#pragma once

#include <numeric>

#include "cpu/elements.h"
#include "cpu/execution.h"
#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// Float sums this short keep full accuracy; those in double are cut for the cache alone.
template <class T>
constexpr int64_t kFlushRows = kWiderSums<T> ? 1024 : 128;
constexpr int64_t kTileColumns = 512;  // at least: 100 KB of 32 rows, which stays in the second-level cache

// Of a part, at least: with half as many the sums of 1,024 channels and their folding cost 8x1024x14x14
// another 7 % of its time. Where rows are too few for two parts, threads share tiles.
constexpr int64_t kPartRows = 128;

// A rectangle of the matrix: rows of neighbouring columns, strides apart.
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
  // vector: how many columns make one.
  Matrix(const View& view, int64_t vector) : view_(view) {
    const int64_t lanes =
        std::max<int64_t>(vector, 8);  // no tiles share a byte of the mask where rows are whole bytes
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

  // The short row is a part of its own, behind the others.
  Block block(int64_t tile, int64_t part) const {
    const int64_t origin = first_channel(tile) * per_channel_;
    if (part == full_parts_) return {rows_ * stride_, 1, short_row_, stride_};
    const int64_t first = rows_ * part / full_parts_;
    return {first * stride_ + origin, rows_ * (part + 1) / full_parts_ - first, columns(tile), stride_};
  }

  // Adds the columns of each channel, of a row of so many of the tile's, to the channels' sums.
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

  // The numbers of the tile's channels, with which the row begins, to all columns of each.
  template <class A>
  void spread(int64_t tile, A* row) const {
    const int64_t count = channels(tile);
    if (view_.layout == Layout::channels_first) {
      for (int64_t c = count - 1; c >= 0; --c) std::fill_n(row + c * view_.S, view_.S, A{row[c]});
    } else {
      for (int64_t pixel = 1; pixel < pixels_; ++pixel) std::copy_n(row, count, row + pixel * count);
    }
  }

  // Channel c of the tile, in a block of so many columns.
  ChannelColumns channel(int64_t tile, int64_t c, int64_t columns) const {
    if (view_.layout == Layout::channels_first) return {c * per_channel_, 1, per_channel_};
    return {c, channels(tile), columns / channels(tile)};
  }

 private:
  // So many that a row is a multiple of a vector, and of four where that is cheap.
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
