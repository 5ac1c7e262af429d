// What the CPU kernels take and which of them run here. Knows no torch.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/view.h"

namespace fused_bn {
enum class Activation : int8_t;  // its header holds functions, which each instruction set compiles for itself
}

namespace fused_bn::cpu {

// Runs body(begin, end) over disjoint ranges that cover [0, tasks).
using ParallelFor = void (*)(int64_t tasks, const std::function<void(int64_t, int64_t)>& body);

struct Execution {
  int threads;
  ParallelFor parallel_for;
};

struct ForwardParams {
  View view;
  DType dtype;  // of input and output
  const void* input;
  const void* residual;  // null where there is none
  void* output;          // null where only the moments are wanted
  uint8_t* mask;         // a bit an element, in the order of memory; null where none is wanted
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector negative_slope;  // prelu's; null for the others
  ChannelVector running_mean;    // read in evaluation; updated in training, when all else has succeeded
  ChannelVector running_var;
  double* moments;   // [2, C], written in training: mean and sum of squared deviations; null where not wanted
  void* statistics;  // [3, C]: mean_hi, mean_lo, invstd; double for f64, else float. Read where they are
                     // neither the batch's nor the running ones
  bool training;
  double momentum;
  double divisor;  // of the sum of squared deviations, in running_var: N * S - 1
  double eps;
  Activation activation;
  double activation_param;
  Execution execution;
};

struct BackwardParams {
  View view;
  DType dtype;  // of grad_output, input and grad_input
  const void* grad_output;
  const void* input;
  const void* residual;  // null where there was none, or where the mask tells all that it would
  const uint8_t* mask;   // null where the input and the residual tell
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector negative_slope;  // prelu's; null for the others
  const void* statistics;
  void* grad_input;     // null where it is not wanted
  void* grad_residual;  // null where it is not wanted
  ChannelVector grad_weight;
  ChannelVector grad_bias;
  const double* total;        // [2, C], sums of g and g * xhat over several processes: taken for the own
  const double* total_count;  // of values of a channel in all of them; null where `total` is
  void* scratch;              // 16 bits an element, null where half types compute a costly activation twice
  bool training;
  Activation activation;
  double activation_param;
  Execution execution;
};

// From the moments of several processes to the statistics of them all.
struct MergeParams {
  int64_t C;
  int64_t processes;
  const double* moments;  // [processes, 2 * C + 1]: mean, sum of squared deviations, count
  ChannelVector running_mean;
  ChannelVector running_var;
  DType dtype;  // of the input
  void* statistics;
  double* count;  // of values of a channel in all of them
  double momentum;
  double eps;
};

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
