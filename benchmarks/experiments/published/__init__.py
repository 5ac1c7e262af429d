"""The experiments by name, in the order in which `python -m benchmarks.experiments all` runs them."""

from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.published import circles, iris, lenet, mnist_cnn, mnist_mlp, tutorial

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        iris.EXPERIMENT,
        circles.EXPERIMENT,
        mnist_mlp.EXPERIMENT,
        mnist_cnn.EXPERIMENT,
        tutorial.SEQUENCE,
        tutorial.CONV,
        lenet.EXPERIMENT,
    )
}
