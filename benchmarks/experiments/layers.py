"""The layers of the experiments' networks. Both APIs build a model from these descriptions.

Names and defaults are Keras', because the experiments were published with Keras. A momentum is the share of
the old running statistics that stays. Weights are Glorot-uniform (Glorot and Bengio 2010), biases are 0,
there is no padding. A network ends in logits; the loss includes the softmax or sigmoid.
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
    """The initial bias."""


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
    """Batch normalisation over all dimensions but the channels', and an activation in the same call."""

    activation: Activation = "linear"
    momentum: float = 0.99
    epsilon: float = 1e-3
    affine: bool = True
    """Whether there are a weight (gamma) and a bias (beta)."""
    weight: float = 1.0
    """The initial weight."""
    bias_std: float = 0.0
    """The standard deviation of the initial bias, whose mean is 0."""


@dataclass(frozen=True)
class Lstm:
    """A long short-term memory (Hochreiter and Schmidhuber 1997). Returns the last step's output."""

    units: int


@dataclass(frozen=True)
class MaxPool:
    """The maximum of each square."""

    size: int = 2


@dataclass(frozen=True)
class AveragePool:
    """The mean of each square."""

    size: int = 2


@dataclass(frozen=True)
class Flatten:
    """Flattens all dimensions but the first."""


@dataclass(frozen=True)
class Softmax:
    """Turns logits into probabilities, for networks that were published this way."""


Layer = Dense | Conv | Norm | Lstm | MaxPool | AveragePool | Flatten | Softmax
Network = Sequence[Layer]


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent."""

    learning_rate: float
    momentum: float = 0.0


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015) with Keras' defaults."""

    learning_rate: float = 1e-3
    epsilon: float = 1e-7


Optimizer = Sgd | Adam
