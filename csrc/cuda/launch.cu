#include "cuda/launch.h"

#include <atomic>

#include "cuda/dispatch.h"

namespace fused_bn::cuda {
namespace {

std::atomic<int64_t> count{0};

template <class Params>
cudaError_t launch_types(const Plan& plan, DType dtype, Params params, cudaStream_t stream) {
  params.geometry = plan.geometry;
  params.layout = plan.layout;
  params.exchange = plan.exchange;
  return for_each_phase(plan.exchange, [&](Phase phase) {
    params.phase = phase;
    count_launch();
    switch (dtype) {
      case DType::f64:
        return launch_one_type<double>(plan, params, stream);
      case DType::bf16:
        return launch_one_type<BFloat16>(plan, params, stream);
      case DType::f16:
        return launch_one_type<Float16>(plan, params, stream);
      default:
        return launch_one_type<float>(plan, params, stream);
    }
  });
}

}  // namespace

cudaError_t launch(const Plan& plan, DType dtype, ForwardParams params, cudaStream_t stream) {
  return launch_types(plan, dtype, params, stream);
}

cudaError_t launch(const Plan& plan, DType dtype, BackwardParams params, cudaStream_t stream) {
  return launch_types(plan, dtype, params, stream);
}

int64_t launches() { return count; }
void count_launch() { ++count; }

}  // namespace fused_bn::cuda
