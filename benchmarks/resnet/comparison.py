"""The compared models: the same ResNet-50, as it is and fused, on the same images."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_bn
from benchmarks.comparison import LAYOUTS, WrongResultError
from benchmarks.memory import peak_bytes
from benchmarks.resnet.model import ResNet50


@dataclass(frozen=True)
class Case:
    """A batch of (batch, 3, size, size) images. bfloat16 means autocast around float32 parameters."""

    batch: int
    size: int
    layout: str
    dtype: str

    @property
    def id(self) -> str:
        return f"{self.batch}x3x{self.size}x{self.size} {self.layout} {self.dtype}"


class Comparison:
    """The models of one case. All rows start with the same parameters, and train.

    Rows: "eager" is the model from `make`. "fused" is the model after `fused_bn.fuse`. In "fused, recomputed"
    backward recomputes outputs of norms instead of keeping them. `compile` adds the first two under
    torch.compile.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        compile: bool = False,
        make: Callable[[], nn.Module] = ResNet50,
    ) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        format = LAYOUTS[case.layout]
        eager = make().to(device, memory_format=format)  # type: ignore[call-overload]
        self.models: dict[str, nn.Module] = {
            "eager": eager,
            "fused": fused_bn.fuse(copy.deepcopy(eager)),
            "fused, recomputed": fused_bn.fuse(copy.deepcopy(eager), recompute=True),
        }
        if compile:
            for row in ("eager", "fused"):
                compiled = torch.compile(copy.deepcopy(self.models[row]), dynamic=False)
                self.models[f"{row}, compiled"] = compiled  # type: ignore[assignment]
        images = torch.randn(case.batch, 3, case.size, case.size)
        self.images = images.to(device).contiguous(memory_format=format)
        self.labels = torch.randint(0, 1000, (case.batch,)).to(device)

    def loss(self, row: str, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.dtype == "bfloat16"):
            output = self.models[row](images)
        return F.cross_entropy(output.float(), self.labels)

    def step(self, row: str) -> Callable[[], object]:
        """One step of training."""
        return training_step(self.models[row], lambda: self.loss(row, self.images))

    def peak_activations(self, row: str) -> int:
        """The peak of live bytes in forward and backward, without parameters, gradients and buffers."""
        model = self.models[row]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        peak = peak_bytes(lambda: self.loss(row, self.images).backward(), self.device)
        model.zero_grad(set_to_none=True)
        return peak

    def check(self) -> None:
        """Runs every row once and compares losses and gradients with eager's. Raises WrongResultError.

        Call it before timing, because it also compiles. 53 norms in sequence multiply a rounding error by
        about 1e5, so the bound is measured: eager with every pixel moved by its last bit is the A/A control,
        and a row's gradients may differ from eager's three times as much. In bfloat16 such a move changes
        nothing, so only the loss is compared.
        """
        loss, gradients = self._gradients("eager", self.images)
        half = self.case.dtype == "bfloat16"
        moved = torch.nextafter(self.images, torch.full_like(self.images, torch.inf))
        allowed = 3 * distance(self._gradients("eager", moved)[1], gradients)
        for row in self.models:
            found_loss, found = self._gradients(row, self.images)
            if not abs(found_loss - loss) <= (2**-5 if half else 1e-4) * loss:
                raise WrongResultError(f"{row}: loss {found_loss}, eager's {loss}")
            if not half and not (off := distance(found, gradients)) <= allowed:
                raise WrongResultError(f"{row}: gradients off by {off:.1e}, allowed {allowed:.1e}")

    def _gradients(self, row: str, images: Tensor) -> tuple[float, list[Tensor]]:
        model = self.models[row]
        loss = self.loss(row, images)
        return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and an update by SGD with momentum."""
    # The labels are random, so the rate is small enough that the loss of many steps stays finite.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative distance of a parameter's gradients."""
    pairs = zip(found, expected, strict=True)
    return max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs)
