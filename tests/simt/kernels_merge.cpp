// The kernel that merges the moments of several processes.
#include "kernels.h"

#include "cuda/kernels/merge.cuh"

namespace simt {

void run_merge(const fused_bn::cuda::MergeParams& params, uint64_t seed) {
  Launch launch;
  launch.threads = fused_bn::cuda::kMergeThreads;
  launch.seed = seed;
  simt::launch(launch, [&] {
    using namespace fused_bn::cuda;
    params.dtype == fused_bn::DType::f64 ? merge_kernel<double>(params) : merge_kernel<float>(params);
  });
}

}  // namespace simt
