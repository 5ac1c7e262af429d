"""The launch planner by name: single cases, bad input, the public function and the command line."""

from dataclasses import FrozenInstanceError
from math import prod
from typing import Any

import pytest
import torch

import fused_bn
from fused_bn import __main__ as cli
from fused_bn._plan import DIRECTIONS, LAYOUTS
from tests.test_plan import DEVICES, Problem

pytestmark = pytest.mark.needs_extension

OLDER: dict[str, float | str] = {"architecture": 75, "multiprocessors": 5, "cooperative": False}
"""Nothing to wait for each other with: two kernels."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_single_value(layout: str, direction: str) -> None:
    """One block, one step, one vector of one element: nothing to exchange and no vector to round up to."""
    plan = Problem(1, 1, 1, layout, direction=direction).plan()
    assert (plan.grid, plan.steps, plan.exchange, plan.whole) == (1, 1, "none", False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"N": 0}, "N must be at least 1 (nothing is launched for an empty tensor), but got 0"),
        ({"C": -3}, "C must be at least 1 (nothing is launched for an empty tensor), but got -3"),
        ({"N": 2**25, "S": 2**26}, f"N * C * S must be at most {2**50}, but got {2**25} * 64 * {2**26}"),
        ({"layout": "NHWC"}, "layout must be one of channels_first, channels_last, but got 'NHWC'"),
        ({"dtype": "int8"}, "dtype must be one of f32, f64, bf16, f16, but got 'int8'"),
        ({"activation": "swish"}, "activation must be one of none, relu, leaky_relu, relu6"),
        ({"direction": "up"}, "direction must be one of forward, backward, evaluation, but got 'up'"),
        ({"alignment": 12}, "alignment must be 1, 2, 4, 8 or 16, but got 12"),
        ({"alignment": 1}, "alignment must be at least an element's 2 bytes, but got 1"),
        ({"device": "tpu"}, "but got 'tpu'"),
        ({"device": 90}, "device must be a model's name or a dict of its fields, but got 90"),
        ({"device": {"multiprocessors": 4}}, "device must hold 'architecture'"),
        ({"device": {"architecture": 90, "sms": 4}}, "device has no field 'sms'"),
        ({"device": {"architecture": 90, "multiprocessors": "many"}}, "multiprocessors must be a number"),
        (
            {"device": {"architecture": 90, "multiprocessors": 0}},
            "multiprocessors must be from 1 to 1024, but got 0",
        ),
        ({"device": {"architecture": 90, "shared_per_block": 1024}}, "shared_per_block must be from 65536"),
        ({"device": {"architecture": 80, "max_cluster": 8}}, "max_cluster must be from 1 to 1, but got 8"),
        ({"device": {"architecture": 90, "l2_bandwidth": float("nan")}}, "l2_bandwidth must be finite"),
        ({"N": 1, "C": 2**31, "S": 1}, f"C must be at most {2**30}, but got {2**31}"),
        ({"N": 2**24, "S": 2**20}, "a slab have less than 2^31 steps"),
        ({"C": 1, "S": 2**45, "layout": "channels_first"}, f"S = {2**45}: N * (S / 8)^2 must be below 2^64"),
    ],
)
def test_bad_input_is_one_clear_error(changes: dict[str, Any], text: str) -> None:
    arguments = {**Problem(2, 64, 49).__dict__, **changes}
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared below)
        Problem(**arguments).plan()
    assert text in str(error.value)


def test_a_device_of_its_own() -> None:
    """Fields left out are those of the nearest model, so that a driver's few facts are enough."""
    whole = Problem(256, 512, 784)
    assert repr(whole.plan(device={"architecture": 90})) == repr(whole.plan())
    assert whole.plan(device={"architecture": 90, "multiprocessors": 10}).grid <= 10
    assert whole.plan(device=OLDER).exchange in ("none", "two_kernels")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_no_multiprocessor_idles_on_512x28x28(direction: str) -> None:
    """8 slabs of 128 bytes do not divide 132: a plan that gives each slab 11 blocks leaves 44 idle."""
    plan = Problem(256, 512, 784, direction=direction).plan()
    assert plan.grid > 0.95 * DEVICES["h200"]["multiprocessors"]


@pytest.mark.parametrize(
    ("sizes", "layout", "dtype", "forward", "backward"),
    [
        # Microseconds on an H200, predicted by hand before the planner was written.
        ((256, 64, 112 * 112), "channels_last", "bf16", 273, 465),
        ((256, 256, 56 * 56), "channels_last", "bf16", 227, 394),
        ((256, 512, 28 * 28), "channels_last", "bf16", 120, 167),
        ((256, 1024, 14 * 14), "channels_last", "bf16", 57, 90),
        ((256, 2048, 7 * 7), "channels_last", "bf16", 30, 45),
        ((32, 64, 112 * 112), "channels_first", "f32", 51, 81),
        ((32, 256, 56 * 56), "channels_first", "f32", 51, 75),
        ((32, 512, 28 * 28), "channels_first", "f32", 26, 39),
        ((32, 2048, 7 * 7), "channels_first", "f32", 8.5, 11.5),
    ],
)
def test_predictions_stay_near_those_made_by_hand(
    sizes: tuple[int, int, int], layout: str, dtype: str, forward: float, backward: float
) -> None:
    """Protects the constants: one that is off by a factor moves at least one of these by more."""
    each = Problem(*sizes, layout, dtype)
    assert each.plan().predicted_time == pytest.approx(forward, rel=0.15)
    assert each.plan(direction="backward").predicted_time == pytest.approx(backward, rel=0.15)


def test_an_h200_fills_its_shared_memory_and_registers() -> None:
    """With a tensor that does not fit: all register steps, and shared memory but for 48 KB a block."""
    device = DEVICES["h200"]
    for direction, tensors in (("forward", 1), ("backward", 2)):
        plan = Problem(256, 64, 112 * 112, direction=direction).plan()
        step = tensors * plan.threads * 8 * 2
        assert plan.shared_steps * step > device["shared_per_block"] - 48 * 1024
        kept = device["multiprocessors"] * (plan.register_steps + plan.shared_steps) * step
        assert plan.retained_at_once == pytest.approx(kept, rel=1e-9)


# ---- what a user calls


def test_public_plan() -> None:
    plan = fused_bn.plan(
        (256, 64, 112, 112), torch.bfloat16, "channels_last", direction="backward", residual=True
    )
    same = Problem(256, 64, 112 * 112, direction="backward", residual=True).plan()
    assert (plan.grid, plan.retained, plan.predicted_time) == (same.grid, same.retained, same.predicted_time)
    assert plan.register_steps + plan.shared_steps + plan.streamed_steps == -(-plan.steps // plan.group)
    assert plan.mask_bytes == prod((256, 64, 112, 112)) // 8
    assert plan.variant == "backward, columns, whole vectors, cooperative launch"
    assert plan == fused_bn.plan((256, 64, 112, 112), "bfloat16", "channels_last", "h200", "backward", True)
    with pytest.raises(FrozenInstanceError):
        plan.grid = 1  # type: ignore[misc]


def test_public_plan_of_an_activation_whose_derivative_takes_z() -> None:
    """Backward reads the residual twice where a mask would not tell enough; without activation, neither."""
    shape = (256, 64, 112, 112)
    tensor = 2 * prod(shape)

    def read(activation: str) -> int:
        plan = fused_bn.plan(shape, "bf16", direction="backward", residual=True, activation=activation)
        assert (plan.mask_bytes > 0) == (activation in ("relu", "relu6"))
        return plan.read + plan.retained

    assert read("silu") - read("none") == 2 * tensor
    assert read("relu") - read("none") == read("relu6") - read("none") == 2 * tensor // 16


def test_public_plan_sees_one_layout_where_both_describe_the_same_memory() -> None:
    first, last = (fused_bn.plan((32, 100), layout=layout) for layout in LAYOUTS)
    assert first == last
    assert first.mapping == "columns"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shape": (3,)}, r"shape must be integers \(N, C\) or \(N, C, ...\), but got \(3,\)"),
        ({"shape": (3, 0, 4)}, r"at least 1 and at most 2\*\*50 elements, but got \(3, 0, 4\)"),
        ({"shape": (2**40, 2**40)}, "at most"),
        ({"dtype": torch.int32}, "dtype must be one of f32, f64, bf16, f16, but got 'torch.int32'"),
        ({"layout": "nhwc"}, "layout must be one of channels_first, channels_last, but got 'nhwc'"),
        ({"alignment": 3}, "alignment must be 1, 2, 4, 8 or 16, but got 3"),
        ({"device": "tpu"}, "device must be one of t4, .*, but got 'tpu'"),
        ({"direction": "sideways"}, "direction must be one of .*, but got 'sideways'"),
        ({"activation": "swish"}, "activation must be one of .*, but got 'swish'"),
    ],
)
def test_public_plan_names_the_bad_argument(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fused_bn.plan(**{"shape": (2, 3, 4), **arguments})


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["fused_bn", "plan", *arguments])
    return cli.main()


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "256,64,112,112", "--dtype", "bf16", "--layout", "channels_last", "--device", "h200")
    assert run_cli(monkeypatch, *words) == 0
    table = capsys.readouterr().out
    plan = fused_bn.plan((256, 64, 112, 112), "bf16", "channels_last")
    for expected in (
        "forward ",
        "backward",
        f"{plan.grid} blocks of 512 threads",
        f"{plan.retained / 1e6:.4g} MB",
        f"{plan.predicted_time:.1f} us",
        "Times are predictions of a model, not measurements.",
    ):
        assert expected in table


def test_command_line_for_one_direction_and_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "--shape", "8,16,4,4", "--direction", "evaluation") == 0
    assert "backward" not in capsys.readouterr().out
    for words, text in (
        (("--shape", "8,a"), "shape must be numbers between commas, but got '8,a'"),
        (("--shape", "8,0,4"), "but got (8, 0, 4)"),
        (("--shape", "8,4", "--device", "abacus"), "but got 'abacus'"),
        (("--shape", "8,4", "--activation", "swish"), "but got 'swish'"),
    ):
        assert run_cli(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert text in error
        assert "Traceback" not in error
