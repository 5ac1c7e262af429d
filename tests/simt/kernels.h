// The kernels of one element type, as the bindings find them.
#pragma once

#include <set>
#include <string>

#include "cuda/params.h"
#include "executor.h"

namespace simt {

// A kernel on params that must outlive it, and the name of its instance: "resident forward f32 vectors relu".
struct Prepared {
  std::string name;
  Kernel run;
};

// Each file of kernels registers its own, so that the bindings need no list of them.
struct Kernels {
  using Forward = fused_bn::cuda::ForwardParams;
  using Backward = fused_bn::cuda::BackwardParams;

  Prepared (*forward)(fused_bn::cuda::Kernel, const Forward&) = nullptr;
  Prepared (*backward)(fused_bn::cuda::Kernel, const Backward&) = nullptr;
  std::set<std::string> (*instances)() = nullptr;  // the names of all
};
inline Kernels kernels[4];  // by DType

// Not in the bindings, which take long to compile.
void run_merge(const fused_bn::cuda::MergeParams& params, uint64_t seed);

}  // namespace simt
