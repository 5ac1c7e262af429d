// The parameters of the CPU kernels, and the choice of an instruction set. Includes no torch.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/params.h"
#include "common/view.h"

namespace fused_bn::cpu {

// Calls body(begin, end) for disjoint ranges that cover [0, tasks).
using ParallelFor = void (*)(int64_t tasks, const std::function<void(int64_t, int64_t)>& body);

struct Execution {
  int threads;
  ParallelFor parallel_for;
};

struct Work {
  View view;
  DType dtype;  // of input and output
  Execution execution;
};

struct ForwardParams : CommonForwardParams<Work> {
  bool training;
  double divisor;  // N * S - 1, of the sum of squared deviations in running_var
};

struct BackwardParams : CommonBackwardParams<Work> {
  const double* total;  // [2, C], sums of g and g * xhat over several processes, used instead of own ones
  void* scratch;        // 16 bits per element; null if g is not kept, or if the type is no half type
};

using MergeParams = CommonMergeParams;

// The kernels of one instruction set.
struct Kernels {
  const char* capability;
  void (*forward)(const ForwardParams&);
  void (*backward)(const BackwardParams&);
  void (*merge)(const MergeParams&);
};

// Null if the compiler's target has no such instructions.
const Kernels* kernels_default();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512_bf16();

// Returns the widest kernels that this processor runs, or those that FUSED_BN_CPU_CAPABILITY names. Chosen
// once.
const Kernels& active_kernels();

std::vector<std::string> compiled_capabilities();
std::string active_capability();

}  // namespace fused_bn::cpu
