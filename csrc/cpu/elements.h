// The work per element, forward and backward, for vectors of elements.
#pragma once

#include "cpu/activation.h"
#include "cpu/bits.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fused_bn::cpu {
namespace {

// z = fma(x - origin, scale, shift). A large mean is the origin: bias - mean * scale would lose all digits if
// the mean is much larger than the deviation. The mean's rounding error, mean_lo, is a part of the shift. A
// small mean is a part of the shift too, and the origin is 0.
template <class V>
struct Affine {
  V origin, scale, shift;
  V negative_slope{};  // prelu's

  FUSED_BN_INLINE V centre(V x) const { return x - origin; }
  FUSED_BN_INLINE V transform(V centred) const { return fma(centred, scale, shift); }
};

template <class A>
FUSED_BN_INLINE Affine<Vec<A>> spread(const Affine<A>& a) {
  return {broadcast(a.origin), broadcast(a.scale), broadcast(a.shift), broadcast(a.negative_slope)};
}

// In training dx = scale * (g - mean(g) - xhat * mean(g * xhat)): Ioffe and Szegedy 2015, section 3. The
// terms after g are fma(x - origin, slope, constant).
template <class V>
struct GradFactors {
  V slope, constant;
};

template <class A>
FUSED_BN_INLINE GradFactors<Vec<A>> spread(const GradFactors<A>& f) {
  return {broadcast(f.slope), broadcast(f.constant)};
}

template <class T, Path path>
class ForwardElements {
  using A = Compute<T>;
  using V = Vec<A>;

 public:
  explicit ForwardElements(const ForwardParams& p)
      : x_(static_cast<const T*>(p.input)),
        residual_(static_cast<const T*>(p.residual)),
        y_(static_cast<T*>(p.output)),
        mask_(p.mask),
        activation_(p.activation, p.activation_param) {}

  const T* output() const { return y_; }

  template <bool streaming, class Lanes>
  FUSED_BN_INLINE void write(int64_t at, const Affine<V>& affine, Lanes lanes) const {
    V z = affine.transform(affine.centre(load(x_ + at, lanes)));
    if (!is_plain(path) && residual_ != nullptr) z += load(residual_ + at, lanes);
    if (!is_plain(path) && mask_ != nullptr)
      store_bits<A>(mask_, at, passes<kind_of(path), VectorMath<A>>(z), lanes);
    put<streaming>(y_ + at, activate<path, A>(z, affine.negative_slope, activation_), lanes);
  }

 private:
  const T* x_;
  const T* residual_;
  T* y_;
  uint8_t* mask_;
  Activated<A> activation_;
};

// Whether rows of `row` elements end within a byte of the mask, to which other threads may write too.
inline bool cuts_bytes(const ForwardParams& p, int64_t row) { return p.mask != nullptr && row % 8 != 0; }
inline void clear_mask(const ForwardParams& p) { std::memset(p.mask, 0, mask_bytes(p.view.elements())); }

// Calls body(std::bool_constant{}). Plain paths have no mask.
template <Path path, class Body>
FUSED_BN_INLINE void with_mask(bool by_bytes, Body body) {
  if (!is_plain(path) && by_bytes) return body(std::bool_constant<!is_plain(path)>{});
  body(std::false_type{});
}

inline bool needs_sums(const BackwardParams& p) {
  if (p.total != nullptr) return false;
  return p.grad_weight.data != nullptr || p.grad_bias.data != nullptr ||
         (p.training && p.grad_input != nullptr);
}

template <class T, Path path>
class BackwardElements {
  using A = Compute<T>;
  using V = Vec<A>;

  // If g is expensive, the reduce pass keeps it in an output for the apply pass. For half types the output
  // holds only the upper half of a float.
  static constexpr bool kHalves = !std::is_same_v<T, A>;

 public:
  explicit BackwardElements(const BackwardParams& p)
      : dy_(static_cast<const T*>(p.grad_output)),
        x_(static_cast<const T*>(p.input)),
        residual_(static_cast<const T*>(p.residual)),
        mask_(p.mask),
        dx_(static_cast<T*>(p.grad_input)),
        dresidual_(static_cast<T*>(p.grad_residual)),
        kept_lower_(static_cast<LowerHalf*>(p.scratch)),
        keeps_(path == Path::other && needs_sums(p) && output() != nullptr &&
               (!kHalves || kept_lower_ != nullptr)),
        activation_(p.activation, p.activation_param) {}

  // One of the wanted gradients, null if there is none. When streaming, the other one is aligned like it.
  T* output() const { return dx_ != nullptr ? dx_ : dresidual_; }

  template <class Lanes>
  FUSED_BN_INLINE V centred(int64_t at, const Affine<V>& affine, Lanes lanes) const {
    return affine.centre(load(x_ + at, lanes));
  }

  // Returns g, the gradient with respect to z; 0 in inactive lanes, which load a zero gradient.
  template <class Lanes>
  FUSED_BN_INLINE V grad(int64_t at, const Affine<V>& affine, V centred, Lanes lanes) const {
    V z = affine.transform(centred);
    if (!is_plain(path) && residual_ != nullptr) z += load(residual_ + at, lanes);
    if (!is_plain(path) && mask_ != nullptr) z = load_bits<A>(mask_, at, lanes) ? broadcast(A{1}) : V{};
    return activate_backward<path, A>(z, in_register<A>(load(dy_ + at, lanes)), affine.negative_slope,
                                      activation_);
  }

  // Adds g and g * (x - origin) to sums. The difference is exact if the origin is 0, or if x is between half
  // and twice the origin, as most values are if the mean is at least two deviations.
  template <class Lanes>
  FUSED_BN_INLINE void add(int64_t at, const Affine<V>& affine, Lanes lanes, Wide<T>& sum,
                           Wide<T>& sum_centred) const {
    const V c = centred(at, affine, lanes);
    const V g = grad(at, affine, c, lanes);
    if (path == Path::other && keeps_) keep(at, g, lanes);
    const Wide<T> wide = widen<T>(g);
    sum.add(wide);
    sum_centred.add_product(wide, widen<T>(c));
  }

  // In evaluation the statistics are constants.
  template <bool streaming, bool training, class Lanes>
  FUSED_BN_INLINE void write(int64_t at, const Affine<V>& affine, const GradFactors<V>& factors,
                             Lanes lanes) const {
    const V c = centred(at, affine, lanes);
    const V g = path == Path::other && keeps_ ? kept(at, lanes) : grad(at, affine, c, lanes);
    if (!is_plain(path) && dresidual_ != nullptr) put<streaming>(dresidual_ + at, g, lanes);
    if (!is_plain(path) && dx_ == nullptr) return;
    put<streaming>(dx_ + at, affine.scale * (training ? g + fma(c, factors.slope, factors.constant) : g),
                   lanes);
  }

 private:
  template <class Lanes>
  FUSED_BN_INLINE void keep(int64_t at, V g, Lanes lanes) const {
    if constexpr (kHalves) {
      store(reinterpret_cast<UpperHalf*>(output()) + at, g, lanes);
      store(kept_lower_ + at, g, lanes);
    } else {
      store(output() + at, g, lanes);
    }
  }

  template <class Lanes>
  FUSED_BN_INLINE V kept(int64_t at, Lanes lanes) const {
    if constexpr (kHalves) {
      const V upper = load(reinterpret_cast<const UpperHalf*>(output()) + at, lanes);
      return (V)((Bits32)upper | (Bits32)load(kept_lower_ + at, lanes));
    } else {
      return load(output() + at, lanes);
    }
  }

  const T* dy_;
  const T* x_;
  const T* residual_;
  const uint8_t* mask_;
  T* dx_;
  T* dresidual_;
  LowerHalf* kept_lower_;
  bool keeps_;
  Activated<A> activation_;
};

}  // namespace
}  // namespace fused_bn::cpu
