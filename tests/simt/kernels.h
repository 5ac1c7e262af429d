// The kernels of one element type, as the bindings find them.
#pragma once

#include <set>
#include <string>

#include "cuda/params.h"
#include "executor.h"

namespace simt {

// Each file of kernels enters its own, so that the bindings need not know which ones there are. Functions
// launch a kernel and return the name of the instance that ran.
struct Kernels {
  using Forward = fused_bn::cuda::ForwardParams;
  using Backward = fused_bn::cuda::BackwardParams;

  std::string (*forward)(const Forward&, const Launch&) = nullptr;
  std::string (*backward)(const Backward&, const Launch&) = nullptr;
  std::set<std::string> (*instances)() = nullptr;  // the names of all
};
inline Kernels kernels[4];  // by DType

}  // namespace simt
