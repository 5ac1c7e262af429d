// Per-column sums of a matrix, see matrix.h, and the numbers of each column's channel.
#pragma once

#include <memory>

#include "cpu/channel.h"
#include "cpu/matrix.h"

namespace fused_bn::cpu {
namespace {

// A row of numbers, not initialised, whose vectors begin a cache line: those that cross one cost a load or a
// store more each.
template <class A>
class AlignedRow {
  static constexpr size_t kBytes = 64;

 public:
  explicit AlignedRow(int64_t length)
      : memory_(new A[length + kBytes / sizeof(A)]),
        data_(memory_.get() + (kBytes - reinterpret_cast<uintptr_t>(memory_.get()) % kBytes) / sizeof(A)) {}

  A* data() const { return data_; }
  A& operator[](int64_t i) const { return data_[i]; }

 private:
  std::unique_ptr<A[]> memory_;
  A* data_;
};

constexpr int kRowsAtOnce = 8;  // read side by side, as streams that the prefetchers can follow

// How many vectors of columns pass side by side: as many as have their sums in registers, of which AVX-512
// has 32 and the others 16.
template <class T>
constexpr int kGroup = kVectorBytes == 64 ? 4 : 4 / kSumVectors<T>;

// Calls body(j, vectors, lanes) over [0, columns): `vectors` neighbouring vectors at a time, a compile-time
// number, so that their sums stay in registers while a few rows pass by; then what is left.
template <class A, int vectors, class Body>
FUSED_BN_INLINE void for_each_group(int64_t columns, Body body) {
  constexpr int64_t width = vectors * kLanes<A>;
  const int64_t grouped = columns / width * width;
  for (int64_t j = 0; j < grouped; j += width) body(j, std::integral_constant<int, vectors>{}, Whole{});
  for_each_vector<A, 1>(columns - grouped, [&](int64_t j, auto, auto lanes) {
    body(grouped + j, std::integral_constant<int, 1>{}, lanes);
  });
}

// Two sums a column, over few rows. prepare(j, lanes) gives what column j's values share, and
// add(prepared, place, lanes, first, second) adds the values at a place to a vector of each sum.
template <class T>
class ColumnSums {
  using A = Compute<T>;

 public:
  explicit ColumnSums(int64_t columns) : first_(whole(columns)), second_(whole(columns)) {}

  template <class Prepare, class Add>
  FUSED_BN_INLINE void gather(const Block& block, Prepare prepare, Add add) {
    SumType<T>* const sums = first_.data();
    SumType<T>* const others = second_.data();
    for (int64_t r = 0; r < block.rows; r += kRowsAtOnce) {
      const int64_t end = std::min<int64_t>(r + kRowsAtOnce, block.rows);
      for_each_group<A, kGroup<T>>(block.columns, [&](int64_t j, auto vectors, auto lanes) {
        constexpr int n = decltype(vectors)::value;
        // Sums of a few rows first: shorter chains of additions round less than one long one.
        Wide<T> first[n] = {}, second[n] = {};
        decltype(prepare(j, lanes)) column[n];
        unrolled<n>([&](auto v) { column[v] = prepare(j + v * kLanes<A>, lanes); });
        for (int64_t row = r; row < end; ++row) {
          const Place place = block.row(row) + j;
          unrolled<n>([&](auto v) { add(column[v], place + v * kLanes<A>, lanes, first[v], second[v]); });
        }
        unrolled<n>([&](auto v) {
          SumType<T>* sum = sums + j + v * kLanes<A>;
          SumType<T>* other = others + j + v * kLanes<A>;
          if (r > 0) {
            first[v].add(load_sums<T>(sum));
            second[v].add(load_sums<T>(other));
          }
          store_sums<T>(sum, first[v]);
          store_sums<T>(other, second[v]);
        });
      });
    }
  }

  double first(int64_t j) const { return first_[j]; }
  double second(int64_t j) const { return second_[j]; }

 private:
  static int64_t whole(int64_t columns) { return divide_up(columns, kLanes<A>) * kLanes<A>; }

  AlignedRow<SumType<T>> first_, second_;
};

// Calls body(block) for stretches of the block's rows.
template <class Body>
void for_each_stretch(const Block& block, Body body) {
  const int64_t stretches = divide_up(block.rows, kFlushRows);
  for (int64_t i = 0; i < stretches; ++i) {
    const int64_t first = block.rows * i / stretches, end = block.rows * (i + 1) / stretches;
    body(block.rows_between(first, end));
  }
}

// The moments of a tile's channels; all hold equally many values.
struct TileMoments {
  double count = 0;
  std::vector<double> mean, m2;

  TileMoments() = default;
  explicit TileMoments(int64_t channels) : mean(channels), m2(channels) {}
  TileMoments(double count_, std::vector<double> mean_, std::vector<double> m2_)
      : count(count_), mean(std::move(mean_)), m2(std::move(m2_)) {}
};

// Mean and m2 of every column, gathered over a few rows, then kept in double.
template <class T>
class ColumnMoments {
  using A = Compute<T>;

 public:
  explicit ColumnMoments(int64_t columns) : pivot_(columns), sums_(columns), mean_(columns), m2_(columns) {}

  // The pivot is the mean so far, which bounds the error by that of the deviations themselves; at first that
  // of a few rows spread over the block, so that neither an outlier nor a trend makes a bad pivot.
  void add(const T* x, const Block& block) {
    if (block.rows == 0) return;  // all values are in the short row
    const int64_t sampled = std::min<int64_t>(kRowsAtOnce, block.rows);
    const Block sample = block.every(block.rows / sampled, sampled);
    for_each_vector<A, 1>(block.columns, [&](int64_t j, auto, auto lanes) {
      store(pivot_.data() + j, load(x + block.first.at + j, lanes), lanes);
    });
    gather(x, sample);
    const double each = 1.0 / static_cast<double>(sample.rows);
    for (int64_t j = 0; j < block.columns; ++j) pivot_[j] += static_cast<A>(sums_.first(j) * each);
    for_each_stretch(block, [&](const Block& stretch) {
      gather(x, stretch);
      flush(static_cast<double>(stretch.rows));
    });
  }

  // Of the tile's channels; the columns hold equally many values each.
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
  void gather(const T* x, const Block& block) {
    sums_.gather(
        block, [pivot = pivot_.data()](int64_t j, auto lanes) { return load(pivot + j, lanes); },
        [&](Vec<A> pivot, Place place, auto lanes, Wide<T>& sum, Wide<T>& squares) {
          const Wide<T> d = widen<T>(load(x + place.at, lanes)) - widen<T>(pivot);
          sum.add(d);
          squares.add_product(d, d);
        });
  }

  // Chan's merge, see moments.h, for all columns at once.
  void flush(double rows) {
    const double inverse = 1 / rows, share = rows / (count_ + rows), between = count_ * share;
    const bool first = count_ == 0;
    for (size_t j = 0; j < mean_.size(); ++j) {
      const double sum = sums_.first(j);
      const double mean = static_cast<double>(pivot_[j]) + sum * inverse;
      const double m2 = std::max(sums_.second(j) - sum * (sum * inverse), 0.0);
      const double before = first ? mean : mean_[j];
      const double delta = mean - before;
      mean_[j] = before + delta * share;
      m2_[j] += m2 + delta * delta * between;
      pivot_[j] = static_cast<A>(mean_[j]);
    }
    count_ += rows;
  }

  AlignedRow<A> pivot_;
  ColumnSums<T> sums_;
  std::vector<double> mean_, m2_;
  double count_ = 0;
};

// What the columns of a tile need of their channels, a row of numbers each.
template <class T>
class ColumnNumbers {
  using A = Compute<T>;
  enum Field { kOrigin, kScale, kShift, kSlope, kConstant, kFields };

 public:
  ColumnNumbers(const Matrix& m, int64_t tile, const Statistics<T>& statistics, const ChannelVector& weight,
                const ChannelVector& bias)
      : matrix_(m),
        tile_(tile),
        columns_(m.columns(tile)),
        row_(divide_up(columns_, kLanes<A>) * kLanes<A>),
        numbers_(kFields * row_) {
    for (int64_t c = 0; c < m.channels(tile); ++c) {
      const Affine<A> affine = statistics.affine(m.first_channel(tile) + c, weight, bias);
      set(kOrigin, c, affine.origin);
      set(kScale, c, affine.scale);
      set(kShift, c, affine.shift);
    }
  }

  void set_factors(int64_t c, const GradFactors<A>& factors) {
    set(kSlope, c, factors.slope);
    set(kConstant, c, factors.constant);
  }

  // Of the vector of columns that begins at j. A value, whose address loops do not read again and again.
  class Reader {
   public:
    explicit Reader(const ColumnNumbers& n) : numbers_(n.numbers_.data()), row_(n.row_) {}

    FUSED_BN_INLINE Affine<Vec<A>> affine(int64_t j) const {
      return {get(kOrigin, j), get(kScale, j), get(kShift, j)};
    }
    FUSED_BN_INLINE GradFactors<Vec<A>> factors(int64_t j) const {
      return {get(kSlope, j), get(kConstant, j)};
    }

   private:
    FUSED_BN_INLINE Vec<A> get(Field field, int64_t j) const {
      return load(numbers_ + field * row_ + j, Whole{});
    }

    const A* numbers_;
    int64_t row_;
  };

 private:
  void set(Field field, int64_t c, A value) {
    const ChannelColumns columns = matrix_.channel(tile_, c, columns_);
    A* numbers = numbers_.data() + field * row_ + columns.first;
    for (int64_t i = 0; i < columns.count; ++i) numbers[i * columns.step] = value;
  }

  const Matrix& matrix_;
  int64_t tile_, columns_, row_;
  AlignedRow<A> numbers_;
};

// The two sums of backward of every column, gathered over a few rows, then kept in double.
template <class T, Path path>
class ColumnGradSums {
  using A = Compute<T>;

 public:
  explicit ColumnGradSums(int64_t columns) : sums_(columns), grad_(columns), grad_centred_(columns) {}

  void add(const BackwardElements<T, path>& elements, const Block& block, const ColumnNumbers<T>& numbers) {
    for_each_stretch(block, [&](const Block& stretch) {
      sums_.gather(
          stretch, [n = typename ColumnNumbers<T>::Reader(numbers)](int64_t j, auto) { return n.affine(j); },
          [&](const Affine<Vec<A>>& a, Place place, auto lanes, Wide<T>& sum, Wide<T>& sum_centred) {
            elements.add(place, a, lanes, sum, sum_centred);
          });
      for (size_t j = 0; j < grad_.size(); ++j) {
        grad_[j] += sums_.first(j);
        grad_centred_[j] += sums_.second(j);
      }
    });
  }

  GradSums channel(const ChannelColumns& c) const {
    GradSums sums;
    for (int64_t i = 0; i < c.count; ++i) sums.add({grad_[c.at(i)], grad_centred_[c.at(i)]});
    return sums;
  }

 private:
  ColumnSums<T> sums_;
  std::vector<double> grad_, grad_centred_;
};

}  // namespace
}  // namespace fused_bn::cpu
