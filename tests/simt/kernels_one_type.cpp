// The kernels of SIMT_ELEMENT; in files of their own, so that they compile side by side.
#include "kernels.h"

#include "cuda/backward.cuh"
#include "cuda/dispatch.h"
#include "cuda/forward.cuh"

namespace simt {
namespace {

using fused_bn::Activation;
using fused_bn::Curve;
using fused_bn::cuda::BackwardParams;
using fused_bn::cuda::ForwardParams;
using fused_bn::cuda::Mapping;
using fused_bn::cuda::with_kernel_types;

template <class Types>
void run(const ForwardParams& params, Types) {
  fused_bn::cuda::forward_kernel<typename Types::Element, Types::mapping, Types::whole, Types::curve>(params);
}
template <class Types>
void run(const BackwardParams& params, Types) {
  fused_bn::cuda::backward_kernel<typename Types::Element, Types::mapping, Types::whole, Types::curve>(
      params);
}

// "forward f32 rows whole relu"
template <class Params, class Types>
std::string name(Types) {
  const char* const dtypes[] = {"f32", "f64", "bf16", "f16"};
  std::string text = std::is_same_v<Params, ForwardParams> ? "forward " : "backward ";
  text += dtypes[static_cast<int>(fused_bn::kDType<typename Types::Element>)];
  text += Types::mapping == Mapping::rows ? " rows" : " columns";
  text += Types::whole ? " whole" : " partial";
  if (Types::curve == Curve::other) return text + " other";
  return text + (Types::curve == Curve::relu ? " relu" : " leaky_relu");
}

template <class Params>
std::string launch_one(const Params& params, const Launch& launch) {
  const auto& geometry = params.geometry;
  return with_kernel_types<SIMT_ELEMENT>(geometry.mapping, geometry.whole, params.activation,
                                         [&](auto types) {
                                           simt::launch(launch, [&params, types] { run(params, types); });
                                           return name<Params>(types);
                                         });
}

std::set<std::string> instances() {
  std::set<std::string> names;
  for (const Mapping mapping : {Mapping::rows, Mapping::columns}) {
    for (const bool whole : {false, true}) {
      for (const Activation activation : {Activation::none, Activation::relu, Activation::silu}) {
        const auto add = [&](auto types) {
          names.insert(name<ForwardParams>(types));
          names.insert(name<BackwardParams>(types));
        };
        with_kernel_types<SIMT_ELEMENT>(mapping, whole, activation, add);
      }
    }
  }
  return names;
}

[[maybe_unused]] const Kernels& entered = kernels[static_cast<int>(fused_bn::kDType<SIMT_ELEMENT>)] = {
    launch_one<ForwardParams>, launch_one<BackwardParams>, instances};

}  // namespace
}  // namespace simt
