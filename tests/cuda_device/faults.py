"""Faults to plant in the code around the kernels, one at a time, each of which a test must catch."""

import signal
from dataclasses import dataclass, field

from tests.simt.mutations import Planted

OPERATORS, SCRATCH = "cuda/host/batch_norm_cuda.cpp", "cuda/host/scratch_cuda.cpp"
PLANS, LAUNCH, TENSORS = "cuda/host/plans_cuda.cpp", "cuda/host/launch.cu", "tensors.cpp"

EXACT_MEMORY = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Every tensor is an allocation of its own, so that its size and its end are known."""


@dataclass(frozen=True)
class Fault(Planted):
    test: str  # that must fail
    caught_by: str  # words of its report
    compiled: str = ""  # the source that includes the file, where that is a header
    settings: dict[str, str] = field(default_factory=dict)
    exit_code: int = 1  # of pytest


FAULTS = (
    Fault(
        "launch on the default stream",
        OPERATORS,
        "const auto stream = c10::cuda::getCurrentCUDAStream();",
        "const auto stream = c10::cuda::getDefaultCUDAStream();",
        "tests/cuda/test_cuda.py::test_a_stream_of_its_own",
        "CUDA DEVICE: race: ",
    ),
    Fault(
        "no device guard",
        OPERATORS,
        "using Guard = c10::cuda::CUDAGuard;",
        "struct Guard { explicit Guard(at::Device) {} };",
        "tests/cuda/test_cuda.py::test_a_device_that_is_not_the_current_one",
        "is memory of another device",
    ),
    Fault(
        "partial sums of another stream's memory",
        OPERATORS,
        "    partials = at::empty(",
        "    const c10::cuda::CUDAStreamGuard other(c10::cuda::getStreamFromPool());\n"
        "    partials = at::empty(",
        "tests/cuda/test_cuda.py::test_scratch_of_queued_launches_is_nobody_elses",
        "CUDA DEVICE: race: ",
    ),
    Fault(
        "scratch without the stream in its key",
        SCRATCH,
        "graph == nullptr ? 0 : capture, stream.id()};",
        "graph == nullptr ? 0 : capture, 0};",
        "tests/cuda/test_cuda_graphs.py::test_graphs_and_calls_on_streams_of_their_own_at_once",
        "CUDA DEVICE: race: ",
    ),
    Fault(
        "words of a stream that is not torch's kept by its address",
        SCRATCH,
        "if (graph == nullptr && foreign) {",
        "if (graph == nullptr && foreign && false) {",
        "tests/cuda/test_cuda_graphs.py::test_streams_that_torch_does_not_own_end_with_work_queued",
        "memory_beside_torch() - before < 20e6",
    ),
    Fault(
        "words that are not zeroed in a captured graph",
        SCRATCH,
        "if (memory == nullptr) memory = allocate();",
        "if (memory == nullptr && graph == nullptr) memory = allocate();\n"
        "  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);\n"
        "  if (memory == nullptr) C10_CUDA_CHECK(cudaMalloc(&memory, sizeof(Memory)));",
        "tests/cuda/test_cuda_graphs.py::test_replays_calls_and_other_plans_take_turns_on_a_stream",
        "assert all(map(same_bits",
    ),
    Fault(
        "memory allocated in global capture mode",
        SCRATCH,
        "anyone_may_be_capturing(cudaStreamCaptureModeRelaxed)",
        "anyone_may_be_capturing(cudaStreamCaptureModeGlobal)",
        "tests/cuda/test_cuda_graphs.py::test_the_first_call_on_a_stream_while_another_thread_captures",
        "operation not permitted when stream is capturing",
    ),
    Fault(
        "plan of another device",
        PLANS,
        "p.residual, p.alignment, streamed, c10::cuda::current_device());",
        "p.residual, p.alignment, streamed, 0);",
        "tests/cuda/test_cuda.py::test_devices_have_plans_of_their_own",
        "the launch failed",
        settings={"CUDA_DEVICES": "H200:16,T4"},
    ),
    Fault(
        "mask one byte short",
        TENSORS,
        "const int64_t size = wanted ? mask_size(a.input).expect_int() : 0;",
        "const int64_t size = wanted ? mask_size(a.input).expect_int() - 1 : 0;",
        "tests/cuda/test_cuda_plans.py::test_a_mask_is_a_bit_an_element_in_the_order_of_memory",
        "mask has",
        settings=EXACT_MEMORY,
    ),
    Fault(
        "host read of a device pointer",
        OPERATORS,
        "p.num_batches_tracked = counts ? a.num_batches_tracked->data_ptr<int64_t>() : nullptr;",
        "p.num_batches_tracked = counts ? a.num_batches_tracked->data_ptr<int64_t>() : nullptr;\n"
        "    if (counts && *p.num_batches_tracked < 0) return {};",
        "tests/cuda/test_cuda.py::test_one_plan_a_direction_and_no_synchronisation",
        "Segmentation fault",
        exit_code=-signal.SIGSEGV,
    ),
    Fault(
        "kernel of another type",
        LAUNCH,
        "kKernelOf[static_cast<int>(problem.dtype)](",
        "kKernelOf[static_cast<int>(problem.dtype) & 2](",
        "tests/cuda/test_cuda_plans.py::test_a_forced_plan_runs_is_read_back_and_meets_the_demands",
        ": error ",
    ),
    Fault(
        "statistics written by evaluation",
        "operators.h",
        "return std::get<0>(forward(a.as_forward()));",
        "auto f = a.as_forward(); f.training = true; f.momentum = 0.1; return std::get<0>(forward(f));",
        "tests/modules/test_module.py::test_evaluation_never_touches_the_statistics",
        "torch.equal(value, before",
        compiled=OPERATORS,
    ),
)
