// The names of activations, in both directions; common/activation_names.h has the table.
#pragma once

#include <string_view>

#include "common/activation.h"

namespace fused_bn {

// ValueError for a name that is no activation.
Activation activation_from_name(std::string_view name);
std::string_view activation_name(Activation activation);

}  // namespace fused_bn
