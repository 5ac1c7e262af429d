// From the params of a launch to what the executor runs.
#pragma once

#include <vector>

#include "names.h"
#include "streams.h"

namespace cuda_device {

// Copies the params, fills in launch.prepare, and adds the memory that the kernel may access. Throws
// std::runtime_error where a pointer is not live memory of the current device.
void prepare_launch(const KernelName& name, const void* params, KernelLaunch& launch,
                    std::vector<Access>& accesses);

}  // namespace cuda_device
