// Forward and backward over a matrix (matrix.h): channels last, and channels first with short rows.
#pragma once

#include <memory>

#include "cpu/columns/gradients.h"
#include "cpu/columns/moments.h"

namespace fused_bn::cpu {
namespace {

// Chan's merge (common/moments.h) for all channels of a tile.
inline TileMoments merge_parts(const TileMoments* parts, int64_t count) {
  TileMoments total = parts[0];
  for (int64_t part = 1; part < count; ++part) {
    const TileMoments& next = parts[part];
    const double share = next.count / (total.count + next.count);
    for (size_t c = 0; c < total.mean.size(); ++c) {
      const double delta = next.mean[c] - total.mean[c];
      total.mean[c] += delta * share;
      total.m2[c] += next.m2[c] + delta * delta * (total.count * share);
    }
    total.count += next.count;
  }
  return total;
}

// Calls write(j, at, lanes) for all elements of a block. Goes row by row: if rows are a multiple of 4 KiB
// apart, a load from the next row waits for a store to this one, whose lower address bits are the same.
// by_bytes: whole vectors start at a byte of the mask.
template <class A, bool streaming, bool by_bytes, class Write>
FUSED_BN_INLINE void write_block(const Block& block, Write write) {
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t row = block.row(r);
    if constexpr (by_bytes) {
      for_each_byte<A>(row, block.columns, [&](int64_t j, auto lanes) { write(j, row + j, lanes); });
    } else {
      for_each_vector<A, 1>(block.columns, [&](int64_t j, auto, auto lanes) { write(j, row + j, lanes); });
    }
  }
  if constexpr (streaming) stream_fence();
}

template <class T, Path path, bool streaming>
struct ColumnKernels {
  using A = Compute<T>;
  using V = Vec<A>;
  using Numbers = std::unique_ptr<ColumnNumbers<T>>;

  static Matrix matrix(const View& view) { return {view, kLanes<A>}; }

  static void run(const ForwardParams& p) {
    const Matrix m = matrix(p.view);
    const T* x = static_cast<const T*>(p.input);
    std::vector<Numbers> numbers(m.tiles());
    const bool by_bytes = cuts_bytes(p, m.stride());
    if (by_bytes) clear_mask(p);
    if (reads_running_statistics(p)) save_running_statistics<T>(p);
    run_units<TileMoments>(
        m.tiles(), m.parts(), p.view.elements(), p.execution,
        [&](int64_t tile, int64_t part) {
          return p.training ? part_moments(x, p.view, m, tile, part) : TileMoments{};
        },
        [&](int64_t tile, const TileMoments* parts) {
          if (p.training) {
            TileMoments total = merge_parts(parts, m.parts());
            const int64_t first = m.first_channel(tile);
            for (size_t c = 0; c < total.mean.size(); ++c) total.mean[c] += origin_of(x, p.view, first + c);
            finish_channels<T>(p, first, m.channels(tile), total.count, total.mean.data(), total.m2.data());
          }
          if (p.output != nullptr) numbers[tile] = make_numbers(m, tile, p, p.statistics);
        },
        [&](int64_t tile, int64_t part) {
          const ForwardElements<T, path> elements(p);
          if (elements.output() == nullptr) return;
          const typename ColumnNumbers<T>::Reader n(*numbers[tile]);
          with_mask<path>(by_bytes, [&](auto by_bytes) {
            write_block<A, streaming, by_bytes>(m.block(tile, part), [&](int64_t j, int64_t at, auto lanes) {
              elements.template write<streaming>(at, n.affine(j), lanes);
            });
          });
        });
  }

  static void run(const BackwardParams& p) {
    const Matrix m = matrix(p.view);
    void* statistics = const_cast<void*>(p.statistics);
    const bool reduces = needs_sums(p);
    std::vector<Numbers> numbers(m.tiles());
    p.execution.parallel_for(m.tiles(), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) numbers[tile] = make_numbers(m, tile, p, statistics);
    });
    run_units<TileGradSums>(
        m.tiles(), m.parts(), p.view.elements(), p.execution,
        [&](int64_t tile, int64_t part) {
          if (!reduces) return TileGradSums(m.channels(tile));
          return grad_sums(BackwardElements<T, path>(p), m, tile, m.block(tile, part), *numbers[tile]);
        },
        [&](int64_t tile, const TileGradSums* parts) {
          TileGradSums sums = parts[0];
          for (int64_t part = 1; part < m.parts(); ++part) sums.add(parts[part]);
          ColumnNumbers<T>& own = *numbers[tile];
          finish_grad_channels<T, path>(p, m.first_channel(tile), m.channels(tile), sums.grad.data(),
                                        sums.grad_centred.data(), own.slopes(), own.constants());
          own.spread_factors();
        },
        [&](int64_t tile, int64_t part) {
          const BackwardElements<T, path> elements(p);
          if (elements.output() == nullptr) return;
          const typename ColumnNumbers<T>::Reader n(*numbers[tile]);
          const auto write_part = [&](auto training) {
            write_block<A, streaming, false>(m.block(tile, part), [&](int64_t j, int64_t at, auto lanes) {
              elements.template write<streaming, decltype(training)::value>(at, n.affine(j), n.factors(j),
                                                                            lanes);
            });
          };
          p.training ? write_part(std::true_type{}) : write_part(std::false_type{});
        });
  }

 private:
  template <class Params>
  static Numbers make_numbers(const Matrix& m, int64_t tile, const Params& p, void* statistics) {
    return std::make_unique<ColumnNumbers<T>>(m, tile, Statistics<T>(statistics, p.view.C), p);
  }

  static TileMoments part_moments(const T* x, const View& view, const Matrix& m, int64_t tile, int64_t part) {
    const Block block = m.block(tile, part);
    if constexpr (kWiderSums<T>) {
      return PlainColumns<T>(m, tile, block).moments(x);
    } else {
      AlignedRow<double> origin(m.columns(tile));
      for (int64_t c = 0; c < m.channels(tile); ++c)
        origin[c] = origin_of(x, view, m.first_channel(tile) + c);
      m.spread(tile, origin.data());
      ColumnMoments<T> columns(block.columns, origin.data());
      columns.add(x, block);
      return std::move(columns).channels(m, tile, block);
    }
  }
};

}  // namespace
}  // namespace fused_bn::cpu
