"""Captured graphs and launches on several streams: they share no state that one could spoil."""

import copy
import threading

import pytest
import torch
from torch import Tensor

import fused_bn
from fused_bn._activations import ActivationName
from tests.cases import Case, call_fused, make_tensors, present, run_fused, same_bits
from tests.cuda.launches import forced, foreign_stream, launches, nodes
from tests.cuda.test_cuda import CASES
from tests.twins import step

pytestmark = pytest.mark.cuda

CASE = Case((16, 64, 14, 14), "channels_last", torch.bfloat16, momentum=None, residual=True)

WITH_SCRATCH = ("resident exchange=words group=12", "streamed group=12")
"""Plans whose blocks communicate through memory that outlives a launch."""


@pytest.fixture(params=WITH_SCRATCH)
def plan(request: pytest.FixtureRequest) -> str:
    """A plan that this device can run. Some devices lack cooperative launches."""
    text: str = request.param
    try:
        with forced(text):
            run_fused(CASE, make_tensors(CASE, "cuda"))
    except ValueError as error:
        if "cooperative" not in str(error) and "at once" not in str(error):
            raise
        pytest.skip(str(error))
    return text


class Work:
    """Forward and backward of a case on its own tensors. Keeps the last results."""

    def __init__(self, plan: str, seed: int = 0, case: Case = CASE) -> None:
        self.plan, self.case = plan, case
        self.tensors = make_tensors(case, "cuda", seed).require_grad()
        self.found: list[Tensor] = []

    def run(self) -> None:
        own = self.tensors
        with forced(self.plan):
            output = call_fused(self.case, own)
            inputs = [t for t in (own.input, own.weight, own.bias, own.residual) if t is not None]
            self.found = [output, *torch.autograd.grad(output, inputs, own.grad_output)]

    def everything(self) -> list[Tensor]:
        own = self.tensors
        buffers = (own.running_mean, own.running_var, own.num_batches_tracked)
        return [*(t.detach() for t in self.found), *map(present, buffers)]

    def captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            self.run()
        graph.instantiate()
        return graph


def assert_same_bits(found: Work, expected: Work) -> None:
    torch.cuda.synchronize()
    assert all(map(same_bits, found.everything(), expected.everything()))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("plan", ["", *WITH_SCRATCH], indirect=True)
def test_a_graph_holds_kernels_and_nothing_else(plan: str, momentum: float | None) -> None:
    """No memset, which would cost as much as a launch. For cumulative averages torch's kernel counts."""
    case = Case(CASE.shape, CASE.layout, CASE.dtype, momentum=momentum, residual=True)
    work = Work(plan, case=case)
    before = launches()
    assert nodes(work.captured()) == {"kernel": launches() - before + (momentum is None)}


@pytest.mark.parametrize(
    "case", [*CASES[:-2], pytest.param(CASES[-2], marks=pytest.mark.real_gpu("speed"))], ids=str
)
def test_replays_are_the_eager_bits(case: Case) -> None:
    """A launch leaves its memory ready for the next replay, and running statistics advance."""
    mine, eager = Work("", case=case), Work("", case=case)
    Work("", case=case).run()  # one-time initialisation, before any capture
    graph = mine.captured()
    for seed in range(5):
        values = make_tensors(case, "cuda", seed).input
        with torch.no_grad():
            mine.tensors.input.copy_(values)
            eager.tensors.input.copy_(values)
        graph.replay()
        eager.run()
        assert_same_bits(mine, eager)


def test_replays_calls_and_other_plans_take_turns_on_a_stream(plan: str) -> None:
    """Graphs do not see each other's data in shared memory."""
    replayed, called, expected = (Work(plan) for _ in range(3))
    graph = replayed.captured()
    others = [Work(plan.replace("12", group), seed=1) for group in ("14", "11", "13")]
    first = [Work(other.plan, seed=1) for other in others]
    for i in range(6):
        graph.replay()
        called.run()
        others[i % 3].run()
        expected.run()
        assert_same_bits(replayed, expected)
        assert_same_bits(called, expected)
        if i < 3:
            first[i].run()
            assert_same_bits(others[i], first[i])


def test_graphs_and_calls_on_streams_of_their_own_at_once(plan: str) -> None:
    replayed, called = [Work(plan, seed) for seed in (0, 1)], [Work(plan, seed) for seed in (2, 3)]
    expected = [Work(plan, seed) for seed in range(4)]
    graphs = [work.captured() for work in replayed]
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    for _ in range(5):
        for stream, graph in zip(streams, graphs, strict=False):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream, work in zip(streams[2:], called, strict=True):
            with torch.cuda.stream(stream):
                work.run()
    for work in expected:
        for _ in range(5):
            work.run()
    for found, right in zip([*replayed, *called], expected, strict=True):
        assert_same_bits(found, right)


def test_branches_of_a_graph_at_once(plan: str) -> None:
    branches, expected = [Work(plan, seed) for seed in (0, 1)], [Work(plan, seed) for seed in (0, 1)]
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        branches[0].run()
        with torch.cuda.stream(side):
            branches[1].run()
        torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        graph.replay()
        for work in expected:
            work.run()
    for found, right in zip(branches, expected, strict=True):
        assert_same_bits(found, right)


def memory_beside_torch() -> int:
    """Used bytes of the device that are not torch's."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def test_the_end_of_a_graph_gives_back_what_it_kept(plan: str) -> None:
    """A graph uses 2 MB: 30 graphs would keep 60."""

    def capture() -> None:
        graph = Work(plan).captured()
        graph.replay()
        torch.cuda.synchronize()

    capture()
    before = memory_beside_torch()
    for _ in range(30):
        capture()
    assert memory_beside_torch() - before < 20e6


def test_streams_that_torch_does_not_own_end_with_work_queued(plan: str) -> None:
    """New streams get old addresses, so a stream's state must end with it."""
    expected = Work(plan)
    expected.run()
    before, works = memory_beside_torch(), []
    for _ in range(50):
        with foreign_stream() as stream:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                works.append(Work(plan))
                works[-1].run()
    for work in works:
        assert_same_bits(work, expected)
    assert memory_beside_torch() - before < 20e6


def test_the_first_call_on_a_stream_while_another_thread_captures(plan: str) -> None:
    """A capture in this mode forbids all threads to allocate device memory, unless they opt out."""
    mine, other, expected = Work(plan), Work(plan), Work(plan)
    captured, called = threading.Event(), threading.Event()
    failures: list[BaseException] = []
    stream = torch.cuda.Stream(priority=-2)  # a stream that no other test has used
    with torch.cuda.stream(stream):  # memory that torch's allocator can give to the call
        memory = [torch.empty(1 << size, device="cuda") for size in (17, 19) for _ in range(16)]

    def call() -> None:
        captured.wait(60)
        try:
            with torch.cuda.stream(stream):
                other.run()
        except BaseException as error:
            failures.append(error)
        called.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mine.run()
        memory.clear()
        captured.set()
        called.wait(60)
    thread.join(60)
    assert not failures
    graph.replay()
    expected.run()
    assert_same_bits(mine, expected)
    assert_same_bits(other, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_graphs_of_a_module_with_a_residual_train(activation: ActivationName, layout: str) -> None:
    """make_graphed_callables captures forward and backward. Replays give the bits and statistics of calls."""
    eager = fused_bn.BatchNorm2d(24, activation=activation, momentum=None, device="cuda")

    def given(seed: int) -> tuple[Tensor, Tensor]:
        tensors = make_tensors(Case((8, 24, 14, 14), layout, residual=True), "cuda", seed)
        return tensors.input.requires_grad_(), present(tensors.residual).requires_grad_()

    warmed = copy.deepcopy(eager)
    graphed = torch.cuda.make_graphed_callables(warmed, given(0))
    assert isinstance(graphed, torch.nn.Module)
    warmed.load_state_dict(eager.state_dict())  # the capture counted its own calls
    for seed in range(1, 6):
        mine, other = step(graphed, *given(seed)), step(eager, *given(seed))
        assert all(map(same_bits, mine, other))
    assert all(map(same_bits, warmed.buffers(), eager.buffers()))


def test_two_streams_at_once_do_not_meet() -> None:
    """Launches whose blocks wait for each other share nothing across streams."""
    case = Case((64, 64, 56, 56), "channels_last", torch.bfloat16)
    tensors = make_tensors(case, "cuda")
    expected = run_fused(case, tensors)
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for _ in range(10):
        for stream in streams:
            stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(stream):
                results.append(run_fused(case, tensors))
    torch.cuda.synchronize()
    for result in results:
        assert torch.equal(result.output, expected.output)
        assert torch.equal(result.grad_input, expected.grad_input)
