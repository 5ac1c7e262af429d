// Mean and sum of squared deviations (m2) of the channels of a matrix.
#pragma once

#include "cpu/channel.h"
#include "cpu/columns/sums.h"

namespace fused_bn::cpu {
namespace {

// The moments of a tile's channels, which have the same count.
struct TileMoments {
  double count = 0;
  std::vector<double> mean, m2;

  TileMoments() = default;
  explicit TileMoments(int64_t channels) : mean(channels), m2(channels) {}
  TileMoments(double count_, std::vector<double> mean_, std::vector<double> m2_)
      : count(count_), mean(std::move(mean_)), m2(std::move(m2_)) {}
};

// Sums x - pivot and its square for each column.
template <class T>
void add_deviations(ColumnSums<T>& sums, const Compute<T>* pivot, const T* x, const Block& block) {
  sums.reduce(
      block, [=](int64_t j, auto lanes) { return load(pivot + j, lanes); },
      [=](Vec<Compute<T>> k, int64_t at, auto lanes, Wide<T>& sum, Wide<T>& squares) {
        fetch_next_rows(x, at, block);
        const Wide<T> d = load_wide(x + at, lanes) - widen<T>(k);
        sum.add(d);
        squares.add_product(d, d);
      });
}

// Mean and m2 of every column, summed over a few rows, then kept in double.
template <class T>
class ColumnMoments {
  using A = Compute<T>;

 public:
  // Means are relative to the origin, which has a number for each column of a whole row.
  ColumnMoments(int64_t columns, const double* origin)
      : origin_(origin), pivot_(columns), sums_(columns), mean_(columns), m2_(columns) {}

  // The pivot is the mean so far, so that only the deviations are rounded. The first one is the mean of a few
  // rows spread over the block: neither an outlier nor a trend makes a bad pivot.
  void add(const T* x, const Block& block) {
    if (block.rows == 0) return;  // all values are in the short row
    const int64_t sampled = std::min<int64_t>(kRowsAtOnce, block.rows);
    const Block sample = block.every(block.rows / sampled, sampled);
    for_each_vector<A, 1>(block.columns, [&](int64_t j, auto, auto lanes) {
      store(pivot_.data() + j, load(x + block.first + j, lanes), lanes);
    });
    reduce(x, sample);
    const double each = 1.0 / static_cast<double>(sample.rows);
    for (int64_t j = 0; j < block.columns; ++j) pivot_[j] += static_cast<A>(sums_.first()[j] * each);
    for_each_chunk<T>(block, [&](const Block& chunk) {
      reduce(x, chunk);
      flush(static_cast<double>(chunk.rows));
    });
  }

  // Returns the moments of the tile's channels. All columns have the same count.
  TileMoments channels(const Matrix& m, int64_t tile, const Block& block) && {
    const ChannelColumns first = m.channel(tile, 0, block.columns);
    if (first.count == 1) return {count_, std::move(mean_), std::move(m2_)};
    TileMoments result(m.channels(tile));
    result.count = count_ * static_cast<double>(first.count);
    for (int64_t c = 0; c < m.channels(tile); ++c) {
      const ChannelColumns columns = m.channel(tile, c, block.columns);
      const double base = mean_[columns.first];
      double shift = 0, m2 = 0, between = 0;
      for (int64_t i = 0; i < columns.count; ++i) shift += mean_[columns.at(i)] - base;
      const double mean = base + shift / static_cast<double>(columns.count);
      for (int64_t i = 0; i < columns.count; ++i) {
        const double delta = mean_[columns.at(i)] - mean;
        m2 += m2_[columns.at(i)];
        between += delta * delta;
      }
      result.mean[c] = mean;
      result.m2[c] = m2 + count_ * between;
    }
    return result;
  }

 private:
  void reduce(const T* x, const Block& block) { add_deviations(sums_, pivot_.data(), x, block); }

  // Chan's merge (common/moments.h) for all columns.
  void flush(double rows) {
    const double inverse = 1 / rows, share = rows / (count_ + rows), between = count_ * share;
    const bool first = count_ == 0;
    for (size_t j = 0; j < mean_.size(); ++j) {
      const double sum = sums_.first()[j];
      const double mean = static_cast<double>(pivot_[j]) - origin_[j] + sum * inverse;
      const double m2 = std::max(sums_.second()[j] - sum * (sum * inverse), 0.0);
      const double before = first ? mean : mean_[j];
      const double delta = mean - before;
      mean_[j] = before + delta * share;
      m2_[j] += m2 + delta * delta * between;
      pivot_[j] = static_cast<A>(origin_[j] + mean_[j]);
    }
    count_ += rows;
  }

  const double* origin_;
  AlignedRow<A> pivot_;
  ColumnSums<T> sums_;
  std::vector<double> mean_, m2_;
  double count_ = 0;
};

// The moments of a block's channels, from sums wider than their terms. These need a pivot only if a mean is
// large.
template <class T>
class PlainColumns {
  using A = Compute<T>;

 public:
  PlainColumns(const Matrix& m, int64_t tile, const Block& block)
      : matrix_(m), tile_(tile), block_(block), sums_(block.columns) {}

  TileMoments moments(const T* x) && {
    TileMoments result(matrix_.channels(tile_));
    if (block_.rows == 0) return result;  // all values are in the short row
    sums_.reduce(
        block_, [](int64_t, auto) { return 0; },
        [&](int, int64_t at, auto lanes, Wide<T>& sum, Wide<T>& squares) {
          fetch_next_rows(x, at, block_);
          const Wide<T> value = load_wide(x + at, lanes);
          sum.add(value);
          squares.add_product(value, value);
        });
    if (!collect(result)) return result;
    AlignedRow<A> pivot(std::max(block_.columns, matrix_.columns(tile_)));
    for (size_t c = 0; c < result.mean.size(); ++c) pivot[c] = static_cast<A>(result.mean[c]);
    std::copy_n(pivot.data(), result.mean.size(), result.mean.begin());
    matrix_.spread(tile_, pivot.data());
    add_deviations(sums_, pivot.data(), x, block_);
    collect(result);
    return result;
  }

 private:
  // Turns sums relative to the pivots, which result.mean holds, into moments. Returns whether any cancel.
  bool collect(TileMoments& result) const {
    const auto channels = static_cast<int64_t>(result.mean.size());
    result.count = static_cast<double>(block_.rows * (block_.columns / channels));
    std::vector<double> sum(channels), squares(channels);
    matrix_.fold(tile_, block_.columns, sums_.first(), sum.data());
    matrix_.fold(tile_, block_.columns, sums_.second(), squares.data());
    double *const mean = result.mean.data(), *const m2 = result.m2.data();
    const double count = result.count;
    int64_t any = 0;  // as wide as the values, or the loop is not vectorised
    for (int64_t c = 0; c < channels; ++c) {
      const Moments moments = moments_of(count, mean[c], sum[c], squares[c]);
      any |= cancels(moments);
      mean[c] = moments.mean;
      m2[c] = std::max(moments.m2, 0.0);
    }
    return any != 0;
  }

  const Matrix& matrix_;
  int64_t tile_;
  Block block_;
  ColumnSums<T> sums_;
};

}  // namespace
}  // namespace fused_bn::cpu
