"""The experiments that made batch norm known, on our kernels: `python -m benchmarks.experiments`."""
