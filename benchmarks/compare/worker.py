"""One process that computes with one revision's fused_bn: takes orders and gives answers as lines of JSON.

    python -m benchmarks.compare.worker CHECKOUT DEVICE THREADS

The harness is that of the process's own `benchmarks`, whatever CHECKOUT holds: old revisions have none.
Orders: {"do": "prepare", "shape", "layout", "dtype", "direction", "seconds"} makes a cell ready whose
readings last that long; {"do": "read", "readings"} answers {"seconds": [of a call, ...]}. What goes wrong
is answered {"error": text}.
"""

import gc
import importlib
import json
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from benchmarks import timing

if TYPE_CHECKING:  # at run time behind `load`: it imports fused_bn
    from benchmarks.comparison import Case, Comparison

SPACER_BYTES = 2 << 20
"""At most: of the quick cells' largest tensors' size."""


class LoadError(Exception):
    """The checkout's fused_bn, or its extension, is not what would be timed."""


def load(checkout: Path) -> None:
    """Imports fused_bn from `checkout`, wherever else one is installed; raises LoadError."""
    sys.path.insert(0, str(checkout))
    try:
        package = importlib.import_module("fused_bn")
    finally:
        sys.path.remove(str(checkout))
    extension = sys.modules.get("fused_bn._C")
    for name, module in (("fused_bn", package), ("its extension", extension)):
        if module is None:
            raise LoadError(f"{name} was not loaded from {checkout}")
        file = Path(str(module.__file__)).resolve()
        if not file.is_relative_to(checkout.resolve()):
            raise LoadError(f"{name} is {file}, not one of {checkout}")


class Server:
    """What the orders do; keeps the tensors of the last case, whose directions come behind each other."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._case: Case | None = None
        self._comparison: Comparison | None = None
        self._direction = ""
        self._calls = 1
        self._spacers: list[Tensor] = []

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """What an order comes to; errors are part of the answer."""
        try:
            do = order.pop("do")
            return self._prepare(**order) if do == "prepare" else self._read(**order)
        except Exception as error:  # of a revision that may be anything
            return {"error": f"{type(error).__name__}: {error}"}

    def _prepare(
        self, shape: list[int], layout: str, dtype: str, direction: str, seconds: float
    ) -> dict[str, Any]:
        from benchmarks.comparison import Case

        self._comparison, self._direction = self._comparison_of(Case(tuple(shape), layout, dtype)), direction
        slot = self._comparison.slots(direction)["ours"]
        self._calls = timing.calls_lasting(seconds, slot, self._device)
        return {"calls": self._calls}

    def _comparison_of(self, case: "Case") -> "Comparison":
        from benchmarks.comparison import Comparison

        if self._comparison is None or case != self._case:
            self._case, self._comparison = None, None  # not two at once
            gc.collect()
            comparison = Comparison(case, self._device)
            comparison.check()
            evaluating = comparison.slots("evaluation")
            comparison.check_results("ours", "evaluation", evaluating["ours"](), evaluating["eager"]())
            self._case, self._comparison = case, comparison
        return self._comparison

    def _read(self, readings: int) -> dict[str, Any]:
        """The first reading is the warm-up: what others left in caches, and where they still spin, goes."""
        assert self._comparison is not None
        self._spacers = move(self._comparison)
        slot = self._comparison.slots(self._direction)["ours"]
        taken = [timing.seconds(slot, self._calls, self._device) for _ in range(1 + readings)]
        return {"seconds": taken[1:]}


def move(comparison: "Comparison") -> list[Tensor]:
    """Gives the comparison's tensors another place in memory, and returns what must live to keep them there.

    Where the heap puts tensors decides whether they meet in the caches: forward and backward of 2 MB took
    230 to 400 us, the same for as long as they lay there. Over the rounds that becomes noise, which averages.
    """
    comparison.clear_gradients()
    spacers = [torch.empty(random.randrange(SPACER_BYTES), dtype=torch.uint8) for _ in range(3)]
    comparison.input = comparison.input.detach().clone().requires_grad_()
    comparison.grad_output = comparison.grad_output.clone()
    return spacers


def serve(orders: TextIO, answers: TextIO, server: Server) -> None:
    """Answers until no more orders come."""
    for line in orders:
        print(json.dumps(server.answer(json.loads(line))), file=answers, flush=True)


def main(argv: list[str]) -> None:
    checkout, device, threads = argv
    # Whatever a library prints goes to the log, not among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        load(Path(checkout))
    except (ImportError, LoadError) as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    torch.set_num_threads(int(threads))
    gc.disable()  # a collection takes a tenth of a second: here, none comes within a reading
    print(json.dumps({"loaded": checkout}), file=answers, flush=True)
    serve(sys.stdin, answers, Server(device))


if __name__ == "__main__":
    main(sys.argv[1:])
