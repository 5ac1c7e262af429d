// The Python module fused_bn._C: facts about this build. Importing it registers the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "planner.h"
#if FUSED_BN_HAS_CUDA
#include "cuda/host/launch.h"
#include "cuda/host/plans.h"
#endif

namespace py = pybind11;

namespace fused_bn {
namespace {

// fused_bn/_extension.py searches the file for these words, and does not load it into another torch.
[[gnu::used]] constexpr char built_for[] = "fused_bn built for torch " FUSED_BN_TORCH;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
  std::istringstream list(FUSED_BN_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ';');) names.push_back(name);
  return names;
}

constexpr bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["cxx_standard"] = __cplusplus;
  info["torch"] = FUSED_BN_TORCH;
  info["build_type"] = FUSED_BN_BUILD_TYPE;
  info["openmp"] = has_openmp();
  info["cpu_capabilities"] = cpu::compiled_capabilities();
  info["cuda_version"] = FUSED_BN_CUDA_VERSION;
  info["cuda_architectures"] = cuda_architectures();
  info["without_cuda"] = FUSED_BN_WITHOUT_CUDA;
  return info;
}

}  // namespace
}  // namespace fused_bn

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled operators of fused_bn, and how they were built.";
  module.def("build_info", &fused_bn::build_info,
             "compiler, cxx_standard, torch, build_type; openmp: whether the CPU kernels use all cores; "
             "cpu_capabilities; cuda_version and cuda_architectures, empty where CUDA was left out, and "
             "without_cuda: why it was.");
  module.def("active_cpu_capability", &fused_bn::cpu::active_capability,
             "The instruction set that the CPU kernels use in this process.");
  fused_bn::bind_planner(module);
#if FUSED_BN_HAS_CUDA
  module.def("cuda_launches", &fused_bn::cuda::launches, "Kernels launched since the process began.");
  module.def(
      "cuda_force_plan", &fused_bn::cuda::force_plan, py::arg("text"),
      "Forces what the text says of every launch's plan, as cuda_last_plan() gives it; '' lifts that.");
  module.def("cuda_last_plan", &fused_bn::cuda::last_plan,
             "The plan of the last launch; empty before the first.");
#endif
}
