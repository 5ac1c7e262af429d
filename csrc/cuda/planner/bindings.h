// The launch planner in Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fused_bn::cuda {

void bind_planner(pybind11::module_& module);

}  // namespace fused_bn::cuda
