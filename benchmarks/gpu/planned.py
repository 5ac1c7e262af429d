"""Plans of calls: forces them, reads them back, and asks the planner for predictions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fused_bn import planner
from fused_bn._extension import extension
from tests.cases import Case

PLAN_LAYOUTS = {"contiguous": "channels_first", "channels_last": "channels_last"}


@contextmanager
def forced(text: str) -> Iterator[None]:
    """Forces this plan on every launch, or raises ValueError if it does not fit. Does nothing on the CPU."""
    if extension is None or not hasattr(extension, "cuda_force_plan"):
        yield
        return
    extension.cuda_force_plan(text)
    try:
        yield
    finally:
        extension.cuda_force_plan("")


def last_plan() -> str:
    """The plan of the last launch. Empty on the CPU."""
    return getattr(extension, "cuda_last_plan", str)()


def predicted(case: Case, device: torch.device, direction: str, text: str = "") -> float | None:
    """Predicted microseconds of the planner's plan, or of a forced one. None if the prediction fails."""
    way = direction if case.training else "evaluation"
    layout, residual = PLAN_LAYOUTS[case.layout], case.residual
    try:
        plan = planner.plan(case.shape, case.dtype, layout, model_of(device), way, residual, forced=text)
    except Exception as error:
        print(f"no prediction: {error}", flush=True)
        return None
    return round(plan.predicted_time, 2)


def model_of(device: torch.device) -> str | dict[str, float | str]:
    """The planner's model of the device, by its name or its nearest architecture."""
    if device.type != "cuda":
        return "h200"
    name = torch.cuda.get_device_name(device).lower()
    major, minor = torch.cuda.get_device_capability(device)
    nearest: dict[str, float | str] = {"architecture": 10 * major + minor}
    return next((known for known in planner.device_names() if known in name), nearest)
