#include "activation_names.h"

#include <c10/util/Exception.h>

#include <string>

#include "common/activation_names.h"

namespace fused_bn {

Activation activation_from_name(std::string_view name) {
  for (const auto& [known, activation] : kActivationNames) {
    if (known == name) return activation;
  }
  std::string names;
  for (const auto& [known, _] : kActivationNames) names += (names.empty() ? "" : ", ") + std::string(known);
  TORCH_CHECK_VALUE(false, "activation must be one of ", names, ", but got '", name, "'");
}

std::string_view activation_name(Activation activation) {
  for (const auto& [name, known] : kActivationNames) {
    if (known == activation) return name;
  }
  TORCH_CHECK(false, "fused_bn: no activation has the number ", static_cast<int>(activation));
}

}  // namespace fused_bn
