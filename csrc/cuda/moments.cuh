// Mean and variance of what one thread reads.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/sweep.cuh"

namespace fused_bn::cuda {

// Count, sum and sum of squared deviations of (x - pivot) * scale, of each of a thread's columns. A few steps
// at a time: their mean first, then the squares of what deviates from it, merged by Chan, Golub, LeVeque
// 1979. The sum is kept rather than the mean so that an infinite value leaves it infinite.
template <class T, Mapping mapping, bool whole>
class ThreadMoments {
  using A = Compute<T>;
  static constexpr int kColumns = kOwn<mapping>;
  static constexpr int kCounts = whole ? 1 : kColumns;  // whole vectors fill all columns alike

 public:
  // offset: -pivot * scale.
  FUSED_BN_DEVICE ThreadMoments(const A (&offset)[kColumns], A scale) : offset_(offset), scale_(scale) {}

  template <int steps>
  FUSED_BN_DEVICE void add(RawSteps<T, steps, 1>& raw, const Stretch& stretch,
                           const ThreadView<mapping>& view) {
    A count[kCounts] = {}, sum[kColumns] = {};
    FUSED_BN_UNROLL
    for (int i = 0; i < steps; ++i) {
      if (!stretch.has(i)) continue;
      const int values = whole ? kVector : view.vector(stretch.first + i).count;
      A d[kVector];
      deviations(raw[i][0], d);
      accumulate(d, values, sum);
      FUSED_BN_UNROLL
      for (int k = 0; k < kCounts; ++k) count[k] += counted<kCounts>(values, k);
    }
    forget(raw);
    A inverse[kCounts], mean[kColumns], m2[kColumns] = {};
    FUSED_BN_UNROLL
    for (int k = 0; k < kCounts; ++k) inverse[k] = count[k] == 0 ? A{0} : reciprocal(count[k]);
    FUSED_BN_UNROLL
    for (int k = 0; k < kColumns; ++k) mean[k] = sum[k] * inverse[at(k)];
    FUSED_BN_UNROLL
    for (int i = 0; i < steps; ++i) {
      if (!stretch.has(i)) continue;
      A d[kVector];
      deviations(raw[i][0], d);
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) {
        const A e = d[k] - mean[own<mapping>(k)];
        d[k] = e * e;
      }
      accumulate(d, whole ? kVector : view.vector(stretch.first + i).count, m2);
    }
    merge(count, sum, mean, m2);
  }

  FUSED_BN_DEVICE A sum(int k) const { return sum_[k]; }

  // The sum of squared deviations from another mean.
  FUSED_BN_DEVICE A m2_about(A mean, int k) const {
    const A delta = sum_[k] * inverse_[at(k)] - mean;
    return count_[at(k)] == 0 ? A{0} : m2_[k] + delta * delta * count_[at(k)];
  }

 private:
  FUSED_BN_DEVICE static constexpr int at(int k) { return whole ? 0 : k; }

  // What a vector of so many values adds to count k.
  template <int counts>
  FUSED_BN_DEVICE static A counted(int values, int k) {
    if constexpr (mapping == Mapping::rows) return static_cast<A>(values);
    if constexpr (counts == 1) return A{1};
    return k < values ? A{1} : A{0};
  }

  FUSED_BN_DEVICE void deviations(const Raw<T>& raw, A (&d)[kVector]) const {
    unpack(raw, d);
    FUSED_BN_UNROLL
    for (int k = 0; k < kVector; ++k) d[k] = fma(d[k], scale_, offset_[own<mapping>(k)]);
  }

  FUSED_BN_DEVICE static void accumulate(A (&d)[kVector], int values, A (&sum)[kColumns]) {
    if constexpr (!whole) {
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) d[k] = k < values ? d[k] : A{0};
    }
    if constexpr (mapping == Mapping::rows) {
      sum[0] += ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7]));
    } else {
      FUSED_BN_UNROLL
      for (int k = 0; k < kVector; ++k) sum[k] += d[k];
    }
  }

  FUSED_BN_DEVICE void merge(const A (&count)[kCounts], const A (&sum)[kColumns], const A (&mean)[kColumns],
                             const A (&m2)[kColumns]) {
    A share[kCounts], before[kCounts];
    FUSED_BN_UNROLL
    for (int k = 0; k < kCounts; ++k) {
      const A total = count_[k] + count[k];
      before[k] = inverse_[k];
      inverse_[k] = total == 0 ? A{0} : reciprocal(total);
      share[k] = count_[k] * count[k] * inverse_[k];
      count_[k] = total;
    }
    FUSED_BN_UNROLL
    for (int k = 0; k < kColumns; ++k) {
      const A delta = mean[k] - sum_[k] * before[at(k)];
      m2_[k] += m2[k] + delta * delta * share[at(k)];
      sum_[k] += sum[k];
    }
  }

  const A (&offset_)[kColumns];
  const A scale_;
  A count_[kCounts] = {}, inverse_[kCounts] = {}, sum_[kColumns] = {}, m2_[kColumns] = {};
};

}  // namespace fused_bn::cuda
