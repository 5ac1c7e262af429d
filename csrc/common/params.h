// What the kernels of every device take. Base has what one device adds for all of its own.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fused_bn {

enum class Activation : int8_t;  // its header holds functions, which each instruction set compiles for itself

template <class Base>
struct CommonForwardParams : Base {
  const void* input;
  const void* residual;  // null where there is none
  void* output;          // null where only the moments are wanted
  uint8_t* mask;         // a bit an element, in the order of memory; null where none is wanted
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector negative_slope;  // prelu's; null for the others
  ChannelVector running_mean;    // read in evaluation, updated in training
  ChannelVector running_var;
  void* statistics;  // [3, C]: mean_hi, mean_lo, invstd; double for f64, else float. Read where they are
                     // neither the batch's nor the running ones
  double* moments;   // [2, C], written in training: mean and sum of squared deviations; null where not wanted
  double momentum;
  double eps;
  Activation activation;
  double activation_param;
};

template <class Base>
struct CommonBackwardParams : Base {
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
  const double* total_count;  // of values of a channel in all processes; null where its own
  int32_t training;           // of 32 bits, an operand of a GPU's instruction
  Activation activation;
  double activation_param;
};

// From the moments of several processes to the statistics of them all.
struct CommonMergeParams {
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

}  // namespace fused_bn
