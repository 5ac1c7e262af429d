// Forward and backward over a matrix, see matrix.h: channels last, and channels first with short rows.
#pragma once

#include <memory>

#include "cpu/columns.h"

namespace fused_bn::cpu {
namespace {

// The moments of a tile's channels within one part; all channels hold equally many values.
struct TileMoments {
  double count = 0;
  std::vector<double> mean, m2;
};

// Chan's merge, see moments.h, for all channels of a tile at once.
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

// Writes value(prepare(j, lanes), at, lanes) to every element of a block.
template <class T, bool streaming, class Prepare, class Value>
FUSED_BN_INLINE void write_block(T* y, const Block& block, Prepare prepare, Value value) {
  for_each_group(block.rows, [&](int64_t first, auto count) {
    const int64_t offset = block.offset + first * block.stride;
    for_each_vector<Compute<T>, 1>(block.columns, [&](int64_t j, auto, auto lanes) {
      const auto column = prepare(j, lanes);
      repeat(count, [&](int i) {
        const int64_t at = offset + i * block.stride + j;
        put<streaming>(y + at, value(column, at, lanes), lanes);
      });
    });
  });
  if constexpr (streaming) stream_fence();
}

template <class T, Activation activation, bool streaming>
struct MatrixKernels {
  using A = Compute<T>;
  using Numbers = std::unique_ptr<ColumnNumbers<A>>;

  static Matrix matrix(const View& view) { return {view, sizeof(T), kLanes<A>}; }

  static void forward(const ForwardParams& p) {
    const Matrix m = matrix(p.view);
    const T* x = static_cast<const T*>(p.input);
    T* y = static_cast<T*>(p.output);
    std::vector<Numbers> numbers(m.tiles());
    if (!p.training) save_running_statistics<A>(p);
    run_units<TileMoments>(
        m.tiles(), m.parts(), p.view.elements(), p.execution,
        [&](int64_t tile, int64_t part) {
          return p.training ? part_moments(x, m, tile, part) : TileMoments{};
        },
        [&](int64_t tile, const TileMoments* parts) {
          if (p.training) {
            const TileMoments total = merge_parts(parts, m.parts());
            for (int64_t c = 0; c < m.channels(tile); ++c) {
              finish_channel<T>(p, m.first_channel(tile) + c, {total.count, total.mean[c], total.m2[c]});
            }
          }
          numbers[tile] = make_numbers(m, tile, p, p.statistics);
        },
        [&](int64_t tile, int64_t part) {
          const ColumnNumbers<A>& n = *numbers[tile];
          write_block<T, streaming>(
              y, m.block(tile, part), [&](int64_t j, auto lanes) { return n.affine(j, lanes); },
              [&](const Affine<Vec<A>>& a, int64_t at, auto lanes) {
                return activate<activation>(a.transform(a.centre(load(x + at, lanes))));
              });
        });
  }

  static void backward(const BackwardParams& p) {
    const Matrix m = matrix(p.view);
    const T* dy = static_cast<const T*>(p.grad_output);
    const T* x = static_cast<const T*>(p.input);
    T* dx = static_cast<T*>(p.grad_input);
    void* statistics = const_cast<void*>(p.statistics);
    const bool reduces = needs_sums(p);
    std::vector<Numbers> numbers(m.tiles());
    p.execution.parallel_for(m.tiles(), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) numbers[tile] = make_numbers(m, tile, p, statistics);
    });
    run_units<std::vector<GradSums>>(
        m.tiles(), m.parts(), p.view.elements(), p.execution,
        [&](int64_t tile, int64_t part) {
          std::vector<GradSums> sums(m.channels(tile));
          if (!reduces) return sums;
          const Block block = m.block(tile, part);
          ColumnGradSums<T, activation> columns(block.columns);
          columns.add(dy, x, block, *numbers[tile]);
          for (size_t c = 0; c < sums.size(); ++c) {
            sums[c] = columns.channel(m.channel(tile, static_cast<int64_t>(c), block.columns));
          }
          return sums;
        },
        [&](int64_t tile, const std::vector<GradSums>* parts) {
          for (int64_t c = 0; c < m.channels(tile); ++c) {
            const int64_t channel = m.first_channel(tile) + c;
            GradSums sums;
            for (int64_t part = 0; part < m.parts(); ++part) sums.add(parts[part][c]);
            write(p.grad_weight, channel, sums.grad_xhat);
            write(p.grad_bias, channel, sums.grad);
            const A scale = Statistics<A>(statistics, p.view.C).affine(channel, p.weight, p.bias).scale;
            numbers[tile]->set_factors(c, grad_factors(p, scale, sums));
          }
        },
        [&](int64_t tile, int64_t part) {
          if (dx == nullptr) return;
          const ColumnNumbers<A>& n = *numbers[tile];
          write_block<T, streaming>(
              dx, m.block(tile, part), [&](int64_t j, auto lanes) { return n.grad(j, lanes); },
              [&](const GradColumn<Vec<A>>& g, int64_t at, auto lanes) {
                return grad_input<Vec<A>, activation>(load(dy + at, lanes), load(x + at, lanes), g.affine,
                                                      g.standardise, g.factors);
              });
        });
  }

 private:
  template <class Params>
  static Numbers make_numbers(const Matrix& m, int64_t tile, const Params& p, void* statistics) {
    return std::make_unique<ColumnNumbers<A>>(m, tile, Statistics<A>(statistics, p.view.C), p.weight, p.bias);
  }

  static TileMoments part_moments(const T* x, const Matrix& m, int64_t tile, int64_t part) {
    const Block block = m.block(tile, part);
    ColumnMoments<T> columns(block.columns);
    columns.add(x, block);
    TileMoments moments;
    for (int64_t c = 0; c < m.channels(tile); ++c) {
      const Moments channel = columns.channel(m.channel(tile, c, block.columns));
      moments.count = channel.count;
      moments.mean.push_back(channel.mean);
      moments.m2.push_back(channel.m2);
    }
    return moments;
  }
};

}  // namespace
}  // namespace fused_bn::cpu
