// Sums of vectors, one per lane.
#pragma once

#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// float32 is summed in double, as in PyTorch for contiguous rows. Many values of an image are equal; their
// rounding errors are equal too, and would bias the variance by an ulp or two. In double x - pivot and its
// square are exact. Half types have 8 or 11 bits, whose squares fit a float.
template <class T>
using SumType = std::conditional_t<sizeof(T) == 2, float, double>;

template <class T>
constexpr bool kWiderSums = sizeof(SumType<T>) > sizeof(Compute<T>);

// The number of vectors of sums for a vector of elements.
template <class T>
constexpr int kSumVectors = sizeof(SumType<T>) / sizeof(Compute<T>);

// A vector of elements in the sums' type, or of sums.
template <class T>
struct Wide {
  Vec<SumType<T>> part[kSumVectors<T>];

  FUSED_BN_INLINE Wide operator-(const Wide& other) const {
    Wide result;
    unrolled<kSumVectors<T>>([&](auto i) { result.part[i] = part[i] - other.part[i]; });
    return result;
  }
  FUSED_BN_INLINE void add(const Wide& terms) {
    unrolled<kSumVectors<T>>([&](auto i) { part[i] += terms.part[i]; });
  }
  FUSED_BN_INLINE void add_product(const Wide& a, const Wide& b) {
    unrolled<kSumVectors<T>>([&](auto i) { part[i] = fma(a.part[i], b.part[i], part[i]); });
  }
};

template <class T>
FUSED_BN_INLINE Wide<T> widen(Vec<Compute<T>> v) {
  if constexpr (kSumVectors<T> == 1) {
    return {{v}};
  } else {
    // Intrinsics, because __builtin_convertvector to a longer vector takes twice the instructions with
    // GCC 12.
#if FUSED_BN_VECTOR_BYTES == 64
    return {{(Vec<double>)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)),
             (Vec<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1))}};
#elif FUSED_BN_VECTOR_BYTES == 32
    return {{(Vec<double>)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)),
             (Vec<double>)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1))}};
#elif defined(__SSE2__)
    return {{(Vec<double>)_mm_cvtps_pd((__m128)v),
             (Vec<double>)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v))}};
#elif defined(__aarch64__)
    return {{(Vec<double>)vcvt_f64_f32(vget_low_f32((float32x4_t)v)),
             (Vec<double>)vcvt_high_f64_f32((float32x4_t)v)}};
#else
    constexpr int lanes = kLanes<double>;
    Wide<T> wide;
    for (int i = 0; i < 2 * lanes; ++i) wide.part[i / lanes][i % lanes] = v[i];
    return wide;
#endif
  }
}

// Loads and widens. A load of half a vector can convert at no cost.
template <class T>
FUSED_BN_INLINE Wide<T> load_wide(const T* p, Whole lanes) {
#if FUSED_BN_VECTOR_BYTES == 64
  if constexpr (kSumVectors<T> == 2) {
    return {{(Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p)),
             (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p + kLanes<double>))}};
  }
#elif FUSED_BN_VECTOR_BYTES == 32
  if constexpr (kSumVectors<T> == 2) {
    return {{(Vec<double>)_mm256_cvtps_pd(_mm_loadu_ps(p)),
             (Vec<double>)_mm256_cvtps_pd(_mm_loadu_ps(p + kLanes<double>))}};
  }
#endif
  return widen<T>(load(p, lanes));
}
template <class T>
FUSED_BN_INLINE Wide<T> load_wide(const T* p, First lanes) {
  return widen<T>(load(p, lanes));
}

template <class T>
FUSED_BN_INLINE Wide<T> load_sums(const SumType<T>* p) {
  Wide<T> sums;
  unrolled<kSumVectors<T>>([&](auto i) { sums.part[i] = load(p + i * kLanes<SumType<T>>, Whole{}); });
  return sums;
}

template <class T>
FUSED_BN_INLINE void store_sums(SumType<T>* p, const Wide<T>& sums) {
  unrolled<kSumVectors<T>>([&](auto i) { store(p + i * kLanes<SumType<T>>, sums.part[i], Whole{}); });
}

// The most additions in a lane of a sum as wide as its terms, before it is added to a wider one. With 64
// equal terms a float's rounding errors came to 20 ulp of the variance.
template <class T>
constexpr int64_t kMostAdditions = sizeof(T) == 2 ? 16 : int64_t{1} << 32;

// Sums the lanes in double, in a fixed order.
template <class T>
class LaneTotals {
  static constexpr int lanes = kLanes<SumType<T>>;
  using Doubles = typename VectorOf<double, lanes>::type;

 public:
  template <int n>
  FUSED_BN_INLINE void add(const Wide<T> (&sums)[n]) {
    static_assert(n * kSumVectors<T> == 4);
    Doubles quarter[4];
    for (int i = 0; i < 4; ++i) {
      quarter[i] = __builtin_convertvector(sums[i / kSumVectors<T>].part[i % kSumVectors<T>], Doubles);
    }
    all_ += (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
  }
  FUSED_BN_INLINE double sum() const {
    double total = 0;
    for (int i = 0; i < lanes; ++i) total += all_[i];
    return total;
  }

 private:
  Doubles all_{};
};

template <class T, int n>
FUSED_BN_INLINE double sum_lanes(const Wide<T> (&sums)[n]) {
  LaneTotals<T> totals;
  totals.add(sums);
  return totals.sum();
}

}  // namespace
}  // namespace fused_bn::cpu
