// exp, expm1, log1p and the normal distribution function on vectors. NaN passes.
//
// Largest errors found against libquadmath's and libm's functions of twice the precision, every 37th float
// and 6 million doubles of -750 to 750, with AVX-512 and with SSE2, which has no fused multiply-add, in units
// in the last place of the result: exp 1.0, expm1 1.6 (float) and 2.1 (double), 1.2 where the result is
// negative, normal_cdf 5.4 and 7.1. Results below the smallest normal number: 1, 1 and 2.4. Of log1p, every
// 397th float of 0 to 1 and 600,000 doubles: 1.2.
#pragma once

#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// Polynomials, each an interpolant at Chebyshev nodes computed to 60 digits, with relative errors below 2^-28
// (float) and 2^-58 (double):
//   exp(r) = 1 + r + r * r * exponential(r) for |r| <= 0.41 (float) and 0.3476 (double);
//   log((1 + w) / (1 - w)) = 2 * w + w * w * w * logarithm(w * w) for 0 <= w <= 1/3;
//   P(Z <= z) = 1/2 + z * centre(z * z) for |z| <= 1;
//   P(Z <= -a) = exp(-a * a / 2) / (a + pole) * tail((a - pole) / (a + pole)) for 1 <= a <= last, beyond
//   which it rounds to 0; the variable is that of Schonfelder 1978, "Chebyshev expansions for the error and
//   related functions".
template <class A>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr uint32_t kUpperHalf = 0xfffff000u;
  static constexpr float kRound = 0x1.8p23f;  // added and taken away: rounds to an integer
  static constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLargest = 89, kSmallest = -104;  // exp() is inf and 0 there,
  static constexpr float kMinusOne = -18;                  // expm1() -1
  static constexpr float kExponential[] = {0.500000004f,   0.166666667f,   0.0416662714f,
                                           0.00833328943f, 0.00139515577f, 0.000199108752f};
  static constexpr float kLogarithm[] = {0.666666673f, 0.399997063f, 0.28592358f, 0.217065758f, 0.232243292f};
  static constexpr float kCentre[] = {0.39894228f,     -0.0664903606f,  0.00997332848f,
                                      -0.00118634399f, 0.000113502296f, -7.66053817e-6f};
  static constexpr float kPole = 3.5f, kLast = 15;
  static constexpr float kTail[] = {0.744416076f,   -0.565561832f,    0.315424937f,
                                    -0.116050196f,  0.0174077408f,    0.00646733368f,
                                    -0.0031822952f, -0.000404378189f, 0.0004344752f};
};

template <>
struct MathConstants<double> {
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr uint64_t kUpperHalf = 0xfffffffff8000000u;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLargest = 710, kSmallest = -746;
  static constexpr double kMinusOne = -38;
  static constexpr double kExponential[] = {
      0.5,
      0.16666666666666671,
      0.04166666666666667,
      0.0083333333333259686,
      0.0013888888888883629,
      0.00019841269875401043,
      2.4801587325962224e-5,
      2.7557254666098246e-6,
      2.7557273118877711e-7,
      2.5105521666108532e-8,
      2.0914904528759251e-9,
  };
  static constexpr double kLogarithm[] = {0.66666666666666667,  0.39999999999999523, 0.28571428571600099,
                                          0.22222222198236771,  0.18181819897962714, 0.15384543964860549,
                                          0.13335178631449256,  0.11734279061303197, 0.10845178394880015,
                                          0.074921437955507673, 0.1563057780092285};
  static constexpr double kCentre[] = {
      0.39894228040143268,    -0.066490380066905426,   0.009973557010035022,  -0.0011873282154680344,
      0.00011543468751655942, -9.4446557931038458e-6,  6.6596798796552313e-7, -4.1224107514160814e-8,
      2.2704137585676e-9,     -1.1064328282755891e-10, 4.0743269774266275e-12};
  static constexpr double kPole = 5, kLast = 39;
  static constexpr double kTail[] = {0.76919304975006296,    -0.66538250289005685,   0.4953056159699762,
                                     -0.31353315667128675,   0.16502036617039798,    -0.069118638706926156,
                                     0.02079506679952567,    -0.0029933767605989658, -0.00079786939326768279,
                                     0.0005448989756566945,  -5.9375772054740776e-5, -4.9762322759416638e-5,
                                     1.6681438840495936e-5,  3.9791634599161807e-6,  -2.7699638859044073e-6,
                                     -3.3263119002555367e-7, 4.3439907846048004e-7,  3.6521917146902382e-8,
                                     -6.7105278926634166e-8, -4.5304101002023327e-9, 7.9697431354352333e-9};
};

template <class A_>
struct VectorMath {
  using A = A_;
  using V = Vec<A>;
  using K = MathConstants<A>;

  FUSED_BN_INLINE static V exp(V x) {
    const V bounded = clamp(x, K::kSmallest, K::kLargest);
    const V n = multiples_of_ln2(bounded);
    return times_power_of_two(expm1_near_zero(without(n, bounded)) + A{1}, n);
  }

  FUSED_BN_INLINE static V expm1(V x) {
    const V bounded = clamp(x, K::kMinusOne, K::kLargest);
    const V n = multiples_of_ln2(bounded);
    const V p = expm1_near_zero(without(n, bounded));
    const V half = power_of_two(n - A{1});  // 2^n may be beyond the largest number where the result is not
    const V result = fma(half, p, half - static_cast<A>(0.5)) * A{2};
    return n == V{} ? p : result;
  }

  // For x from 0 to 1.
  FUSED_BN_INLINE static V log1p(V x) {
    const V w = x / (x + A{2});
    const V square = w * w;
    return fma(-w, x - square * polynomial(square, K::kLogarithm), x);  // 2 * w is x - w * x
  }

  FUSED_BN_INLINE static V normal_cdf(V z) {
    const V a = z < V{} ? -z : z;
    const V centre = fma(z, polynomial(z * z, K::kCentre), broadcast(static_cast<A>(0.5)));
    const V tail = a > K::kLast ? V{} : normal_tail(a, z * z);  // not 1 - cdf, which would cancel
    const V outside = z < V{} ? tail : A{1} - tail;
    return a <= A{1} ? centre : outside;
  }

 private:
  FUSED_BN_INLINE static V clamp(V x, A low, A high) {
#if FUSED_BN_VECTOR_BYTES == 64
    // GCC would use a comparison and a blend. If an operand is NaN, the result is the second one: x.
    if constexpr (sizeof(A) == 8) {
      const auto above = _mm512_max_pd((__m512d)broadcast(low), (__m512d)x);
      return (V)_mm512_min_pd((__m512d)broadcast(high), above);
    } else {
      const auto above = _mm512_max_ps((__m512)broadcast(low), (__m512)x);
      return (V)_mm512_min_ps((__m512)broadcast(high), above);
    }
#else
    const V above = x < low ? V{} + low : x;
    return above > high ? V{} + high : above;
#endif
  }

  FUSED_BN_INLINE static V multiples_of_ln2(V x) {
    return fma(x, broadcast(static_cast<A>(1.4426950408889634)), broadcast(K::kRound)) - K::kRound;
  }

  // Returns x - n * ln(2): Cody and Waite 1980, "Software manual for the elementary functions". The first
  // product is exact.
  FUSED_BN_INLINE static V without(V n, V x) {
    return fma(n, broadcast(-K::kLn2Low), fma(n, broadcast(-K::kLn2High), x));
  }

  FUSED_BN_INLINE static V normal_tail(V a, V square) {
    // The same call as in gelu's derivative, so that the compiler merges both. The next line corrects for the
    // rounding error of the square.
    const V rounded = exp(square * static_cast<A>(-0.5));
    const V density = fma(rounded, square_error(a, square) * static_cast<A>(-0.5), rounded);
    const V scale = A{1} / (a + K::kPole);
    return density * (scale * polynomial((a - K::kPole) * scale, K::kTail));
  }

  // Returns a * a - square, where square is a * a rounded: Dekker 1971, "A floating-point technique for
  // extending the available precision". The square of the upper half of a's digits is exact.
  FUSED_BN_INLINE static V square_error(V a, V square) {
    using Bits = typename VectorOf<std::remove_const_t<decltype(K::kUpperHalf)>, kLanes<A>>::type;
    const V upper = (V)((Bits)a & K::kUpperHalf);
    const V lower = a - upper;
    return fma(lower, lower, fma(upper * A{2}, lower, upper * upper - square));
  }

  // 2^n must be a normal number.
  FUSED_BN_INLINE static V power_of_two(V n) {
    using Bits = decltype(n < n);
    return (V)(((Bits)(n + K::kRound) + K::kBias) << K::kMantissa);
  }

  FUSED_BN_INLINE static V expm1_near_zero(V r) { return fma(r * r, polynomial(r, K::kExponential), r); }

  // 2^n may be subnormal or infinite.
  FUSED_BN_INLINE static V times_power_of_two(V p, V n) {
#if FUSED_BN_VECTOR_BYTES == 64
    if constexpr (sizeof(A) == 8) return (V)_mm512_scalef_pd((__m512d)p, (__m512d)n);
    if constexpr (sizeof(A) == 4) return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const V half = n * static_cast<A>(0.5) + K::kRound - K::kRound;
    return p * power_of_two(half) * power_of_two(n - half);
#endif
  }

  // Returns the sum of c[i] * x^i. Odd and even powers form two independent chains of half the length, which
  // reduces latency.
  template <int terms>
  FUSED_BN_INLINE static V polynomial(V x, const A (&c)[terms]) {
    const V square = x * x;
    return fma(every_second<1>(square, c), x, every_second<0>(square, c));
  }

  template <int first, int terms>
  FUSED_BN_INLINE static V every_second(V square, const A (&c)[terms]) {
    if constexpr (first + 2 >= terms) {
      return broadcast(c[first]);
    } else {
      return fma(every_second<first + 2>(square, c), square, broadcast(c[first]));
    }
  }
};

}  // namespace
}  // namespace fused_bn::cpu
