"""Each build gate accepts right kernels and finds its fault."""

import pytest

from tests.gates.gates import (
    blocks_by_registers,
    faults_of_counts,
    faults_of_flight,
    faults_of_instructions,
    faults_of_presence,
    faults_of_usage,
)
from tests.gates.kernels import EXPECTED, Kernel, kernel_of
from tests.gates.reports import Code, Usage, read_code, read_usage

UNIT = "_ZN8fused_bn4cuda53_GLOBAL__N__883e3cdb_14_kernels_f16_cu_9f98bca7_31899"
PASS, END = f"{UNIT}10batch_normINS0_", "EEEEvNT_6ParamsE"
ENTRIES = {
    f"{PASS}8ResidentINS0_7ForwardINS_7Float16ELi8ELb1ELNS_14ActivationKindE0E{END}": Kernel(
        "resident_forward", "f16", 8, True, "relu"
    ),
    f"{PASS}5ApplyINS0_8BackwardIfLi4ELb0ELNS_14ActivationKindE2ELb0E{END}": Kernel(
        "apply_backward", "f32", 4, False, "other"
    ),
    f"{PASS}6ReduceINS0_7ForwardINS_8BFloat16ELi1ELb0ELNS_14ActivationKindE0E{END}": Kernel(
        "reduce_forward", "bf16"
    ),
    f"{UNIT}16batch_norm_mergeIdEEvNS0_11MergeParamsE": Kernel("merge", "f64"),
}
ENTRY, OTHER_ENTRY = list(ENTRIES)[:2]
RESIDENT, OTHER = list(ENTRIES.values())[:2]
APPLY = Kernel("apply_forward", "f32", 4, False, "relu")


class TestNames:
    @pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(ENTRIES[entry]))
    def test_are_read_as_the_compiler_writes_them(self, entry: str) -> None:
        assert kernel_of(entry) == ENTRIES[entry]

    @pytest.mark.parametrize(
        "entry", ["_Z6kernelv", ENTRY.replace("ActivationKindE0", "ActivationKindE3"), ENTRY[:-30]]
    )
    def test_of_anything_else_are_refused(self, entry: str) -> None:
        """The gates would skip such a kernel."""
        with pytest.raises(ValueError, match="is no kernel"):
            kernel_of(entry)


class TestPresence:
    def test_expects_every_combination_once(self) -> None:
        """Each of three types has 2 x (1 + 5 x 3) with vectors and 4 with single elements; f64 4; merge 2."""
        assert len(EXPECTED) == 3 * (2 * (1 + 5 * 3) + 4) + 4 + 2
        assert faults_of_presence(EXPECTED) == []

    def test_finds_a_missing_an_extra_and_a_doubled_kernel(self) -> None:
        extra = RESIDENT._replace(vector=1)
        assert faults_of_presence(EXPECTED - {RESIDENT}) == [f"missing: {RESIDENT}"]
        assert faults_of_presence([*EXPECTED, extra]) == [f"not in dispatch.h: {extra}"]
        assert faults_of_presence([*EXPECTED, RESIDENT]) == [f"twice: {RESIDENT}"]


def ptxas_report(registers: int = 64, stack: int = 0, stores: int = 0, loads: int = 0, more: str = "") -> str:
    return f"""\
ptxas info    : Compiling entry function '{OTHER_ENTRY}' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 736 bytes cmem[0]
ptxas info    : Compiling entry function '{ENTRY}' for 'sm_90'
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 2 barriers{more}
"""


class TestUsage:
    def test_is_read_kernel_by_kernel(self) -> None:
        text = ptxas_report(registers=96, stack=16, stores=4, loads=8, more=", 400 bytes smem")
        assert read_usage(text) == {OTHER: Usage(255, 0, 0, 0, 0), RESIDENT: Usage(96, 16, 4, 8, 400)}

    def test_without_a_number_is_an_error(self) -> None:
        """ptxas in other words must not pass for ptxas without spills."""
        with pytest.raises(ValueError, match="too little"):
            read_usage(ptxas_report().replace("spill stores", "spilled"))

    @pytest.mark.parametrize(
        ("text", "faults"),
        [
            (ptxas_report(), []),
            (ptxas_report(stack=8), ["8 bytes of stack frame"]),
            (ptxas_report(stores=4), ["4 bytes of spill stores"]),
            (ptxas_report(loads=4), ["4 bytes of spill loads"]),
            (ptxas_report(registers=65), ["65 registers, of at most 64"]),
            (ptxas_report(more=", 16 bytes smem"), ["16 bytes of static shared memory"]),
        ],
    )
    def test_beyond_what_is_allowed_is_found(self, text: str, faults: list[str]) -> None:
        usages = read_usage(text).items()
        found = [fault for kernel, usage in usages for fault in faults_of_usage(kernel, 90, usage)]
        assert found == [f"{RESIDENT}: {fault}" for fault in faults]

    def test_lets_as_many_blocks_run_as_the_planner_counts_on(self) -> None:
        backward = RESIDENT._replace(name="resident_backward")
        for kernel, architecture, most, blocks in (
            (RESIDENT, 90, 64, 4),
            (RESIDENT, 120, 80, 3),
            (backward, 90, 80, 3),
            (backward._replace(mixed=False), 90, 64, 4),
            (backward._replace(kind="other"), 90, 128, 2),
            (APPLY, 90, 80, 3),
            (APPLY._replace(mixed=True), 90, 128, 2),
        ):
            assert faults_of_usage(kernel, architecture, Usage(most, 0, 0, 0, 0)) == []
            assert faults_of_usage(kernel, architecture, Usage(most + 1, 0, 0, 0, 0)) != []
            assert blocks_by_registers(most) == blocks


def code_of(text: str) -> Code:
    """Of lines as nvdisasm writes them, but for what stands around instructions."""
    lines = [f'\t.section\t.text.{ENTRY},"ax",@progbits', f".text.{ENTRY}:"]
    for i, line in enumerate(text.split("\n")):
        lines.append(line if line.endswith(":") else f"        /*{16 * i:04x}*/{line:>50} ;")
    return read_code(["\t.target\tsm_90", *lines])[RESIDENT]


def repeated(instruction: str, count: int) -> str:
    return "\n".join([instruction] * count)


# 9 / 64 + 32 / 8 + 64 / 16 instructions for each element of a half type; a last loop stores what is left.
ADDS = repeated("FADD R8, R8, R4", 30)
LOOPS = f"""\
UCGABAR_ARV
SYNCS.EXCH.64 URZ, [UR6], UR4
.L_x_1:
{repeated("LDGSTS.E.BYPASS.128 [R14], desc[UR12][R16.64]", 8)}
@P1 BRA `(.L_x_1)
.L_x_2:
LDS.128 R4, [R2]
{ADDS}
@P1 BRA `(.L_x_2)
UCGABAR_WAIT
STAS.128 [R2], R4
STG.E.128.STRONG.GPU desc[UR4][R2.64], R4
.L_x_3:
{repeated("LDS.128 R4, [R2]", 2)}
{repeated("F2FP.RELU.F16.F32.PACK_AB R4, R5, R4", 59)}
{repeated("STG.E.128 desc[UR4][R2.64], R4", 2)}
@P1 BRA `(.L_x_3)
.L_x_4:
LDS.128 R4, [R2]
STG.E.128 desc[UR4][R2.64], R4
@P1 BRA `(.L_x_4)
EXIT"""
SMALLER = "8.2718061255302767487e-25"
LOCAL = 'STL [R1], R14      (*"SpillRefill"*)'


class TestInstructions:
    def test_are_read_with_their_labels(self) -> None:
        code = code_of(f".L_x_1:\n@!P0 FADD R4, R4, R5\n{LOCAL}\n.L_x_2:\nEXIT")
        assert code == Code(["@!P0 FADD R4, R4, R5", "STL [R1], R14", "EXIT"], {".L_x_1": 0, ".L_x_2": 2})
        assert code.counts() == {"FADD": 1, "STL": 1, "EXIT": 1}
        with pytest.raises(ValueError, match="outside"):
            read_code(["        /*0000*/  EXIT ;"])

    def test_as_they_should_be_have_no_fault(self) -> None:
        assert faults_of_instructions(RESIDENT, 90, code_of(LOOPS)) == []
        assert faults_of_counts(RESIDENT, code_of(LOOPS)) == []

    @pytest.mark.parametrize(
        ("old", "new", "fault"),
        [
            ("EXIT", f"{LOCAL}\nEXIT", "access to local memory: 1, of none"),
            ("EXIT", "LDGSTS.E [R14], [R16.64]\nEXIT", "asynchronous copy of less: 1, of none"),
            ("EXIT", "ACQBULK\nEXIT", "wait for the kernel before: 1, of none"),
            ("EXIT", "PREEXIT\nEXIT", "start of a dependent kernel: 1, of none"),
            ("LDGSTS", "LDG", "asynchronous copy of 16 bytes: 0, but it needs one"),
            ("UCGABAR_ARV", "NOP", "arrival at a cluster's barrier: 0, but it needs one"),
            ("UCGABAR_WAIT", "NOP", "wait at a cluster's barrier: 0, but it needs one"),
            ("STAS.128", "NOP", "push to another block: 0, but it needs one"),
            ("SYNCS", "NOP", "barrier that counts bytes: 0, but it needs one"),
            ("STG.E.128.STRONG.GPU", "NOP", "store of a word, 16 bytes at once: 0, but it needs one"),
            ("F2FP.RELU", "F2FP", "ReLU by the rounding to a half type: 0, but it needs one"),
        ],
    )
    def test_that_should_not_be_or_lack_are_found(self, old: str, new: str, fault: str) -> None:
        found = faults_of_instructions(RESIDENT, 90, code_of(LOOPS.replace(old, new)))
        assert found == [f"{RESIDENT}: {fault}"]

    def test_belong_to_architectures_that_know_them(self) -> None:
        assert len(faults_of_instructions(RESIDENT, 80, code_of(LOOPS))) == 4, "clusters"
        assert len(faults_of_instructions(RESIDENT, 75, code_of(LOOPS))) == 6, "and copies, and cvt.relu"

    @pytest.mark.parametrize(
        ("old", "new", "fault"),
        [
            (ADDS, repeated("FADD R8, R8, R4", 36), "8.89 instructions an element, of at most 8.85"),
            ("LDGSTS", "LDG", "no loop is found that could be its load"),
            ("STG.E.128 desc", "ST.E.128 desc", "no loop is found that could be its apply"),
            (ADDS, f"{ADDS}\nFMUL R4, R4, {SMALLER}", "no loop is found that could be its sum"),
            (ADDS, f"{ADDS}\nLDG.E.U8 R4, [R2.64]", "no loop is found that could be its sum"),
            (ADDS, f"{ADDS}\nLDG.E.U16 R4, [R2.64]", "LDG.E.U16 in the sum loop"),
        ],
    )
    def test_of_a_resident_loop_are_counted(self, old: str, new: str, fault: str) -> None:
        assert faults_of_counts(RESIDENT, code_of(LOOPS.replace(old, new))) == [f"{RESIDENT}: {fault}"]


def apply_pass(before: str = "NOP", loads: str = "NOP", results: str = "NOP") -> Code:
    """A loop over chunks of four vectors, the last of which is not full."""
    return code_of(f"""\
{before}
.L_x_1:
@P0 BRA `(.L_x_2)
@P1 LDG.E.128 R4, desc[UR4][R2.64]
LDG.E.128 R8, desc[UR4][R2.64]
FADD R8, R8, R9
BRA `(.L_x_3)
.L_x_2:
LDG.E.128 R4, desc[UR4][R2.64]
LDG.E.128 R8, desc[UR4][R2.64]
{loads}
LDG.E.128 R12, desc[UR4][R2.64]
LDG.E.128 R16, desc[UR4][R2.64]
.L_x_3:
{results}
FADD R5, R5, R20
{repeated("STG.E.128 desc[UR4][R2.64], R4", 4)}
@P2 BRA `(.L_x_1)
EXIT""")


class TestStreamed:
    def test_as_it_should_be_has_no_fault(self) -> None:
        assert faults_of_counts(APPLY, apply_pass()) == []
        assert faults_of_flight(APPLY, apply_pass()) == []

    @pytest.mark.parametrize(
        ("loads", "found"), [("FADD R5, R5, R20", 2), ("@P3 BRA `(.L_x_3)", 4), ("BRA `(.L_x_3)", 0)]
    )
    def test_vectors_in_flight_are_counted_up_to_the_first_use(self, loads: str, found: int) -> None:
        faults = [f"{APPLY}: {found} vectors in flight, of 4"] if found < 4 else []
        assert faults_of_flight(APPLY, apply_pass(loads=loads)) == faults

    def test_instructions_are_counted_on_the_way_of_a_full_chunk(self) -> None:
        assert faults_of_counts(APPLY, apply_pass(results=repeated("FADD R8, R8, R4", 181))) == [
            f"{APPLY}: 12.06 instructions an element, of at most 11.25"
        ]
        assert faults_of_counts(APPLY, apply_pass(before=repeated("NOP", 400))) == [
            f"{APPLY}: 414 instructions of an evaluation, of at most 316"
        ]
        skipped = f"BRA `(.L_x_4)\n{repeated('NOP', 400)}\n.L_x_4:"
        assert faults_of_counts(APPLY, apply_pass(results=skipped)) == []

    def test_is_not_compared_with_what_moves_no_vectors(self) -> None:
        for find in (faults_of_counts, faults_of_flight):
            assert find(Kernel("reduce_forward", "f32"), code_of("EXIT")) == []
