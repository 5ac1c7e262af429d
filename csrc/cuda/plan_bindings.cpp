#include "cuda/plan_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/activation_names.h"
#include "cuda/plan.h"

namespace py = pybind11;

namespace fused_bn::cuda {
namespace {

constexpr int64_t kMostCounted = int64_t{1} << 26;  // elements whose visits are counted one by one

template <class E>
using Names = std::vector<std::pair<std::string_view, E>>;

const Names<Layout> kLayouts = {{"channels_first", Layout::channels_first},
                                {"channels_last", Layout::channels_last}};
const Names<DType> kDTypes = {
    {"f32", DType::f32}, {"f64", DType::f64}, {"bf16", DType::bf16}, {"f16", DType::f16}};
const Names<Direction> kDirections = {{"forward", Direction::forward},
                                      {"backward", Direction::backward},
                                      {"evaluation", Direction::evaluation}};
const Names<Activation> kActivations(std::begin(kActivationNames), std::end(kActivationNames));
const Names<Mapping> kMappings = {{"rows", Mapping::rows}, {"columns", Mapping::columns}};
const Names<Exchange> kExchanges = {{"none", Exchange::none},
                                    {"cluster", Exchange::cluster},
                                    {"barrier", Exchange::barrier},
                                    {"two_kernels", Exchange::two_kernels}};

template <class E>
E from_name(const Names<E>& names, const char* what, const std::string& name) {
  std::string known;
  for (const auto& [text, value] : names) {
    if (name == text) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw std::invalid_argument(std::string(what) + " must be one of " + known + ", but got '" + name + "'");
}

template <class E>
std::string_view to_name(const Names<E>& names, E value) {
  return std::find_if(names.begin(), names.end(), [&](const auto& n) { return n.second == value; })->first;
}

// Calls visit(name, member) for each number of a Device.
template <class Visit>
void for_each_field(Device& d, const Visit& visit) {
  visit("architecture", d.architecture);
  visit("multiprocessors", d.multiprocessors);
  visit("shared_per_block", d.shared_per_block);
  visit("l2_bytes", d.l2_bytes);
  visit("max_cluster", d.max_cluster);
  visit("cooperative", d.cooperative);
  visit("dram_bandwidth", d.dram_bandwidth);
  visit("l2_bandwidth", d.l2_bandwidth);
  visit("l2_share", d.l2_share);
  visit("launch_time", d.launch_time);
  visit("cooperative_time", d.cooperative_time);
  visit("barrier_time", d.barrier_time);
  visit("cluster_time", d.cluster_time);
  visit("turn_time", d.turn_time);
  visit("run_64_penalty", d.run_64_penalty);
  visit("run_32_penalty", d.run_32_penalty);
  visit("headroom", d.headroom);
  visit("partial_penalty", d.partial_penalty);
  visit("evaluation_blocks", d.evaluation_blocks);
}

template <class T>
T field_from(const py::handle& value, const char* name) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw std::invalid_argument("device: " + std::string(name) + " must be a number in range, but got " +
                                py::repr(value).cast<std::string>());
  }
}

// A model's name, or a mapping of fields; those left out are the nearest model's of its architecture.
Device device_from(const py::object& given) {
  if (py::isinstance<py::str>(given)) return device_model(given.cast<std::string>());
  if (!py::isinstance<py::dict>(given)) {
    throw std::invalid_argument("device must be a model's name or a dict of its fields, but got " +
                                py::repr(given).cast<std::string>());
  }
  py::dict left = given.attr("copy")();
  if (!left.contains("architecture")) {
    throw std::invalid_argument("device must hold 'architecture' (90 is sm_90), but got " +
                                py::repr(given).cast<std::string>());
  }
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
  fields["name"] = device.name;
  for_each_field(device, [&](const char* field, const auto& value) { fields[field] = value; });
  return fields;
}

Plan plan(int64_t N, int64_t C, int64_t S, const std::string& layout, const std::string& dtype,
          const std::string& direction, bool residual, int64_t alignment, const py::object& device,
          const std::optional<std::string>& exchange, const std::string& activation) {
  const Problem problem{{N, C, S, from_name(kLayouts, "layout", layout)},
                        from_name(kDTypes, "dtype", dtype),
                        from_name(kDirections, "direction", direction),
                        from_name(kActivations, "activation", activation),
                        residual,
                        alignment};
  const Device on = device_from(device);
  return exchange ? make_plan(problem, on, from_name(kExchanges, "exchange", *exchange))
                  : make_plan(problem, on);
}

// ---- what the tests look at

void require_countable(const Geometry& g) {
  if (g.elements > kMostCounted) {
    throw std::invalid_argument("at most " + std::to_string(kMostCounted) +
                                " elements can be counted, but got " + std::to_string(g.elements));
  }
}

// Calls body(slab, block, view, vector, step) for every vector that any thread touches.
template <Mapping mapping, class Body>
void walk_mapped(const Geometry& g, const Body& body) {
  for (int slab = 0; slab < g.slabs; ++slab) {
    for (int thread = 0; thread < g.threads; ++thread) {
      const ThreadView<mapping> view(g, slab, thread);
      for (int block = 0; block < g.group; ++block) {
        const int end = std::min(g.first_step(block + 1), view.steps());
        for (int step = g.first_step(block); step < end; ++step) {
          body(slab, block, view, view.vector(step), step);
        }
      }
    }
  }
}

template <class Body>
void walk(const Geometry& g, const Body& body) {
  require_countable(g);
  g.mapping == Mapping::rows ? walk_mapped<Mapping::rows>(g, body) : walk_mapped<Mapping::columns>(g, body);
}

void count(std::string& counts, int64_t at) {
  if (at < 0 || at >= static_cast<int64_t>(counts.size())) {
    throw std::out_of_range("offset " + std::to_string(at) + " of " + std::to_string(counts.size()));
  }
  if (counts[at] < 127) ++counts[at];
}

// How often each element is visited.
py::bytes element_visits(const Plan& plan) {
  std::string counts;
  counts.resize(plan.geometry.elements <= kMostCounted ? plan.geometry.elements : 0);
  walk(plan.geometry, [&](int, int, const auto&, const Vector& vector, int) {
    for (int i = 0; i < vector.count; ++i) count(counts, vector.offset + i);
  });
  return counts;
}

// How many vectors write each byte of the mask.
py::bytes mask_visits(const Plan& plan) {
  require_countable(plan.geometry);
  std::string counts(mask_bytes(plan.geometry), '\0');
  walk(plan.geometry,
       [&](int, int, const auto& view, const Vector&, int step) { count(counts, view.mask_byte(step)); });
  return counts;
}

// The bit of the mask that tells of each element, as 64-bit integers.
py::bytes mask_bits(const Plan& plan) {
  require_countable(plan.geometry);
  std::vector<int64_t> bits(plan.geometry.elements, -1);
  walk(plan.geometry, [&](int, int, const auto& view, const Vector& vector, int step) {
    for (int i = 0; i < vector.count; ++i) bits.at(vector.offset + i) = view.mask_byte(step) * kVector + i;
  });
  return py::bytes(reinterpret_cast<const char*>(bits.data()), bits.size() * sizeof(int64_t));
}

// Vectors with fewer than eight elements, and those that do not begin at a multiple of eight.
std::pair<int64_t, int64_t> partial_and_unaligned(const Plan& plan) {
  int64_t partial = 0, unaligned = 0;
  walk(plan.geometry, [&](int, int, const auto&, const Vector& vector, int) {
    partial += vector.count != kVector;
    unaligned += vector.offset % kVector != 0;
  });
  return {partial, unaligned};
}

int slab_channel(const Geometry&, const ThreadView<Mapping::rows>&, int) { return 0; }
int slab_channel(const Geometry& g, const ThreadView<Mapping::columns>& view, int i) {
  return g.channel_of_column(view.column() + i);
}

int64_t channel_of_offset(const Geometry& g, int64_t offset) {
  return g.channels_last ? offset % g.C : offset / g.S % g.C;
}

// Elements that a thread takes for another channel's than the address tells.
int64_t misattributed(const Plan& plan) {
  const Geometry& g = plan.geometry;
  int64_t wrong = 0;
  walk(g, [&](int slab, int, const auto& view, const Vector& vector, int) {
    for (int i = 0; i < vector.count; ++i) {
      wrong += channel_of_offset(g, vector.offset + i) != g.first_channel(slab) + slab_channel(g, view, i);
    }
  });
  return wrong;
}

// By block: the values of a channel that values_before() promises, and those of each channel that are there.
std::pair<std::vector<int64_t>, std::vector<std::vector<int64_t>>> block_values(const Plan& plan) {
  const Geometry& g = plan.geometry;
  std::vector<int64_t> promised;
  for (int block = 0; block < g.group; ++block) {
    promised.push_back(g.values_before(g.first_step(block + 1)) - g.values_before(g.first_step(block)));
  }
  std::vector<std::vector<int64_t>> counted(g.group, std::vector<int64_t>(g.C));
  walk(g, [&](int, int block, const auto&, const Vector& vector, int) {
    for (int i = 0; i < vector.count; ++i) ++counted[block][channel_of_offset(g, vector.offset + i)];
  });
  return {promised, counted};
}

// The vector that lies last, of all that threads end with: where 64-bit offsets show.
template <Mapping mapping>
std::pair<int64_t, int> last_vector_mapped(const Geometry& g) {
  std::pair<int64_t, int> last{-1, 0};
  for (int slab = std::max(0, g.slabs - 2); slab < g.slabs; ++slab) {
    for (int thread = 0; thread < g.threads; ++thread) {
      const ThreadView<mapping> view(g, slab, thread);
      if (view.steps() == 0) continue;
      const Vector vector = view.vector(view.steps() - 1);
      last = std::max(last, {vector.offset, vector.count});
    }
  }
  return last;
}

std::pair<int64_t, int> last_vector(const Plan& plan) {
  const Geometry& g = plan.geometry;
  return g.mapping == Mapping::rows ? last_vector_mapped<Mapping::rows>(g)
                                    : last_vector_mapped<Mapping::columns>(g);
}

// Shared memory of a block of this plan with so many more steps kept there.
int64_t shared_bytes_with(const Plan& plan, int more_steps, const std::string& dtype,
                          const std::string& direction) {
  Geometry g = plan.geometry;
  g.shared_steps += more_steps;
  const DType type = from_name(kDTypes, "dtype", dtype);
  const int bytes = type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2;
  const int tensors = from_name(kDirections, "direction", direction) == Direction::backward ? 2 : 1;
  return SharedLayout::of(g, tensors, bytes, type == DType::f64 ? 8 : 4).bytes;
}

// Where each part of a block's shared memory begins, and the end.
std::vector<std::pair<std::string, int>> shared_parts(const Plan& plan) {
  const SharedLayout& at = plan.layout;
  return {{"kept", at.kept},     {"matrix", at.matrix},     {"parts", at.parts},
          {"totals", at.totals}, {"partials", at.partials}, {"numbers", at.numbers},
          {"counts", at.counts}, {"channels", at.channels}, {"end", at.bytes}};
}

}  // namespace

void bind_planner(py::module_& module) {
  py::class_<Plan> bound(module, "LaunchPlan");
  const auto geometry = [&](const char* name, auto member) {
    bound.def_property_readonly(name, [member](const Plan& p) { return p.geometry.*member; });
  };
  geometry("N", &Geometry::N);
  geometry("C", &Geometry::C);
  geometry("S", &Geometry::S);
  geometry("elements", &Geometry::elements);
  geometry("channels_last", &Geometry::channels_last);
  geometry("whole", &Geometry::whole);
  geometry("slabs", &Geometry::slabs);
  geometry("steps", &Geometry::steps);
  geometry("rows", &Geometry::rows);
  geometry("row_length", &Geometry::row_length);
  geometry("slab_columns", &Geometry::slab_columns);
  geometry("slab_channels", &Geometry::slab_channels);
  geometry("slab_vectors", &Geometry::slab_vectors);
  geometry("lanes", &Geometry::lanes);
  geometry("threads", &Geometry::threads);
  geometry("group", &Geometry::group);
  geometry("groups", &Geometry::groups);
  geometry("register_steps", &Geometry::register_steps);
  geometry("shared_steps", &Geometry::shared_steps);
  bound.def_property_readonly("mapping",
                              [](const Plan& p) { return to_name(kMappings, p.geometry.mapping); });
  bound.def_property_readonly("row_vectors", [](const Plan& p) { return p.geometry.row_vectors.divisor; });
  bound.def_property_readonly("exchange", [](const Plan& p) { return to_name(kExchanges, p.exchange); });
  bound.def_readonly("grid", &Plan::grid);
  bound.def_property_readonly("shared_bytes", [](const Plan& p) { return p.layout.bytes; });
  bound.def_property_readonly("shared_parts", &shared_parts);
  bound.def_readonly("workspace_bytes", &Plan::workspace_bytes);
  bound.def_readonly("words", &Plan::words);
  bound.def_readonly("floor_time", &Plan::floor_time);
  bound.def_readonly("predicted_time", &Plan::predicted_time);
  bound.def_property_readonly("launches", &Plan::launches);
  bound.def_property_readonly("rounds", &Plan::rounds);
  bound.def_property_readonly("mask_bytes", [](const Plan& p) { return mask_bytes(p.geometry); });
  const auto traffic = [&](const char* name, auto member) {
    bound.def_property_readonly(name, [member](const Plan& p) { return p.traffic.*member; });
  };
  traffic("read", &Traffic::read);
  traffic("written", &Traffic::written);
  traffic("retained", &Traffic::retained);
  traffic("retained_at_once", &Traffic::retained_at_once);
  traffic("l2_hits", &Traffic::l2_hits);
  bound.def("__repr__", &describe);

  module.def("plan", &plan, py::arg("N"), py::arg("C"), py::arg("S"), py::arg("layout"), py::arg("dtype"),
             py::arg("direction"), py::arg("residual"), py::arg("alignment"), py::arg("device"),
             py::arg("exchange") = py::none(), py::arg("activation") = "relu");
  module.def("plan_devices", &device_names);
  module.def("plan_device_fields", &device_fields);
  module.def(
      "plan_register_steps",
      [](const std::string& dtype, const std::string& direction, const std::string& mapping,
         const std::string& activation) {
        return register_steps(from_name(kDTypes, "dtype", dtype),
                              from_name(kDirections, "direction", direction) == Direction::backward,
                              from_name(kMappings, "mapping", mapping),
                              curve_of(from_name(kActivations, "activation", activation)));
      },
      py::arg("dtype"), py::arg("direction"), py::arg("mapping"), py::arg("activation") = "relu");
  module.def("plan_has_mask", [](const std::string& activation) {
    return has_mask(from_name(kActivations, "activation", activation));
  });
  module.def("plan_mask_bytes_set_aside", [](int64_t N, int64_t C, int64_t S, const std::string& layout) {
    const int64_t long_rows = S >= kShortRow ? 1 : 0;
    return fused_bn::mask_bytes(N, C, S, long_rows, from_name(kLayouts, "layout", layout));
  });
  module.def("plan_element_visits", &element_visits);
  module.def("plan_mask_visits", &mask_visits);
  module.def("plan_mask_bits", &mask_bits);
  module.def("plan_partial_and_unaligned", &partial_and_unaligned);
  module.def("plan_misattributed", &misattributed);
  module.def("plan_block_values", &block_values);
  module.def("plan_last_vector", &last_vector);
  module.def("plan_shared_bytes_with", &shared_bytes_with);
  module.def("plan_quotient", [](uint64_t divisor, const std::vector<uint64_t>& dividends) {
    std::vector<uint64_t> quotients;
    for (const uint64_t dividend : dividends) quotients.push_back(Division::by(divisor).quotient(dividend));
    return quotients;
  });
}

}  // namespace fused_bn::cuda
