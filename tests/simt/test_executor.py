"""The executor runs kernels as a GPU would, and catches faults that a GPU would not; see selftest.cpp."""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from tests.simt import build

WORKS = [
    "indices",
    "reversal_through_shared_memory",
    "votes",
    "warp_sums",
    "warp_shifts_and_votes",
    "shared_memory_starts_as_nan",
    "copies_arrive_when_waited_for",
    "exchange_by_words",
    "last_block_counts_around",
    "cluster_sums",
]
# Without ThreadSanitizer: their threads share variables on purpose, or there is nothing for it to see, or it
# does not survive the fault.
WORKS_UNWATCHED = [
    "launch_after_a_fault",
    "seed_changes_the_order",
    "seed_interrupts_at_memory",
    "pushes_arrive_when_they_like",
    "second_launch_overlaps_the_first",
    "rounding",
    "speed",
]

CAUGHT = {
    "shared_read_behind_the_end": "bad access at 0 bytes past the end of shared memory of 64 bytes",
    "shared_write_before_the_start": "block 0 wrote beside its shared memory",
    "global_read_behind_the_end": "thread 3: bad access at 0 bytes past the end of a global buffer",
    "null_pointer": "bad access at address",
    "misaligned_pack": "16 bytes at byte 8 of a global buffer of 64 bytes are not aligned",
    "misaligned_copy": "copy_async to byte 4 of shared memory",
    "copy_outside_shared_memory": "copy_async to byte 16 of a global buffer",
    "copy_never_waited_for": "ended with 1 copies that nobody waited for",
    "divergent_exit": "63 threads at sync_block (thread 0 is the first), 1 thread at the end (thread 5)",
    "barrier_and_shuffle": "shuffle_xor of 4 bytes by 2, others of its warp shuffle_xor of 4 bytes by 1",
    "block_and_cluster_barrier": "1 thread at sync_block (thread 31), 31 threads at wait_cluster",
    "two_kinds_of_block_barrier": "waits at sync_block, others of its block at any_in_block",
    "missing_lane": "62 threads at a shuffle (thread 0 is the first), 2 threads at the end",
    "lane_at_a_barrier": "1 thread at sync_block (thread 3), 31 threads at a shuffle",
    "partial_warp": "shuffle_xor in a warp of 16 threads",
    "wait_without_cooperation": "waits for other blocks, which need not run",
    "deadlock_across_blocks": "deadlock: no thread of the launch can go on; block",
    "deadlock_of_two_epochs": "deadlock: no thread of the launch can go on; block 0: 32 threads at pause",
    "cluster_block_that_leaves": "can go on; block 0: 32 threads at wait_cluster",
    "wait_cluster_left_out": "ended without wait_cluster after arrive_cluster",
    "push_before_wait_cluster": "whose barrier may not be initialised: no wait_cluster before",
    "push_to_a_barrier_that_nobody_initialised": "whose barrier may not be initialised",
    "push_outside_shared_memory": "push to 0 bytes past the end of shared memory",
    "wait_for_a_barrier_that_nobody_initialised": "wait_barrier of one that is not initialised, byte 8 of",
    "barrier_that_expects_too_much": "wait_barrier (thread 0 is the first), its barrier expects 16",
    "barrier_that_expects_too_little": "more bytes are pushed to block 0 than its barrier expects",
    "wait_barrier_left_out": "block 0 ended while its barrier expects 32 bytes",
    "push_to_a_block_that_has_ended": "push to block 1, which has ended",
    "wait_for_primary_left_out": "ended without wait_for_primary",
    "exception_in_a_kernel": "exception: from within",
    "stack_overflow": "needs a stack of more than 65536 bytes",
}

RACES = [
    "race_in_a_block",
    "race_after_a_shuffle",
    "result_of_another_block",
    "missing_barrier_before_the_count",
    "word_that_brings_more_than_itself",
    "cluster_barrier_that_orders_memory",
    "push_that_is_read_without_a_wait",
    "push_that_brings_more_than_itself",
    "second_launch_reads_before_it_waits",
    "copy_read_by_another_thread",
    "race_across_plain_blocks",
]

PRIMITIVES = Path("cuda", "kernels", "primitives.cuh")

DATA_RACE = 66  # status, see TSAN_OPTIONS


SOURCES = [
    build.Source(build.HERE / name)
    for name in ("selftest.cpp", "selftest_works.cpp", "selftest_faults.cpp", "selftest_races.cpp")
]


def build_selftest(
    *, thread_sanitizer: bool = False, defines: tuple[str, ...] = (), overlay: Path | None = None
) -> Path:
    return build.build(
        "selftest",
        SOURCES,
        module=False,
        thread_sanitizer=thread_sanitizer,
        defines=defines,
        overlay=overlay,
    )


@pytest.fixture(scope="module")
def selftest() -> Path:
    return build_selftest()


@pytest.fixture(scope="module")
def watched_selftest() -> Path:
    try:
        return build_selftest(thread_sanitizer=True)
    except build.CompileError as error:
        if "tsan" not in str(error):
            raise
        pytest.skip("the compiler comes without ThreadSanitizer")


def run(program: Path, case: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": build.TSAN_OPTIONS}
    return subprocess.run(
        [program, case], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.parametrize("case", [*WORKS, *WORKS_UNWATCHED])
def test_works(selftest: Path, case: str) -> None:
    done = run(selftest, case)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("case", "text"), CAUGHT.items())
def test_catches(selftest: Path, case: str, text: str) -> None:
    done = run(selftest, case)
    assert done.returncode == 1, done.stderr
    assert text in done.stdout


@pytest.mark.parametrize("case", RACES)
def test_values_alone_miss_races(selftest: Path, case: str) -> None:
    assert run(selftest, case).returncode == 0


@pytest.mark.parametrize("case", WORKS)
def test_thread_sanitizer_finds_nothing_in_correct_kernels(watched_selftest: Path, case: str) -> None:
    done = run(watched_selftest, case)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", RACES)
def test_thread_sanitizer_finds(watched_selftest: Path, case: str) -> None:
    done = run(watched_selftest, case)
    assert done.returncode == DATA_RACE, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer: data race" in done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no other switch to compare with")
@pytest.mark.parametrize("case", ["warp_shifts_and_votes", "cluster_sums", "launch_after_a_fault"])
def test_works_without_own_context_switch(case: str) -> None:
    done = run(build_selftest(defines=("SIMT_UCONTEXT",)), case)
    assert done.returncode == 0, done.stdout + done.stderr


def test_second_build_compiles_nothing(selftest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "run", lambda command: pytest.fail(f"ran {command}"))
    assert build_selftest() == selftest


def test_twin_has_the_names_of_the_device() -> None:
    def names(header: Path) -> set[str]:
        functions = re.findall(r"FUSED_BN_DEVICE [^(\n]*?(\w+)\(", header.read_text())
        macros = re.findall(r"#define (\w+)", header.read_text())
        return {*functions, *macros}

    device = names(build.ROOT / "csrc" / PRIMITIVES) - {"shared_address", "FUSED_BN_PRAGMA"}
    assert len(device) > 40
    assert device <= names(build.HERE / "twin" / PRIMITIVES)


def test_overlay_replaces_a_header(selftest: Path, tmp_path: Path) -> None:
    twin = (build.HERE / "twin" / PRIMITIVES).read_text()
    assert twin.count("a * b;") == 2
    (tmp_path / PRIMITIVES).parent.mkdir(parents=True)
    (tmp_path / PRIMITIVES).write_text(twin.replace("a * b;", "a + b;"))
    mutant = build_selftest(overlay=tmp_path)
    assert mutant != selftest
    assert "expected a product that is rounded" in run(mutant, "rounding").stdout
