"""What --normalize does to the inputs: each feature by itself, from the training part's values alone."""

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from benchmarks.experiments.data import Part, Split


class MeanScaler:
    """(x - mean) / (max - min), for which scikit-learn has no scaler, in its manner.

    A constant feature becomes 0.
    """

    def fit(self, inputs: NDArray[np.float64]) -> "MeanScaler":
        """From inputs of shape (N, features)."""
        low, high = inputs.min(axis=0), inputs.max(axis=0)
        # The mean of equal values may be off by a rounding, which no range would divide.
        self.mean_ = np.where(low == high, low, inputs.mean(axis=0))
        self.range_ = np.where(low == high, 1, high - low)
        return self

    def transform(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of shape (N, features)."""
        return (inputs - self.mean_) / self.range_


SCALERS = {"none": None, "minmax": MinMaxScaler, "mean": MeanScaler, "zscore": StandardScaler}
"""By what --normalize calls them: nothing, to [0, 1], see above, and to mean 0 and deviation 1."""


def normalized(split: Split, name: str) -> Split:
    """The split with all parts transformed by the scaler of that name, fitted to the training part.

    A feature is one number of an example, for images that of one pixel.
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
