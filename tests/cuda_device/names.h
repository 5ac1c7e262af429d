// Which of our kernels a function is, by its name.
#pragma once

#include <string>

#include "cuda/params.h"

namespace cuda_device {

enum class Pass { resident, reduce, apply, merge };  // the first three as fused_bn::cuda::Kernel

struct KernelName {
  std::string mangled;
  Pass pass = Pass::merge;
  bool backward = false;
  fused_bn::DType dtype = fused_bn::DType::f32;  // merge: of the statistics
  bool vectors = false, mixed = false;
  fused_bn::ActivationKind kind = fused_bn::ActivationKind::other;

  // As the executor names its instances: "resident forward f32 vectors relu". The mangled name of a kernel
  // that is not ours.
  std::string text() const;
};

// Throws std::runtime_error where it is none of ours.
KernelName parse_name(const std::string& demangled);

}  // namespace cuda_device
