// The activations' names in the API.
#pragma once

#include <string_view>
#include <utility>

#include "common/activation.h"

namespace fused_bn {

inline constexpr std::pair<std::string_view, Activation> kActivationNames[] = {
    {"none", Activation::none},
    {"relu", Activation::relu},
    {"leaky_relu", Activation::leaky_relu},
    {"relu6", Activation::relu6},
    {"prelu", Activation::prelu},
    {"hardswish", Activation::hardswish},
    {"hardsigmoid", Activation::hardsigmoid},
    {"elu", Activation::elu},
    {"silu", Activation::silu},
    {"gelu", Activation::gelu},
    {"gelu_tanh", Activation::gelu_tanh},
    {"tanh", Activation::tanh},
    {"sigmoid", Activation::sigmoid},
    {"selu", Activation::selu},
    {"softplus", Activation::softplus},
    {"mish", Activation::mish},
};

}  // namespace fused_bn
