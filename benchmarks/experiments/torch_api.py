"""The experiments' networks as PyTorch modules, and their training."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

import fused_bn
from benchmarks.environment import environment
from benchmarks.experiments import layers
from benchmarks.experiments.data import Part
from benchmarks.experiments.experiment import Curve, Training

EVALUATION_BATCH = 1000

Shape = tuple[int, ...]  # the shape of one example, channels first


def train(training: Training, report: Callable[[], object]) -> Curve:
    """Trains the variant's network. The same seed gives the same weights and batches.

    `report` is called after each step.
    """
    variant, split = training.variant, training.split
    torch.manual_seed(training.seed)
    parts = {name: _tensors(part) for name, part in split.parts.items()}
    images, labels = parts["train"]
    network = model(variant.network, tuple(images.shape[1:]), training.norm)
    optimizer = _optimizer(variant.optimizer, network)
    curve = Curve(training.seed)
    start = time.perf_counter()
    for _ in range(training.epochs):
        network.train()
        sums = torch.zeros(2, dtype=torch.float64)  # sums of losses and of right answers
        for inputs, wanted in _batches(images, labels, training.batch_size):
            optimizer.zero_grad(set_to_none=True)
            logits = network(inputs)
            loss = _loss(logits, wanted)
            loss.backward()
            optimizer.step()
            sums += torch.stack([loss.detach() * len(wanted), _correct(logits, wanted)])
            report()
        loss_sum, correct = sums.tolist()
        curve.train_loss.append(loss_sum / len(labels))
        curve.train_accuracy.append(correct / len(labels))
        curve.watched_accuracy.append(_accuracy(network, *parts[split.watched]))
    curve.seconds = time.perf_counter() - start
    curve.final = {name: _accuracy(network, *part) for name, part in parts.items()}
    return curve


def conditions() -> dict[str, Any]:
    """What the figures depend on besides the code. Modules are trained on the CPU."""
    return environment(torch.device("cpu"))


def model(network: layers.Network, shape: Shape, norm: str) -> nn.Sequential:
    """The network for examples of `shape`, channels first. Draws from torch's global generator."""
    built = nn.Sequential()
    for layer in network:
        for module in _modules(layer, shape, norm):
            built.append(module)
            with torch.no_grad():
                shape = tuple(module.eval()(torch.zeros(1, *shape)).shape[1:])
    return built


def _modules(layer: layers.Layer, shape: Shape, norm: str) -> list[nn.Module]:
    match layer:
        case layers.Dense():
            linear = skip_init(nn.Linear, shape[0], layer.units, bias=layer.use_bias)
            return [_initialised(linear, layer), *_activation(layer.activation)]
        case layers.Conv():
            convolution = skip_init(
                nn.Conv2d, shape[0], layer.filters, layer.kernel_size, bias=layer.use_bias
            )
            return [_initialised(convolution, layer), *_activation(layer.activation)]
        case layers.Norm():
            return _norm(layer, shape, norm)
        case layers.Lstm():
            return [_LastOutput(shape[-1], layer.units)]
        case layers.MaxPool():
            return [nn.MaxPool2d(layer.size)]
        case layers.AveragePool():
            return [nn.AvgPool2d(layer.size)]
        case layers.Flatten():
            return [nn.Flatten()]
        case layers.Softmax():
            return [nn.Softmax(dim=1)]


def _initialised(module: Any, layer: layers.Dense | layers.Conv) -> nn.Module:
    """Draws the same numbers with and without a bias, so that a seed gives the same weights."""
    he = layer.kernel_initializer == "he_uniform"
    (nn.init.kaiming_uniform_ if he else nn.init.xavier_uniform_)(module.weight)
    if module.bias is not None:
        nn.init.constant_(module.bias, layer.bias)
    return module


def _norm(layer: layers.Norm, shape: Shape, norm: str) -> list[nn.Module]:
    kinds = {1: (nn.BatchNorm1d, fused_bn.BatchNorm1d), 3: (nn.BatchNorm2d, fused_bn.BatchNorm2d)}
    framework, ours = kinds[len(shape)]
    options: dict[str, Any] = {
        "eps": layer.epsilon,
        "momentum": round(1 - layer.momentum, 12),  # because 1 - 0.9 is not exactly 0.1
        "affine": layer.affine,
    }
    made: nn.modules.batchnorm._BatchNorm
    if norm == "framework":
        made, behind = framework(shape[0], **options), _activation(layer.activation)
    else:
        activation = "none" if layer.activation == "linear" else layer.activation
        made, behind = ours(shape[0], **options, activation=activation), []
    if layer.affine:
        nn.init.constant_(made.weight, layer.weight)
    if layer.bias_std:  # otherwise draws nothing, so that norms do not change other layers' weights
        nn.init.normal_(made.bias, std=layer.bias_std)
    return [made, *behind]


def _activation(name: layers.Activation) -> list[nn.Module]:
    match name:
        case "linear":
            return []
        case "relu":
            return [nn.ReLU()]
        case "sigmoid":
            return [nn.Sigmoid()]
        case "tanh":
            return [nn.Tanh()]


class _LastOutput(nn.Module):
    """An LSTM with Keras' initial weights. Takes (N, steps, inputs), returns the last output, (N, units)."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, units, batch_first=True)
        nn.init.xavier_uniform_(self.lstm.all_weights[0][0])  # weights of the inputs
        nn.init.orthogonal_(self.lstm.all_weights[0][1])  # weights of the previous outputs
        forget_gate = slice(units, 2 * units)
        with torch.no_grad():
            for bias, value in zip(self.lstm.all_weights[0][2:], (1, 0), strict=True):
                bias.zero_()
                bias[forget_gate] = value  # Jozefowicz et al. 2015

    def forward(self, input: Tensor) -> Tensor:
        outputs, _ = self.lstm(input)
        return outputs[:, -1]


def _optimizer(wanted: layers.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    if isinstance(wanted, layers.Adam):
        return torch.optim.Adam(network.parameters(), lr=wanted.learning_rate, eps=wanted.epsilon)
    return torch.optim.SGD(network.parameters(), lr=wanted.learning_rate, momentum=wanted.momentum)


def _tensors(part: Part) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(part.inputs)
    if inputs.dim() == 4:
        inputs = inputs.movedim(-1, 1).contiguous()
    return inputs, torch.from_numpy(part.labels)


def _batches(inputs: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a random order. The last batch may be smaller."""
    for indices in torch.randperm(len(labels)).split(size):
        yield inputs.index_select(0, indices), labels.index_select(0, indices)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    answers = (logits[:, 0] > 0) if logits.shape[1] == 1 else logits.argmax(1)
    return (answers == labels).sum()


@torch.no_grad()
def _accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    network.eval()
    pairs = zip(inputs.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    return sum(int(_correct(network(some), wanted)) for some, wanted in pairs) / len(labels)
