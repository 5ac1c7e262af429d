#include "cuda/planner/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "common/activation_names.h"
#include "cuda/planner/plan.h"

namespace py = pybind11;

namespace fused_bn::cuda {
namespace {

// Names of enumerators, in their order.
using Names = std::vector<std::string>;
const Names kLayouts = {"channels_first", "channels_last"}, kDTypes = {"f32", "f64", "bf16", "f16"},
            kDirections = {"forward", "backward"}, kParts = {"both", "reduce", "apply"},
            kWalks = {"along_rows", "down_columns"};

Names activations() {
  Names names;
  for (const auto& [name, value] : kActivationNames) names.emplace_back(name);
  return names;
}

template <class E>
E from_name(const Names& names, const char* what, const std::string& name) {
  std::string known;
  for (size_t i = 0; i < names.size(); ++i) {
    if (name == names[i]) return static_cast<E>(i);
    known += (i == 0 ? "" : ", ") + names[i];
  }
  throw std::invalid_argument(std::string(what) + " must be one of " + known + ", but got '" + name + "'");
}

Activation activation_from(const std::string& name) {
  return from_name<Activation>(activations(), "activation", name);
}

// Calls visit(name, member) for each fact of a Device.
template <class Visit>
void for_each_field(Device& d, const Visit& visit) {
  visit("architecture", d.architecture);
  visit("multiprocessors", d.multiprocessors);
  visit("shared_per_block", d.shared_per_block);
  visit("shared_per_multiprocessor", d.shared_per_multiprocessor);
  visit("threads_per_multiprocessor", d.threads_per_multiprocessor);
  visit("l2_bytes", d.l2_bytes);
  visit("max_cluster", d.max_cluster);
  visit("active_clusters", d.active_clusters);
  visit("cooperative", d.cooperative);
  visit("memory_bandwidth", d.memory_bandwidth);
  visit("l2_bandwidth", d.l2_bandwidth);
}

template <class T>
T field_from(const py::handle& value, const char* name) try {
  return value.cast<T>();
} catch (const py::cast_error&) {
  throw std::invalid_argument("device: " + std::string(name) + " must be like a model's, but got " +
                              py::repr(value).cast<std::string>());
}

// A model's name, or a mapping of fields; those left out are the nearest model's of its architecture.
Device device_from(const py::object& given) {
  if (py::isinstance<py::str>(given)) return device_model(given.cast<std::string>());
  if (!py::isinstance<py::dict>(given) || !given.contains("architecture")) {
    throw std::invalid_argument(
        "device must be a model's name or a dict with 'architecture' (90 is sm_90), but got " +
        py::repr(given).cast<std::string>());
  }
  py::dict left = given.attr("copy")();
  Device device = nearest_model(field_from<int>(left["architecture"], "architecture"));
  device.name = "sm_" + py::str(left["architecture"]).cast<std::string>();
  if (left.contains("name")) device.name = py::str(left.attr("pop")("name")).cast<std::string>();
  for_each_field(device, [&](const char* name, auto& member) {
    if (!left.contains(name)) return;
    member = field_from<std::remove_reference_t<decltype(member)>>(left.attr("pop")(name), name);
  });
  for (const auto& [name, value] : left) {
    throw std::invalid_argument("device has no field " + py::repr(name).cast<std::string>());
  }
  return device;
}

py::dict device_fields(const std::string& name) {
  Device device = device_model(name);
  py::dict fields;
  for_each_field(device, [&](const char* field, const auto& value) { fields[field] = value; });
  return fields;
}

Plan plan(int64_t N, int64_t C, int64_t S, const std::string& layout, const std::string& dtype,
          const std::string& direction, bool residual, int64_t alignment, const py::object& device,
          const std::string& part, const std::string& activation, const std::string& forced) {
  const Problem problem{{N, C, S, from_name<Layout>(kLayouts, "layout", layout)},
                        from_name<DType>(kDTypes, "dtype", dtype),
                        from_name<Direction>(kDirections, "direction", direction),
                        from_name<Part>(kParts, "part", part),
                        activation_from(activation),
                        residual,
                        alignment};
  return make_plan(problem, device_from(device), parse_forced(forced));
}

void bind_launch(py::module_& module) {
  py::class_<Launch> bound(module, "Launch");
  const auto field = [&](const char* name, auto get) {
    bound.def_property_readonly(name, [get](const Launch& l) { return std::invoke(get, l.tiling); });
  };
  for (const auto& [name, member] : {std::pair{"N", &Tiling::N},
                                     {"C", &Tiling::C},
                                     {"S", &Tiling::S},
                                     {"elements", &Tiling::elements},
                                     {"rows", &Tiling::rows},
                                     {"row_vectors", &Tiling::row_vectors},
                                     {"units", &Tiling::units}}) {
    field(name, member);
  }
  for (const auto& [name, member] : {std::pair{"vector", &Tiling::vector},
                                     {"fold", &Tiling::fold},
                                     {"tile_vectors", &Tiling::tile_vectors},
                                     {"tile_channels", &Tiling::tile_channels},
                                     {"tiles", &Tiling::tiles},
                                     {"threads", &Tiling::threads},
                                     {"channel_length", &Tiling::channel_length},
                                     {"group", &Tiling::group},
                                     {"groups", &Tiling::groups},
                                     {"pass_units", &Tiling::pass_units},
                                     {"pass_rows", &Tiling::pass_rows}}) {
    field(name, member);
  }
  field("channels_last", [](const Tiling& t) { return t.channels_last != 0; });
  field("mixed", [](const Tiling& t) { return t.mixed != 0; });
  field("interleaved", [](const Tiling& t) { return t.interleaved != 0; });
  field("walk", [](const Tiling& t) { return kWalks[static_cast<size_t>(t.walk)]; });
  field("passes", &Tiling::passes);
  field("iterations", &Tiling::iterations);
  bound.def_property_readonly("grid", &Launch::grid);
  bound.def_property_readonly("shared_bytes", [](const Launch& l) { return l.layout.bytes; });
}

void bind_plan(py::module_& module) {
  py::class_<Plan> bound(module, "LaunchPlan");
  for (const auto& [name, member] : {std::pair{"first", &Plan::first}, {"apply", &Plan::apply}}) {
    bound.def_property_readonly(name, [launch = member](const Plan& p) {
      return (p.*launch).grid() > 0 ? std::optional<Launch>(p.*launch) : std::nullopt;
    });
  }
  for (const auto& [name, member] :
       {std::pair{"read", &Traffic::read}, {"written", &Traffic::written}, {"l2_hits", &Traffic::l2_hits}}) {
    bound.def_property_readonly(name, [bytes = member](const Plan& p) { return p.traffic.*bytes; });
  }
  bound.def_readonly("resident", &Plan::resident);
  bound.def_readonly("slots", &Plan::slots);
  bound.def_readonly("blocks_per_multiprocessor", &Plan::blocks_per_multiprocessor);
  bound.def_readonly("partials_bytes", &Plan::partials_bytes);
  bound.def_readonly("floor_time", &Plan::floor_time);
  bound.def_readonly("predicted_time", &Plan::predicted_time);
  bound.def_property_readonly("exchange",
                              [](const Plan& p) { return kExchanges[static_cast<int>(p.exchange)]; });
  bound.def_property_readonly("launches",
                              [](const Plan& p) { return (p.first.grid() > 0) + (p.apply.grid() > 0); });
  bound.def("__repr__", &describe);
}

}  // namespace

void bind_planner(py::module_& module) {
  bind_launch(module);
  bind_plan(module);
  module.def("plan", &plan, py::arg("N"), py::arg("C"), py::arg("S"), py::arg("layout"), py::arg("dtype"),
             py::arg("direction"), py::arg("residual"), py::arg("alignment"), py::arg("device"),
             py::arg("part") = "both", py::arg("activation") = "relu", py::arg("forced") = "");
  module.def("plan_devices", &device_names);
  module.def("plan_device_fields", &device_fields);
  module.def("plan_has_mask", [](const std::string& name) { return has_mask(activation_from(name)); });
}

}  // namespace fused_bn::cuda
