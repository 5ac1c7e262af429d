// Sums of every column of a matrix.
#pragma once

#include <memory>

#include "cpu/columns/matrix.h"

namespace fused_bn::cpu {
namespace {

// Uninitialised numbers, aligned to a cache line: vectors that cross one cost another load or store.
template <class A>
class AlignedRow {
  static constexpr size_t kBytes = 64;

 public:
  explicit AlignedRow(int64_t length)
      : memory_(new A[length + kBytes / sizeof(A)]),
        data_(memory_.get() + (kBytes - reinterpret_cast<uintptr_t>(memory_.get()) % kBytes) / sizeof(A)) {}

  A* data() const { return data_; }
  A& operator[](int64_t i) const { return data_[i]; }

 private:
  std::unique_ptr<A[]> memory_;
  A* data_;
};

// Rows that are summed together. With 8, backward of 8x256x56x56 took 1.08 times as long (Zen 5); with 32 the
// same time.
constexpr int kRowsAtOnce = 16;

// Prefetches the rows after these, because hardware prefetchers do not follow pieces of rows. On uncached
// tensors moments took 0.88 of the time; backward, which reads two tensors, gained nothing.
template <class T>
FUSED_BN_INLINE void fetch_next_rows(const T* x, int64_t at, const Block& block) {
  __builtin_prefetch(x + at + kRowsAtOnce * block.stride);
}

// Vectors of columns that are summed together: as many as have their sums in registers. AVX-512 has 32
// registers, the others 16.
template <class T>
constexpr int kGroup = kVectorBytes == 64 ? 4 : 4 / kSumVectors<T>;

// Calls body(j, vectors, lanes) over [0, columns), `vectors` vectors at a time, then one at a time. The
// number is a constant, so that sums stay in registers.
template <class A, int vectors, class Body>
FUSED_BN_INLINE void for_each_group(int64_t columns, Body body) {
  constexpr int64_t width = vectors * kLanes<A>;
  const int64_t grouped = columns / width * width;
  for (int64_t j = 0; j < grouped; j += width) body(j, std::integral_constant<int, vectors>{}, Whole{});
  for_each_vector<A, 1>(columns - grouped, [&](int64_t j, auto, auto lanes) {
    body(grouped + j, std::integral_constant<int, 1>{}, lanes);
  });
}

// Two sums per column, over few rows. prepare(j, lanes) returns what the values of a column share;
// add(prepared, at, lanes, first, second) adds a vector of values to both sums.
template <class T>
class ColumnSums {
  using A = Compute<T>;

 public:
  explicit ColumnSums(int64_t columns) : first_(whole(columns)), second_(whole(columns)) {}

  template <class Prepare, class Add>
  FUSED_BN_INLINE void reduce(const Block& block, Prepare prepare, Add add) {
    SumType<T>* const sums = first_.data();
    SumType<T>* const others = second_.data();
    for (int64_t r = 0; r < block.rows; r += kRowsAtOnce) {
      const int64_t end = std::min<int64_t>(r + kRowsAtOnce, block.rows);
      for_each_group<A, kGroup<T>>(block.columns, [&](int64_t j, auto vectors, auto lanes) {
        constexpr int n = decltype(vectors)::value;
        // Adding sums of a few rows rounds less than one long chain of additions.
        Wide<T> first[n] = {}, second[n] = {};
        decltype(prepare(j, lanes)) column[n];
        unrolled<n>([&](auto v) { column[v] = prepare(j + v * kLanes<A>, lanes); });
        // Without unrolling 32x96x14x14 took 92 or 104 us, depending on the loop's address.
#pragma GCC unroll 2
        for (int64_t row = r; row < end; ++row) {
          const int64_t at = block.row(row) + j;
          unrolled<n>([&](auto v) { add(column[v], at + v * kLanes<A>, lanes, first[v], second[v]); });
        }
        unrolled<n>([&](auto v) {
          SumType<T>* sum = sums + j + v * kLanes<A>;
          SumType<T>* other = others + j + v * kLanes<A>;
          if (r > 0) {
            first[v].add(load_sums<T>(sum));
            second[v].add(load_sums<T>(other));
          }
          store_sums<T>(sum, first[v]);
          store_sums<T>(other, second[v]);
        });
      });
    }
  }

  const SumType<T>* first() const { return first_.data(); }
  const SumType<T>* second() const { return second_.data(); }

 private:
  static int64_t whole(int64_t columns) { return divide_up(columns, kLanes<A>) * kLanes<A>; }

  AlignedRow<SumType<T>> first_, second_;
};

// Calls body(chunk) for chunks of the block's rows, whose sums keep full accuracy.
template <class T, class Body>
void for_each_chunk(const Block& block, Body body) {
  const int64_t chunks = divide_up(block.rows, kFlushRows<T>);
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t first = block.rows * i / chunks, end = block.rows * (i + 1) / chunks;
    body(block.rows_between(first, end));
  }
}

}  // namespace
}  // namespace fused_bn::cpu
