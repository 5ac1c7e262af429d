// Channels first: a channel is N rows of S contiguous values, and vectors run along a row.
//
// A channel is read in chunks of about 4096 values. Chunks and parts depend on the shape only and are merged
// in one order, so that the bits do not depend on the number of threads.
#pragma once

#include "cpu/execution.h"
#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// Half types' float sums this short keep full accuracy, and chunks of two tensors fit L1.
constexpr int64_t kChunkValues = 4096;
constexpr int64_t kAlignedValues = 16;  // of the longest vector

// Some rows of one channel.
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

}  // namespace
}  // namespace fused_bn::cpu
