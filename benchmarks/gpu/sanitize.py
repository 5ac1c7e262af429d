"""Stage sanitize: compute-sanitizer's tools on the small set, side by side, where they can attach."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu import small_set
from benchmarks.gpu.driver import ROOT
from benchmarks.gpu.job import Job, SkippedError, main, require_kernels

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
ONLY_OURS = ("racecheck", "synccheck")
"""Tools that look at our kernels alone; the others would miss what torch's kernels write and free."""
EXIT_FOUND = 9
CANNOT_ATTACH = ("not supported", "failed to initialize", "insufficient permission", "unable to")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


@dataclass(frozen=True)
class Verdict:
    """What a tool made of the small set: ok, found, wrong, timed out, or cannot attach."""

    tool: str
    state: str
    findings: int
    calls: int

    def __str__(self) -> str:
        return f"{self.tool}: {self.state}, {self.findings} findings in {self.calls} calls"


def verdict(tool: str, output: str, exit_code: int | None) -> Verdict:
    """Reads a tool's output; an exit code of None is a tool stopped at the limit."""
    summary = SUMMARY.search(output)
    findings = int(summary[1]) if summary else 0
    calls = len(re.findall(r": (?:ok|WRONG: .*)$", output, re.MULTILINE))
    if findings or exit_code == EXIT_FOUND:
        state = "found"
    elif exit_code is None:
        state = "timed out"
    elif exit_code == 0 and summary and small_set.DONE in output:
        state = "ok"
    elif calls == 0 and any(text in output.lower() for text in CANNOT_ATTACH):
        state = "cannot attach"
    else:
        state = "wrong"
    return Verdict(tool, state, findings, calls)


def command(sanitizer: str, tool: str, help_text: str) -> list[str]:
    """The tool on the small set."""
    options = [f"--tool={tool}", f"--error-exitcode={EXIT_FOUND}", "--print-limit=20"]
    if tool in ONLY_OURS:
        named = next((option for option in ("--kernel-name", "--filter") if option in help_text), None)
        options += [named, "kns=fused_bn"] if named else []
    return [sanitizer, *options, sys.executable, "-u", "-m", "benchmarks.gpu.small_set"]


def work(job: Job) -> None:
    device = require_kernels(job)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise SkippedError("compute-sanitizer is not on PATH")
    if device.type != "cuda":
        raise SkippedError("compute-sanitizer needs a GPU")
    asked = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False)
    # Tensors that torch keeps for later use would hide accesses past their end.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    with tempfile.TemporaryDirectory() as directory:
        logs = {tool: Path(directory) / tool for tool in TOOLS}
        processes = {}
        for tool, log in logs.items():
            with log.open("w") as file:
                processes[tool] = subprocess.Popen(
                    command(sanitizer, tool, asked.stdout),
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
        verdicts = []
        for tool, process in processes.items():
            code = _ended(process, job)
            output = logs[tool].read_text(errors="replace")
            print(f"----- {tool}\n{output[:20000]}", flush=True)
            verdicts.append(verdict(tool, output, code))
    job.readings["tools"] = [asdict(each) for each in verdicts]
    print(*verdicts, sep="\n", flush=True)
    if all(each.state == "cannot attach" for each in verdicts):
        raise SkippedError("compute-sanitizer cannot attach to this device")
    for each in verdicts:
        if each.state not in ("ok", "cannot attach"):
            job.fail(str(each))


def _ended(process: "subprocess.Popen[bytes]", job: Job) -> int | None:
    """The exit code; None where there was no time left to wait for."""
    try:
        return process.wait(max(0.1, job.left))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


if __name__ == "__main__":
    sys.exit(main(work))
