// Mean and sum of squared deviations of a channel's rows.
#pragma once

#include "cpu/channel.h"
#include "cpu/rows/chunks.h"

namespace fused_bn::cpu {
namespace {

constexpr int64_t kPivotValues = 96;  // at most, of each of the three ranges that give the first pivot

// Independent accumulators: four vectors of sums.
template <class T>
constexpr int kSlots = 4 / kSumVectors<T>;

// Calls body with pieces of rows that take at most `iterations` iterations of up to `values` values of a row.
template <class Body>
FUSED_BN_INLINE void for_each_piece(const Rows& rows, int64_t iterations, int64_t values, Body body) {
  const int64_t at_once = std::max<int64_t>(iterations / divide_up(rows.length, values), 1);
  const int64_t length = std::min(iterations * values, rows.length);
  for (int64_t r = 0; r < rows.count; r += at_once) {
    for (int64_t begin = 0; begin < rows.length; begin += length) {
      body(Rows{rows.row(r) + begin, std::min(at_once, rows.count - r), std::min(length, rows.length - begin),
                rows.stride});
    }
  }
}

// deviation(at, lanes) returns values - pivot, 0 in inactive lanes.
template <class T, class Deviation>
FUSED_BN_INLINE Moments rows_moments(const Rows& rows, double pivot, Deviation deviation) {
  LaneTotals<T> totals, totals_of_squares;
  for_each_piece(rows, kMostAdditions<T>, kSlots<T> * kLanes<Compute<T>>, [&](const Rows& piece) {
    Wide<T> sum[kSlots<T>] = {}, squares[kSlots<T>] = {};
    for (int64_t r = 0; r < piece.count; ++r) {
      const int64_t row = piece.row(r);
      for_each_vector<Compute<T>, kSlots<T>>(piece.length, [&](int64_t i, auto slot, auto lanes) {
        const Wide<T> d = deviation(row + i, lanes);
        sum[slot].add(d);
        squares[slot].add_product(d, d);
      });
    }
    totals.add(sum);
    totals_of_squares.add(squares);
  });
  const double count = static_cast<double>(rows.count * rows.length);
  return moments_of(count, pivot, totals.sum(), totals_of_squares.sum());
}

// The returned mean is relative to the origin.
template <class T>
Moments shifted_moments(const T* x, const Rows& rows, double pivot, double origin = 0) {
  using A = Compute<T>;
  const Vec<A> k = broadcast(static_cast<A>(pivot));
  Moments moments = rows_moments<T>(
      rows, static_cast<double>(static_cast<A>(pivot)) - origin,
      [&](int64_t at, auto lanes) { return widen<T>(keep<A>(load(x + at, lanes), k, lanes)) - widen<T>(k); });
  if (moments.m2 < 0) moments.m2 = 0;
  return moments;
}

// For sums wider than their terms, which need a pivot only if the mean is large.
template <class T>
Moments plain_moments(const T* x, const Rows& rows) {
  const Moments moments =
      rows_moments<T>(rows, 0, [&](int64_t at, auto lanes) { return load_wide(x + at, lanes); });
  return cancels(moments) ? shifted_moments(x, rows, moments.mean) : moments;
}

// Returns the median of the means of three ranges, in the first, middle and last row: neither an outlier nor
// a trend makes a bad pivot.
template <class T>
double first_pivot(const T* x, const Rows& rows) {
  const int64_t values = std::min(divide_up(rows.length, 3), kPivotValues);
  double means[3];
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t row = rows.row((rows.count - 1) * i / 2);
    const Rows range{row + (rows.length - values) * i / 2, 1, values, 0};
    means[i] = shifted_moments(x, range, read_element<T>(x, range.first)).mean;
  }
  return median(means);
}

// Half types subtract the mean so far, so that only the deviations are rounded.
template <class T>
Moments part_moments(const T* x, const Chunks& chunks, int64_t c, int64_t part, double origin) {
  const int64_t first = chunks.first_chunk(part);
  [[maybe_unused]] double pivot = kWiderSums<T> ? 0 : first_pivot(x, chunks.rows(c, first));
  Moments moments;
  for (int64_t chunk = first; chunk < chunks.first_chunk(part + 1); ++chunk) {
    const Rows rows = chunks.rows(c, chunk);
    if constexpr (kWiderSums<T>) {
      moments = merge(moments, plain_moments(x, rows));
    } else {
      moments = merge(moments, shifted_moments(x, rows, pivot, origin));
      pivot = origin + moments.mean;
    }
  }
  return moments;
}

}  // namespace
}  // namespace fused_bn::cpu
