"""A process that runs one revision's fused_bn. Orders and answers are lines of JSON.

  python -m benchmarks.compare.worker CHECKOUT DEVICE THREADS

The measuring code is the present checkout's `benchmarks`, because old revisions have none.

Order {"do": "prepare", "shape", "layout", "dtype", "direction", "seconds"} prepares a cell whose readings
last `seconds`. Order {"do": "read", "readings"} answers {"seconds": [per call, ...]}. An error answers
{"error": text}.
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

if TYPE_CHECKING:  # at run time only after `load`, because it imports fused_bn
    from benchmarks.comparison import Case, Comparison

SPACER_BYTES = 2 << 20
"""The largest spacer: the size of the quick cells' largest tensors."""


class LoadError(Exception):
    """fused_bn or its extension was loaded from elsewhere than the checkout."""


def load(checkout: Path) -> None:
    """Imports fused_bn from `checkout`, even if another one is installed. Raises LoadError."""
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
    """Carries out the orders. Keeps the last case's tensors, because its directions follow each other."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._case: Case | None = None
        self._comparison: Comparison | None = None
        self._direction = ""
        self._calls = 1
        self._spacers: list[Tensor] = []

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to an order. Errors are answers too."""
        try:
            do = order.pop("do")
            return self._prepare(**order) if do == "prepare" else self._read(**order)
        except Exception as error:  # a revision may raise anything
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
            self._case, self._comparison = None, None  # frees the old case before the new one is made
            gc.collect()
            comparison = Comparison(case, self._device)
            comparison.check()
            evaluating = comparison.slots("evaluation")
            comparison.check_results("ours", "evaluation", evaluating["ours"](), evaluating["eager"]())
            self._case, self._comparison = case, comparison
        return self._comparison

    def _read(self, readings: int) -> dict[str, Any]:
        """The first reading is not returned: it warms up caches that other processes have used."""
        assert self._comparison is not None
        self._spacers = move(self._comparison)
        slot = self._comparison.slots(self._direction)["ours"]
        taken = [timing.seconds(slot, self._calls, self._device) for _ in range(1 + readings)]
        return {"seconds": taken[1:]}


def move(comparison: "Comparison") -> list[Tensor]:
    """Moves the comparison's tensors in memory. Returns spacers that must stay alive to keep them there.

    The tensors' addresses decide whether they conflict in the caches: forward and backward of 2 MB took 230
    to 400 us, constant for as long as the tensors stayed. Moving them each round turns this bias into noise
    that averages out.
    """
    comparison.clear_gradients()
    spacers = [torch.empty(random.randrange(SPACER_BYTES), dtype=torch.uint8) for _ in range(3)]
    comparison.input = comparison.input.detach().clone().requires_grad_()
    comparison.grad_output = comparison.grad_output.clone()
    return spacers


def serve(orders: TextIO, answers: TextIO, server: Server) -> None:
    """Answers until the orders end."""
    for line in orders:
        print(json.dumps(server.answer(json.loads(line))), file=answers, flush=True)


def main(argv: list[str]) -> None:
    checkout, device, threads = argv
    # Standard output becomes the log, so that a library's prints do not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        load(Path(checkout))
    except (ImportError, LoadError) as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    torch.set_num_threads(int(threads))
    gc.disable()  # a collection takes a tenth of a second and must not fall into a reading
    print(json.dumps({"loaded": checkout}), file=answers, flush=True)
    serve(sys.stdin, answers, Server(device))


if __name__ == "__main__":
    main(sys.argv[1:])
