"""Whether a compiler, exporter or tracer records a call, and which operators it gets: mostly PyTorch's own.

Programs of torch.export, torch.jit.trace and torch.onnx.export hold what they hold with nn.BatchNorm*. They
run without this package, and passes that fold, quantise or convert batch norm find it. torch.compile gets the
same in evaluation, where its own kernels fuse more than ours. In training it gets the fused operator.
Distributed tensors take PyTorch's operators, because it knows how to shard those.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

_keeps_fused = False


@contextmanager
def fused_in_export() -> Iterator[None]:
    """In this context torch.export keeps the fused operator, and so does torch.compile in evaluation.

    Such an exported program needs `import fused_bn` where it is loaded. The context affects all threads.

    Example:
        with fused_bn.fused_in_export():
            program = torch.export.export(model, (example,))
    """
    global _keeps_fused
    before, _keeps_fused = _keeps_fused, True
    try:
        yield
    finally:
        _keeps_fused = before


def _is_exporting() -> bool:
    # The compiler of torch 2.11 takes torch.compiler.is_exporting() for True without an export too.
    return torch.compiler._is_exporting_flag


def wants_plain_calls(input: Tensor, training: bool) -> bool:
    """Whether PyTorch's own operators compute a norm for which there is a kernel of ours."""
    if torch.compiler.is_compiling() and not _keeps_fused and (_is_exporting() or not training):
        return True
    if type(input) is Tensor:
        return False
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(input, distributed.DTensor)


def wants_own_forward(*values: object) -> bool:
    """Whether a tracer or exporter records this call. Then the model's own forward must run."""
    if torch.compiler.is_compiling():
        return _is_exporting() and not _keeps_fused
    for value in values:
        if isinstance(value, fx.Proxy):
            return True
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]
