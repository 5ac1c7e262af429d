// The host's twin of csrc/cuda/primitives.cuh: the same names, on the executor's fibers.
//
// Accesses to memory stay here, inline and plain, so that ThreadSanitizer sees them as the kernel's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "executor.h"

#define FUSED_BN_DEVICE inline
#define FUSED_BN_UNROLL
#define FUSED_BN_ROLLED

namespace fused_bn::cuda {

struct alignas(16) Pack {
  uint32_t words[4];
};

FUSED_BN_DEVICE int thread_index() { return simt::here.thread; }
FUSED_BN_DEVICE int block_index() { return static_cast<int>(simt::here.block); }
FUSED_BN_DEVICE int grid_blocks() { return static_cast<int>(simt::here.grid); }

FUSED_BN_DEVICE char* shared_memory() { return simt::here.shared; }

FUSED_BN_DEVICE void sync_block() { simt::sync_block(); }
FUSED_BN_DEVICE bool any_in_block(bool condition) { return simt::any_in_block(condition); }

template <class A>
FUSED_BN_DEVICE A shuffle_xor(A value, int distance) {
  static_assert(sizeof(A) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = simt::shuffle_xor(bits, sizeof value, distance);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FUSED_BN_DEVICE void forget(Pack& p) {
  asm volatile("" : "+r"(p.words[0]), "+r"(p.words[1]), "+r"(p.words[2]), "+r"(p.words[3]));
}

FUSED_BN_DEVICE void forget(int& value) { asm volatile("" : "+r"(value)); }

// ---- loads and stores

template <bool last>
FUSED_BN_DEVICE Pack load_pack(const void* address) {
  simt::check_pack(address);
  return *static_cast<const Pack*>(address);
}

FUSED_BN_DEVICE void store_pack(void* address, const Pack& p) {
  simt::check_pack(address);
  *static_cast<Pack*>(address) = p;
}

// As late as the device may do it: until wait_copies() there is NaN.
FUSED_BN_DEVICE void copy_async(Pack* shared, const void* global) {
  simt::check_shared_pack(shared);
  simt::check_pack(global);
  *shared = Pack{{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}};
  simt::start_copy(shared, global);
}

FUSED_BN_DEVICE void wait_copies() {
  void* to;
  const void* from;
  while (simt::next_copy(to, from)) *static_cast<Pack*>(to) = *static_cast<const Pack*>(from);
}

// ---- across blocks

template <class A>
FUSED_BN_DEVICE A load_shared_result(const A* address) {
  simt::visit_memory();
  return *address;
}
template <class A>
FUSED_BN_DEVICE void store_shared_result(A* address, A value) {
  simt::visit_memory();
  *address = value;
}

// The device fences before the addition only, so that it is no acquire.
FUSED_BN_DEVICE uint32_t add_release(uint32_t* word, uint32_t value) {
  simt::visit_memory();
  return __atomic_fetch_add(word, value, __ATOMIC_RELEASE);
}

FUSED_BN_DEVICE void wait_flip(const uint32_t* word, uint32_t before) {
  while (((__atomic_load_n(word, __ATOMIC_ACQUIRE) ^ before) & 0x80000000u) == 0) {
    simt::wait_for_flip(word, before);
  }
}

FUSED_BN_DEVICE uint32_t count_around(uint32_t* word, uint32_t limit) {
  simt::visit_memory();
  uint32_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &before, before >= limit ? 0 : before + 1, true, __ATOMIC_ACQ_REL,
                                      __ATOMIC_RELAXED)) {
  }
  return before;
}

FUSED_BN_DEVICE void sync_cluster() { simt::sync_cluster(); }

template <class A>
FUSED_BN_DEVICE A load_from_cluster(const A* shared, int rank) {
  static_assert(sizeof(A) == 4 || sizeof(A) == 8);
  return *static_cast<const A*>(simt::cluster_address(shared, sizeof(A), rank));
}

// ---- arithmetic; needs -ffp-contract=off, and -mfma to be fast

FUSED_BN_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
FUSED_BN_DEVICE double fma(double a, double b, double c) { return std::fma(a, b, c); }
FUSED_BN_DEVICE float multiply(float a, float b) { return a * b; }
FUSED_BN_DEVICE double multiply(double a, double b) { return a * b; }
FUSED_BN_DEVICE float subtract(float a, float b) { return a - b; }
FUSED_BN_DEVICE double subtract(double a, double b) { return a - b; }
// The device's has an error of 2 units in the last place.
FUSED_BN_DEVICE float reciprocal(float a) { return 1.0f / a; }
FUSED_BN_DEVICE double reciprocal(double a) { return 1.0 / a; }
FUSED_BN_DEVICE double inverse_square_root(double a) { return 1.0 / std::sqrt(a); }
template <class A>
FUSED_BN_DEVICE bool is_finite(A a) {
  return std::isfinite(a);
}

template <class T>
struct Math {
  using A = T;
  FUSED_BN_DEVICE static A exp(A a) { return std::exp(a); }
  FUSED_BN_DEVICE static A expm1(A a) { return std::expm1(a); }
  FUSED_BN_DEVICE static A normal_cdf(A a) {
    return static_cast<A>(0.5) * std::erfc(a * static_cast<A>(-0.7071067811865476));
  }
};

FUSED_BN_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
FUSED_BN_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FUSED_BN_DEVICE float widen(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const uint32_t fraction = value.bits & 0x3FFu;
  if (exponent == 0x1F) return bits_to_float(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}
FUSED_BN_DEVICE float widen(BFloat16 value) { return bits_to_float(uint32_t{value.bits} << 16); }
FUSED_BN_DEVICE float widen(float value) { return value; }
FUSED_BN_DEVICE double widen(double value) { return value; }

// Ties go to the even neighbour, and a NaN becomes the one that the device makes.
FUSED_BN_DEVICE uint32_t shift_rounded(uint32_t value, int places) {
  const uint32_t half = uint32_t{1} << (places - 1);
  return (value + half - 1 + (value >> places & 1)) >> places;
}

FUSED_BN_DEVICE void narrow(float value, Float16& result) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7FFF;
  } else if (magnitude >= 0x47800000u) {  // 2^16
    half = sign | 0x7C00;
  } else if (magnitude >= 0x38800000u) {  // 2^-14, the least normal number; rounding may carry up to infinity
    half = sign | shift_rounded(magnitude - (112u << 23), 13);
  } else if (magnitude >= 0x33000000u) {  // 2^-25, half of the least number
    const int places = 126 - static_cast<int>(magnitude >> 23);
    half = sign | shift_rounded((magnitude & 0x7FFFFFu) | 0x800000u, places);
  } else {
    half = sign;
  }
  result.bits = static_cast<uint16_t>(half);
}
FUSED_BN_DEVICE void narrow(float value, BFloat16& result) {
  const uint32_t bits = float_to_bits(value);
  result.bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFF : shift_rounded(bits, 16));
}
FUSED_BN_DEVICE void narrow(float value, float& result) { result = value; }
FUSED_BN_DEVICE void narrow(double value, double& result) { result = value; }

}  // namespace fused_bn::cuda
