"""What this device's memory gives: GB/s, bytes read plus bytes written, on buffers far beyond L2."""

import statistics

import torch

from benchmarks import timing
from benchmarks.timing import seconds

BUFFER_BYTES = 2**31
SMOKE_BYTES = 2**20
READINGS = 11
SECONDS = 0.02
"""Of one reading, at least."""


def bandwidths(device: torch.device, smoke: bool = False) -> dict[str, float]:
    """By kind of traffic; "copy" is the one that floors are counted with. Medians."""
    size = SMOKE_BYTES if smoke else BUFFER_BYTES
    if device.type == "cuda":
        size = min(size, torch.cuda.get_device_properties(device).total_memory // 8)
    a, b, c = (torch.ones(size // 4, device=device) for _ in range(3))
    kinds = {
        "copy": (2, lambda: b.copy_(a)),
        "read 2, write 1": (3, lambda: torch.add(a, b, out=c)),
        "read": (1, lambda: a.sum()),
        "write": (1, lambda: c.zero_()),
    }
    found = {}
    for kind, (tensors, call) in kinds.items():
        calls = timing.calls_lasting(SECONDS, call, device)
        readings = [seconds(call, calls, device) for _ in range(READINGS)]
        found[kind] = 1e-9 * tensors * a.numel() * a.element_size() / statistics.median(readings)
    return found
