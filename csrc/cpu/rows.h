// Channels first, long rows: a channel is N rows of S neighbouring values, and vectors run along a row.
//
// A channel is read in chunks of about 4096 values. Chunks and parts depend on the shape alone and are merged
// in one order, so the bits do not depend on the number of threads.
#pragma once

#include "cpu/channel.h"
#include "cpu/execution.h"

namespace fused_bn::cpu {
namespace {

constexpr int64_t kChunkValues =
    4096;  // half types' float sums this short keep full accuracy; two tensors of them fit L1
constexpr int64_t kAlignedValues = 16;  // of the longest vector
constexpr int64_t kGuessValues = 96;    // of each of the three stretches whose median mean is the first pivot

// Vectors of elements whose sums are kept apart: four vectors of sums each.
template <class T>
constexpr int kSlots = 4 / kSumVectors<T>;

// Rows of one channel's memory, strides apart.
struct Rows {
  int64_t first, count, length, stride;

  FUSED_BN_INLINE int64_t row(int64_t r) const { return first + r * stride; }
};

// How the values of a channel are cut into chunks, and chunks into parts.
class Chunks {
 public:
  explicit Chunks(const View& view)
      : view_(view),
        rows_(std::clamp<int64_t>(kChunkValues / view.S, 1, view.N)),
        splits_(divide_up(view.S, kChunkValues)),
        length_(divide_up(divide_up(view.S, splits_), kAlignedValues) * kAlignedValues),
        chunks_(divide_up(view.N, rows_) * splits_),
        parts_(std::clamp<int64_t>(chunks_ / 4, 1, 64)) {}

  int64_t parts() const { return parts_; }
  int64_t first_chunk(int64_t part) const { return chunks_ * part / parts_; }

  Rows rows(int64_t c, int64_t chunk) const {
    const int64_t n = chunk / splits_ * rows_;
    const int64_t s = chunk % splits_ * length_;
    return {(n * view_.C + c) * view_.S + s, std::min(rows_, view_.N - n), std::min(length_, view_.S - s),
            view_.C * view_.S};
  }

 private:
  View view_;
  int64_t rows_, splits_, length_, chunks_, parts_;
};

// Calls body with pieces of rows that take at most so many steps, of up to so many values of a row each.
template <class Body>
FUSED_BN_INLINE void for_each_piece(const Rows& rows, int64_t steps, int64_t values, Body body) {
  const int64_t at_once = std::max<int64_t>(steps / divide_up(rows.length, values), 1);
  const int64_t length = std::min(steps * values, rows.length);
  for (int64_t r = 0; r < rows.count; r += at_once) {
    for (int64_t begin = 0; begin < rows.length; begin += length) {
      body(Rows{rows.row(r) + begin, std::min(at_once, rows.count - r), std::min(length, rows.length - begin),
                rows.stride});
    }
  }
}

// deviation(at, lanes) gives the values there less the pivot, 0 in lanes that take no part.
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

// The mean is told from the origin.
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

// For sums wider than their terms, which need a pivot only where the mean is large.
template <class T>
Moments plain_moments(const T* x, const Rows& rows) {
  const Moments moments =
      rows_moments<T>(rows, 0, [&](int64_t at, auto lanes) { return load_wide(x + at, lanes); });
  return cancels(moments) ? shifted_moments(x, rows, moments.mean) : moments;
}

// The median of the means of three stretches, in the first, the middle and the last row, so that neither an
// outlier, wherever it is, nor a trend makes a bad pivot.
template <class T>
double first_pivot(const T* x, const Rows& rows) {
  const int64_t values = std::min(divide_up(rows.length, 3), kGuessValues);
  double means[3];
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t row = rows.row((rows.count - 1) * i / 2);
    const Rows stretch{row + (rows.length - values) * i / 2, 1, values, 0};
    means[i] = shifted_moments(x, stretch, read_element<T>(x, stretch.first)).mean;
  }
  return median(means);
}

// Where shifted, by the mean so far, which bounds the error by that of the deviations themselves.
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

// Runs write(at, lanes) for every element of the rows. Stores past the caches take whole vectors of `y`'s
// that are aligned, so that the values before the first one go the ordinary way. by_bytes: so do the values
// around whole bytes of the mask.
template <class T, bool streaming, bool by_bytes, class Write>
FUSED_BN_INLINE void write_rows(const T* y, const Rows& rows, Write write) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t row = rows.row(r);
    if constexpr (by_bytes) {
      for_each_byte<Compute<T>>(row, rows.length, [&](int64_t i, auto lanes) { write(row + i, lanes); });
      continue;
    }
    int64_t head = 0;
    if constexpr (streaming) {
      constexpr uintptr_t bytes = kLanes<Compute<T>> * sizeof(T);
      const uintptr_t missing = (bytes - reinterpret_cast<uintptr_t>(y + row) % bytes) % bytes;
      head = std::min(static_cast<int64_t>(missing / sizeof(T)), rows.length);
      if (head > 0) write(row, First{static_cast<int>(head)});
    }
    for_each_vector<Compute<T>, 1>(rows.length - head,
                                   [&](int64_t i, auto, auto lanes) { write(row + (head + i), lanes); });
  }
}

template <class T, Path path>
GradSums rows_grad_sums(const BackwardElements<T, path>& elements, const Rows& rows,
                        const Affine<Vec<Compute<T>>>& affine) {
  Wide<T> sum[kSlots<T>] = {}, sum_centred[kSlots<T>] = {};
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t row = rows.row(r);
    for_each_vector<Compute<T>, kSlots<T>>(rows.length, [&](int64_t i, auto slot, auto lanes) {
      elements.add(row + i, affine, lanes, sum[slot], sum_centred[slot]);
    });
  }
  return {sum_lanes(sum), sum_lanes(sum_centred)};
}

template <class T, Path path, bool streaming>
struct RowKernels {
  using A = Compute<T>;
  using V = Vec<A>;

  static void forward(const ForwardParams& p) {
    const Chunks chunks(p.view);
    const T* x = static_cast<const T*>(p.input);
    const Statistics<T> statistics(p.statistics, p.view.C);
    const bool by_bytes = cuts_bytes(p, p.view.S);
    if (by_bytes) clear_mask(p);
    if (reads_running_statistics(p)) save_running_statistics<T>(p);
    run_units<Moments>(
        p.view.C, chunks.parts(), p.view.elements(), p.execution,
        [&](int64_t c, int64_t part) {
          return p.training ? part_moments(x, chunks, c, part, origin_of(x, p.view, c)) : Moments{};
        },
        [&](int64_t c, const Moments* parts) {
          if (!p.training) return;
          Moments moments;
          for (int64_t part = 0; part < chunks.parts(); ++part) moments = merge(moments, parts[part]);
          moments.mean += origin_of(x, p.view, c);
          finish_channel<T>(p, c, moments);
        },
        [&](int64_t c, int64_t part) {
          const ForwardElements<T, path> elements(p);
          if (elements.written() == nullptr) return;
          const auto a = spread(statistics.affine(c, p));
          with_mask<path>(by_bytes, [&](auto by_bytes) {
            for (int64_t k = chunks.first_chunk(part + 1) - 1; k >= chunks.first_chunk(part); --k) {
              write_rows<T, streaming, by_bytes>(
                  elements.written(), chunks.rows(c, k),
                  [&](int64_t at, auto lanes) { elements.template write<streaming>(at, a, lanes); });
            }
          });
          if constexpr (streaming) stream_fence();
        });
  }

  static void backward(const BackwardParams& p) {
    const Chunks chunks(p.view);
    const Statistics<T> statistics(const_cast<void*>(p.statistics), p.view.C);
    const bool reduces = needs_sums(p);
    std::vector<GradFactors<A>> factors(p.view.C);
    run_units<GradSums>(
        p.view.C, chunks.parts(), p.view.elements(), p.execution,
        [&](int64_t c, int64_t part) {
          GradSums sums;
          if (!reduces) return sums;
          const BackwardElements<T, path> elements(p);
          const auto a = spread(statistics.affine(c, p));
          for (int64_t chunk = chunks.first_chunk(part); chunk < chunks.first_chunk(part + 1); ++chunk) {
            sums.add(rows_grad_sums(elements, chunks.rows(c, chunk), a));
          }
          return sums;
        },
        [&](int64_t c, const GradSums* parts) {
          GradSums sums;
          for (int64_t part = 0; part < chunks.parts(); ++part) sums.add(parts[part]);
          factors[c] = finish_grad_channel<T, path>(p, c, sums);
        },
        [&](int64_t c, int64_t part) {
          const BackwardElements<T, path> elements(p);
          if (elements.written() == nullptr) return;
          const auto a = spread(statistics.affine(c, p));
          const auto f = spread(factors[c]);
          const auto write_part = [&](auto training) {
            for (int64_t k = chunks.first_chunk(part + 1) - 1; k >= chunks.first_chunk(part); --k) {
              write_rows<T, streaming, false>(
                  elements.written(), chunks.rows(c, k), [&](int64_t at, auto lanes) {
                    elements.template write<streaming, decltype(training)::value>(at, a, f, lanes);
                  });
            }
          };
          p.training ? write_part(std::true_type{}) : write_part(std::false_type{});
          if constexpr (streaming) stream_fence();
        });
  }
};

}  // namespace
}  // namespace fused_bn::cpu
