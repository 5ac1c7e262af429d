"""The words that the experiments' networks are written in; both APIs build a model from them.

Names and defaults are Keras', whose users published the experiments: a momentum is the share of the old
running statistics that stays, weights are Glorot-uniform (Glorot and Bengio 2010), biases 0, there is no
padding. A network ends in logits; the softmax or sigmoid behind them is part of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Activation = Literal["linear", "relu", "sigmoid", "tanh"]
Initialiser = Literal["glorot_uniform", "he_uniform"]


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with its activation."""

    units: int
    activation: Activation = "linear"
    use_bias: bool = True
    kernel_initializer: Initialiser = "glorot_uniform"
    bias: float = 0.0
    """What the bias begins as."""


@dataclass(frozen=True)
class Conv:
    """A convolution of square kernels with its activation."""

    filters: int
    kernel_size: int = 3
    activation: Activation = "linear"
    use_bias: bool = True
    kernel_initializer: Initialiser = "glorot_uniform"
    bias: float = 0.0


@dataclass(frozen=True)
class Norm:
    """Batch normalisation over all dimensions but the channels', and an activation in the same pass."""

    activation: Activation = "linear"
    momentum: float = 0.99
    epsilon: float = 1e-3
    affine: bool = True
    """With a weight (gamma) and a bias (beta)."""
    weight: float = 1.0
    """What the weight begins as."""
    bias_std: float = 0.0
    """The standard deviation of what the bias begins as; its mean is 0."""


@dataclass(frozen=True)
class Lstm:
    """A long short-term memory (Hochreiter and Schmidhuber 1997); its output is that of the last step."""

    units: int


@dataclass(frozen=True)
class MaxPool:
    """The largest of each square."""

    size: int = 2


@dataclass(frozen=True)
class AveragePool:
    """The mean of each square."""

    size: int = 2


@dataclass(frozen=True)
class Flatten:
    """All dimensions but the first become one."""


@dataclass(frozen=True)
class Softmax:
    """Probabilities, for a network that has them in place of its logits."""


Layer = Dense | Conv | Norm | Lstm | MaxPool | AveragePool | Flatten | Softmax
Network = Sequence[Layer]


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent."""

    learning_rate: float
    momentum: float = 0.0


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, with Keras' defaults."""

    learning_rate: float = 1e-3
    epsilon: float = 1e-7


Optimizer = Sgd | Adam
