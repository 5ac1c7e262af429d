// What the CPU kernels take and which of them run here. Knows no torch.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/params.h"
#include "common/view.h"

namespace fused_bn::cpu {

// Runs body(begin, end) over disjoint ranges that cover [0, tasks).
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
  double divisor;  // of the sum of squared deviations, in running_var: N * S - 1
};

struct BackwardParams : CommonBackwardParams<Work> {
  const double* total;  // [2, C], sums of g and g * xhat over several processes: taken for the own
  void* scratch;        // 16 bits an element, null where half types compute a costly activation twice
};

using MergeParams = CommonMergeParams;

// The kernels of one instruction set.
struct Kernels {
  const char* capability;
  void (*forward)(const ForwardParams&);
  void (*backward)(const BackwardParams&);
  void (*merge)(const MergeParams&);
};

// Null where the compiler's target has no such instructions.
const Kernels* kernels_default();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512_bf16();

// The widest kernels that this processor runs, or those that FUSED_BN_CPU_CAPABILITY names; chosen once.
const Kernels& active_kernels();

std::vector<std::string> compiled_capabilities();
std::string active_capability();

}  // namespace fused_bn::cpu
