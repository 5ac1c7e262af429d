"""Largest errors in ulps of eager, compiled and our batch norm with ReLU, on one input."""

import statistics
from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch._inductor import cpp_builder, exc

import fused_bn
from benchmarks.accuracy.data import Data
from benchmarks.accuracy.errors import ulps
from benchmarks.accuracy.truth import Truth, truth
from benchmarks.history import Accuracy

QUANTITIES = ("output", "grad_input", "grad_weight", "grad_bias", "mean", "variance")
""""mean" and "variance" are the running statistics after one step with momentum 1, so they are the batch's.
"""

DRAWS = 8
"""Draws of parameters and gradient. The largest error of a few channels' sums varies by a factor of three
between draws; the mean of eight draws varies by a third of that."""


def measure(data: Data) -> list[Accuracy]:
    """Returns one record per quantity: the mean over DRAWS of each row's largest error.

    Rows: "eager" is nn.BatchNorm2d and nn.ReLU; "compile" is the same under torch.compile, if there is a C++
    compiler; "ours". All train, with float32 parameters and a gradient of N(0, 1). Raises MnistError without
    MNIST.
    """
    input = data.input()
    rows = modules_by_row(input.shape[1])
    found: dict[str, dict[str, list[float]]] = {
        quantity: {row: [] for row in rows} for quantity in QUANTITIES
    }
    for norm, grad_output in draws(input):
        exact = truth(input, grad_output, norm)
        for row, module in rows.items():
            take_over(module, norm)
            for quantity, error in errors(module, input, exact).items():
                found[quantity][row].append(error)
    return [
        Accuracy(data.id, data.dtype, quantity, {row: statistics.fmean(e) for row, e in by_row.items()})
        for quantity, by_row in found.items()
    ]


def draws(input: Tensor) -> Iterator[tuple[nn.BatchNorm2d, Tensor]]:
    """DRAWS norms with parameters of ordinary size, each with a gradient of the output, from fixed seeds."""
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        norm = nn.BatchNorm2d(input.shape[1], momentum=1.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator)
        nn.init.normal_(norm.bias, generator=generator)
        yield norm, torch.empty_like(input).copy_(torch.randn(input.shape, generator=generator))


def modules_by_row(channels: int) -> dict[str, nn.Module]:
    """Batch norm and ReLU by row, with momentum 1."""
    torch_norm = partial(nn.BatchNorm2d, momentum=1.0)
    rows: dict[str, nn.Module] = {"eager": nn.Sequential(torch_norm(channels), nn.ReLU())}
    if can_compile():
        torch.compiler.reset()  # otherwise many inputs would be compiled as one dynamic shape
        compiled = torch.compile(nn.Sequential(torch_norm(channels), nn.ReLU()), dynamic=False)
        assert isinstance(compiled, nn.Module)  # a module, though torch's types do not say so
        rows["compile"] = compiled
    rows["ours"] = fused_bn.BatchNorm2d(channels, momentum=1.0, activation="relu")
    return rows


@lru_cache(maxsize=1)
def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler."""
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


def take_over(module: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Loads `norm`'s state into the one norm in `module`."""
    own = next(child for child in module.modules() if isinstance(child, nn.BatchNorm2d))
    own.load_state_dict(norm.state_dict())


def errors(module: nn.Module, input: Tensor, exact: Truth) -> dict[str, float]:
    """The largest error of each quantity in ulps, after one forward and backward of `module`."""
    leaf = input.detach().requires_grad_()
    output = module(leaf)
    gradients = torch.autograd.grad(output, [leaf, *module.parameters()], exact.grad_output)
    buffers = {name.rpartition(".")[2]: buffer for name, buffer in module.named_buffers()}
    results = (output, *gradients, buffers["running_mean"], buffers["running_var"])
    return {
        quantity: ulps(result, exact.exact[quantity], exact.scales[quantity])
        for quantity, result in zip(QUANTITIES, results, strict=True)
    }
