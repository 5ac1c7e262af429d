// The Python module simt_kernels: the structs of csrc/cuda/params.h, with addresses as integers, and what
// runs the kernels on them.
#include "kernels.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/dispatch.h"
#include "cuda/merge.cuh"
#include "guarded.h"

namespace py = pybind11;

namespace {

using fused_bn::Activation;
using fused_bn::ChannelVector;
using fused_bn::DType;
using namespace fused_bn::cuda;

// A struct with its fields. Local to the module: several variants of it may be loaded at once.
template <class T>
class Struct {
 public:
  Struct(py::module_& module, const char* name) : bound_(module, name, py::module_local()) {
    bound_.def(py::init([] { return T{}; }));
  }

  template <class Field>
  Struct& field(const char* name, Field T::* member) {
    if constexpr (std::is_pointer_v<Field>) {
      bound_.def_property(
          name, [member](const T& self) { return reinterpret_cast<uintptr_t>(self.*member); },
          [member](T& self, uintptr_t address) { self.*member = reinterpret_cast<Field>(address); });
    } else {
      bound_.def_readwrite(name, member);
    }
    return *this;
  }

  py::class_<T>& bound() { return bound_; }

 private:
  py::class_<T> bound_;
};

std::string launch_one(const ForwardParams& params, DType dtype, const simt::Launch& launch) {
  const auto forward = simt::kernels[static_cast<int>(dtype)].forward;
  if (forward == nullptr) throw std::invalid_argument("simt_kernels was built without this element type");
  return forward(params, launch);
}
std::string launch_one(const BackwardParams& params, DType dtype, const simt::Launch& launch) {
  const auto backward = simt::kernels[static_cast<int>(dtype)].backward;
  if (backward == nullptr) throw std::invalid_argument("simt_kernels was built without this element type");
  return backward(params, launch);
}

std::set<std::string> instances() {
  std::set<std::string> names;
  for (const simt::Kernels& each : simt::kernels) {
    if (each.instances != nullptr) names.merge(each.instances());
  }
  return names;
}

SharedLayout shared_layout(const Geometry& geometry, DType dtype, int tensors) {
  const int element = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  return SharedLayout::of(geometry, tensors, element, dtype == DType::f64 ? 8 : 4);
}

// By the launch layer's own loop over the phases.
template <class Params>
std::vector<std::string> run(Params params, DType dtype, int64_t grid, int64_t shared_bytes, uint64_t seed,
                             int workers) {
  params.layout = shared_layout(params.geometry, dtype, std::is_same_v<Params, ForwardParams> ? 1 : 2);
  simt::Launch launch;
  launch.grid = grid;
  launch.threads = params.geometry.threads;
  launch.cluster = params.exchange == Exchange::cluster ? params.geometry.group : 1;
  launch.cooperative = params.exchange == Exchange::barrier;
  launch.shared_bytes = shared_bytes;
  launch.seed = seed;
  launch.workers = workers;
  std::vector<std::string> launched;
  for_each_phase(params.exchange, [&](Phase phase) {
    params.phase = phase;
    launched.push_back(launch_one(params, dtype, launch));
    return 0;
  });
  return launched;
}

void run_merge(const MergeParams& params, uint64_t seed) {
  simt::Launch launch;
  launch.grid = 1;
  launch.threads = kMergeThreads;
  launch.seed = seed;
  simt::launch(launch, [&] {
    params.dtype == DType::f64 ? merge_kernel<double>(params) : merge_kernel<float>(params);
  });
}

template <class Params>
void bind_run(py::module_& module, const char* name) {
  module.def(name, run<Params>, py::arg("params"), py::arg("dtype"), py::kw_only(), py::arg("grid"),
             py::arg("shared_bytes"), py::arg("seed") = 0, py::arg("workers") = 0,
             py::call_guard<py::gil_scoped_release>(),
             "Sets layout and phase of `params`, and returns the name of the instance of each launch. "
             "RuntimeError for whatever a GPU would do wrong.");
}

void bind_enums(py::module_& module) {
  py::enum_<DType>(module, "DType", py::module_local())
      .value("f32", DType::f32)
      .value("f64", DType::f64)
      .value("bf16", DType::bf16)
      .value("f16", DType::f16);
  py::enum_<Activation>(module, "Activation", py::module_local())
      .value("none", Activation::none)
      .value("relu", Activation::relu)
      .value("leaky_relu", Activation::leaky_relu)
      .value("relu6", Activation::relu6)
      .value("hardswish", Activation::hardswish)
      .value("elu", Activation::elu)
      .value("silu", Activation::silu)
      .value("gelu", Activation::gelu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("tanh", Activation::tanh)
      .value("sigmoid", Activation::sigmoid);
  py::enum_<Mapping>(module, "Mapping", py::module_local())
      .value("rows", Mapping::rows)
      .value("columns", Mapping::columns);
  py::enum_<Exchange>(module, "Exchange", py::module_local())
      .value("none", Exchange::none)
      .value("cluster", Exchange::cluster)
      .value("barrier", Exchange::barrier)
      .value("two_kernels", Exchange::two_kernels);
  py::enum_<Phase>(module, "Phase", py::module_local())
      .value("gather", Phase::gather)
      .value("emit", Phase::emit)
      .value("both", Phase::both);
}

void bind_geometry(py::module_& module) {
  py::class_<Division>(module, "Division", py::module_local())
      .def(py::init(&Division::by), py::arg("divisor"))
      .def_readonly("divisor", &Division::divisor)
      .def("quotient", &Division::quotient);
  Struct<Geometry>(module, "Geometry")
      .field("N", &Geometry::N)
      .field("C", &Geometry::C)
      .field("S", &Geometry::S)
      .field("elements", &Geometry::elements)
      .field("mapping", &Geometry::mapping)
      .field("channels_last", &Geometry::channels_last)
      .field("whole", &Geometry::whole)
      .field("slabs", &Geometry::slabs)
      .field("steps", &Geometry::steps)
      .field("last_lanes", &Geometry::last_lanes)
      .field("rows", &Geometry::rows)
      .field("row_length", &Geometry::row_length)
      .field("row_vectors", &Geometry::row_vectors)
      .field("slab_columns", &Geometry::slab_columns)
      .field("slab_channels", &Geometry::slab_channels)
      .field("slab_vectors", &Geometry::slab_vectors)
      .field("lanes", &Geometry::lanes)
      .field("threads", &Geometry::threads)
      .field("group", &Geometry::group)
      .field("groups", &Geometry::groups)
      .field("register_steps", &Geometry::register_steps)
      .field("shared_steps", &Geometry::shared_steps)
      .bound()
      .def("cut_steps", &Geometry::cut_steps)
      .def("__copy__", [](const Geometry& self) { return self; });
}

void bind_params(py::module_& module) {
  Struct<ChannelVector>(module, "ChannelVector")
      .field("data", &ChannelVector::data)
      .field("dtype", &ChannelVector::dtype)
      .field("stride", &ChannelVector::stride);
  Struct<Workspace>(module, "Workspace")
      .field("partials", &Workspace::partials)
      .field("words", &Workspace::words);
  Struct<ForwardParams>(module, "ForwardParams")
      .field("geometry", &ForwardParams::geometry)
      .field("exchange", &ForwardParams::exchange)
      .field("input", &ForwardParams::input)
      .field("residual", &ForwardParams::residual)
      .field("output", &ForwardParams::output)
      .field("mask", &ForwardParams::mask)
      .field("weight", &ForwardParams::weight)
      .field("bias", &ForwardParams::bias)
      .field("running_mean", &ForwardParams::running_mean)
      .field("running_var", &ForwardParams::running_var)
      .field("num_batches_tracked", &ForwardParams::num_batches_tracked)
      .field("statistics", &ForwardParams::statistics)
      .field("known", &ForwardParams::known)
      .field("training", &ForwardParams::training)
      .field("cumulative", &ForwardParams::cumulative)
      .field("momentum", &ForwardParams::momentum)
      .field("eps", &ForwardParams::eps)
      .field("inverse_count", &ForwardParams::inverse_count)
      .field("unbiased", &ForwardParams::unbiased)
      .field("activation", &ForwardParams::activation)
      .field("activation_param", &ForwardParams::activation_param)
      .field("workspace", &ForwardParams::workspace);
  Struct<BackwardParams>(module, "BackwardParams")
      .field("geometry", &BackwardParams::geometry)
      .field("exchange", &BackwardParams::exchange)
      .field("grad_output", &BackwardParams::grad_output)
      .field("input", &BackwardParams::input)
      .field("residual", &BackwardParams::residual)
      .field("mask", &BackwardParams::mask)
      .field("weight", &BackwardParams::weight)
      .field("bias", &BackwardParams::bias)
      .field("statistics", &BackwardParams::statistics)
      .field("grad_input", &BackwardParams::grad_input)
      .field("grad_residual", &BackwardParams::grad_residual)
      .field("grad_weight", &BackwardParams::grad_weight)
      .field("grad_bias", &BackwardParams::grad_bias)
      .field("total", &BackwardParams::total)
      .field("total_count", &BackwardParams::total_count)
      .field("training", &BackwardParams::training)
      .field("inverse_count", &BackwardParams::inverse_count)
      .field("activation", &BackwardParams::activation)
      .field("activation_param", &BackwardParams::activation_param)
      .field("workspace", &BackwardParams::workspace);
  Struct<MergeParams>(module, "MergeParams")
      .field("C", &MergeParams::C)
      .field("processes", &MergeParams::processes)
      .field("moments", &MergeParams::moments)
      .field("running_mean", &MergeParams::running_mean)
      .field("running_var", &MergeParams::running_var)
      .field("num_batches_tracked", &MergeParams::num_batches_tracked)
      .field("dtype", &MergeParams::dtype)
      .field("statistics", &MergeParams::statistics)
      .field("count", &MergeParams::count)
      .field("cumulative", &MergeParams::cumulative)
      .field("momentum", &MergeParams::momentum)
      .field("eps", &MergeParams::eps);
}

void bind_guarded_buffer(py::module_& module) {
  using simt::GuardedMemory;
  py::class_<GuardedMemory>(
      module, "GuardedBuffer", py::module_local(), py::buffer_protocol(),
      "Memory full of NaN that ends at a guard page; torch.frombuffer makes tensors of it.")
      .def(py::init([](int64_t bytes, int64_t alignment) {
             return new GuardedMemory(GuardedMemory::Kind::global, bytes, alignment);
           }),
           py::arg("bytes"), py::arg("alignment") = 1)
      .def_property_readonly(
          "address", [](const GuardedMemory& self) { return reinterpret_cast<uintptr_t>(self.data()); })
      .def_property_readonly("bytes", &GuardedMemory::bytes)
      .def("intact", &GuardedMemory::intact, "Whether nobody wrote beside it.")
      .def_buffer([](GuardedMemory& self) {
        return py::buffer_info(self.data(), 1, py::format_descriptor<uint8_t>::format(), 1, {self.bytes()},
                               {1});
      });
}

}  // namespace

PYBIND11_MODULE(simt_kernels, module) {
  module.doc() = "The CUDA kernels' own source, run on the CPU; see executor.h.";
  bind_enums(module);
  bind_geometry(module);
  bind_params(module);
  bind_guarded_buffer(module);
  bind_run<ForwardParams>(module, "run_forward");
  bind_run<BackwardParams>(module, "run_backward");
  module.def("run_merge", run_merge, py::arg("params"), py::kw_only(), py::arg("seed") = 0,
             py::call_guard<py::gil_scoped_release>());
  module.def("instances", instances, "The names of all instances.");
  module.def(
      "register_steps",
      [](DType dtype, bool backward, Mapping mapping, Activation activation) {
        return register_steps(dtype, backward, mapping, fused_bn::curve_of(activation));
      },
      py::arg("dtype"), py::arg("backward"), py::arg("mapping"), py::arg("activation"));
  module.def(
      "shared_bytes",
      [](const Geometry& geometry, DType dtype, int tensors) {
        return shared_layout(geometry, dtype, tensors).bytes;
      },
      py::arg("geometry"), py::arg("dtype"), py::arg("tensors"),
      "What a block needs: 1 tensor forward, 2 back.");
}
