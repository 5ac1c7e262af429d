// Per-column sums of a matrix, see matrix.h, and the numbers of each column's channel.
#pragma once

#include "cpu/channel.h"
#include "cpu/matrix.h"

namespace fused_bn::cpu {
namespace {

constexpr int kRowsAtOnce = 8;  // as many share one load of a column's numbers

// Calls body(first_row, count) for groups of rows; count is a compile-time constant but for the last group.
template <class Body>
FUSED_BN_INLINE void for_each_group(int64_t rows, Body body) {
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) body(r, std::integral_constant<int, kRowsAtOnce>{});
  if (r < rows) body(r, static_cast<int>(rows - r));
}

// Runs body(i) for i in [0, count), unrolled where count is a compile-time constant.
template <class Body>
FUSED_BN_INLINE void repeat(std::integral_constant<int, kRowsAtOnce>, Body body) {
  static_assert(kRowsAtOnce == 8);
  body(0), body(1), body(2), body(3), body(4), body(5), body(6), body(7);
}
template <class Body>
FUSED_BN_INLINE void repeat(int count, Body body) {
  for (int i = 0; i < count; ++i) body(i);
}

// Gathered in float over a few rows, then kept as mean and m2 in double.
template <class T>
class ColumnMoments {
  using A = Compute<T>;

 public:
  explicit ColumnMoments(int64_t columns)
      : pivot_(columns), sum_(columns), squares_(columns), mean_(columns), m2_(columns) {}

  void add(const T* x, const Block& block) {
    x += block.offset;
    // The pivot is the mean so far, which bounds the error by that of the deviations themselves; at first that
    // of a few rows, so that an outlying first value is no bad pivot.
    const int64_t sample = std::min<int64_t>(kRowsAtOnce, block.rows);
    for (int64_t j = 0; j < block.columns; ++j) pivot_[j] = static_cast<A>(read_element<T>(x, j));
    accumulate(x, {0, sample, block.columns, block.stride});
    for (int64_t j = 0; j < block.columns; ++j) pivot_[j] += sum_[j] / static_cast<A>(sample);
    for (int64_t r = 0; r < block.rows; r += kFlushRows) {
      const int64_t rows = std::min(kFlushRows, block.rows - r);
      accumulate(x + r * block.stride, {0, rows, block.columns, block.stride});
      flush(rows);
    }
  }

  // Of one channel: its columns hold equally many values each.
  Moments channel(const ChannelColumns& c) const {
    const double base = mean_[c.first];
    double shift = 0;
    for (int64_t i = 1; i < c.count; ++i) shift += mean_[c.first + i * c.step] - base;
    const double mean = base + shift / static_cast<double>(c.count);
    double m2 = 0, between = 0;
    for (int64_t i = 0; i < c.count; ++i) {
      const int64_t j = c.first + i * c.step;
      m2 += m2_[j];
      between += (mean_[j] - mean) * (mean_[j] - mean);
    }
    return {count_ * static_cast<double>(c.count), mean, m2 + count_ * between};
  }

 private:
  void accumulate(const T* x, const Block& block) {
    std::fill_n(sum_.begin(), block.columns, A{0});
    std::fill_n(squares_.begin(), block.columns, A{0});
    for_each_group(block.rows, [&](int64_t first, auto count) {
      const T* rows = x + first * block.stride;
      for_each_vector<A, 1>(block.columns, [&](int64_t j, auto, auto lanes) {
        const Vec<A> pivot = load(pivot_.data() + j, lanes);
        Vec<A> sum = load(sum_.data() + j, lanes), squares = load(squares_.data() + j, lanes);
        repeat(count, [&](int i) {
          const Vec<A> d = load(rows + i * block.stride + j, lanes) - pivot;
          sum += d;
          squares = fma(d, d, squares);
        });
        store(sum_.data() + j, sum, lanes);
        store(squares_.data() + j, squares, lanes);
      });
    });
  }

  // Chan's merge, see moments.h, for all columns at once.
  void flush(int64_t rows) {
    const double n = static_cast<double>(rows), inverse = 1 / n;
    const double share = n / (count_ + n);
    const bool first = count_ == 0;
    for (size_t j = 0; j < mean_.size(); ++j) {
      const double sum = sum_[j];
      const double mean = static_cast<double>(pivot_[j]) + sum * inverse;
      const double m2 = std::max(static_cast<double>(squares_[j]) - sum * (sum * inverse), 0.0);
      const double before = first ? mean : mean_[j];
      const double delta = mean - before;
      mean_[j] = before + delta * share;
      m2_[j] += m2 + delta * delta * (count_ * share);
      pivot_[j] = static_cast<A>(mean_[j]);
    }
    count_ += n;
  }

  std::vector<A> pivot_, sum_, squares_;
  std::vector<double> mean_, m2_;
  double count_ = 0;
};

template <class V>
struct GradColumn {
  Affine<V> affine;
  Standardise<V> standardise;
  GradFactors<V> factors;
};

// What the columns of a tile need of their channels, a row of numbers each.
template <class A>
class ColumnNumbers {
 public:
  ColumnNumbers(const Matrix& m, int64_t tile, const Statistics<A>& statistics, const ChannelVector& weight,
                const ChannelVector& bias)
      : matrix_(m), tile_(tile), columns_(m.columns(tile)), numbers_(kFields * columns_) {
    for (int64_t c = 0; c < m.channels(tile); ++c) {
      const int64_t channel = m.first_channel(tile) + c;
      const Affine<A> affine = statistics.affine(channel, weight, bias);
      set(kMean, c, affine.mean);
      set(kScale, c, affine.scale);
      set(kShift, c, affine.shift);
      const Standardise<A> standardise = statistics.standardise(channel);
      set(kInvstd, c, standardise.invstd);
      set(kXhatShift, c, standardise.shift);
    }
  }

  void set_factors(int64_t c, const GradFactors<A>& factors) {
    set(kAlongXhat, c, factors.along_xhat);
    set(kConstant, c, factors.constant);
  }

  template <class Lanes>
  FUSED_BN_INLINE Affine<Vec<A>> affine(int64_t j, Lanes lanes) const {
    return {get(kMean, j, lanes), get(kScale, j, lanes), get(kShift, j, lanes)};
  }
  template <class Lanes>
  FUSED_BN_INLINE Standardise<Vec<A>> standardise(int64_t j, Lanes lanes) const {
    return {get(kInvstd, j, lanes), get(kXhatShift, j, lanes)};
  }
  template <class Lanes>
  FUSED_BN_INLINE GradColumn<Vec<A>> grad(int64_t j, Lanes lanes) const {
    return {affine(j, lanes), standardise(j, lanes), {get(kAlongXhat, j, lanes), get(kConstant, j, lanes)}};
  }

 private:
  enum Field { kMean, kScale, kShift, kInvstd, kXhatShift, kAlongXhat, kConstant, kFields };

  void set(Field field, int64_t c, A value) {
    const ChannelColumns columns = matrix_.channel(tile_, c, columns_);
    A* numbers = numbers_.data() + field * columns_ + columns.first;
    for (int64_t i = 0; i < columns.count; ++i) numbers[i * columns.step] = value;
  }
  template <class Lanes>
  FUSED_BN_INLINE Vec<A> get(Field field, int64_t j, Lanes lanes) const {
    return load(numbers_.data() + field * columns_ + j, lanes);
  }

  const Matrix& matrix_;
  int64_t tile_, columns_;
  std::vector<A> numbers_;
};

// The two sums of backward, gathered in float over a few rows, then kept in double.
template <class T, Activation activation>
class ColumnGradSums {
  using A = Compute<T>;

 public:
  explicit ColumnGradSums(int64_t columns)
      : sum_(columns), sum_xhat_(columns), total_(columns), total_xhat_(columns) {}

  void add(const T* dy, const T* x, const Block& block, const ColumnNumbers<A>& numbers) {
    for (int64_t r = 0; r < block.rows; r += kFlushRows) {
      const int64_t rows = std::min(kFlushRows, block.rows - r);
      const int64_t offset = block.offset + r * block.stride;
      std::fill(sum_.begin(), sum_.end(), A{0});
      std::fill(sum_xhat_.begin(), sum_xhat_.end(), A{0});
      accumulate(dy + offset, x + offset, {0, rows, block.columns, block.stride}, numbers);
      for (size_t j = 0; j < total_.size(); ++j) {
        total_[j] += static_cast<double>(sum_[j]);
        total_xhat_[j] += static_cast<double>(sum_xhat_[j]);
      }
    }
  }

  GradSums channel(const ChannelColumns& c) const {
    GradSums sums;
    for (int64_t i = 0; i < c.count; ++i) {
      const int64_t j = c.first + i * c.step;
      sums.add({total_[j], total_xhat_[j]});
    }
    return sums;
  }

 private:
  void accumulate(const T* dy, const T* x, const Block& block, const ColumnNumbers<A>& numbers) {
    for_each_group(block.rows, [&](int64_t first, auto count) {
      const int64_t offset = first * block.stride;
      for_each_vector<A, 1>(block.columns, [&](int64_t j, auto, auto lanes) {
        const auto affine = numbers.affine(j, lanes);
        const auto standardise = numbers.standardise(j, lanes);
        Vec<A> sum = load(sum_.data() + j, lanes), sum_xhat = load(sum_xhat_.data() + j, lanes);
        repeat(count, [&](int i) {
          const int64_t at = offset + i * block.stride + j;
          add_grad<Vec<A>, activation>(load(dy + at, lanes), load(x + at, lanes), affine, standardise, sum,
                                       sum_xhat);
        });
        store(sum_.data() + j, sum, lanes);
        store(sum_xhat_.data() + j, sum_xhat, lanes);
      });
    });
  }

  std::vector<A> sum_, sum_xhat_;
  std::vector<double> total_, total_xhat_;
};

}  // namespace
}  // namespace fused_bn::cpu
