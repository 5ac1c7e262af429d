// The parameters of the kernels of every device. Base adds those of one device.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fused_bn {

enum class Activation : int8_t;  // not its header, whose functions each instruction set compiles itself

template <class Base>
struct CommonForwardParams : Base {
  const void* input;
  const void* residual;  // null if there is none
  void* output;          // null if only the moments are wanted
  uint8_t* mask;         // one bit per element, in memory order; null if not wanted
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector negative_slope;  // prelu's; null for the others
  ChannelVector running_mean;    // read in evaluation, updated in training
  ChannelVector running_var;
  void* statistics;  // [3, C]: mean_hi, mean_lo, invstd; double for f64, else float. Written, unless
                     // evaluation has no running statistics: then read
  double* moments;   // [2, C], output of training: mean, sum of squared deviations; null if not wanted
  double momentum;
  double eps;
  Activation activation;
  double activation_param;
};

template <class Base>
struct CommonBackwardParams : Base {
  const void* grad_output;
  const void* input;
  const void* residual;  // null if there was none, or if the mask replaces it
  const uint8_t* mask;   // null if backward computes z from the input and the residual
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector negative_slope;  // prelu's; null for the others
  const void* statistics;
  void* grad_input;     // null if not wanted
  void* grad_residual;  // null if not wanted
  ChannelVector grad_weight;
  ChannelVector grad_bias;
  const double* total_count;  // values per channel in all processes; null if this is the only one
  int32_t training;           // 32 bits, because a GPU's instructions take such operands
  Activation activation;
  double activation_param;
};

// Merges the moments of several processes into the statistics of all their values.
struct CommonMergeParams {
  int64_t C;
  int64_t processes;
  const double* moments;  // [processes, 2 * C + 1]: mean, sum of squared deviations, count
  ChannelVector running_mean;
  ChannelVector running_var;
  DType dtype;  // of the input
  void* statistics;
  double* count;  // values per channel in all processes
  double momentum;
  double eps;
};

}  // namespace fused_bn
