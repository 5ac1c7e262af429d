"""Seeded fuzzers: calls of the operators with arguments of any kind, and values of any kind.

`python -m tests.fuzz operators` and `python -m tests.fuzz values`; `make fuzz SECONDS=600` runs both under
the sanitizers. The same seed makes the same attempt.
"""
