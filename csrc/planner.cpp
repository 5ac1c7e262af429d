#include "planner.h"

#include <pybind11/stl.h>

#include <sstream>
#include <stdexcept>
#include <type_traits>

#include "common/activation_names.h"

namespace py = pybind11;

namespace fused_bn {
namespace {

using namespace cuda;

// Names of enumerators, in their order.
using Names = std::vector<std::string>;
const Names kLayouts = {"channels_first", "channels_last"}, kDTypes = {"f32", "f64", "bf16", "f16"},
            kDirections = {"forward", "backward"}, kParts = {"both", "reduce", "apply"};

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

Names device_names() {
  Names names;
  for (const Device& device : device_models()) names.push_back(device.name);
  return names;
}

template <class T>
T field_from(const py::handle& value, const char* name) try {
  return value.cast<T>();
} catch (const py::cast_error&) {
  throw std::invalid_argument("device: " + std::string(name) + " must be like a model's, but got " +
                              py::repr(value).cast<std::string>());
}

template <class T>
void check_field(const Device& d, const char* name, T value, T least, T most) {
  if (value >= least && value <= most) return;
  std::ostringstream text;
  text << "device '" << d.name << "': " << name << " must be from " << least << " to " << most << ", but got "
       << value;
  throw std::invalid_argument(text.str());
}
template <size_t count>
void check_field(const Device& d, const char* name, const std::array<int, count>& values, int least,
                 int most) {
  for (const int value : values) check_field(d, name, value, least, most);
}

// What fused_bn.planner.plan() returns. All but apply_grid describes the first of two launches.
py::dict plan(int64_t N, int64_t C, int64_t S, const std::string& layout, const std::string& dtype,
              const std::string& direction, bool residual, int64_t alignment, const py::object& device,
              const std::string& part, const std::string& activation, const std::string& forced) {
  const Problem problem =
      problem_from(N, C, S, layout, dtype, direction, residual, alignment, part, activation);
  const Plan plan = make_plan(problem, device_from(device), parse_forced(forced));
  const bool has_first = plan.first.grid() > 0, has_two = has_first && plan.apply.grid() > 0;
  const bool saves_mask = residual && needs_mask(problem.activation) && problem.part != Part::apply;
  const Launch& launch = has_first ? plan.first : plan.apply;
  const Tiling& t = launch.tiling;
  py::dict facts;
  facts["kernel"] = plan.resident ? "resident" : has_first ? "streamed" : "apply";
  facts["exchange"] = kExchanges[static_cast<int>(plan.first.exchange)];
  facts["forced"] = describe(plan);
  facts["launches"] = has_two ? 2 : 1;
  facts["grid"] = launch.grid();
  facts["apply_grid"] = has_two ? plan.apply.grid() : 0;
  facts["threads"] = t.threads;
  facts["walk"] = walk_name(t.walk);
  facts["vector"] = t.vector;
  facts["mixed"] = t.mixed != 0;
  facts["tiles"] = t.tiles;
  facts["tile_channels"] = t.tile_channels;
  facts["tile_vectors"] = t.tile_vectors;
  facts["group"] = t.group;
  facts["groups"] = t.groups;
  facts["iterations"] = t.iterations;
  facts["passes"] = t.passes;
  facts["slots"] = plan.first.slots;
  facts["shared_bytes"] = launch.layout.bytes;
  facts["blocks_per_multiprocessor"] = plan.blocks_per_multiprocessor;
  facts["partials_bytes"] = plan.partials_bytes;
  facts["mask_bytes"] = saves_mask ? mask_bytes(t.elements) : 0;
  facts["read"] = static_cast<int64_t>(plan.traffic.read);
  facts["written"] = static_cast<int64_t>(plan.traffic.written);
  facts["l2_hits"] = static_cast<int64_t>(plan.traffic.l2_hits);
  facts["floor_time"] = plan.floor_time;
  facts["predicted_time"] = plan.predicted_time;
  return facts;
}

}  // namespace

Problem problem_from(int64_t N, int64_t C, int64_t S, const std::string& layout, const std::string& dtype,
                     const std::string& direction, bool residual, int64_t alignment, const std::string& part,
                     const std::string& activation) {
  return {{N, C, S, from_name<Layout>(kLayouts, "layout", layout)},
          from_name<DType>(kDTypes, "dtype", dtype),
          from_name<Direction>(kDirections, "direction", direction),
          from_name<Part>(kParts, "part", part),
          from_name<Activation>(activations(), "activation", activation),
          residual,
          alignment};
}

Device device_from(const py::object& given) {
  if (py::isinstance<py::str>(given)) {
    return device_models().at(from_name<size_t>(device_names(), "device", given.cast<std::string>()));
  }
  if (!py::isinstance<py::dict>(given) || !given.contains("architecture")) {
    throw std::invalid_argument(
        "device must be a model's name or a dict with 'architecture' (90 is sm_90), but got " +
        py::repr(given).cast<std::string>());
  }
  py::dict left = given.attr("copy")();
  const int architecture = field_from<int>(left.attr("pop")("architecture"), "architecture");
  Device device = nearest_model(architecture);
  device.architecture = architecture;
  device.name = "sm_" + std::to_string(architecture);
  if (left.contains("name")) device.name = py::str(left.attr("pop")("name")).cast<std::string>();
  for_each_field(device, [&](const char* name, auto& member, auto, auto) {
    if (!left.contains(name)) return;
    member = field_from<std::remove_reference_t<decltype(member)>>(left.attr("pop")(name), name);
  });
  for (const auto& [name, value] : left) {
    throw std::invalid_argument("device has no field " + py::repr(name).cast<std::string>());
  }
  for_each_field(device, [&](const char* name, const auto& member, auto least, auto most) {
    check_field(device, name, member, least, most);
  });
  return device;
}

const char* walk_name(Walk walk) { return walk == Walk::along_rows ? "along_rows" : "down_columns"; }

void bind_planner(py::module_& module) {
  module.def("plan", &plan, py::arg("N"), py::arg("C"), py::arg("S"), py::arg("layout"), py::arg("dtype"),
             py::arg("direction"), py::arg("residual"), py::arg("alignment"), py::arg("device"),
             py::arg("part"), py::arg("activation"), py::arg("forced"),
             "The facts of the launch planner's plan, by name.");
  module.def("plan_devices", &device_names, "The device models that plan() knows.");
}

}  // namespace fused_bn
