// A block's two passes over its steps of a slab, with as much as possible kept on the chip in between.
//
// The steps are, in order: streamed (read twice from memory), in registers, in shared memory. The second pass
// begins with what is kept and takes the streamed steps backwards, so that the last ones still lie in L2.
#pragma once

#include <type_traits>

#include "common/activation.h"
#include "cuda/elements.cuh"

namespace fused_bn::cuda {

// Steps loaded side by side, so that a block has 32 KB in flight; half of that where vectors are not whole,
// whose elements are counted one by one.
template <class T, bool whole, int tensors>
constexpr int kSideBySide = 8 / (static_cast<int>(sizeof(T)) * tensors * (whole ? 1 : 2)) > 1
                                ? 8 / (static_cast<int>(sizeof(T)) * tensors * (whole ? 1 : 2))
                                : 1;

// `steps` of a thread's vectors, of all tensors that are swept together.
template <class T, int steps, int tensors>
using RawSteps = Raw<T>[steps][tensors];

// Steps of a thread, of which the first few exist.
struct Stretch {
  int first;
  int count;

  FUSED_BN_DEVICE bool has(int i) const { return i < count; }
};

template <class T, Mapping mapping, bool whole, int tensors, Curve curve>
class Sweep {
 public:
  static constexpr int kSteps = kSideBySide<T, whole, tensors>;

  FUSED_BN_DEVICE Sweep(const Geometry& g, const SharedLayout& layout, int slab, int rank,
                        const void* const (&data)[tensors])
      : view(g, slab, thread_index()), g_(g), layout_(layout), begin_(g.first_step(rank)) {
    FUSED_BN_UNROLL
    for (int t = 0; t < tensors; ++t) data_[t] = static_cast<const T*>(data[t]);
    const int end = g.first_step(rank + 1), steps = end - begin_;
    end_ = end < view.steps() ? end : view.steps();
    // Constants where nothing is kept: registers are rare.
    const int registers = kRegisters > 0 ? g.register_steps : 0, shared = whole ? g.shared_steps : 0;
    in_registers_ = steps < registers ? steps : registers;
    in_shared_ = steps - in_registers_ < shared ? steps - in_registers_ : shared;
    streamed_ = steps - in_registers_ - in_shared_;
  }

  // Starts to copy what shared memory keeps.
  FUSED_BN_DEVICE void start() {
    const Stretch stretch = in_shared(0);
    for (int i = 0; stretch.has(i); ++i) {
      const int64_t offset = view.vector(stretch.first + i).offset;
      FUSED_BN_UNROLL
      for (int t = 0; t < tensors; ++t) {
        const Pack* from = reinterpret_cast<const Pack*>(data_[t] + offset);
        FUSED_BN_UNROLL
        for (int j = 0; j < kPacks<T>; ++j) copy_async(slot(i, t, j), from + j);
      }
    }
  }

  // body(raw, stretch) for all steps, raw being a RawSteps; a second time gives the same again. While shared
  // memory is read, the loads into registers are under way; before, these registers hold what is streamed.
  template <class Body>
  FUSED_BN_DEVICE void gather(Body body) {
    for (int i = 0; i < streamed_; i += kSteps) {
      RawSteps<T, kSteps, tensors> raw;
      load<kSteps, false>(raw, streamed(i));
      body(raw, streamed(i));
    }
    if constexpr (kRegisters > 0) load<kRegisters, true>(registers_, in_registers());
    wait_copies();
    for (int i = 0; i < in_shared_; ++i) {
      RawSteps<T, 1, tensors> raw;
      fetch<1>(raw, i);
      body(raw, in_shared(i));
    }
    if constexpr (kRegisters > 0) {
      body(registers_, in_registers());
      forget(registers_);
    }
    forget(begin_);
  }

  // body(raw[i], step) for the steps of a stretch. Code for a curve other than ReLU's is long, and stands but
  // once, in a loop in which the steps take turns at the first place.
  template <int steps, class Body>
  FUSED_BN_DEVICE void each(Raw<T> (&raw)[steps][tensors], const Stretch& stretch, Body body) const {
    if constexpr (curve == Curve::other) {
      FUSED_BN_ROLLED
      for (int i = 0; i < steps; ++i) {
        if (stretch.has(i)) body(raw[0], stretch.first + i);
        rotate(raw);
      }
    } else {
      FUSED_BN_UNROLL
      for (int i = 0; i < steps; ++i) {
        if (stretch.has(i)) body(raw[i], stretch.first + i);
      }
    }
  }

  // body(raw, step) for every vector, for the last time.
  template <class Body>
  FUSED_BN_DEVICE void emit(Body body) {
    FUSED_BN_UNROLL
    for (int i = 0; i < kRegisters; ++i) {
      const Stretch stretch = in_registers();
      if (stretch.has(i)) body(registers_[i], stretch.first + i);
    }
    const int shared_groups = (in_shared_ + kSteps - 1) / kSteps;
    const int groups = shared_groups + (streamed_ + kSteps - 1) / kSteps;
    for (int group = 0; group < groups; ++group) {
      RawSteps<T, kSteps, tensors> raw;
      const bool kept = group < shared_groups;
      const Stretch stretch = kept ? in_shared(group * kSteps) : streamed((groups - 1 - group) * kSteps);
      if (kept) {
        fetch<kSteps>(raw, group * kSteps);
      } else {
        load<kSteps, true>(raw, stretch);
      }
      each(raw, stretch, body);
    }
  }

  // Where the bits of the vector at this step lie in a mask. Of whole vectors their offset tells.
  FUSED_BN_DEVICE int64_t mask_byte(const Vector& at, int step) const {
    return whole ? static_cast<int64_t>(static_cast<uint64_t>(at.offset) / kVector) : view.mask_byte(step);
  }

  const ThreadView<mapping> view;

 private:
  static constexpr int kRegisters = whole ? register_steps(kDType<T>, tensors == 2, mapping, curve) : 0;

  // The thread's steps from the i-th streamed one on, and so on.
  FUSED_BN_DEVICE Stretch streamed(int i) const { return from(begin_ + i, streamed_ - i); }
  FUSED_BN_DEVICE Stretch in_registers() const { return from(begin_ + streamed_, in_registers_); }
  FUSED_BN_DEVICE Stretch in_shared(int i) const {
    return from(begin_ + streamed_ + in_registers_ + i, in_shared_ - i);
  }
  FUSED_BN_DEVICE Stretch from(int first, int count) const {
    return {first, count < end_ - first ? count : end_ - first};
  }

  template <int steps, bool last>
  FUSED_BN_DEVICE void load(RawSteps<T, steps, tensors>& raw, const Stretch& stretch) {
    FUSED_BN_UNROLL
    for (int i = 0; i < steps; ++i) {
      FUSED_BN_UNROLL
      for (int t = 0; t < tensors; ++t) raw[i][t] = {};  // else what was there before would have to be kept
      if (!stretch.has(i)) continue;
      const Vector at = view.vector(stretch.first + i);
      FUSED_BN_UNROLL
      for (int t = 0; t < tensors; ++t) raw[i][t] = load_vector<T, whole, last>(data_[t], at);
    }
  }

  template <int steps>
  FUSED_BN_DEVICE void fetch(RawSteps<T, steps, tensors>& raw, int first) {
    FUSED_BN_UNROLL
    for (int i = 0; i < steps; ++i) {
      if (first + i >= in_shared_) continue;
      FUSED_BN_UNROLL
      for (int t = 0; t < tensors; ++t) {
        FUSED_BN_UNROLL
        for (int j = 0; j < kPacks<T>; ++j) raw[i][t].packs[j] = *slot(first + i, t, j);
      }
    }
  }

  // A thread's own: no other thread reads it, so that no barrier is needed.
  FUSED_BN_DEVICE Pack* slot(int step, int tensor, int pack) const {
    return shared_part<Pack>(layout_.kept) + ((step * tensors + tensor) * kPacks<T> + pack) * g_.threads +
           thread_index();
  }

  const Geometry& g_;
  const SharedLayout& layout_;
  int begin_;
  const T* data_[tensors];
  int end_, streamed_, in_registers_, in_shared_;
  RawSteps<T, (kRegisters > 0 ? kRegisters : 1), tensors> registers_ = {};  // else live from the start
};

}  // namespace fused_bn::cuda
