// Forward and backward over the rows of each channel: channels first, long rows.
#pragma once

#include "cpu/rows/moments.h"

namespace fused_bn::cpu {
namespace {

// Calls write(at, lanes) for all elements of the rows. Streaming starts at the first aligned vector of `y`;
// the values before it are stored the ordinary way. by_bytes: so are values around whole bytes of the mask.
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

  static void run(const ForwardParams& p) {
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
          if (elements.output() == nullptr) return;
          const auto a = spread(statistics.affine(c, p));
          with_mask<path>(by_bytes, [&](auto by_bytes) {
            for (int64_t k = chunks.first_chunk(part + 1) - 1; k >= chunks.first_chunk(part); --k) {
              write_rows<T, streaming, by_bytes>(
                  elements.output(), chunks.rows(c, k),
                  [&](int64_t at, auto lanes) { elements.template write<streaming>(at, a, lanes); });
            }
          });
          if constexpr (streaming) stream_fence();
        });
  }

  static void run(const BackwardParams& p) {
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
          if (elements.output() == nullptr) return;
          const auto a = spread(statistics.affine(c, p));
          const auto f = spread(factors[c]);
          const auto write_part = [&](auto training) {
            for (int64_t k = chunks.first_chunk(part + 1) - 1; k >= chunks.first_chunk(part); --k) {
              write_rows<T, streaming, false>(
                  elements.output(), chunks.rows(c, k), [&](int64_t at, auto lanes) {
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
