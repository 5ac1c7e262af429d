"""Packs results.jsonl into results.json, and the main figures into table.txt. Does not import torch."""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import files

FORMAT = 2
"""Increase it when a field of the JSON files changes its meaning or its name."""
SMOKE = "SMOKE RUN, tiny sizes: it proves that everything runs; NONE OF ITS NUMBERS IS A MEASUREMENT."
MOST_FAILURES = 40
MOST_PLANS = 5
"""How many forced plans of a case and direction are shown beside the planner's. results.json has all."""

Line = dict[str, Any]


def write(directory: Path) -> str:
    """Returns the text, and writes it to table.txt beside results.json."""
    parts = packed((directory / "results.jsonl").read_text().splitlines())
    files.write_whole(
        directory / "results.json", json.dumps({"format": FORMAT, "parts": parts}, indent=1) + "\n"
    )
    content = text(parts)
    files.write_whole(directory / "table.txt", content)
    return content


def packed(lines: Iterable[str]) -> dict[str, list[Line]]:
    """The lines of each part's last run. Incomplete lines are left out."""
    parts: dict[str, list[Line]] = {}
    for line in lines:
        try:
            read = json.loads(line)
        except ValueError:
            continue
        part = read.pop("part")
        if "started" in read:
            parts[part] = []
        parts.setdefault(part, []).append(read)
    return parts


def text(parts: dict[str, list[Line]]) -> str:
    """One section per part, after the general section."""
    smoke = any(line.get("smoke") for lines in parts.values() for line in lines)
    sections = [
        [SMOKE] if smoke else [],
        list(conditions(parts)),
        list(outcomes(parts)),
        list(failures(parts)),
    ]
    makers = {
        "correct": correct,
        "table": speed,
        "forced": plans,
        "counters": counters,
        "models": models,
        "compiled": lambda lines: [*models(lines), *speed(lines)],
    }
    sections += [[f"{part}:", *make(parts[part])] for part, make in makers.items() if part in parts]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def conditions(parts: dict[str, list[Line]]) -> Iterator[str]:
    """The device and the software of the measurement."""
    found = [line["environment"] for lines in parts.values() for line in lines if "environment" in line]
    if found:
        yield ", ".join(f"{name} {value}" for name, value in found[-1].items() if value is not None)


def outcomes(parts: dict[str, list[Line]]) -> Iterator[str]:
    """A part that was killed together with the driver has no state."""
    for part, lines in parts.items():
        ended = next((line for line in lines if "state" in line), {"state": "killed", "seconds": 0})
        cases = sum("case" in line for line in lines)
        counts: dict[str, int] = next((line["counts"] for line in reversed(lines) if "counts" in line), {})
        details = [f"{cases} cases"] if cases else [f"{count} {name}" for name, count in counts.items()]
        details += [line["skipped"] for line in lines if "skipped" in line]
        yield f"{part:<10} {ended['state']:<9} {ended['seconds']:6.1f} s  {', '.join(details)}".rstrip()


def failures(parts: dict[str, list[Line]]) -> Iterator[str]:
    found = [
        f"FAILED {part}: {line['failed'][:200]}" for part in parts for line in parts[part] if "failed" in line
    ]
    yield from found[:MOST_FAILURES]
    if len(found) > MOST_FAILURES:
        yield f"and {len(found) - MOST_FAILURES} more"


def correct(lines: Sequence[Line]) -> Iterator[str]:
    """Calls and largest error, as a share of the tolerance, by the plan that ran."""
    shares: dict[str, list[float]] = {}
    for line in lines:
        if "errors" in line:
            shares.setdefault(line["plan"], []).append(max(map(float, line["errors"].values())))
    for plan, worst in shares.items():
        yield f"{len(worst):3} calls, error {max(worst):.2f} of what is demanded: {plan or 'on the CPU'}"
    yield f"{sum('refused' in line for line in lines)} forced plans did not fit"


def speed(lines: Sequence[Line]) -> Iterator[str]:
    """Microseconds, medians; ours as a multiple of the floor; and how many times as long the others take."""
    found = [line for line in lines if "us" in line]
    names = dict.fromkeys(name for line in found for us in line["us"].values() for name in us)
    others = [name for name in names if name not in ("copy", "ours")]
    over = [f"{name}/ours" for name in others]
    table = [["case", "floor", *others, "ours", "x floor", *over, "predicted", "plan"]]
    for line in found:
        for direction, us in line["us"].items():
            medians = {"floor": line["floor"][direction], **{name: us[name][1] for name in us}}
            cells = [number(medians.get(name), 1) for name in ("floor", *others, "ours")]
            cells.append(number(ratio(medians, "ours", "floor"), 2))
            cells += [number(ratio(medians, name), 2) for name in others]
            cells += [number(line["predicted"][direction], 1), line["plan"].get(direction, "")]
            table.append([f"{title(line)} {direction}", *cells])
    yield from aligned(table)
    for name in others:
        for direction in ("forward", "backward"):
            if values := list(ratios(found, name, direction)):
                mean = statistics.geometric_mean(values)
                yield f"{name}/ours, {direction}: geometric mean {mean:.2f} of {len(values)} cases"


def ratios(lines: Iterable[Line], name: str, direction: str) -> Iterator[float]:
    """The cases that the means are taken over."""
    for line in lines:
        medians = {row: us[1] for row, us in line["us"].get(direction, {}).items()}
        if line["mean"] and (found := ratio(medians, name)):
            yield found


def plans(lines: Sequence[Line]) -> Iterator[str]:
    """The plans of each case and direction, the fastest first."""
    for line in lines:
        if "asked" not in line:
            continue
        yield f"{title(line)} {line['direction']}, floor {line['floor']:.1f} us"
        chosen = line["asked"].get("")
        table = [["", "us", "x floor", "predicted", "plan"]]
        medians = {plan: us[1] for plan, us in line["us"].items() if plan != "copy"}
        for place, (plan, us) in enumerate(sorted(medians.items(), key=lambda item: item[1])):
            if place < MOST_PLANS or plan == chosen:
                cells = number(us, 1), number(us / line["floor"], 2), number(line["predicted"][plan], 1)
                table.append(["planned" if plan == chosen else "", *cells, plan])
        yield from aligned(table)


def counters(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        kernels = line.get("kernels") or []
        if kernels:
            names = list(dict.fromkeys(name for kernel in kernels for name in kernel))
            cells = [[f"{kernel.get(name, '-')}" for name in names] for kernel in kernels]
            yield line["case"]
            yield from aligned([names, *cells])


def models(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if "ms" in line:
            peak = f", peak {line['peak_bytes'] / 1e9:.2f} GB"
            rate = f"{line['images_per_second']:,.0f} images/s"
            yield f"{line['model']}: {line['ms'][1]:.2f} ms a step, {rate}{peak}"


def title(line: Line) -> str:
    kind = "" if line["kind"] == "plain" else f" {line['kind']}"
    return f"{'x'.join(map(str, line['shape']))} {line['layout']} {line['dtype']}{kind}"


def ratio(medians: dict[str, float], name: str, under: str = "ours") -> float | None:
    return medians[name] / medians[under] if name in medians and under in medians else None


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns with two spaces between them. Words are aligned left, numbers right."""
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    to_left = [not any(cell.replace(".", "", 1).isdigit() for cell in column[1:]) for column in columns]
    for line in lines:
        cells = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_left, strict=True)
        )
        yield "  ".join(cells).rstrip()
