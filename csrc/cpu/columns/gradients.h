// The two sums of backward of the channels of a matrix.
#pragma once

#include "cpu/columns/numbers.h"

namespace fused_bn::cpu {
namespace {

struct TileGradSums {
  std::vector<double> grad, grad_centred;

  explicit TileGradSums(int64_t channels = 0) : grad(channels), grad_centred(channels) {}

  void add(const TileGradSums& other) {
    for (size_t c = 0; c < grad.size(); ++c) grad[c] += other.grad[c];
    for (size_t c = 0; c < grad.size(); ++c) grad_centred[c] += other.grad_centred[c];
  }
};

// Returns backward's sums of a tile's channels over a block of its rows.
template <class T, Path path>
TileGradSums grad_sums(const BackwardElements<T, path>& elements, const Matrix& m, int64_t tile,
                       const Block& block, const ColumnNumbers<T>& numbers) {
  using A = Compute<T>;
  TileGradSums result(m.channels(tile));
  ColumnSums<T> sums(block.columns);
  for_each_chunk<T>(block, [&](const Block& chunk) {
    sums.reduce(
        chunk, [n = typename ColumnNumbers<T>::Reader(numbers)](int64_t j, auto) { return n.affine(j); },
        [&](const Affine<Vec<A>>& a, int64_t at, auto lanes, Wide<T>& sum, Wide<T>& sum_centred) {
          elements.add(at, a, lanes, sum, sum_centred);
        });
    m.fold(tile, block.columns, sums.first(), result.grad.data());
    m.fold(tile, block.columns, sums.second(), result.grad_centred.data());
  });
  return result;
}

}  // namespace
}  // namespace fused_bn::cpu
