"""The results as text to be read in a terminal. Knows no torch."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.figures import DIRECTIONS, MANDATORY, OURS, Figures, Seconds, figures, mean_ratios, ratio
from benchmarks.gpu.stages import Outcome

SMOKE = "SMOKE RUN, tiny sizes: it proves that everything runs; NONE OF ITS NUMBERS IS A MEASUREMENT."


def text(results: dict[str, Any]) -> str:
    """Everything worth reading, a section a stage."""
    readings = results["readings"]
    sections = [[SMOKE]] if results["smoke"] else []
    sections += [list(conditions(readings)), [str(Outcome(**stage)) for stage in results["stages"]]]
    sections.append([f"FAILED {stage}: {failure}" for stage, failure in failures(readings)])
    makers = {"sanitize": sanitizers, "table": speed, "lenet": lenet}
    sections += [list(make(readings[stage])) for stage, make in makers.items() if stage in readings]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def conditions(readings: dict[str, Any]) -> Iterator[str]:
    """What the numbers were read on and with."""
    environment = next((found["environment"] for found in readings.values() if "environment" in found), None)
    if environment:
        yield ", ".join(f"{name} {value}" for name, value in environment.items() if value is not None)


def failures(readings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for stage, found in readings.items():
        for failure in found.get("failures", []):
            yield stage, failure.splitlines()[0][:200]


def sanitizers(readings: dict[str, Any]) -> Iterator[str]:
    for tool in readings.get("tools", []):
        yield f"{tool['tool']}: {tool['state']}, {tool['findings']} findings in {tool['calls']} calls"


def speed(readings: dict[str, Any]) -> Iterator[str]:
    """A table a direction, and the means."""
    if "bandwidth" not in readings:
        return
    bandwidths = (f"{kind} {value:.0f}" for kind, value in readings["bandwidth"].items())
    yield f"memory, GB/s on large buffers: {', '.join(bandwidths)}"
    found = list(figures(readings))
    for direction in DIRECTIONS:
        yield ""
        yield (
            f"{direction}: microseconds by graph replay from cold buffers (medians); GB/s of the mandatory "
            f"{MANDATORY[direction]} tensors; floor: those at the copy's GB/s"
        )
        yield "plan: mapping, exchange, groups x blocks, steps in registers + in shared memory + streamed"
        yield "eager's: whose kernels eager took; native: eager with cuDNN off, where it took cuDNN's"
        yield from aligned(list(_lines([each for each in found if each.direction == direction])))
    yield ""
    for row in _rows(found):
        means = mean_ratios(found, row)
        texts = (f"{name} {number(value, 2)}" for name, value in means.items())
        yield f"times as long as ours, geometric means: {row}: {', '.join(texts)}"
    for case, directions in readings.get("host", {}).items():
        for direction, seconds in directions.items():
            yield f"{case}, modules called by the host, {direction}: {host(seconds)}"


def _rows(found: Sequence[Figures]) -> list[str]:
    """Whom ours is compared with, in their order."""
    rows = dict.fromkeys(row for each in found for row in each.medians)
    return [row for row in rows if row not in (OURS, "copy")]


def _lines(found: Sequence[Figures]) -> Iterator[list[str]]:
    rows = _rows(found)
    ratios = [f"{row}/ours" for row in rows]
    yield ["case", "copy", *rows, OURS, *ratios, "GB/s", "floor", "share", "predicted", "plan", "eager's"]
    for each in found:
        yield [
            each.case,
            *(number(each.medians.get(row), 1) for row in ("copy", *rows, OURS)),
            *(number(each.ratios.get(row), 2) for row in rows),
            number(each.gigabytes_per_second, 0),
            number(each.floor, 1),
            number(each.share and 100 * each.share, 0, "%"),
            number(each.predicted, 1),
            in_short(each.plan),
            each.eager_backend,
        ]


def in_short(plan: dict[str, Any]) -> str:
    """Kernel, exchange, groups x blocks, and steps kept in registers + in shared memory + streamed."""
    steps = "+".join(str(plan[kind]) for kind in ("register_steps", "shared_steps", "streamed_steps"))
    vectors = "" if plan["whole"] else " partial"
    return f"{plan['mapping']}{vectors} {plan['exchange']} {plan['groups']}x{plan['group']} {steps}"


def host(seconds: Seconds) -> str:
    """Microseconds a call of every row, and eager's over ours."""
    times = (f"{row} {1e6 * statistics.median(values):.1f}" for row, values in seconds.items())
    return f"{', '.join(times)} us; eager / ours {number(ratio(seconds, 'eager'), 2)}"


def lenet(readings: dict[str, Any]) -> Iterator[str]:
    for direction, seconds in readings.get("host", {}).items():
        yield f"host time of a tiny call, {direction}: {host(seconds)}"
    if "steps" in readings:
        yield f"LeNet-5, batch {readings['batch']}, images from {readings['images']}: images a second"
        yield from aligned(
            [
                ["variant and mode", "images/s"],
                *([name, f"{rate:,.0f}"] for name, rate in images_per_second(readings).items()),
            ]
        )


def images_per_second(readings: dict[str, Any]) -> dict[str, float]:
    """By variant and mode, from the median step."""
    return {name: readings["batch"] / statistics.median(values) for name, values in readings["steps"].items()}


def number(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns two spaces apart: the first and those of words to the left, numbers to the right."""
    if not lines:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_left = [not any(_is_number(cell) for cell in column[1:]) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_left, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _is_number(text: str) -> bool:
    return text.rstrip("%").replace(",", "").replace(".", "", 1).isdigit()
