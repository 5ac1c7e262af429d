"""Plans that are forced, refused and read back, and results that no plan may change."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cases import Case, call_fused, layouts, make_tensors, present, run_fused, same_bits
from tests.cuda.launches import compiled, forced, kernels_of, last_plan, launches
from tests.ops.test_operator import WITH_MASK, forward, forward_arguments
from tests.reference import assert_meets_demands

pytestmark = pytest.mark.cuda

PLANS = (
    *("resident exchange=none", "resident exchange=cluster group=2", "resident exchange=words"),
    *("resident exchange=words group=5", "streamed", "streamed group=3"),
)

CASES = (
    Case((16, 64, 14, 14), dtype=torch.bfloat16, residual=True),
    Case((2, 64, 8, 12), "channels_last", torch.bfloat16, residual=True),
    Case((6, 12, 16, 16), residual=True, activation="silu", momentum=None),
    Case((12, 24, 7, 7), dtype=torch.float16, activation="leaky_relu"),
    Case((192, 32), activation="none", weight=False),
)


def run_forced(plan: str, case: Case) -> None:
    """Skips a plan that this device does not support."""
    try:
        with forced(plan):
            run_fused(case, make_tensors(case, "cuda"))
    except ValueError as error:
        if all(lacking not in str(error) for lacking in ("cluster", "cooperative", "at once")):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_forced_plan_runs_is_read_back_and_meets_the_demands(case: Case, plan: str) -> None:
    run_forced(plan, case)
    with forced(plan):
        assert_meets_demands(case, make_tensors(case, "cuda"))
        before = launches()
        call_fused(case, make_tensors(case, "cuda"))
        ran = last_plan()
        assert launches() - before == kernels_of(ran)
    assert set(plan.split()) <= set(ran.split())
    with forced(ran):
        call_fused(case, make_tensors(case, "cuda"))
        assert last_plan() == ran


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_plan_gives_the_same_bits(plan: str) -> None:
    run_forced(plan, CASES[0])
    with forced(plan):
        results = [run_fused(CASES[0], make_tensors(CASES[0], "cuda")) for _ in range(3)]
    for name, value in vars(results[0]).items():
        assert all(same_bits(getattr(result, name), value) for result in results), name


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("resident exchange=words group=1000000", "(1000000 blocks|cooperative launches)"),
        ("resident exchange=none slots=1000", "1000 slots"),
        ("resident tile=100000", "100000"),
        ("streamed group=1000000", "1000000 blocks"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_a_sentence(plan: str, reason: str) -> None:
    """An error before anything is written or counted."""
    tensors, before = make_tensors(CASES[2], "cuda"), launches()
    untouched = tensors.clone()
    with forced(plan), pytest.raises(ValueError, match=rf"^fused_bn: [^\n]*{reason}[^\n]*$"):
        call_fused(CASES[2], tensors)
    assert launches() == before
    for name, value in vars(untouched).items():
        assert same_bits(getattr(tensors, name), value), name
    call_fused(CASES[2], tensors)


def test_double_precision_has_no_resident_plan() -> None:
    case = Case((6, 12, 16, 16), dtype=torch.float64, parameter_dtype=torch.float64)
    with forced("resident"), pytest.raises(ValueError, match="f64"):
        call_fused(case, make_tensors(case, "cuda"))


def test_evaluation_is_one_kernel_whatever_is_forced() -> None:
    case = replace(CASES[0], training=False)
    expected = run_fused(case, make_tensors(case, "cuda"))
    for plan in ("resident exchange=words", "streamed group=3"):
        with forced(plan):
            before = launches()
            output = call_fused(case, make_tensors(case, "cuda"))
        assert launches() == before + 1
        assert torch.equal(output, expected.output)


def test_what_is_no_plan_is_refused_and_changes_nothing() -> None:
    with forced("streamed"):
        for text in ("resident exchange=barrier", "streamed group=0", "words", "tile"):
            with pytest.raises(ValueError, match="a plan is 'resident' or 'streamed'"):
                compiled().cuda_force_plan(text)
        call_fused(CASES[0], make_tensors(CASES[0], "cuda"))
        assert last_plan().startswith("streamed")


@pytest.mark.parametrize(
    ("text", "found"), [("streamed group=2", "streamed group=2"), ("stream", "ValueError")]
)
def test_the_environment_forces_a_plan(text: str, found: str) -> None:
    code = (
        "import torch, fused_bn\n"
        "from fused_bn import _C\n"
        "try:\n"
        "    fused_bn.BatchNorm2d(32, device='cuda')(torch.randn(8, 32, 16, 16, device='cuda'))\n"
        "    print(_C.cuda_last_plan())\n"
        "except ValueError as error:\n"
        "    print('ValueError', error)\n"
    )
    environment = os.environ | {"FUSED_BN_CUDA_PLAN": text}
    root = Path(__file__).resolve().parent.parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(found), result.stdout + result.stderr


def bits_in_memory(condition: Tensor, like: Tensor) -> Tensor:
    """One bit per element in `like`'s order in memory, the first in the lowest bit; then zeros."""
    flat = torch.empty_like(like, dtype=torch.uint8).copy_(condition)
    order = flat.as_strided((flat.numel(),), (1,))
    padded = torch.nn.functional.pad(order, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=like.device)).sum(1).to(torch.uint8)


MASKED = [
    Case(shape, layout, dtype, dtype, activation=activation, residual=True)
    for shape in ((5, 17, 3, 5), (16, 32, 7, 7), (3, 16, 9, 23), (9, 33), (2, 8, 4, 4, 4))
    for layout in layouts(shape)
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
    for activation in WITH_MASK
    if activation != "relu6" or dtype is not torch.bfloat16  # some values below 6 are rounded to 6 there
]


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_a_mask_is_a_bit_an_element_in_the_order_of_memory(case: Case) -> None:
    """Every plan writes the same mask, and backward reads it with every plan."""
    arguments = forward_arguments(case, "cuda")
    for plan in ("", *PLANS):
        try:
            with forced(plan):
                output, _, mask = forward(forward_arguments(case, "cuda"))
        except ValueError:
            continue  # the plan does not fit
        passed = output != 0 if case.activation != "leaky_relu" else output > 0
        if case.activation == "relu6":
            passed &= output != 6
        assert torch.equal(mask, bits_in_memory(passed, output)), plan or last_plan()
        assert mask.numel() == -(-present(arguments["input"]).numel() // 8)
