"""The experiments that made batch norm known, on our kernels: `python -m benchmarks.experiments`."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before keras is first imported
