// The Python module simt_kernels: the structs of csrc/cuda/params.h, with addresses as integers, and
// functions that run the kernels on them.
#include "kernels.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

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

  template <class Field, class Owner>
  Struct& field(const char* name, Field Owner::* own) {
    Field T::* const member = own;  // of T or of its base class
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

simt::Prepared prepare(DType dtype, Kernel kernel, const ForwardParams& params) {
  return simt::kernels[static_cast<int>(dtype)].forward(kernel, params);
}
simt::Prepared prepare(DType dtype, Kernel kernel, const BackwardParams& params) {
  return simt::kernels[static_cast<int>(dtype)].backward(kernel, params);
}

std::set<std::string> instances() {
  std::set<std::string> names;
  for (const simt::Kernels& each : simt::kernels) {
    if (each.instances != nullptr) names.merge(each.instances());
  }
  return names;
}

SharedLayout layout_of(const Tiling& tiling, Kernel kernel, DType dtype, Exchange exchange, int slots,
                       int tensors, Activation activation) {
  return shared_layout(tiling, kernel, slots, tensors, dtype == DType::f64 ? 8 : 4, exchange, activation);
}

template <class Params>
simt::Launch launch_of(Kernel kernel, const Params& params, uint64_t seed, int workers) {
  const Tiling& t = params.tiling;
  simt::Launch launch;
  launch.grid = int64_t{t.groups} * t.group;
  launch.threads = t.threads;
  launch.cluster = kernel == Kernel::resident && params.exchange == Exchange::cluster ? t.group : 1;
  launch.cooperative = kernel == Kernel::resident && params.exchange == Exchange::words;
  launch.shared_bytes = params.layout.bytes;
  launch.seed = seed;
  launch.workers = workers;
  return launch;
}

// One kernel, or two by programmatic dependent launch.
template <class Params>
std::vector<std::string> run(DType dtype, const std::vector<std::pair<Kernel, Params>>& passes, uint64_t seed,
                             int workers) {
  if (simt::kernels[static_cast<int>(dtype)].instances == nullptr) {
    throw std::invalid_argument("simt_kernels was built without this element type");
  }
  std::vector<simt::Prepared> kernels;
  std::vector<simt::Launch> launches;
  std::vector<std::string> names;
  for (const auto& [kernel, params] : passes) {
    kernels.push_back(prepare(dtype, kernel, params));
    launches.push_back(launch_of(kernel, params, seed, workers));
    names.push_back(kernels.back().name);
  }
  if (passes.size() == 1) {
    simt::launch(launches.at(0), kernels[0].run);
  } else {
    simt::launch(launches.at(0), kernels[0].run, launches.at(1), kernels[1].run);
  }
  return names;
}

template <class Params>
void bind_run(py::module_& module, const char* name) {
  module.def(
      name, run<Params>, py::arg("dtype"), py::arg("passes"), py::kw_only(), py::arg("seed") = 0,
      py::arg("workers") = 0, py::call_guard<py::gil_scoped_release>(),
      "Runs a kernel, or one and another behind it by programmatic dependent launch, with params each; "
      "returns the names of the instances. RuntimeError for whatever a GPU would do wrong.");
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
      .value("prelu", Activation::prelu)
      .value("prelu_by_slope", Activation::prelu_by_slope)
      .value("hardswish", Activation::hardswish)
      .value("hardsigmoid", Activation::hardsigmoid)
      .value("elu", Activation::elu)
      .value("silu", Activation::silu)
      .value("gelu", Activation::gelu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("tanh", Activation::tanh)
      .value("sigmoid", Activation::sigmoid)
      .value("selu", Activation::selu)
      .value("softplus", Activation::softplus)
      .value("mish", Activation::mish);
  py::enum_<Walk>(module, "Walk", py::module_local())
      .value("along_rows", Walk::along_rows)
      .value("down_columns", Walk::down_columns);
  py::enum_<Exchange>(module, "Exchange", py::module_local())
      .value("none", Exchange::none)
      .value("cluster", Exchange::cluster)
      .value("words", Exchange::words);
  py::enum_<Kernel>(module, "Kernel", py::module_local())
      .value("resident", Kernel::resident)
      .value("reduce", Kernel::reduce)
      .value("apply", Kernel::apply);
  py::enum_<Source>(module, "Source", py::module_local())
      .value("batch", Source::batch)
      .value("running", Source::running)
      .value("given", Source::given);
}

void bind_tiling(py::module_& module) {
  Struct<Tiling>(module, "Tiling")
      .field("N", &Tiling::N)
      .field("C", &Tiling::C)
      .field("S", &Tiling::S)
      .field("elements", &Tiling::elements)
      .field("channels_last", &Tiling::channels_last)
      .field("vector", &Tiling::vector)
      .field("mixed", &Tiling::mixed)
      .field("walk", &Tiling::walk)
      .field("fold", &Tiling::fold)
      .field("rows", &Tiling::rows)
      .field("row_vectors", &Tiling::row_vectors)
      .field("tile_vectors", &Tiling::tile_vectors)
      .field("tile_channels", &Tiling::tile_channels)
      .field("tiles", &Tiling::tiles)
      .field("channel_length", &Tiling::channel_length)
      .field("threads", &Tiling::threads)
      .field("group", &Tiling::group)
      .field("groups", &Tiling::groups)
      .field("interleaved", &Tiling::interleaved)
      .bound()
      .def("derive", &Tiling::derive)
      .def("block_units", &Tiling::block_units)
      .def_readonly("passes", &Tiling::passes)
      .def_readonly("pass_units", &Tiling::pass_units);
  module.def("words_have_owners", words_have_owners, py::arg("group"), py::arg("tile_channels"));
  Struct<SharedLayout>(module, "SharedLayout").field("bytes", &SharedLayout::bytes);
  module.def("shared_layout", layout_of, py::arg("tiling"), py::arg("kernel"), py::arg("dtype"),
             py::arg("exchange"), py::arg("slots"), py::arg("tensors"), py::arg("activation"));
}

void bind_params(py::module_& module) {
  Struct<ChannelVector>(module, "ChannelVector")
      .field("data", &ChannelVector::data)
      .field("dtype", &ChannelVector::dtype)
      .field("stride", &ChannelVector::stride);
  Struct<Scratch>(module, "Scratch")
      .field("epoch", &Scratch::epoch)
      .field("arrivals", &Scratch::arrivals)
      .field("words", &Scratch::words);
  Struct<ForwardParams>(module, "ForwardParams")
      .field("tiling", &ForwardParams::tiling)
      .field("layout", &ForwardParams::layout)
      .field("exchange", &ForwardParams::exchange)
      .field("slots", &ForwardParams::slots)
      .field("input", &ForwardParams::input)
      .field("residual", &ForwardParams::residual)
      .field("output", &ForwardParams::output)
      .field("mask", &ForwardParams::mask)
      .field("weight", &ForwardParams::weight)
      .field("bias", &ForwardParams::bias)
      .field("bias_copy", &ForwardParams::bias_copy)
      .field("negative_slope", &ForwardParams::negative_slope)
      .field("running_mean", &ForwardParams::running_mean)
      .field("running_var", &ForwardParams::running_var)
      .field("num_batches_tracked", &ForwardParams::num_batches_tracked)
      .field("statistics", &ForwardParams::statistics)
      .field("moments", &ForwardParams::moments)
      .field("source", &ForwardParams::source)
      .field("cumulative", &ForwardParams::cumulative)
      .field("momentum", &ForwardParams::momentum)
      .field("eps", &ForwardParams::eps)
      .field("inverse_count", &ForwardParams::inverse_count)
      .field("unbiased", &ForwardParams::unbiased)
      .field("activation", &ForwardParams::activation)
      .field("activation_param", &ForwardParams::activation_param)
      .field("partials", &ForwardParams::partials)
      .field("scratch", &ForwardParams::scratch)
      .bound()
      .def("__copy__", [](const ForwardParams& self) { return self; });
  Struct<BackwardParams>(module, "BackwardParams")
      .field("tiling", &BackwardParams::tiling)
      .field("layout", &BackwardParams::layout)
      .field("exchange", &BackwardParams::exchange)
      .field("slots", &BackwardParams::slots)
      .field("grad_output", &BackwardParams::grad_output)
      .field("input", &BackwardParams::input)
      .field("residual", &BackwardParams::residual)
      .field("mask", &BackwardParams::mask)
      .field("weight", &BackwardParams::weight)
      .field("bias", &BackwardParams::bias)
      .field("negative_slope", &BackwardParams::negative_slope)
      .field("statistics", &BackwardParams::statistics)
      .field("grad_input", &BackwardParams::grad_input)
      .field("grad_residual", &BackwardParams::grad_residual)
      .field("grad_weight", &BackwardParams::grad_weight)
      .field("grad_bias", &BackwardParams::grad_bias)
      .field("sums", &BackwardParams::sums)
      .field("total_count", &BackwardParams::total_count)
      .field("training", &BackwardParams::training)
      .field("inverse_count", &BackwardParams::inverse_count)
      .field("activation", &BackwardParams::activation)
      .field("activation_param", &BackwardParams::activation_param)
      .field("partials", &BackwardParams::partials)
      .field("scratch", &BackwardParams::scratch)
      .bound()
      .def("__copy__", [](const BackwardParams& self) { return self; });
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
  bind_tiling(module);
  bind_params(module);
  bind_guarded_buffer(module);
  bind_run<ForwardParams>(module, "run_forward");
  bind_run<BackwardParams>(module, "run_backward");
  module.def("run_merge", simt::run_merge, py::arg("params"), py::kw_only(), py::arg("seed") = 0,
             py::call_guard<py::gil_scoped_release>());
  module.def("instances", instances, "The names of all instances.");
}
