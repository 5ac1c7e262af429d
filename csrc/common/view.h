// Every supported tensor seen as [N, C, S]: batch, channels, product of the spatial sizes.
#pragma once

#include <cstdint>

namespace fused_bn {

enum class Layout : int8_t {
  channels_first,  // element (n, c, s) at (n * C + c) * S + s
  channels_last,   // element (n, c, s) at (n * S + s) * C + c
};

// channels_first: shorter rows leave too much of their last vector empty. All channels then form one row.
constexpr int kShortRow = 64;

struct View {
  int64_t N;
  int64_t C;
  int64_t S;
  Layout layout;

  int64_t offset(int64_t n, int64_t c, int64_t s) const {
    return layout == Layout::channels_first ? (n * C + c) * S + s : (n * S + s) * C + c;
  }
  int64_t values_per_channel() const { return N * S; }
  int64_t elements() const { return N * C * S; }
};

// Bytes of a mask, which has one bit per element. Int may be symbolic.
template <class Int>
Int mask_bytes(const Int& elements) {
  return (elements + 7) / 8;
}

}  // namespace fused_bn
