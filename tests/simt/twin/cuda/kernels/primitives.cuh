// The host's version of csrc/cuda/kernels/primitives.cuh, on the executor's fibers.
//
// Accesses to memory stay here, inline and plain, so that ThreadSanitizer sees them as the kernel's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "cuda/params.h"
#include "executor.h"

#define FUSED_BN_DEVICE inline
#define FUSED_BN_UNROLL
#define FUSED_BN_UNROLL_BY(count)
#define FUSED_BN_ROLLED

namespace fused_bn::cuda {

struct alignas(16) Pack {
  uint32_t words[4];
};

FUSED_BN_DEVICE int thread_index() { return simt::here.thread; }
FUSED_BN_DEVICE int reread_thread_index() { return thread_index(); }
FUSED_BN_DEVICE int block_index() { return static_cast<int>(simt::here.block); }
FUSED_BN_DEVICE int grid_blocks() { return static_cast<int>(simt::here.grid); }

FUSED_BN_DEVICE char* shared_memory() { return simt::here.shared; }

FUSED_BN_DEVICE void sync_block() { simt::sync_block(); }
FUSED_BN_DEVICE bool any_in_block(bool condition) { return simt::any_in_block(condition); }

template <class To, class From>
To bits_as(const From& from) {
  To to{};
  std::memcpy(&to, &from, sizeof from < sizeof to ? sizeof from : sizeof to);
  return to;
}

template <class A>
A shuffle(const char* what, A value, int distance, int from) {
  static_assert(sizeof(A) <= 8);
  return bits_as<A>(simt::shuffle(what, bits_as<uint64_t>(value), sizeof value, distance, from));
}
template <class A>
FUSED_BN_DEVICE A shuffle_xor(A value, int distance) {
  return shuffle("shuffle_xor", value, distance, thread_index() % 32 ^ distance);
}
template <class A>
FUSED_BN_DEVICE A shuffle_down(A value, int distance) {
  const int lane = thread_index() % 32;
  return shuffle("shuffle_down", value, distance, lane + distance < 32 ? lane + distance : lane);
}
template <class A>
FUSED_BN_DEVICE A shuffle_from(A value, int lane) {
  return shuffle("shuffle_from", value, 0, lane);
}
FUSED_BN_DEVICE uint32_t ballot(bool condition) { return simt::ballot(condition); }

template <class P>
FUSED_BN_DEVICE P* optimisation_barrier(P* pointer) {
  return pointer;
}

template <class Raw>
FUSED_BN_DEVICE Raw optimisation_barrier(Raw raw) {
  return raw;
}

// ---- memory

template <class Raw>
FUSED_BN_DEVICE Raw load_global(const void* address) {
  simt::check_global(address, sizeof(Raw));
  return *static_cast<const Raw*>(address);
}
template <class Raw>
FUSED_BN_DEVICE void store_global(void* address, const Raw& raw) {
  simt::check_global(address, sizeof(Raw));
  *static_cast<Raw*>(address) = raw;
}

// Copies as late as the device may: the target is NaN until wait_copies().
FUSED_BN_DEVICE void copy_async(Pack* shared, const void* global) {
  simt::check_shared("copy_async", shared, sizeof(Pack));
  simt::check_global(global, sizeof(Pack));
  *shared = Pack{{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}};
  simt::start_copy(shared, global);
}

FUSED_BN_DEVICE void wait_copies() {
  void* to;
  const void* from;
  while (simt::next_copy(to, from)) *static_cast<Pack*>(to) = *static_cast<const Pack*>(from);
}

FUSED_BN_DEVICE Pack load_shared(const Pack* shared) {
  simt::check_shared("load_shared", shared, sizeof(Pack));
  return *shared;
}

template <class A>
FUSED_BN_DEVICE A load_result(const A* address) {
  simt::visit_memory();
  return *address;
}

FUSED_BN_DEVICE uint32_t count_around(uint32_t* word, uint32_t limit) {
  simt::visit_memory();
  uint32_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &before, before >= limit ? 0 : before + 1, true, __ATOMIC_ACQ_REL,
                                      __ATOMIC_RELAXED)) {
  }
  return before;
}

FUSED_BN_DEVICE void store_byte(uint8_t* address, uint32_t byte) {
  simt::check_global(address, sizeof *address);
  __atomic_store_n(address, static_cast<uint8_t>(byte), __ATOMIC_RELAXED);
}
FUSED_BN_DEVICE void and_atomic(uint32_t* word, uint32_t bits) {
  simt::check_global(word, sizeof *word);
  __atomic_fetch_and(word, bits, __ATOMIC_RELAXED);
}
FUSED_BN_DEVICE void or_atomic(uint32_t* word, uint32_t bits) {
  simt::check_global(word, sizeof *word);
  __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
}

// ---- words

FUSED_BN_DEVICE Word load_word(const Word* address) { return bits_as<Word>(simt::load_word(address)); }
FUSED_BN_DEVICE void store_word(Word* address, const Word& word) {
  simt::store_word(address, bits_as<simt::Bytes16>(word));
}
FUSED_BN_DEVICE void pause(const void*) { simt::pause(); }

FUSED_BN_DEVICE uint32_t load_epoch(const uint32_t* address) {
  simt::check_global(address, sizeof *address);
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}
FUSED_BN_DEVICE void store_epoch(uint32_t* address, uint32_t value) {
  simt::check_global(address, sizeof *address);
  __atomic_store_n(address, value, __ATOMIC_RELAXED);
}

// ---- clusters

FUSED_BN_DEVICE void init_barrier(uint64_t* barrier, uint32_t bytes) { simt::init_barrier(barrier, bytes); }
FUSED_BN_DEVICE void arrive_cluster() { simt::arrive_cluster(); }
FUSED_BN_DEVICE void wait_cluster() { simt::wait_cluster(); }
template <class Value>
FUSED_BN_DEVICE void push(const Value& value, void* shared, uint64_t* barrier, int rank) {
  static_assert(sizeof(Value) == 16);
  const simt::Write write = [](void* to, const simt::Bytes16& bytes) {
    *static_cast<Value*>(to) = bits_as<Value>(bytes);
  };
  simt::push(bits_as<simt::Bytes16>(value), shared, barrier, rank, write);
}
FUSED_BN_DEVICE void wait_barrier(uint64_t* barrier) { simt::wait_barrier(barrier); }

// ---- programmatic dependent launch

FUSED_BN_DEVICE void launch_dependents() { simt::launch_dependents(); }
FUSED_BN_DEVICE void wait_for_primary() { simt::wait_for_primary(); }

// ---- arithmetic; needs -ffp-contract=off, and -mfma to be fast

FUSED_BN_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
FUSED_BN_DEVICE double fma(double a, double b, double c) { return std::fma(a, b, c); }
FUSED_BN_DEVICE float multiply(float a, float b) { return a * b; }
FUSED_BN_DEVICE double multiply(double a, double b) { return a * b; }
FUSED_BN_DEVICE float subtract(float a, float b) { return a - b; }
FUSED_BN_DEVICE double subtract(double a, double b) { return a - b; }
FUSED_BN_DEVICE double inverse_square_root(double a) { return 1.0 / std::sqrt(a); }
FUSED_BN_DEVICE float square_root(float a) { return std::sqrt(a); }
FUSED_BN_DEVICE double square_root(double a) { return std::sqrt(a); }
template <class A>
FUSED_BN_DEVICE bool is_finite(A a) {
  return std::isfinite(a);
}
FUSED_BN_DEVICE float relu(float a) { return a <= 0 ? 0.0f : a; }
FUSED_BN_DEVICE double relu(double a) { return a <= 0 ? 0.0 : a; }

template <class T>
struct Math {
  using A = T;
  FUSED_BN_DEVICE static A exp(A a) { return std::exp(a); }
  FUSED_BN_DEVICE static A expm1(A a) { return std::expm1(a); }
  FUSED_BN_DEVICE static A log1p(A a) { return std::log1p(a); }
  FUSED_BN_DEVICE static A normal_cdf(A a) {
    return static_cast<A>(0.5) * std::erfc(a * static_cast<A>(-0.7071067811865476));
  }
};

// ---- elements

FUSED_BN_DEVICE float widen(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const uint32_t fraction = value.bits & 0x3FFu;
  if (exponent == 0x1F) return bits_as<float>(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}
FUSED_BN_DEVICE float widen(BFloat16 value) { return bits_as<float>(uint32_t{value.bits} << 16); }
FUSED_BN_DEVICE float widen(float value) { return value; }
FUSED_BN_DEVICE double widen(double value) { return value; }

FUSED_BN_DEVICE float as_float(uint32_t bits) { return bits_as<float>(bits); }
FUSED_BN_DEVICE uint32_t as_bits(float value) { return bits_as<uint32_t>(value); }

// Rounds ties to even. NaN becomes the device's NaN.
FUSED_BN_DEVICE uint32_t shift_rounded(uint32_t value, int places) {
  const uint32_t half = uint32_t{1} << (places - 1);
  return (value + half - 1 + (value >> places & 1)) >> places;
}

FUSED_BN_DEVICE void narrow(float value, Float16& result) {
  const uint32_t bits = bits_as<uint32_t>(value);
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
  const uint32_t bits = bits_as<uint32_t>(value);
  result.bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFF : shift_rounded(bits, 16));
}
FUSED_BN_DEVICE void narrow(float value, float& result) { result = value; }
FUSED_BN_DEVICE void narrow(double value, double& result) { result = value; }

template <class T, bool clamp>
FUSED_BN_DEVICE uint32_t narrow_pair(float low, float high) {
  T first, second;
  narrow(clamp ? relu(low) : low, first);
  narrow(clamp ? relu(high) : high, second);
  return first.bits | static_cast<uint32_t>(second.bits) << 16;
}

}  // namespace fused_bn::cuda
