"""The launch planner in single cases: forced plans, bad input, the public function, the command."""

from dataclasses import FrozenInstanceError
from math import prod
from typing import Any

import pytest
import torch

import fused_bn
from fused_bn import __main__ as cli
from fused_bn import planner as kernel_plans
from tests.planner import planner
from tests.planner.test_plan import Problem

pytestmark = pytest.mark.needs_extension

OLDER: dict[str, Any] = {"architecture": 80, "multiprocessors": 5, "cooperative": False}
"""A device on which blocks cannot wait for each other."""


@pytest.mark.parametrize("layout", kernel_plans.LAYOUTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("part", ["both", "reduce", "apply"])
def test_a_single_value(layout: str, direction: str, part: str) -> None:
    """One block and one vector of one element: no exchange and no remainder."""
    plan = Problem(1, 1, 1, layout, direction=direction, part=part).plan()
    for launch in (plan.first, plan.apply):
        if launch is not None:
            assert (launch.grid, launch.passes, launch.vector) == (1, 1, 1)
    assert (plan.resident, plan.launches) == (False, 2 if part == "both" else 1)


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        # Rows of whole vectors, one channel per tile.
        (Problem(32, 256, 3136, "channels_first", "f32"), ("along_rows", False, 784, 1, 1)),
        # 7x7 and 14x14: four and two channels are 49 whole vectors. Five such rows fill a block.
        (Problem(32, 2048, 49, "channels_first", "f32"), ("down_columns", True, 49, 4, 1)),
        (Problem(256, 1024, 196, "channels_first", "f16"), ("down_columns", True, 245, 10, 1)),
        # LeNet's with channels last: 6 channels of f32. Two pixels are three vectors.
        (Problem(64, 6, 784, "channels_last", "f32"), ("down_columns", True, 3, 6, 2)),
        # Three channels of 7x7: eight images are 147 vectors, which cannot be divided.
        (Problem(64, 3, 49, "channels_first", "bf16"), ("down_columns", True, 147, 3, 8)),
        # 272 channels are 34 vectors: tiles of 12, 12 and 10, none of 8 with a short one at the end.
        (Problem(4000, 272, 1), ("down_columns", True, 12, 96, 1)),
    ],
    ids=lambda value: f"{value.N}x{value.C}x{value.S}" if isinstance(value, Problem) else "",
)
def test_tilings_of_single_shapes(each: Problem, expected: tuple[str, bool, int, int, int]) -> None:
    """Whole vectors for every shape that has them, whatever the number of channels in a tile."""
    first = each.plan().first
    assert first is not None
    assert (first.walk, first.mixed, first.tile_vectors, first.tile_channels, first.fold) == expected
    assert first.vector == 16 // {"f32": 4, "bf16": 2, "f16": 2}[each.dtype]


@pytest.mark.parametrize(
    ("sizes", "direction", "resident"),
    [
        # Rows x 128 bytes x held tensors, compared with the 28 MB of an H200's shared memory.
        ((256, 1024, 196), "forward", True),  # 6
        ((256, 1024, 196), "backward", True),  # 13
        ((256, 2048, 49), "backward", True),  # 3
        ((256, 512, 784), "forward", True),  # 26
        ((256, 512, 784), "backward", False),  # 51
        ((256, 256, 3136), "forward", False),  # 103
        ((256, 64, 12544), "forward", False),  # 411
    ],
)
def test_size_decides_between_resident_and_streamed(
    sizes: tuple[int, int, int], direction: str, resident: bool
) -> None:
    assert Problem(*sizes, direction=direction).plan().resident == resident


def test_an_h200_fills_its_shared_memory() -> None:
    """Groups that take tiles in turn: the remaining tiles need no further pass."""
    device = planner.device("h200")
    for direction, tensors in (("forward", 1), ("backward", 2)):
        plan = Problem(256, 1024, 196, direction=direction).plan()
        assert plan.first is not None
        assert plan.exchange == "words"
        used = plan.blocks_per_multiprocessor * (plan.first.shared_bytes + 1024)
        assert used + plan.blocks_per_multiprocessor * tensors * 4096 > device["shared_per_multiprocessor"]
        assert plan.first.grid > 0.95 * plan.blocks_per_multiprocessor * device["multiprocessors"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_no_multiprocessor_idles_on_512x28x28(direction: str) -> None:
    """132 is no multiple of 8 tiles of 128 bytes. A plan with 11 blocks per tile leaves 44 idle."""
    plan = Problem(256, 512, 784, direction=direction).plan()
    assert plan.first is not None
    assert plan.first.grid > 0.95 * plan.blocks_per_multiprocessor * planner.device("h200")["multiprocessors"]


def test_clusters_are_counted_as_the_driver_does() -> None:
    """More clusters than run at once need a second wave. A size of which none can run is an error."""
    clusters = Problem(32, 256, 3136, "channels_first", "f32")

    def predicted(active: list[int]) -> float:
        device = {"architecture": 90, "active_clusters": active}
        return clusters.plan("resident exchange=cluster group=16", device=device).predicted_time

    assert predicted([132, 66, 30, 15, 7]) == clusters.plan("exchange=cluster group=16").predicted_time
    assert predicted([132, 66, 30, 15, 3]) > 1.2 * predicted([132, 66, 30, 15, 7])
    none = {"architecture": 90, "active_clusters": [132, 66, 30, 0, 0]}
    with pytest.raises(ValueError, match="no cluster of 12 blocks runs"):
        clusters.plan("resident exchange=cluster group=12", device=none)
    first = clusters.plan("exchange=cluster", device=none).first
    assert first is not None
    assert first.group <= 4

    # 8 clusters of 16 blocks that fill a multiprocessor each, where 7 can run.
    tail = Problem(64, 8, 16 * 50 * 16, "channels_first", "f32")
    seven, eight = (
        tail.plan(
            "exchange=cluster group=16", device={"architecture": 90, "active_clusters": [132, 66, 30, 15, n]}
        )
        for n in (7, 8)
    )
    assert seven.predicted_time > eight.predicted_time + 5


def test_a_device_of_its_own() -> None:
    """Missing fields come from the nearest model, so that a driver's few facts are enough."""
    whole = Problem(256, 512, 784)
    assert repr(whole.plan(device={"architecture": 90})) == repr(whole.plan())
    small = Problem(256, 1024, 196).plan(
        device={"architecture": 90, "multiprocessors": 10, "active_clusters": [10] * 5}
    )
    assert small.first is not None
    assert small.first.grid <= 40
    assert whole.plan(device=OLDER).exchange == "none"


# ---- forced plans


@pytest.mark.parametrize(
    ("forced", "expected"),
    [
        ("resident", ("words", 132, 4, 64)),
        ("resident tile=128", ("words", 132, 2, 128)),
        ("exchange=words group=200", ("words", 200, 2, 64)),
        ("exchange=words group=132 groups=2 tile=64", ("words", 132, 2, 64)),
        ("slots=30 tile=32", ("words", 33, 4, 32)),
    ],
)
def test_forced_fields_are_in_the_plan(forced: str, expected: tuple[str, int, int, int]) -> None:
    plan = Problem(256, 1024, 196).plan(forced)
    first = plan.first
    assert first is not None
    assert plan.resident
    assert (plan.exchange, first.group, first.groups, first.tile_channels) == expected


def test_forced_slots_may_be_more_than_are_needed() -> None:
    plan = Problem(64, 6, 784, "channels_first", "f32").plan("exchange=cluster group=8 slots=9")
    assert plan.first is not None
    assert (plan.slots, plan.first.passes) == (9, 7)


def test_forced_groups_of_the_streamed_kernel() -> None:
    plan = Problem(256, 1024, 196).plan("streamed group=5 tile=256")
    assert plan.first is not None
    assert (plan.first.group, plan.first.tile_channels, plan.launches) == (5, 256, 2)
    assert plan.partials_bytes == 5 * 1024 * 16


@pytest.mark.parametrize(
    ("forced", "changes", "text"),
    [
        ("resident", {"dtype": "f64"}, "the resident kernel knows no f64"),
        ("resident", {"alignment": 8}, "no tile suits the resident kernel: whole vectors of 16 bytes"),
        ("resident tile=12", {}, "no tile of 12 channels suits the resident kernel"),
        ("streamed tile=512", {}, "no tile of 512 channels"),
        ("exchange=none group=2", {}, "exchange none takes groups of 1 to 1 blocks, not 2"),
        ("exchange=cluster group=17", {}, "exchange cluster takes groups of 2 to 16 blocks, not 17"),
        ("exchange=cluster group=16", {"device": "rtx5090"}, "takes groups of 2 to 8 blocks, not 16"),
        ("exchange=cluster", {"device": "a100"}, "no plan"),
        ("exchange=words", {"device": "t4"}, "words need cooperative launches and sm_80 or later"),
        ("exchange=words", {"device": OLDER}, "words need cooperative launches and sm_80 or later"),
        ("exchange=words group=600", {}, "a group of 600 blocks is too large: 528 run at once"),
        ("exchange=words group=132 groups=5 tile=64", {}, "660 blocks are too many: 528 run at once"),
        ("exchange=words group=300 tile=256", {}, "the exchange takes 154112 words, and there are 131072"),
        ("exchange=words slots=3 group=140", {}, "a thread needs 12 slots, not 3"),
        ("exchange=none", {}, "1568 slots take 6430464 bytes of shared memory: a block has 232448"),
        ("streamed group=6000 tile=64", {}, "a tile has 1568 parts, not one for each of 6000 blocks"),
        ("streamed group=2", {"C": 2**21, "S": 1}, "blocks share at most 4096 tiles"),
    ],
)
def test_a_forced_plan_that_does_not_fit_is_one_sentence(
    forced: str, changes: dict[str, Any], text: str
) -> None:
    each = Problem(**{**Problem(256, 1024, 196).__dict__, **changes})
    with pytest.raises(ValueError, match="no plan for N = 256") as error:
        each.plan(forced)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "word", ["fast", "group=", "group=0", "tile=-1", "exchange=mail", "slots=1e3", "group=1234567890"]
)
def test_an_invalid_plan_is_refused(word: str) -> None:
    with pytest.raises(
        ValueError, match=f"a plan is 'resident' or 'streamed' and any of .*, but got '{word}'"
    ):
        Problem(8, 64, 1).plan(f"resident {word}")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"layout": "NHWC"}, "layout must be one of channels_first, channels_last, but got 'NHWC'"),
        ({"dtype": "int8"}, "dtype must be one of f32, f64, bf16, f16, but got 'int8'"),
        ({"activation": "softmax"}, "activation must be one of none, relu, leaky_relu, relu6"),
        ({"direction": "up"}, "direction must be one of forward, backward, but got 'up'"),
        ({"part": "all"}, "part must be one of both, reduce, apply, but got 'all'"),
        ({"device": "tpu"}, "but got 'tpu'"),
        (
            {"device": 90},
            "device must be a model's name or a dict with 'architecture' (90 is sm_90), but got 90",
        ),
        ({"device": {"multiprocessors": 4}}, "a dict with 'architecture'"),
        ({"device": {"architecture": 90, "sms": 4}}, "device has no field 'sms'"),
        (
            {"device": {"architecture": 90, "multiprocessors": "many"}},
            "multiprocessors must be like a model's",
        ),
        (
            {"device": {"architecture": 90, "multiprocessors": 0}},
            "multiprocessors must be from 1 to 1024, but got 0",
        ),
        ({"device": {"architecture": 90, "shared_per_block": 1024}}, "shared_per_block must be from 49152"),
        ({"device": {"architecture": 80, "max_cluster": 8}}, "max_cluster must be from 1 to 1, but got 8"),
        (
            {"device": {"architecture": 90, "active_clusters": [1, 2]}},
            "active_clusters must be like a model's",
        ),
        ({"device": {"architecture": 90, "l2_bandwidth": float("nan")}}, "l2_bandwidth must be from 1 to"),
        ({"N": 1, "C": 2**31, "S": 1}, f"C must be at most {2**29}, but got {2**31}"),
        (
            {"N": 3, "C": 3, "S": 2**31 + 1, "layout": "channels_first"},
            "has between 1 and 2^30 vectors a row",
        ),
    ],
)
def test_bad_input_is_one_clear_error(changes: dict[str, Any], text: str) -> None:
    arguments = {**Problem(2, 64, 49).__dict__, **changes}
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared below)
        Problem(**arguments).plan()
    assert text in str(error.value)


# ---- what a user calls


def test_the_planners_words_are_its_submodules_alone() -> None:
    """The fields of a plan change with the kernels, and are no promise of the package."""
    assert not {"plan", "LaunchPlan"} & {*fused_bn.__all__, *vars(fused_bn)}


def test_public_plan() -> None:
    arguments = ((256, 64, 112, 112), torch.bfloat16, "channels_last")
    plan = kernel_plans.plan(*arguments, direction="backward", residual=True)
    same = Problem(256, 64, 112 * 112, direction="backward", residual=True).plan()
    assert same.first is not None
    assert same.apply is not None
    assert (plan.kernel, plan.grid, plan.apply_grid) == ("streamed", same.first.grid, same.apply.grid)
    assert (plan.read, plan.predicted_time, plan.forced) == (same.read, same.predicted_time, repr(same))
    assert plan.mask_bytes == prod((256, 64, 112, 112)) // 8
    assert plan == kernel_plans.plan(
        (256, 64, 112, 112), "bfloat16", "channels_last", "h200", "backward", True
    )
    assert plan == kernel_plans.plan(*arguments, direction="backward", residual=True, forced=plan.forced)
    with pytest.raises(FrozenInstanceError):
        plan.grid = 1  # type: ignore[misc]


def test_public_plan_of_the_other_kernels() -> None:
    resident = kernel_plans.plan((256, 1024, 14, 14), "bf16", "channels_last")
    assert (resident.kernel, resident.exchange, resident.launches) == ("resident", "words", 1)
    assert resident.iterations * resident.groups >= resident.tiles
    evaluation = kernel_plans.plan(
        (256, 1024, 14, 14), "bf16", "channels_last", direction="evaluation", residual=True
    )
    assert (evaluation.kernel, evaluation.launches, evaluation.mask_bytes) == ("apply", 1, 0)
    assert (evaluation.grid, evaluation.apply_grid) == (evaluation.group * evaluation.groups, 0)


def test_public_plan_of_an_activation_whose_derivative_takes_z() -> None:
    """Backward reads the residual twice if a mask is not enough. Without activation it reads neither."""
    shape = (256, 64, 112, 112)
    tensor = 2 * prod(shape)

    def read(activation: str) -> int:
        plan = kernel_plans.plan(
            shape, "bf16", direction="backward", residual=True, activation=activation, forced="streamed"
        )
        assert (plan.mask_bytes > 0) == (activation in ("relu", "relu6"))
        return plan.read

    assert read("silu") - read("none") == 2 * tensor
    assert read("relu") - read("none") == read("relu6") - read("none") == 2 * tensor // 16


def test_public_plan_sees_one_layout_where_both_describe_the_same_memory() -> None:
    first, last = (kernel_plans.plan((32, 100), layout=layout) for layout in kernel_plans.LAYOUTS)
    assert first == last
    assert first.walk == "down_columns"


def test_public_plan_takes_names_as_people_write_them() -> None:
    shape = (32, 64, 7, 7)
    expected = kernel_plans.plan(shape, "f32", "channels_first", "h100")
    assert kernel_plans.plan(shape, "float32", "contiguous", "H100") == expected
    assert kernel_plans.plan(shape, torch.float32, "NCHW", "H100") == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shape": (3,)}, r"shape must be integers \(N, C\) or \(N, C, ...\), but got \(3,\)"),
        ({"shape": (3, 0, 4)}, r"at least 1 and at most 2\*\*50 elements, but got \(3, 0, 4\)"),
        ({"shape": (-3, 4)}, r"at least 1 and at most 2\*\*50 elements, but got \(-3, 4\)"),
        ({"shape": (2**40, 2**40)}, r"at least 1 and at most 2\*\*50 elements, but got "),
        ({"shape": (1, 2**31)}, f"C must be at most {2**29}, but got {2**31}"),
        ({"dtype": torch.int32}, "dtype must be one of f32, f64, bf16, f16, but got 'torch.int32'"),
        ({"layout": "nwhc"}, "layout must be one of channels_first, channels_last, but got 'nwhc'"),
        ({"alignment": 12}, "alignment must be 1, 2, 4, 8 or 16, but got 12"),
        ({"alignment": 1, "dtype": "bf16"}, "alignment must be at least an element's 2 bytes, but got 1"),
        ({"device": "tpu"}, "device must be one of t4, .*, but got 'tpu'"),
        ({"device": {"architecture": 90, "sms": 4}}, "device has no field 'sms'"),
        ({"direction": "sideways"}, "direction must be one of .*, but got 'sideways'"),
        ({"activation": "swish"}, "activation must be one of .*, but got 'swish'"),
        ({"forced": "quickly"}, "but got 'quickly'"),
    ],
)
def test_public_plan_names_the_bad_argument(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kernel_plans.plan(**{"shape": (2, 3, 4), **arguments})


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["fused_bn", "plan", *arguments])
    return cli.main()


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "256,64,112,112", "--dtype", "bf16", "--layout", "channels_last", "--device", "h200")
    assert run_cli(monkeypatch, *words) == 0
    table = capsys.readouterr().out
    plan = kernel_plans.plan((256, 64, 112, 112), "bf16", "channels_last")
    for expected in (
        "forward ",
        "backward",
        f"{plan.grid} and {plan.apply_grid} blocks of 256 threads",
        f"{plan.read / 1e6:.4g} MB",
        plan.forced,
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
        (("--shape", "8,4", "--forced", "exchange=words group=9999"), "no plan for N = 8, C = 4"),
    ):
        assert run_cli(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert text in error
        assert "Traceback" not in error
