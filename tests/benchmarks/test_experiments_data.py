"""The experiments' data: the published parts, and inputs scaled by the training examples alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("sklearn")

from sklearn.datasets import load_iris, make_circles

from benchmarks import mnist
from benchmarks.experiments import data
from benchmarks.experiments.data import Part, Split
from benchmarks.experiments.normalization import SCALERS, normalized
from benchmarks.lenet.training import Data
from tests.benchmarks.lenet_data import small_mnist

EPS = np.finfo(np.float32).eps
NAMES = [name for name in SCALERS if name != "none"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_mnist", lambda _: small_mnist())
    data._enlarged.cache_clear()


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Keeps no data of another test's MNIST."""
    data._enlarged.cache_clear()


def test_iris_is_cut_into_all_of_its_flowers() -> None:
    split = data.iris(3, None, None)
    assert {name: len(part.labels) for name, part in split.parts.items()} == {
        "train": 90,
        "validation": 30,
        "test": 30,
    }
    assert split.watched == "validation"
    found = sorted(
        (*row, label)
        for part in split.parts.values()
        for row, label in zip(part.inputs.tolist(), part.labels.tolist(), strict=True)
    )
    inputs, labels = load_iris(return_X_y=True)
    whole = zip(inputs.astype(np.float32).tolist(), labels.tolist(), strict=True)
    assert found == sorted((*row, label) for row, label in whole)


def test_the_seed_chooses_the_flowers() -> None:
    first, again, other = (data.iris(seed, None, None).train.inputs for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_circles_are_the_published_ones() -> None:
    points, labels = make_circles(1000, noise=0.1, random_state=1)
    split = data.circles(7, None, None)
    np.testing.assert_array_equal(
        np.concatenate([split.train.inputs, split.parts["test"].inputs]), points.astype(np.float32)
    )
    np.testing.assert_array_equal(np.concatenate([split.train.labels, split.parts["test"].labels]), labels)
    assert len(split.train.labels) == 500
    assert split.watched == "test"


@pytest.mark.usefixtures("small")
def test_mnist_is_split_as_published() -> None:
    whole, some = data.digits(0, None, None), data.digits(0, 50, None)
    original = small_mnist()
    np.testing.assert_array_equal(np.rint(whole.train.inputs[..., 0] * 255), original.train_images)
    np.testing.assert_array_equal(some.train.inputs, whole.train.inputs[:50])
    np.testing.assert_array_equal(some.train.labels, original.train_labels[:50])
    np.testing.assert_array_equal(some.parts["test"].inputs, whole.parts["test"].inputs)
    rows = data.digit_rows(0, 50, None)
    np.testing.assert_array_equal(rows.train.inputs, some.train.inputs[..., 0])


@pytest.mark.usefixtures("small")
def test_large_digits_are_the_main_jobs() -> None:
    split = data.large_digits(0, 50, None)
    expected = Data.of(small_mnist(), torch.device("cpu"))
    np.testing.assert_array_equal(split.train.inputs[:, None, :, :, 0], expected.train_images[:50].numpy())
    np.testing.assert_array_equal(split.parts["test"].labels, expected.test_labels.numpy())


def test_where_mnist_is_broken_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"no images")
    for file in mnist.idx.FILES[1:]:
        (tmp_path / file.name).write_bytes(b"")
    data._mnist.cache_clear()
    with pytest.raises(mnist.MnistError, match="is not MNIST's"):
        data.digits(0, None, tmp_path)


def split_of(train: NDArray[np.float64], test: NDArray[np.float64]) -> Split:
    return Split(
        {
            "train": Part.of(train, np.zeros(len(train), np.int64)),
            "test": Part.of(test, np.ones(len(test), np.int64)),
        }
    )


@pytest.fixture
def split() -> Split:
    generator = np.random.default_rng(0)
    deviations, means = np.array([1.0, 100.0, 0.001]), np.array([0.0, -7.0, 1.0])
    train, test = (generator.normal(size=(n, 3)) * deviations + means for n in (200, 50))
    return split_of(train, test)


def test_minmax(split: Split) -> None:
    train = normalized(split, "minmax").train.inputs
    np.testing.assert_allclose(train.min(axis=0), 0, atol=2 * EPS)
    np.testing.assert_allclose(train.max(axis=0), 1, atol=2 * EPS)


def test_mean(split: Split) -> None:
    """Computed in double and rounded to float32 at the end: values up to 1 are off by at most half an EPS."""
    train = normalized(split, "mean").train.inputs.astype(np.float64)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=EPS / 2)
    np.testing.assert_allclose(np.ptp(train, axis=0), 1, atol=EPS)


def test_zscore(split: Split) -> None:
    """As above, for values of up to 4: off by at most 2 EPS."""
    train = normalized(split, "zscore").train.inputs.astype(np.float64)
    assert np.abs(train).max() < 4
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=2 * EPS)
    np.testing.assert_allclose(train.std(axis=0), 1, rtol=2 * EPS)


def test_none_changes_nothing(split: Split) -> None:
    assert normalized(split, "none") is split


@pytest.mark.parametrize("name", NAMES)
def test_only_the_training_examples_count(name: str, split: Split) -> None:
    other = split_of(split.train.inputs.astype(np.float64), np.full((2, 3), 1e6))
    ours, theirs = normalized(split, name), normalized(other, name)
    np.testing.assert_array_equal(ours.train.inputs, theirs.train.inputs)
    assert ours.parts["test"].inputs.shape == (50, 3)
    assert not np.array_equal(ours.parts["test"].inputs, split.parts["test"].inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e10, -3e-20])
def test_a_constant_feature_becomes_zero(name: str, constant: float) -> None:
    """The result is neither NaN nor a rounding error divided by another: 0.1 has no exact mean in binary."""
    train = np.full((1000, 2), constant)
    train[:, 1] = np.arange(1000)
    found = normalized(split_of(train, train), name)
    for part in found.parts.values():
        np.testing.assert_array_equal(part.inputs[:, 0], 0)
        assert np.isfinite(part.inputs).all()
        assert np.ptp(part.inputs[:, 1]) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_images_keep_their_shape_and_pixels_their_place(name: str) -> None:
    images = np.random.default_rng(0).uniform(size=(40, 2, 3, 1))
    found = normalized(split_of(images, images), name)
    assert found.train.inputs.shape == images.shape
    alone = normalized(split_of(images[:, 1, 2], images[:, 1, 2]), name)
    np.testing.assert_allclose(found.train.inputs[:, 1, 2], alone.train.inputs, rtol=4 * EPS, atol=4 * EPS)
