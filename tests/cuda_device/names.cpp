#include "names.h"

#include <stdexcept>
#include <vector>

namespace cuda_device {
namespace {

using fused_bn::ActivationKind;
using fused_bn::DType;

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// "float", "4" and "(fused_bn::ActivationKind)1" of "Forward<float, 4, (fused_bn::ActivationKind)1>".
std::vector<std::string> template_arguments(const std::string& text, const char* of) {
  const auto begin = text.find(of);
  if (begin == std::string::npos) throw std::runtime_error("there is no " + std::string(of) + " in " + text);
  const auto open = text.find('<', begin), close = text.find('>', open);
  std::vector<std::string> arguments{""};
  for (const char c : text.substr(open + 1, close - open - 1)) {
    if (c == ',') {
      arguments.emplace_back();
    } else if (c != ' ') {
      arguments.back() += c;
    }
  }
  return arguments;
}

DType dtype_of(const std::string& type) {
  if (has(type, "BFloat16")) return DType::bf16;
  if (has(type, "Float16")) return DType::f16;
  return type == "double" ? DType::f64 : DType::f32;
}

}  // namespace

KernelName parse_name(const std::string& demangled) {
  KernelName name;
  name.mangled = demangled;
  if (has(demangled, "batch_norm_merge<")) {
    name.dtype = dtype_of(template_arguments(demangled, "batch_norm_merge<")[0]);
    return name;
  }
  name.pass = has(demangled, "Resident<") ? Pass::resident
              : has(demangled, "Reduce<") ? Pass::reduce
              : has(demangled, "Apply<")  ? Pass::apply
                                          : throw std::runtime_error("no kernel is named " + demangled);
  name.backward = has(demangled, "Backward<");
  const auto arguments = template_arguments(demangled, name.backward ? "Backward<" : "Forward<");
  name.dtype = dtype_of(arguments.at(0));
  name.vectors = arguments.at(1) != "1";
  name.mixed = arguments.at(2) == "true";
  name.kind = static_cast<ActivationKind>(std::stoi(arguments.at(3).substr(arguments.at(3).find(')') + 1)));
  return name;
}

std::string KernelName::text() const {
  static const char* const passes[] = {"resident", "reduce", "apply", "merge"};
  static const char* const dtypes[] = {"f32", "f64", "bf16", "f16"};
  static const char* const kinds[] = {"relu", "leaky_relu", "other"};
  if (!has(mangled, "batch_norm")) return mangled;
  std::string text = passes[static_cast<int>(pass)];
  if (pass != Pass::merge) text += backward ? " backward" : " forward";
  text += std::string(" ") + dtypes[static_cast<int>(dtype)];
  if (pass == Pass::merge) return text;
  text += !vectors ? " elements" : mixed ? " mixed vectors" : " vectors";
  const bool any_kind = pass == Pass::reduce && !backward;
  return any_kind ? text : text + " " + kinds[static_cast<int>(kind)];
}

}  // namespace cuda_device
