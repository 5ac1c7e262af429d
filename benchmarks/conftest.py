"""Imported before the benchmarks, and so before torch, whose threads `benchmarks.speed` has a wish for."""

import benchmarks.speed  # noqa: F401
