"""The benchmark of accuracy: its measure in ulps, its exact results, its data, and planted errors."""

import math
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fused_bn
from benchmarks import mnist, test_accuracy
from benchmarks.accuracy import data, measure, table
from benchmarks.accuracy.data import DATA, LENET, Data
from benchmarks.accuracy.errors import ulp, ulps
from benchmarks.accuracy.truth import NEAR_ZERO, truth
from benchmarks.history import Accuracy
from tests.benchmarks.lenet_data import one_thread, small_mnist  # noqa: F401
from tests.cases import Case, Tensors
from tests.reference import reference

SMALL = (8, 3, 12, 10)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("one_thread")


def fp64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The measure


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_an_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    sizes = fp64(1.0, 1.5, 1.99, 2.0, 1000.0, info.smallest_normal, info.smallest_normal / 2, 0.0)
    rounded = sizes.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, math.inf)).double() - rounded.double()
    assert torch.equal(ulp(rounded.double(), dtype), up)
    assert ulp(fp64(1.0, 1.99), dtype).tolist() == [info.eps] * 2
    assert ulp(fp64(2.0, 0.99), dtype).tolist() == [2 * info.eps, info.eps / 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_rounding_is_within_half_an_ulp(dtype: torch.dtype) -> None:
    exact = data.normal(shape=(4000,))
    assert 0.45 < ulps(exact.to(dtype), exact, exact.abs()) <= 0.5


def test_errors_count_in_the_larger_of_value_and_scale() -> None:
    eps = torch.finfo(torch.float32).eps
    found = fp64(1 + 3 * eps, 4.0).float()
    assert ulps(found, fp64(1.0, 4.0), fp64(0.0)) == 3
    assert ulps(found, fp64(1.0, 4.0), fp64(2.0)) == 1.5
    near_zero = fp64(eps).float()
    assert ulps(near_zero, fp64(0.0), fp64(1.0)) == 1
    assert ulps(near_zero, fp64(0.0), fp64(0.0)) > 1e30  # in ulps of zero itself


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
        (math.inf, 1.0, math.inf),
        (math.nan, math.nan, 0.0),
        (math.inf, math.inf, 0.0),
    ],
)
def test_nan_or_infinity_on_one_side_is_an_infinite_error(
    found: float, exact: float, expected: float
) -> None:
    assert ulps(fp64(found, 1.0).float(), fp64(exact, 1.0), fp64(1.0)) == expected


def test_an_empty_result_has_no_error() -> None:
    assert ulps(torch.empty(0), torch.empty(0, dtype=torch.float64), fp64(1.0)) == 0


# The truth


@pytest.mark.parametrize(
    ("mean", "deviation", "dtype"),
    [
        (0.0, 1.0, torch.float32),
        (0.0, 1.0, torch.bfloat16),
        (1e4, 1e-2, torch.float32),
        (-3.0, 100.0, torch.float16),
    ],
)
def test_truth_is_the_textbook_formulas(mean: float, deviation: float, dtype: torch.dtype) -> None:
    """As tests/reference.py, within 1e6 * 2^-53 = 1e-10: float64's error at a mean of 1e6 deviations."""
    input = data.normal(mean, deviation, SMALL).to(dtype)
    norm, grad_output = next(measure.draws(input))
    found = truth(input, grad_output, norm)
    case = Case(SMALL, dtype=dtype, parameter_dtype=torch.float32, momentum=1.0, activation="relu")
    buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    tensors = Tensors(
        input=input,
        grad_output=found.grad_output,
        weight=norm.weight.detach(),
        bias=norm.bias.detach(),
        running_mean=buffers["running_mean"],
        running_var=buffers["running_var"],
        num_batches_tracked=buffers["num_batches_tracked"],
        residual=None,
    )
    expected = reference(case, tensors)
    names = {"mean": "running_mean", "variance": "running_var"}
    for quantity in measure.QUANTITIES:
        right = getattr(expected, names.get(quantity, quantity))
        error = ((found.exact[quantity] - right).abs() / found.scales[quantity]).max()
        assert error < 1e-9, quantity


def test_the_truth_is_no_worse_than_a_double_norm() -> None:
    """Without a large mean, plain nn.BatchNorm2d in float64 gives the same."""
    input = data.normal(shape=SMALL).float()
    norm, grad_output = next(measure.draws(input))
    found = truth(input, grad_output, norm)
    leaf = input.double().requires_grad_()
    reference = norm.double()
    output = torch.relu(reference(leaf))
    (grad_input,) = torch.autograd.grad(output, leaf, found.grad_output.double())
    torch.testing.assert_close(found.exact["output"], output.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.exact["grad_input"], grad_input, rtol=1e-12, atol=1e-12)


def test_no_gradient_flows_next_to_the_kink() -> None:
    input = data.normal(shape=(64, 3, 30, 30)).float()
    norm, grad_output = next(measure.draws(input))
    found = truth(input, grad_output, norm)
    with torch.no_grad():
        z = norm(input)
    near = z.abs() < 0.9 * NEAR_ZERO
    assert near.any()
    assert not found.grad_output[near].any()
    far = z.abs() > 1.1 * NEAR_ZERO
    assert torch.equal(found.grad_output[far], grad_output[far])


def test_scales_are_the_usual_sizes() -> None:
    """For N(0, 1) data, w = 2, b = 1 and a gradient of ones: sqrt(w^2 + b^2), w, sqrt(n), 1 and 1."""
    input = data.normal(shape=(50, 2, 40, 40)).float()
    norm = nn.BatchNorm2d(2, momentum=1.0)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 1.0)
    scales = truth(input, torch.ones_like(input), norm).scales
    root = 80_000**0.5
    usual = {
        "output": 5**0.5,
        "grad_input": 2.0,
        "grad_weight": root,
        "grad_bias": root,
        "mean": 1.0,
        "variance": 1.0,
    }
    for quantity, size in usual.items():
        assert scales[quantity].flatten().tolist() == pytest.approx([size] * 2, rel=0.02), quantity


# The data


def test_data_are_what_their_names_say() -> None:
    by_id = {entry.id: entry for entry in DATA}
    assert len(by_id) == len(DATA) == 13
    far = by_id["1e4 +- 1e-2, channels_last"].input()
    assert far.is_contiguous(memory_format=torch.channels_last)
    assert far.mean(dtype=torch.float64) == pytest.approx(1e4, rel=1e-6)
    assert far.double().std() == pytest.approx(1e-2, rel=0.01)
    first = by_id["first element 1e6, contiguous"].input()
    assert first[0, :, 0, 0].tolist() == [1e6] * 8
    assert first.flatten()[1:100].abs().max() < 10
    assert by_id["constant 12345.678, contiguous"].input().unique().tolist() == [torch.tensor(12345.678)]
    half = by_id["uniform(0, 1), channels_last"].input()
    assert half.dtype is torch.float16
    assert 0 <= float(half.min()) < 1e-5
    assert float(half.max()) == 1  # rounded up
    assert {entry.name for entry in DATA if entry.far_mean} == {"1e4 +- 1e-2", "1e6 +- 1"}


@pytest.fixture
def small_lenet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LeNet's activations come from a stand-in for MNIST and two training steps."""
    monkeypatch.setattr(mnist, "load", lambda **_: small_mnist())
    data._all_lenet_activations.cache_clear()
    yield
    data._all_lenet_activations.cache_clear()


@pytest.mark.usefixtures("small_lenet")
def test_lenets_data_are_the_inputs_of_its_norms() -> None:
    before, after = (data.lenet_activations("norm1", steps) for steps in (0, 2))
    assert before.shape == (64, 6, 28, 28)
    assert data.lenet_activations("norm2", 0).shape == (64, 16, 10, 10)
    assert not before.requires_grad
    difference = (before - after).abs().max()
    assert 0 < difference < 0.1  # Adam moves each weight by 0.001 per step, and a value depends on 25 of them
    assert [entry.id for entry in LENET] == [
        "LeNet norm1, no training steps, contiguous",
        "LeNet norm2, no training steps, contiguous",
        "LeNet norm1, 100 training steps, contiguous",
        "LeNet norm2, 100 training steps, contiguous",
    ]


# Measuring


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two draws, and no compilation."""
    monkeypatch.setattr(measure, "DRAWS", 2)
    monkeypatch.setattr(measure, "can_compile", lambda: False)


def small(name: str, mean: float, deviation: float, dtype: str = "float32") -> Data:
    return Data(name, lambda: data.normal(mean, deviation, SMALL), "channels_last", dtype)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ordinary_data_cost_no_digits(dtype: str) -> None:
    records = measure.measure(small("small", 0.5, 2.0, dtype))
    assert [record.quantity for record in records] == list(measure.QUANTITIES)
    for record in records:
        assert (record.data, record.dtype) == ("small, channels_last", dtype)
        assert list(record.ulps) == ["eager", "ours"]  # no compiler, so no row
        # A sequential sum of n terms has at most n roundings of half an ulp, with either sign.
        assert all(error <= (8 * 12 * 10) ** 0.5 for error in record.ulps.values()), record


@pytest.mark.needs_extension
@pytest.mark.usefixtures("short")
def test_a_large_mean_costs_eager_digits_and_ours_none() -> None:
    records = measure.measure(small("far", 1e4, 1e-2))
    output = next(record for record in records if record.quantity == "output")
    assert output.ulps["ours"] < 8
    assert output.ulps["eager"] > 1e4


class Spoiled(fused_bn.BatchNorm2d):
    """A norm with a planted error of at least 100 ulps of float32, named by what it spoils."""

    spoils = ""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        output = super().forward(input, residual)
        if self.spoils == "mean" and self.running_mean is not None:
            self.running_mean += 2e-5
        if self.spoils == "variance" and self.running_var is not None:
            self.running_var *= 1 + 2e-5
        spoiled = (1 + 2e-5) * output
        if self.spoils == "gradients":
            return spoiled - (spoiled - output).detach()
        return spoiled if self.spoils == "output" else output


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("spoils", ["output", "gradients", "mean", "variance"])
def test_a_planted_error_is_seen(spoils: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoiled, "spoils", spoils)
    monkeypatch.setattr(fused_bn, "BatchNorm2d", Spoiled)
    records = measure.measure(small("small", 0.0, 1.0))
    seen = {record.quantity for record in records if test_accuracy.worse(record)}
    assert seen >= {"gradients": {"grad_input", "grad_weight"}}.get(spoils, {spoils})
    if spoils in ("mean", "variance"):
        assert seen == {spoils}


# What the test demands


def record(quantity: str, ulps: dict[str, float]) -> Accuracy:
    return Accuracy("data", "float32", quantity, ulps)


@pytest.mark.parametrize(
    ("quantity", "ulps", "named"),
    [
        ("output", {"eager": 1.0, "ours": 1.4}, []),
        ("output", {"eager": 1.0, "ours": 1.6}, ["eager"]),
        ("grad_input", {"eager": 9.0, "compile": 1.0, "ours": 1.6}, ["compile"]),
        ("output", {"eager": math.inf, "ours": math.nan}, ["eager", "ours"]),
        ("variance", {"eager": 0.0, "ours": 0.5}, []),
        ("variance", {"eager": 0.4, "ours": 0.6}, ["eager"]),
        ("grad_weight", {"eager": 0.4, "ours": 1.5}, []),
        ("grad_weight", {"eager": 1.6, "ours": 1.7}, ["eager"]),
    ],
)
def test_ours_must_be_no_worse_than_any_row(quantity: str, ulps: dict[str, float], named: list[str]) -> None:
    complaints = test_accuracy.worse(record(quantity, ulps))
    assert len(complaints) == len(named)
    for row, complaint in zip(named, complaints, strict=True):
        assert f", {row} by " in complaint


def test_where_digits_cancel_ours_must_be_far_better() -> None:
    assert test_accuracy.not_far_better(record("output", {"eager": 200.0, "ours": 2.0})) == []
    ulps = {"eager": 200.0, "compile": 199.0, "ours": 2.0}
    (complaint,) = test_accuracy.not_far_better(record("output", ulps))
    assert "compile is wrong by 199 ulps" in complaint
    assert test_accuracy.not_far_better(record("mean", {"eager": 1.0, "ours": 1.0})) == []


# The table


def test_tables_have_every_row_and_gap() -> None:
    records = [
        record("output", {"eager": 1.5e7, "compile": 1234.0, "ours": 2.0}),
        record("grad_input", {"eager": 3.0, "ours": 0.0}),
        record("mean", {"eager": 0.0, "ours": 0.0}),
    ]
    assert table.headings(records)[3:] == ["eager", "compile", "ours", "eager / ours"]
    assert [line[3:] for line in table.lines(records)] == [
        ["1.5e+07", "1,234", "2.00", "7.5e+06"],
        ["3.00", "-", "0.00", "inf"],
        ["0.00", "-", "0.00", "-"],
    ]
    rows = table.markdown(records).splitlines()
    assert [row.count("|") for row in rows] == [8] * 5
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table.terminal(records))
    printed = capture.get()
    assert printed.count("float32") == 1  # a data set's name appears once
    assert "grad_input" in printed
    assert table.headings(records[1:])[3:] == ["eager", "ours", "eager / ours"]
