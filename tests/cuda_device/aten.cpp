// ATen's operators on CUDA tensors: each is called on CPU tensors over the same memory.
//
// An operator runs in the call that makes it, behind what its stream has queued. While its stream is captured
// it is recorded, and runs in every replay.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <set>

#include "races.h"

using Accesses = std::vector<cuda_device::Access>;

// streams.cpp, graphs.cpp, memory.cpp
extern "C" {
void* cuda_device_host_address(const void*);
int cuda_device_is_capturing(cudaStream_t);
void cuda_device_run(cudaStream_t);
cudaError_t cuda_device_enqueue(cudaStream_t, const char*, const std::function<void()>&, const Accesses&);
void cuda_device_note_accesses(cudaStream_t, const char*, const Accesses&);
}

namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

// A CPU tensor over the same memory.
Tensor on_host(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  void* data = t.numel() == 0 ? nullptr : cuda_device_host_address(t.const_data_ptr());
  return at::from_blob(data, t.sizes(), t.strides(), t.options().device(at::kCPU));
}

// The value with each(tensor) in the place of every tensor in it.
template <class Each>
IValue with_tensors(const IValue& v, Each each) {
  if (v.isTensor()) return each(v.toTensor());
  if (v.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : v.toTensorVector()) list.push_back(each(t));
    return list;
  }
  if (v.isList() && v.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& e : v.toListRef()) {
      list.push_back(e.isNone() ? std::nullopt : std::optional<Tensor>(each(e.toTensor())));
    }
    return list;
  }
  return v;
}

// Their outputs' sizes depend on values, for which the host waits.
const std::set<std::string> kWaiting{
    "aten::nonzero",           "aten::masked_select",      "aten::_unique2",
    "aten::unique_dim",        "aten::unique_consecutive", "aten::equal",
    "aten::repeat_interleave", "aten::bincount",           "aten::is_nonzero"};

// These operators accept index tensors on the CPU.
bool takes_both_devices(const std::string& name) {
  return name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
}

void add_access(Accesses& accesses, const Tensor& t, bool writes) {
  if (!t.defined() || !t.is_cuda() || t.numel() == 0) return;
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  accesses.push_back({t.const_data_ptr(), static_cast<size_t>(last + 1) * t.element_size(), writes});
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack* stack) : op_(op), schema_(op.schema()), name_(schema_.name()) {
    const auto count = static_cast<std::ptrdiff_t>(schema_.arguments().size());
    given_.assign(stack->end() - count, stack->end());
    stack->erase(stack->end() - count, stack->end());
  }

  void run(Stack* stack) {
    const at::Device device = common_device();
    refuse();
    const c10::cuda::CUDAGuard guard(device);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
    const bool capturing = cuda_device_is_capturing(stream) != 0;
    if (kWaiting.count(name_) != 0) {
      c10::cuda::warn_or_error_on_sync();
      C10_CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    Stack arguments = on_host_all(/*copied=*/capturing);
    Stack results = arguments;
    if (!capturing) cuda_device_run(stream);
    op_.callBoxed(&results);
    if (!capturing) imitate(results);
    grow_outputs(arguments, capturing);
    return_results(results, device, capturing, stack);
    if (capturing) {
      record(stream);
    } else {
      cuda_device_note_accesses(stream, name_.c_str(), accesses());
    }
  }

 private:
  // Raises where the arguments are on several devices, as TensorIterator does.
  at::Device common_device() const {
    std::optional<at::Device> device;
    const auto check = [&](const Tensor& t) {
      if (!t.defined()) return t;
      if (t.is_cuda() && !device) device = t.device();
      const bool may_differ = t.dim() == 0 || (t.is_cpu() && takes_both_devices(name_));
      TORCH_CHECK(may_differ || !device || t.device() == *device,
                  "Expected all tensors to be on the same device, but found at least two devices, ", *device,
                  " and ", t.device(), "! (emulated ", name_, ")");
      return t;
    };
    for (int pass = 0; pass < 2; ++pass) {  // the first finds the device
      for (const IValue& v : given_) {
        if (v.isDevice() && v.toDevice().is_cuda() && !device) device = v.toDevice();
        with_tensors(v, check);
      }
    }
    const bool known = device && device->has_index();
    return known ? *device : at::Device(at::kCUDA, c10::cuda::current_device());
  }

  bool is_output(size_t i) const {
    const auto* alias = schema_.arguments()[i].alias_info();
    return alias != nullptr && alias->isWrite() && schema_.arguments()[i].is_out();
  }

  // An output that is empty gets its memory from the operator.
  Stack on_host_all(bool copied) const {
    Stack arguments;
    for (size_t i = 0; i < given_.size(); ++i) {
      const IValue& v = given_[i];
      if (v.isDevice() && v.toDevice().is_cuda()) {
        arguments.emplace_back(at::Device(at::kCPU));
      } else if (v.isGenerator()) {
        arguments.emplace_back();
      } else {
        arguments.push_back(with_tensors(v, [&](const Tensor& t) {
          if (is_output(i) && t.defined() && t.numel() == 0) {
            return at::empty({0}, t.options().device(at::kCPU));
          }
          const Tensor host = on_host(t);
          return copied && host.defined() ? host.clone() : host;
        }));
      }
    }
    return arguments;
  }

  // What torch's own CUDA kernels refuse.
  void refuse() const {
    if (name_ != "aten::native_batch_norm_backward") return;
    const bool has_weight = given_[2].isTensor() && given_[2].toTensor().defined();
    TORCH_CHECK(has_weight || !given_[9].toBoolList().get(2), "tensor does not have a device");
  }

  // What they compute otherwise, as seen on an H200.
  void imitate(Stack& results) const {
    if (name_ == "aten::hardswish" && given_[0].toTensor().scalar_type() == at::kDouble) {
      const Tensor input = on_host(given_[0].toTensor());
      results[0] = input * (input + 3).clamp(0, 6) * static_cast<double>(1.0f / 6.0f);
    }
    if (name_ == "aten::native_batch_norm" && given_[5].toBool() && given_[3].isTensor()) {
      // Welford's recurrence leaves NaN of a channels_last channel with an infinite value.
      const Tensor running_mean = given_[3].toTensor(), input = given_[0].toTensor();
      if (!running_mean.defined() || input.suggest_memory_format() == at::MemoryFormat::Contiguous) return;
      const Tensor infinite = results.at(1).toTensor().isinf();
      on_host(running_mean).masked_fill_(infinite, std::numeric_limits<double>::quiet_NaN());
    }
  }

  Accesses accesses() const {
    Accesses found;
    for (size_t i = 0; i < given_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      const bool writes = alias != nullptr && alias->isWrite();
      with_tensors(given_[i], [&](const Tensor& t) {
        add_access(found, t, writes);
        return t;
      });
    }
    for (const auto& [tensor, place] : made_) add_access(found, tensor, true);
    return found;
  }

  void grow_outputs(const Stack& arguments, bool capturing) {
    for (size_t i = 0; i < given_.size(); ++i) {
      if (!is_output(i) || !given_[i].isTensor()) continue;
      const Tensor mine = given_[i].toTensor(), theirs = arguments[i].toTensor();
      if (!mine.defined() || mine.sizes() == theirs.sizes()) continue;
      mine.resize_(theirs.sizes());
      mine.as_strided_(theirs.sizes(), theirs.strides());
      if (!capturing && theirs.numel() > 0) on_host(mine).copy_(theirs);
      grown_.emplace_back(mine, i);
    }
  }

  void return_results(const Stack& results, at::Device device, bool capturing, Stack* stack) {
    for (size_t r = 0; r < schema_.returns().size(); ++r) {
      const auto* alias = schema_.returns()[r].alias_info();
      if (alias != nullptr && alias->isWrite()) {
        stack->push_back(argument_of(*alias));
        continue;
      }
      stack->push_back(with_tensors(results[r], [&](const Tensor& t) {
        if (!t.defined()) return t;
        const Tensor moved = at::empty_strided(t.sizes(), t.strides(), t.options().device(device));
        if (!capturing && t.numel() > 0) on_host(moved).copy_(t);
        made_.emplace_back(moved, r);
        return moved;
      }));
    }
  }

  IValue argument_of(const c10::AliasInfo& returned) const {
    for (size_t i = 0; i < given_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      if (alias != nullptr && alias->beforeSets() == returned.beforeSets()) return given_[i];
    }
    TORCH_CHECK(false, "emulated ", name_, ": no argument is returned");
  }

  // In a replay the operator reads and writes the same memory again.
  void record(cudaStream_t stream) const {
    Stack arguments = on_host_all(/*copied=*/false);
    for (const auto& [tensor, i] : grown_) arguments[i] = on_host(tensor);
    std::vector<std::pair<Tensor, size_t>> into;
    for (const auto& [tensor, r] : made_) into.emplace_back(on_host(tensor), r);
    const auto work = [op = op_, arguments, into] {
      Stack results = arguments;
      const at::AutoDispatchBelowADInplaceOrView below;
      op.callBoxed(&results);
      size_t next = 0;
      for (size_t r = 0; r < results.size(); ++r) {
        with_tensors(results[r], [&](const Tensor& t) {
          const bool wanted = next < into.size() && into[next].second == r && t.defined();
          if (wanted) Tensor(into[next++].first).copy_(t);
          return t;
        });
      }
    };
    C10_CUDA_CHECK(cuda_device_enqueue(stream, name_.c_str(), work, accesses()));
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  const std::string name_;
  Stack given_;
  std::vector<std::pair<Tensor, size_t>> grown_;  // outputs that had no memory, and their places
  std::vector<std::pair<Tensor, size_t>> made_;   // results on the device, and their places
};

void call_on_host(const c10::OperatorHandle& op, Stack* stack) { Call(op, stack).run(stack); }

Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  if (self.is_same(from) || self.numel() == 0) return self;
  const Tensor source = from.expand_as(self);
  const at::Device device = self.is_cuda() ? self.device() : source.device();
  if (self.is_cuda() && source.is_cuda() && source.device() != self.device()) {
    for (const at::Device each : {source.device(), self.device()}) {
      cuda_device_run(c10::cuda::getCurrentCUDAStream(each.index()).stream());
    }
  }
  const c10::cuda::CUDAGuard guard(device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  Accesses accesses;
  add_access(accesses, source, false);
  add_access(accesses, self, true);
  // `from` is held: it may be pageable memory of the host.
  const auto work = [to = on_host(self), source = on_host(source), from] {
    const c10::InferenceMode mode;  // the call may have been made in it, and the work runs later
    Tensor(to).copy_(source);
  };
  C10_CUDA_CHECK(cuda_device_enqueue(stream, "copy_", work, accesses));
  if (self.is_cuda() && source.is_cuda()) return self;
  if (!non_blocking) {
    c10::cuda::warn_or_error_on_sync();
    C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  } else if (!(self.is_cuda() ? source : self).is_pinned() && cuda_device_is_capturing(stream) == 0) {
    cuda_device_run(stream);
  }
  return self;
}

// cuDNN's operators, by those of every device.
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor> cudnn_batch_norm(const Tensor& input, const Tensor& weight,
                                                            const OptionalTensor& bias,
                                                            const OptionalTensor& running_mean,
                                                            const OptionalTensor& running_var, bool training,
                                                            double momentum, double eps) {
  auto [output, mean, invstd] =
      at::native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps);
  return {output, mean, invstd, at::empty({0}, input.options().dtype(at::kByte))};
}
std::tuple<Tensor, Tensor, Tensor> cudnn_batch_norm_backward(
    const Tensor& input, const Tensor& grad, const Tensor& weight, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& mean, const OptionalTensor& invstd, double eps,
    const Tensor&) {
  return at::native_batch_norm_backward(grad.contiguous(input.suggest_memory_format()), input, weight,
                                        running_mean, running_var, mean, invstd, true, eps,
                                        {true, true, true});
}

// torch's own code serves the emulated device too, because it launches nothing.
const std::set<std::string> kKeptKernels{"aten::empty",
                                         "aten::empty_strided",
                                         "aten::as_strided",
                                         "aten::view",
                                         "aten::alias",
                                         "aten::_reshape_alias",
                                         "aten::unfold",
                                         "aten::resize_",
                                         "aten::set_",
                                         "aten::is_set_to",
                                         "aten::record_stream",
                                         "aten::is_pinned",
                                         "aten::_pin_memory",
                                         "aten::view_as_real",
                                         "aten::_local_scalar_dense",
                                         "aten::view_as_complex",
                                         "aten::copy_",
                                         "aten::_efficientzerotensor",
                                         "aten::_copy_from_and_resize"};

bool is_replaced(const c10::OperatorHandle& op, const std::string& name) {
  if (!op.hasSchema() || name.rfind("aten::", 0) != 0 || kKeptKernels.count(name) != 0) return false;
  const bool convolution = name == "aten::convolution" || name == "aten::convolution_backward";
  if (!convolution && !op.hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return false;
  return op.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU);
}

struct NoWarnings : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  static NoWarnings none;  // of kernels that are replaced
  const c10::WarningUtils::WarningHandlerGuard quiet(&none);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    if (!op || !is_replaced(*op, name.name)) continue;
    const std::string overload = name.overload_name.empty() ? "" : "." + name.overload_name;
    m.impl((name.name + overload).c_str(), torch::CppFunction::makeFromBoxedFunction<&call_on_host>());
  }
  m.impl("copy_", copy_);
  m.impl("cudnn_batch_norm", cudnn_batch_norm);
  m.impl("cudnn_batch_norm_backward", cudnn_batch_norm_backward);
}

}  // namespace
