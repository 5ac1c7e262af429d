// Sums over the threads of a block, and over the blocks of a group, one a channel. The order of the additions
// depends on the geometry alone.
#pragma once

#include "cuda/elements.cuh"

namespace fused_bn::cuda {

constexpr int kWarp = 32;

// How many values a thread keeps apart: of its one channel, or of its eight columns.
template <Mapping mapping>
constexpr int kOwn = mapping == Mapping::rows ? 1 : kVector;

// Which of them the k-th element of a vector belongs to.
template <Mapping mapping>
FUSED_BN_DEVICE constexpr int own(int k) {
  return mapping == Mapping::rows ? 0 : k;
}

template <class A>
class Reduction {
 public:
  FUSED_BN_DEVICE Reduction(const Geometry& g, const SharedLayout& layout) : g_(g), layout_(layout) {}

  // totals[c] = the sum over all threads of the values of the slab's channel c. Every thread gives its
  // values, 0 for columns that it lacks; all may read the totals afterwards.
  template <Mapping mapping>
  FUSED_BN_DEVICE void over_block(int channels, A (&values)[kOwn<mapping>], double* totals) {
    constexpr int kValues = kOwn<mapping>;
    const int thread = thread_index(), width = g_.slab_vectors;
    const int columns = width * kValues;
    // Lanes of a warp that hold the same columns, where these are a power of two apart.
    const bool shuffles = width < kWarp && (width & (width - 1)) == 0;
    if (shuffles) {
      FUSED_BN_ROLLED
      for (int distance = width; distance < kWarp; distance *= 2) {
        FUSED_BN_UNROLL
        for (int k = 0; k < kValues; ++k) values[k] += shuffle_xor(values[k], distance);
      }
    }
    const int row = shuffles ? thread / kWarp : thread / width;
    if (shuffles ? thread % kWarp < width : row < g_.lanes) {
      FUSED_BN_UNROLL
      for (int k = 0; k < kValues; ++k) matrix()[row * columns + thread % width * kValues + k] = values[k];
    }
    sync_block();
    const int rows = shuffles ? g_.threads / kWarp : g_.lanes;
    const int count = parts_of(rows, columns);
    if (count < rows) fold(rows, columns, count, [&](int r, int c) { return matrix()[r * columns + c]; });
    const A* source = count < rows ? parts() : matrix();
    if constexpr (mapping == Mapping::rows) {
      add_up(source, count, columns, {1, 1, 1, 1}, totals);
    } else {
      const int per = g_.columns_per_channel();
      const Columns layout =
          g_.channels_last ? Columns{channels, per, channels, 1} : Columns{channels, per, 1, per};
      add_up(source, count, columns, layout, totals);
    }
  }

  // totals[c] = the sum of item(r, c) over rows r. All threads take part, and may read the totals afterwards.
  template <class Item>
  FUSED_BN_DEVICE void over_rows(int rows, int channels, Item item, double* totals) {
    const int count = parts_of(rows, channels);
    fold(rows, channels, count, item);
    add_up(parts(), count, channels, {channels, 1, 1, 1}, totals);
  }

 private:
  // Channel c's columns: c * stride + i * step, i < per.
  struct Columns {
    int channels, per, step, stride;
  };

  FUSED_BN_DEVICE int parts_of(int rows, int columns) const {
    const int spare = columns < g_.threads ? g_.threads / columns : 1;
    return spare < rows ? spare : rows;
  }

  // Rows part, part + count, ... of a table into row `part` of parts(), all threads at once.
  template <class Item>
  FUSED_BN_DEVICE void fold(int rows, int columns, int count, Item item) {
    const int part = thread_index() / columns;
    FUSED_BN_ROLLED
    for (int c = thread_index() - part * columns; c < columns && part < count; c += g_.threads) {
      A sum = 0;
      for (int row = part; row < rows; row += count) sum += item(row, c);
      parts()[part * columns + c] = sum;
    }
    sync_block();
  }

  // The rows of a table and the columns of each channel. Few channels, or those of many columns, take a warp
  // each, many a thread.
  FUSED_BN_DEVICE void add_up(const A* table, int rows, int columns, const Columns& of, double* totals) {
    const int lane = thread_index() % kWarp, warps = g_.threads / kWarp;
    if (of.per == 1 && of.channels > warps) {
      FUSED_BN_ROLLED
      for (int c = thread_index(); c < of.channels; c += g_.threads) {
        double sum = 0;
        for (int row = 0; row < rows; ++row) sum += table[row * columns + c];
        totals[c] = sum;
      }
    } else {
      const int row_step = of.per == 1 ? kWarp : 1, first_row = of.per == 1 ? lane : 0;
      const int column_step = of.per == 1 ? 1 : kWarp, first = of.per == 1 ? 0 : lane;
      FUSED_BN_ROLLED
      for (int c = thread_index() / kWarp; c < of.channels; c += warps) {
        double sum = 0;
        FUSED_BN_ROLLED
        for (int row = first_row; row < rows; row += row_step) {
          FUSED_BN_ROLLED
          for (int i = first; i < of.per; i += column_step)
            sum += table[row * columns + c * of.stride + i * of.step];
        }
        FUSED_BN_ROLLED
        for (int distance = 1; distance < kWarp; distance *= 2) sum += shuffle_xor(sum, distance);
        if (lane == 0) totals[c] = sum;
      }
    }
    sync_block();
  }

  FUSED_BN_DEVICE A* matrix() const { return shared_part<A>(layout_.matrix); }
  FUSED_BN_DEVICE A* parts() const { return shared_part<A>(layout_.parts); }

  const Geometry& g_;
  const SharedLayout& layout_;
};

}  // namespace fused_bn::cuda
