"""That each build gate lets the right kernels through and finds the fault that it is there for."""

from collections import Counter

import pytest

from tests.cuda.gates import faults_of_instructions, faults_of_presence, faults_of_usage
from tests.cuda.kernels import EXPECTED, Kernel, kernel_of
from tests.cuda.reports import Usage, bits_of, count_by_bits, read_instructions, read_usage

FORWARD = Kernel("forward", "f16", "columns", True, "relu")
BACKWARD = Kernel("backward", "f64", "rows", True, "leaky_relu")
UNIT = "_ZN8fused_bn4cuda53_GLOBAL__N__883e3cdb_14_kernels_f16_cu_9f98bca7_31899"
FORWARD_ENTRY = (
    f"{UNIT}18batch_norm_forwardINS_7Float16ELNS0_7MappingE1ELb1ELNS_5CurveE0EEEvNS0_13ForwardParamsE"
)
BACKWARD_ENTRY = f"{UNIT}19batch_norm_backwardIdLNS0_7MappingE0ELb1ELNS_5CurveE1EEEvNS0_14BackwardParamsE"


class TestNames:
    def test_are_read_as_the_compiler_writes_them(self) -> None:
        assert kernel_of(FORWARD_ENTRY) == FORWARD
        assert kernel_of(BACKWARD_ENTRY) == BACKWARD
        bf16 = BACKWARD_ENTRY.replace("IdL", "INS_8BFloat16EL").replace("Lb1", "Lb0")
        assert kernel_of(bf16) == Kernel("backward", "bf16", "rows", False, "leaky_relu")

    @pytest.mark.parametrize(
        "entry", ["_Z6kernelv", FORWARD_ENTRY.replace("CurveE0", "CurveE3"), FORWARD_ENTRY[:60]]
    )
    def test_of_anything_else_are_refused(self, entry: str) -> None:
        """A kernel that the gates would not look at."""
        with pytest.raises(ValueError, match="is no kernel"):
            kernel_of(entry)


class TestPresence:
    def test_expects_every_combination_once(self) -> None:
        assert len(EXPECTED) == 2 * 4 * 2 * 2 * 3
        assert faults_of_presence(EXPECTED) == []

    def test_finds_a_missing_an_extra_and_a_doubled_kernel(self) -> None:
        extra = FORWARD._replace(curve="none")
        assert faults_of_presence(EXPECTED - {FORWARD}) == [f"missing: {FORWARD}"]
        assert faults_of_presence([*EXPECTED, extra]) == [f"not in dispatch.h: {extra}"]
        assert faults_of_presence([*EXPECTED, FORWARD]) == [f"twice: {FORWARD}"]


def ptxas_report(
    *, registers: int = 128, stack: int = 0, stores: int = 0, loads: int = 0, more: str = ""
) -> str:
    return f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{BACKWARD_ENTRY}' for 'sm_90'
ptxas info    : Function properties for {BACKWARD_ENTRY}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 736 bytes cmem[0]
ptxas info    : Compile time = 311.269 ms
ptxas info    : Compiling entry function '{FORWARD_ENTRY}' for 'sm_90'
ptxas info    : Function properties for {FORWARD_ENTRY}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 2 barriers{more}
ptxas info    : Compile time = 432.088 ms
"""


def faults_in_report(text: str) -> list[str]:
    return [fault for each in read_usage(text).items() for fault in faults_of_usage(*each)]


class TestUsage:
    def test_is_read_kernel_by_kernel(self) -> None:
        text = ptxas_report(registers=96, stack=16, stores=4, loads=8, more=", 400 bytes smem")
        assert read_usage(text) == {
            BACKWARD: Usage(255, barriers=1, stack=0, spill_stores=0, spill_loads=0, static_shared=0),
            FORWARD: Usage(96, barriers=2, stack=16, spill_stores=4, spill_loads=8, static_shared=400),
        }

    def test_without_a_number_is_an_error(self) -> None:
        """ptxas in other words must not pass for ptxas without spills."""
        with pytest.raises(ValueError, match="too little"):
            read_usage(ptxas_report().replace("spill stores", "spilled"))

    def test_is_right_up_to_the_launch_bound(self) -> None:
        """All 65536 registers for 512 threads, and in double precision 255 for each of 256."""
        assert faults_in_report(ptxas_report()) == []

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            (ptxas_report(stack=8), "8 bytes stack frame"),
            (ptxas_report(stores=4), "4 bytes spill stores"),
            (ptxas_report(loads=4), "4 bytes spill loads"),
            (ptxas_report(registers=129), "129 registers, of at most 128"),
            (ptxas_report(more=", 16 bytes smem"), "16 bytes of static shared memory"),
        ],
    )
    def test_beyond_what_is_allowed_is_found(self, text: str, fault: str) -> None:
        assert faults_in_report(text) == [f"{FORWARD}: {fault}"]


# Of a kernel as it should be: two loads for each 128-bit store, and one more for the first pass.
GOOD = Counter(
    {
        "LDG.E.NA.128.CONSTANT": 5,
        "STG.E.EF.128": 2,
        "STG.E.U8": 2,
        "STG.E": 5,
        "STG.E.STRONG.GPU": 2,
        "STG.E.64": 3,
        "STG.E.U16": 4,
        "LDGSTS.E.BYPASS.LTC128B.128": 7,
        "UCGABAR_ARV": 2,
        "UCGABAR_WAIT": 2,
    }
)
NO_CLUSTERS = {"UCGABAR_ARV": 0, "UCGABAR_WAIT": 0}
NO_COPIES = {"LDGSTS.E.BYPASS.LTC128B.128": 0}


def changed(counts: dict[str, int]) -> Counter[str]:
    """GOOD with these instead; 0 leaves one out."""
    return +Counter({**GOOD, **counts})


def nvdisasm_listing(instructions: Counter[str]) -> list[str]:
    """As nvdisasm writes it, one instruction after the other; every second one under a predicate."""
    lines = [f'\t.section\t.text.{FORWARD_ENTRY},"ax",@progbits', f".text.{FORWARD_ENTRY}:"]
    for i, name in enumerate(instructions.elements()):
        predicate = ("", "@!P0", "@UP1", "@!UPT")[i % 4]
        lines.append(f"        /*{16 * i:04x}*/ {predicate:>18} {name} R2, desc[UR4][R2.64], 0x128 ;")
    return lines


class TestInstructions:
    def test_are_counted_kernel_by_kernel(self) -> None:
        other = '\t.section\t.text._Z_batch_norm_other,"ax",@progbits'
        listing = ["\t.target\tsm_90", *nvdisasm_listing(GOOD), ".L_x_1:", "        /*0100*/  EXIT ;"]
        assert read_instructions(listing) == {FORWARD: GOOD + Counter({"EXIT": 1})}
        with pytest.raises(ValueError, match="is no kernel"):
            read_instructions([*listing, other])
        with pytest.raises(ValueError, match="outside"):
            read_instructions(listing[-1:])

    @pytest.mark.parametrize(
        ("name", "bits"),
        [
            ("LDG.E.NA.128.CONSTANT.SYS", 128),
            ("STG.E.EF.128", 128),
            ("LDGSTS.E.BYPASS.LTC128B.128", 128),
            ("LDG.E.LTC128B", 32),
            ("STG.E.64.STRONG.GPU", 64),
            ("STG.E.U16", 16),
            ("STG.E.U8", 8),
            ("STG.E", 32),
        ],
    )
    def test_have_the_width_of_their_modifiers(self, name: str, bits: int) -> None:
        assert bits_of(name) == bits

    def test_are_not_taken_for_others_of_a_longer_name(self) -> None:
        assert count_by_bits(GOOD, "LDG") == {128: 5}

    def test_as_they_should_be_have_no_fault(self) -> None:
        assert faults_of_instructions(FORWARD, 90, read_instructions(nvdisasm_listing(GOOD))[FORWARD]) == []

    @pytest.mark.parametrize(
        ("counts", "fault"),
        [
            ({"LDL": 1}, "1 accesses to local memory"),
            ({"STL.64": 2}, "2 accesses to local memory"),
            ({"LDG.E.NA.128.CONSTANT": 4, "LDG.E.64": 2}, "4 128-bit loads, of at least 5"),
            ({"STG.E.U16": 12}, "12 16-bit stores, of at most 4"),
            ({"STG.E.64": 5}, "5 64-bit stores, of at most 3"),
            ({"STG.E": 7}, "9 32-bit stores, of at most 8"),
            ({"STG.E.U8": 3}, "3 8-bit stores, of at most 2"),
            ({"ST.E.U8": 1}, "3 8-bit stores, of at most 2"),
            ({"LDGSTS.E.32": 1}, "asynchronous copies by bits: {128: 7, 32: 1}, not of 128 bits only"),
            (NO_COPIES, "asynchronous copies by bits: {}, not of 128 bits only"),
            (NO_CLUSTERS, "0 arrivals at cluster barriers and 0 waits: two pairs or more are needed"),
            ({"UCGABAR_WAIT": 1}, "2 arrivals at cluster barriers and 1 waits: two pairs or more are needed"),
        ],
    )
    def test_that_should_not_be_are_found(self, counts: dict[str, int], fault: str) -> None:
        assert faults_of_instructions(FORWARD, 90, changed(counts)) == [f"{FORWARD}: {fault}"]

    def test_without_128_bit_stores_are_found(self) -> None:
        """Even where nothing takes their place."""
        found = changed({"STG.E.EF.128": 0, "STG.E.U8": 0})
        assert faults_of_instructions(FORWARD, 90, found) == [f"{FORWARD}: 0 128-bit stores, of at least 1"]

    def test_of_vectors_that_are_not_whole_may_be_narrow_but_not_local(self) -> None:
        partial = FORWARD._replace(whole=False)
        found = changed({"LDG.E.NA.128.CONSTANT": 0, "STG.E.EF.128": 0, "STG.E.U16": 20})
        assert faults_of_instructions(partial, 90, found) == []
        assert faults_of_instructions(partial, 90, found + Counter({"LDL": 1})) != []

    def test_of_backward_write_no_mask(self) -> None:
        """And store two tensors, in double precision four packs a vector of each."""
        good = Counter(
            {"LDG.E.128": 16, "STG.E.128": 8, "STG.E.64": 4, "STG.E": 2, "STG.E.U16": 4, "LDGSTS.E.128": 1}
        )
        assert faults_of_instructions(BACKWARD, 80, good) == []
        assert faults_of_instructions(BACKWARD, 80, good + Counter({"STG.E.U8": 1})) == [
            f"{BACKWARD}: 1 8-bit stores, of at most 0"
        ]
        assert faults_of_instructions(BACKWARD, 80, good - Counter({"LDG.E.128": 1})) == [
            f"{BACKWARD}: 15 128-bit loads, of at least 16"
        ]

    def test_of_clusters_and_copies_belong_to_architectures_that_know_them(self) -> None:
        assert faults_of_instructions(FORWARD, 80, changed(NO_CLUSTERS)) == []
        assert faults_of_instructions(FORWARD, 80, GOOD) == [f"{FORWARD}: 4 halves of cluster barriers"]
        assert faults_of_instructions(FORWARD, 75, changed(NO_CLUSTERS | NO_COPIES)) == []
        assert faults_of_instructions(FORWARD, 75, changed(NO_CLUSTERS)) == [
            f"{FORWARD}: 7 asynchronous copies"
        ]
