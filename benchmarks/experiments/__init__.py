"""The experiments that made batch norm known, with our kernels: `python -m benchmarks.experiments`."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # must be set before keras is first imported
