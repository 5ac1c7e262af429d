#include "launches.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "common/view.h"
#include "cuda/kernels/merge.cuh"
#include "kernels.h"  // of tests/simt

namespace cuda_device {
namespace {

using fused_bn::ChannelVector;
using fused_bn::DType;
using namespace fused_bn::cuda;

constexpr bool kReads = false, kWrites = true;

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
int64_t compute_size_of(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

// Calls each(pointer, its name, bytes, whether the kernel writes there) for all pointers that are not null.
template <class Each>
class Pointers {
 public:
  Pointers(const KernelName& kernel, Each each) : kernel_(kernel), each_(each) {}

  // Of tensors, all elements, also where the kernel accesses a part.
  void visit(ForwardParams& p) {
    const int64_t C = p.tiling.C, elements = p.tiling.elements, bytes = elements * size_of(kernel_.dtype);
    const bool own = p.source == Source::batch, apply = kernel_.pass == Pass::apply;
    one(p.input, "input", bytes, kReads);
    one(p.residual, "residual", bytes, kReads);
    one(p.output, "output", bytes, kWrites);
    one(p.mask, "mask", fused_bn::mask_bytes(elements), kWrites);
    one(p.weight, "weight", C, kReads);
    one(p.bias, "bias", C, kReads);
    one(p.negative_slope, "negative_slope", C, kReads);
    one(p.bias_copy, "bias_copy", C, kWrites);
    one(p.running_mean, "running_mean", C, own);
    one(p.running_var, "running_var", C, own);
    one(p.num_batches_tracked, "num_batches_tracked", 8, !p.cumulative);
    one(p.statistics, "statistics", 3 * C * compute_size_of(kernel_.dtype),
        p.source != Source::given && !apply);
    one(p.moments, "moments", 2 * C * 8, kWrites);
    scratch(p, C);
  }
  void visit(BackwardParams& p) {
    const int64_t C = p.tiling.C, elements = p.tiling.elements, bytes = elements * size_of(kernel_.dtype);
    const bool sums = kernel_.pass != Pass::apply;
    one(p.grad_output, "grad_output", bytes, kReads);
    one(p.input, "input", bytes, kReads);
    one(p.residual, "residual", bytes, kReads);
    one(p.mask, "mask", fused_bn::mask_bytes(elements), kReads);
    one(p.weight, "weight", C, kReads);
    one(p.bias, "bias", C, kReads);
    one(p.negative_slope, "negative_slope", C, kReads);
    one(p.statistics, "statistics", 3 * C * compute_size_of(kernel_.dtype), kReads);
    one(p.grad_input, "grad_input", bytes, kWrites);
    one(p.grad_residual, "grad_residual", bytes, kWrites);
    one(p.grad_weight, "grad_weight", C, sums);
    one(p.grad_bias, "grad_bias", C, sums);
    one(p.sums, "sums", 2 * C * 8, sums);
    one(p.total_count, "total_count", 8, kReads);
    scratch(p, C);
  }
  void visit(MergeParams& p) {
    one(p.moments, "moments", p.processes * (2 * p.C + 1) * 8, kReads);
    one(p.running_mean, "running_mean", p.C, kWrites);
    one(p.running_var, "running_var", p.C, kWrites);
    one(p.num_batches_tracked, "num_batches_tracked", 8, kWrites);
    one(p.statistics, "statistics", 3 * p.C * compute_size_of(p.dtype), kWrites);
    one(p.count, "count", 8, kWrites);
  }

 private:
  template <class T>
  void one(T*& pointer, const char* name, int64_t bytes, bool writes) {
    if (pointer != nullptr) each_(pointer, name, bytes, writes);
  }
  void one(ChannelVector& vector, const char* name, int64_t C, bool writes) {
    one(vector.data, name, ((C - 1) * vector.stride + 1) * size_of(vector.dtype), writes);
  }
  // The apply pass is given the same, and does not look there.
  void scratch(DirectionParams& p, int64_t C) {
    if (kernel_.pass == Pass::apply) return;
    const bool shared = kernel_.pass == Pass::reduce && p.tiling.group > 1;
    one(p.partials, "partials", shared ? C * p.tiling.group * 4 * compute_size_of(kernel_.dtype) : 0,
        kWrites);
    one(p.scratch.epoch, "epoch", 8, kWrites);
    one(p.scratch.arrivals, "arrivals", 4 * kMostGroups, kWrites);
    one(p.scratch.words, "words", 16 * kMostWords, kWrites);
  }

  const KernelName& kernel_;
  Each each_;
};

// Throws where a pointer is not live memory of the device, or too little.
void check(const void* pointer, const char* name, int64_t bytes, int device) {
  const int where = device_of(pointer);
  if (where != device) {
    const char* what = !is_device_address(pointer) ? "memory of the host"
                       : where < 0                 ? "freed, or never allocated"
                                                   : "memory of another device";
    throw std::runtime_error(std::string(name) + " is " + what);
  }
  if (bytes_behind(pointer) >= bytes) return;
  char text[100];
  std::snprintf(text, sizeof text, "%s has %" PRId64 " bytes, the kernel accesses %" PRId64, name,
                bytes_behind(pointer), bytes);
  throw std::runtime_error(text);
}

// The params say again what the launch is.
void check_params(const KernelName&, const MergeParams&, const simt::Launch&) {}
void check_params(const KernelName& kernel, const Launch& p, const simt::Launch& l) {
  const auto demand = [](bool fits, const char* what) {
    if (!fits) throw std::runtime_error(std::string("the params have other ") + what + " than the launch");
  };
  const bool resident = kernel.pass == Pass::resident;
  demand(l.grid == p.grid(), "blocks");
  demand(l.threads == p.tiling.threads, "threads");
  demand(l.shared_bytes == p.layout.bytes, "shared bytes");
  demand((l.cluster > 1) == (resident && p.exchange == Exchange::cluster && p.tiling.group > 1), "clusters");
  demand(l.cooperative == (resident && p.exchange == Exchange::words), "cooperation");
}

simt::Prepared prepared(const KernelName& kernel, const ForwardParams& p) {
  return simt::kernels[static_cast<int>(kernel.dtype)].forward(static_cast<Kernel>(kernel.pass), p);
}
simt::Prepared prepared(const KernelName& kernel, const BackwardParams& p) {
  return simt::kernels[static_cast<int>(kernel.dtype)].backward(static_cast<Kernel>(kernel.pass), p);
}
simt::Prepared prepared(const KernelName&, const MergeParams& p) {
  if (p.dtype == DType::f64) return {"merge f64", [&p] { merge_kernel<double>(p); }};
  return {"merge f32", [&p] { merge_kernel<float>(p); }};
}

template <class Params>
void prepare_with(const KernelName& kernel, const void* given, KernelLaunch& launch,
                  std::vector<Access>& accesses) {
  Params params;
  std::memcpy(&params, given, sizeof params);
  const auto note = [&](const void* pointer, const char* name, int64_t bytes, bool writes) {
    check(pointer, name, bytes, current_device());
    accesses.push_back({pointer, static_cast<size_t>(bytes), writes});
  };
  Pointers(kernel, note).visit(params);
  launch.prepare = [kernel, params, device = current_device(), launch = launch.launch] {
    const auto own = std::make_shared<Params>(params);
    const auto to_host = [device](auto*& pointer, const char* name, int64_t bytes, bool) {
      check(pointer, name, bytes, device);  // again: the work may be late
      pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(host_address(pointer));
    };
    Pointers(kernel, to_host).visit(*own);
    check_params(kernel, *own, launch);
    const simt::Prepared found = prepared(kernel, *own);
    if (found.name != kernel.text()) {
      throw std::runtime_error("the launch was of " + kernel.text() + ", its params are for " + found.name);
    }
    return std::function<void()>([own, run = found.run] { run(); });
  };
}

}  // namespace

void prepare_launch(const KernelName& kernel, const void* params, KernelLaunch& launch,
                    std::vector<Access>& accesses) {
  if (kernel.pass == Pass::merge) return prepare_with<MergeParams>(kernel, params, launch, accesses);
  if (kernel.backward) return prepare_with<BackwardParams>(kernel, params, launch, accesses);
  return prepare_with<ForwardParams>(kernel, params, launch, accesses);
}

}  // namespace cuda_device
