"""The cost of each variant's training step: milliseconds in its norm layers, and peak memory."""

import statistics
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from benchmarks.lenet.model import NORM_LAYERS, Variant
from benchmarks.lenet.training import Data, Settings, Trainer
from benchmarks.memory import peak_bytes
from benchmarks.timing import synchronize

ROUNDS = 100
WARM_UP = 10


def norm_times(
    variants: Iterable[Variant], data: Data, settings: Settings, trainer: type[Trainer] = Trainer
) -> dict[str, float]:
    """Milliseconds per step in each variant's norm layers, forward and backward, by variant id.

    In the ReLU placement a norm layer is norm and ReLU. The layers run alone, on their inputs in a model's
    first step, because timing inside the training would slow it down. The variants take turns in every round,
    so that a disturbance affects all. The result is the sum over a variant's layers of the median over ROUNDS
    rounds. Variants without norm are left out.

    If `trainer` shares batches with other processes, all call this, and the times are those of a share with
    its communication.
    """
    layers = {v.id: _layers_and_inputs(v, data, settings, trainer) for v in variants if v.norm is not None}
    samples: dict[tuple[str, int], list[float]] = {}
    for number in range(WARM_UP + ROUNDS):
        for id, pairs in layers.items():
            for position, (layer, input) in enumerate(pairs):
                seconds = _seconds(layer, input, settings)
                if number >= WARM_UP:
                    samples.setdefault((id, position), []).append(seconds)
    return {
        id: 1e3 * sum(statistics.median(samples[id, position]) for position in range(len(pairs)))
        for id, pairs in layers.items()
    }


def _layers_and_inputs(
    variant: Variant, data: Data, settings: Settings, trainer: type[Trainer]
) -> list[tuple[nn.Module, Tensor]]:
    made = trainer(variant.norm, variant.tanh, data, settings)
    layers = [made.model.get_submodule(name) for name in NORM_LAYERS]
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().requires_grad_()))
        for layer in layers
    ]
    made.loss(*next(made.batches()))
    for hook in hooks:
        hook.remove()
    return list(zip(layers, inputs, strict=True))


def _seconds(layer: nn.Module, input: Tensor, settings: Settings) -> float:
    wanted = [input, *layer.parameters()]
    gradient = torch.randn_like(input)
    synchronize(settings.device)
    start = time.perf_counter()
    with settings.autocast():
        output = layer(input)
    torch.autograd.grad(output, wanted, gradient)
    synchronize(settings.device)
    return time.perf_counter() - start


def peak_memory(variant: Variant, data: Data, settings: Settings, trainer: type[Trainer] = Trainer) -> int:
    """The peak of live tensor bytes in a training step: parameters, gradients, Adam's state, activations.

    The data set and the batch are not counted, because they are the same for every variant. On the CPU,
    memory that libraries allocate for themselves is not counted. If `trainer` shares batches, this is one
    process's peak.
    """
    batch = next(trainer(variant.norm, variant.tanh, data, settings).batches())

    def two_steps() -> None:  # the first step creates Adam's state, the second starts with it
        made = trainer(variant.norm, variant.tanh, data, settings)
        for _ in range(2):
            made.step(*batch)

    return peak_bytes(two_steps, settings.device)
