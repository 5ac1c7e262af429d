// The kernels of SIMT_ELEMENT; in files of their own, so that they compile side by side.
#include "kernels.h"

#include <stdexcept>

#include "cuda/kernels/dispatch.h"
#include "cuda/kernels/resident.cuh"
#include "cuda/kernels/streamed.cuh"

namespace simt {
namespace {

using namespace fused_bn::cuda;
using fused_bn::Activation;
using fused_bn::Curve;
using Which = fused_bn::cuda::Kernel;

template <int vector, bool mixed, Curve curve>
std::string name(Which kernel, bool forward) {
  const char* const dtypes[] = {"f32", "f64", "bf16", "f16"};
  const char* const kernels[] = {"resident ", "reduce ", "apply "};
  std::string text = kernels[static_cast<int>(kernel)];
  text += forward ? "forward " : "backward ";
  text += dtypes[static_cast<int>(fused_bn::kDType<SIMT_ELEMENT>)];
  text += vector == 1 ? " elements" : mixed ? " mixed vectors" : " vectors";
  if (kernel == Which::reduce && forward) return text;
  return text + (curve == Curve::relu ? " relu" : curve == Curve::leaky_relu ? " leaky_relu" : " other");
}

template <class T, int vector, bool mixed, Curve curve>
Prepared of(KernelTypes<T, vector, mixed, curve> types, Which kernel, const ForwardParams& p) {
  Prepared prepared{name<vector, mixed, curve>(kernel, true), {}};
  if (kernel == Which::reduce) prepared.run = [&p] { reduce_forward<T, vector, mixed>(p); };
  if (kernel == Which::apply) prepared.run = [&p] { apply_forward<T, vector, mixed, curve>(p); };
  if constexpr (types.resident) {
    if (kernel == Which::resident) prepared.run = [&p] { resident_forward<T, vector, mixed, curve>(p); };
  }
  return prepared;
}
template <class T, int vector, bool mixed, Curve curve>
Prepared of(KernelTypes<T, vector, mixed, curve> types, Which kernel, const BackwardParams& p) {
  Prepared prepared{name<vector, mixed, curve>(kernel, false), {}};
  if (kernel == Which::reduce) prepared.run = [&p] { reduce_backward<T, vector, mixed, curve>(p); };
  if (kernel == Which::apply) prepared.run = [&p] { apply_backward<T, vector, mixed, curve>(p); };
  if constexpr (types.resident) {
    if (kernel == Which::resident) prepared.run = [&p] { resident_backward<T, vector, mixed, curve>(p); };
  }
  return prepared;
}

template <class Params>
Prepared prepare(Which kernel, const Params& p) {
  Prepared prepared =
      with_types<SIMT_ELEMENT>(p.tiling, p.activation, [&](auto types) { return of(types, kernel, p); });
  if (!prepared.run) throw std::invalid_argument("there is no kernel " + prepared.name);
  return prepared;
}

std::set<std::string> instances() {
  std::set<std::string> names;
  for (const int kind : {0, 1, 2}) {
    for (const Activation activation : {Activation::none, Activation::relu, Activation::silu}) {
      for (const Which kernel : {Which::resident, Which::reduce, Which::apply}) {
        ForwardParams forward{};
        forward.tiling.vector = kind == 0 ? 1 : kWide<SIMT_ELEMENT>;
        forward.tiling.mixed = kind == 2;
        BackwardParams backward{};
        backward.tiling = forward.tiling;
        forward.activation = backward.activation = activation;
        if (kernel == Which::resident && forward.tiling.vector == 1) continue;
        names.insert(prepare(kernel, forward).name);
        names.insert(prepare(kernel, backward).name);
      }
    }
  }
  return names;
}

[[maybe_unused]] const Kernels& entered = kernels[static_cast<int>(fused_bn::kDType<SIMT_ELEMENT>)] = {
    prepare<ForwardParams>, prepare<BackwardParams>, instances};

}  // namespace
}  // namespace simt
