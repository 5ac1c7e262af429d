// The kernels of SIMT_ELEMENT. Each element type has its own object, so that they compile in parallel.
#include "kernels.h"

#include <stdexcept>

#include "cuda/kernels/dispatch.h"

namespace simt {
namespace {

using namespace fused_bn::cuda;
using fused_bn::Activation;
using fused_bn::ActivationKind;
using Which = fused_bn::cuda::Kernel;

template <class Pass>
std::string name() {
  using Direction = typename Pass::Direction;
  const bool forward = std::is_same_v<typename Pass::Params, ForwardParams>;
  const char* const dtypes[] = {"f32", "f64", "bf16", "f16"};
  const char* const kernels[] = {"resident ", "reduce ", "apply "};
  const char* const kinds[] = {" relu", " leaky_relu", " other"};
  std::string text = kernels[static_cast<int>(Pass::kernel)];
  text += forward ? "forward " : "backward ";
  text += dtypes[static_cast<int>(fused_bn::kDType<SIMT_ELEMENT>)];
  text += Direction::vector == 1 ? " elements" : Direction::mixed ? " mixed vectors" : " vectors";
  if (Pass::kernel == Which::reduce && forward) return text;
  return text + kinds[static_cast<int>(Direction::kind)];
}

template <class Params>
Prepared prepare(Which kernel, const Params& p) {
  constexpr bool forward = std::is_same_v<Params, ForwardParams>;
  const auto of = [&p](auto type) {
    using Pass = typename decltype(type)::Pass;
    return Prepared{name<Pass>(), [&p] { Pass(p).run(); }};
  };
  const Prepared prepared = with_kernel<forward, SIMT_ELEMENT>(kernel, p.tiling, p.activation, of);
  if (!prepared.run) throw std::invalid_argument("there is no such kernel");
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
