// The coefficients of each column's channel.
#pragma once

#include "cpu/channels.h"
#include "cpu/columns/sums.h"

namespace fused_bn::cpu {
namespace {

// The coefficients of a tile's columns, one row for each kind.
template <class T>
class ColumnNumbers {
  using A = Compute<T>;
  enum Field { kOrigin, kScale, kShift, kSlope, kConstant, kNegativeSlope, kFields };

 public:
  template <class Params>
  ColumnNumbers(const Matrix& m, int64_t tile, const Statistics<T>& statistics, const Params& p)
      : matrix_(m),
        tile_(tile),
        row_((divide_up(m.columns(tile), kLanes<A>) + 1) * kLanes<A>),  // the last vector may begin anywhere
        numbers_(kFields * row_) {
    affine_channels(statistics, p.weight, p.bias, m.first_channel(tile), m.channels(tile), row(kOrigin),
                    row(kScale), row(kShift));
    for (const Field field : {kOrigin, kScale, kShift}) m.spread(tile, row(field));
    if (p.negative_slope.data == nullptr) return;
    for (int64_t c = 0; c < m.channels(tile); ++c) {
      row(kNegativeSlope)[c] = static_cast<A>(read(p.negative_slope, m.first_channel(tile) + c, 0.0));
    }
    m.spread(tile, row(kNegativeSlope));
  }

  // The channels' factors, which the caller writes before spread_factors().
  A* slopes() { return row(kSlope); }
  A* constants() { return row(kConstant); }
  void spread_factors() {
    for (const Field field : {kSlope, kConstant}) matrix_.spread(tile_, row(field));
  }

  // Reads the coefficients of a vector of columns. A copy, so that loops need not reload its members.
  class Reader {
   public:
    explicit Reader(const ColumnNumbers& n) : numbers_(n.numbers_.data()), row_(n.row_) {}

    FUSED_BN_INLINE Affine<Vec<A>> affine(int64_t j) const {
      return {get(kOrigin, j), get(kScale, j), get(kShift, j), get(kNegativeSlope, j)};
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
  A* row(Field field) { return numbers_.data() + field * row_; }

  const Matrix& matrix_;
  int64_t tile_, row_;
  AlignedRow<A> numbers_;
};

}  // namespace
}  // namespace fused_bn::cpu
