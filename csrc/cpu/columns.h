// What backward sums of every column of a matrix, see matrix.h, and the numbers of each column's channel.
#pragma once

#include "cpu/channel.h"
#include "cpu/column_sums.h"

namespace fused_bn::cpu {
namespace {

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
    for_each_stretch<T>(block, [&](const Block& stretch) {
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
