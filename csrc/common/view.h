// Every supported tensor seen as [N, C, S]: batch, channels, product of the spatial sizes.
#pragma once

#include <cstdint>

namespace fused_bn {

enum class Layout : int8_t {
  channels_first,  // element (n, c, s) at (n * C + c) * S + s
  channels_last,   // element (n, c, s) at (n * S + s) * C + c
};

// channels_first: rows of fewer values leave too much of their last vector empty, and one row of all channels
// takes their place.
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

// Bytes set aside for the CPU's mask of one bit an element, in which every row that a kernel knows begins a
// new byte: enough for all of them, and for rows of a multiple of 8 elements exactly a bit each. (CUDA's has
// no rows: the bits follow the elements.) Int counts elements; of a symbolic one S is not compared, which
// would bind an exported program to one side: long_rows is 1 where S >= kShortRow, else 0.
template <class Int>
Int mask_bytes(const Int& N, const Int& C, const Int& S, const Int& long_rows, Layout layout) {
  const auto bytes = [](const Int& bits) { return (bits + 7) / 8; };
  if (layout == Layout::channels_last) return C <= 64 ? bytes(N * S) * C : (N * S + 7) * bytes(C);
  const Int short_rows = N * bytes(C * S);
  return short_rows + long_rows * (N * C * bytes(S) - short_rows);
}

}  // namespace fused_bn
