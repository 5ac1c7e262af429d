"""--normalize: scales each feature on its own, by the training part's values."""

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from benchmarks.experiments.data import Part, Split


class MeanScaler:
    """Scales by (x - mean) / (max - min). scikit-learn has no such scaler; this one has the same methods.

    A constant feature becomes 0.
    """

    def fit(self, inputs: NDArray[np.float64]) -> "MeanScaler":
        """Fits inputs of shape (N, features)."""
        low, high = inputs.min(axis=0), inputs.max(axis=0)
        # The mean of equal values may have a rounding error, which a range of 0 cannot scale.
        self.mean_ = np.where(low == high, low, inputs.mean(axis=0))
        self.range_ = np.where(low == high, 1, high - low)
        return self

    def transform(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scales inputs of shape (N, features)."""
        return (inputs - self.mean_) / self.range_


SCALERS = {"none": None, "minmax": MinMaxScaler, "mean": MeanScaler, "zscore": StandardScaler}
"""Scalers by their name in --normalize: none, to [0, 1], the class above, and to mean 0 and deviation 1."""


def normalized(split: Split, name: str) -> Split:
    """Returns the split with all parts scaled by the scaler of that name, fitted to the training part.

    A feature is one number of an example. For images it is one pixel.
    """
    if SCALERS[name] is None:
        return split
    scaler = SCALERS[name]().fit(_rows(split.train))
    return Split(
        {
            part: Part.of(scaler.transform(_rows(examples)).reshape(examples.inputs.shape), examples.labels)
            for part, examples in split.parts.items()
        }
    )


def _rows(part: Part) -> NDArray[np.float64]:
    return part.inputs.reshape(len(part.inputs), -1).astype(np.float64)
