// The module planner: plans with all that they hold, as tests look at them.
#include "planner.h"

#include <pybind11/stl.h>

#include <functional>
#include <optional>
#include <utility>

namespace py = pybind11;

namespace {

using namespace fused_bn::cuda;

py::dict device_fields(const std::string& name) {
  Device device = fused_bn::device_from(py::str(name));
  py::dict fields;
  fields["architecture"] = device.architecture;
  fused_bn::for_each_field(device,
                           [&](const char* field, const auto& value, auto, auto) { fields[field] = value; });
  return fields;
}

Plan plan(int64_t N, int64_t C, int64_t S, const std::string& layout, const std::string& dtype,
          const std::string& direction, bool residual, int64_t alignment, const py::object& device,
          const std::string& part, const std::string& activation, const std::string& forced) {
  const Problem problem =
      fused_bn::problem_from(N, C, S, layout, dtype, direction, residual, alignment, part, activation);
  return make_plan(problem, fused_bn::device_from(device), parse_forced(forced));
}

void bind_launch(py::module_& module) {
  py::class_<Launch> bound(module, "Launch", py::module_local());
  const auto field = [&](const char* name, auto get) {
    bound.def_property_readonly(name, [get](const Launch& l) { return std::invoke(get, l.tiling); });
  };
  for (const auto& [name, member] : {std::pair{"N", &Tiling::N},
                                     {"C", &Tiling::C},
                                     {"S", &Tiling::S},
                                     {"elements", &Tiling::elements},
                                     {"rows", &Tiling::rows},
                                     {"row_vectors", &Tiling::row_vectors},
                                     {"units", &Tiling::units},
                                     {"passes", &Tiling::passes}}) {
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
                                     {"pass_rows", &Tiling::pass_rows},
                                     {"iterations", &Tiling::iterations}}) {
    field(name, member);
  }
  field("channels_last", [](const Tiling& t) { return t.channels_last != 0; });
  field("mixed", [](const Tiling& t) { return t.mixed != 0; });
  field("interleaved", [](const Tiling& t) { return t.interleaved != 0; });
  field("walk", [](const Tiling& t) { return fused_bn::walk_name(t.walk); });
  bound.def_property_readonly("grid", &Launch::grid);
  bound.def_property_readonly("shared_bytes", [](const Launch& l) { return l.layout.bytes; });
}

void bind_plan(py::module_& module) {
  py::class_<Plan> bound(module, "LaunchPlan", py::module_local());
  for (const auto& [name, member] : {std::pair{"first", &Plan::first}, {"apply", &Plan::apply}}) {
    bound.def_property_readonly(name, [launch = member](const Plan& p) {
      return (p.*launch).grid() > 0 ? std::optional<Launch>(p.*launch) : std::nullopt;
    });
  }
  for (const auto& [name, member] :
       {std::pair{"read", &Traffic::read}, {"written", &Traffic::written}, {"l2_hits", &Traffic::l2_hits}}) {
    bound.def_property_readonly(
        name, [bytes = member](const Plan& p) { return static_cast<int64_t>(p.traffic.*bytes); });
  }
  bound.def_readonly("resident", &Plan::resident);
  bound.def_property_readonly("slots", [](const Plan& p) { return p.first.slots; });
  bound.def_readonly("blocks_per_multiprocessor", &Plan::blocks_per_multiprocessor);
  bound.def_readonly("partials_bytes", &Plan::partials_bytes);
  bound.def_readonly("floor_time", &Plan::floor_time);
  bound.def_readonly("predicted_time", &Plan::predicted_time);
  bound.def_property_readonly("exchange",
                              [](const Plan& p) { return kExchanges[static_cast<int>(p.first.exchange)]; });
  bound.def_property_readonly("launches",
                              [](const Plan& p) { return (p.first.grid() > 0) + (p.apply.grid() > 0); });
  bound.def("__repr__", &describe);
}

}  // namespace

PYBIND11_MODULE(planner, module) {
  bind_launch(module);
  bind_plan(module);
  module.def("plan", &plan, py::arg("N"), py::arg("C"), py::arg("S"), py::arg("layout"), py::arg("dtype"),
             py::arg("direction"), py::arg("residual"), py::arg("alignment"), py::arg("device"),
             py::arg("part") = "both", py::arg("activation") = "relu", py::arg("forced") = "");
  module.def("device_fields", &device_fields);
}
