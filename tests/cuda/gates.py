"""What compiled kernels must be like. Each gate returns one line for each fault that it finds."""

from collections import Counter
from collections.abc import Iterable

from tests.cuda.kernels import COMPUTE_BITS, ELEMENT_BITS, EXPECTED, THREADS, Kernel
from tests.cuda.reports import Instructions, Usage, count_by_bits

REGISTERS = 65536  # of a multiprocessor, from sm_75 to sm_120
MOST_REGISTERS = 255  # of a thread
FIRST_WITH_ASYNC_COPIES = 80
FIRST_WITH_CLUSTERS = 90
VECTOR = 8  # kVector in csrc/cuda/geometry.h
WIDE = 128  # bits


def faults_of_presence(found: Iterable[Kernel]) -> list[str]:
    """Each combination of template arguments that can be launched is compiled, and no other."""
    counts = Counter(found)
    missing = [f"missing: {kernel}" for kernel in sorted(EXPECTED - set(counts))]
    extra = [f"not in dispatch.h: {kernel}" for kernel in sorted(set(counts) - EXPECTED)]
    return missing + extra + [f"twice: {kernel}" for kernel, count in counts.items() if count > 1]


def faults_of_usage(kernel: Kernel, usage: Usage) -> list[str]:
    """Registers hold everything, and a block of full size finds enough of them."""
    faults = []
    for what, count in (
        ("stack frame", usage.stack),
        ("spill stores", usage.spill_stores),
        ("spill loads", usage.spill_loads),
    ):
        if count != 0:
            faults.append(f"{kernel}: {count} bytes {what}")
    limit = min(MOST_REGISTERS, REGISTERS // THREADS[kernel.element])
    if usage.registers > limit:
        faults.append(f"{kernel}: {usage.registers} registers, of at most {limit}")
    if usage.static_shared != 0:  # the planner lays out shared memory, and knows of no other
        faults.append(f"{kernel}: {usage.static_shared} bytes of static shared memory")
    return faults


def faults_of_instructions(kernel: Kernel, architecture: int, found: Instructions) -> list[str]:
    """The instructions are those that the design counts on."""
    faults = faults_of_local_memory(found) + faults_of_clusters(architecture, found)
    if kernel.whole:
        faults += faults_of_loads(kernel, found) + faults_of_stores(kernel, found)
        faults += faults_of_async_copies(architecture, found)
    return [f"{kernel}: {fault}" for fault in faults]


def faults_of_local_memory(found: Instructions) -> list[str]:
    counts = count_by_bits(found, "LDL", "STL")
    return [f"{counts.total()} accesses to local memory"] if counts else []


def faults_of_clusters(architecture: int, found: Instructions) -> list[str]:
    """Blocks of a cluster meet where they exchange sums and before they leave; older devices know none."""
    arrive, wait = found.get("UCGABAR_ARV", 0), found.get("UCGABAR_WAIT", 0)
    if architecture < FIRST_WITH_CLUSTERS:
        return [f"{arrive + wait} halves of cluster barriers"] if arrive + wait else []
    if arrive != wait or arrive < 2:
        return [f"{arrive} arrivals at cluster barriers and {wait} waits: two pairs or more are needed"]
    return []


def faults_of_async_copies(architecture: int, found: Instructions) -> list[str]:
    """Shared memory is filled past the registers, 16 bytes at once."""
    counts = count_by_bits(found, "LDGSTS")
    if architecture < FIRST_WITH_ASYNC_COPIES:
        return [f"{counts.total()} asynchronous copies"] if counts else []
    if set(counts) != {WIDE}:
        return [f"asynchronous copies by bits: {dict(counts)}, not of 128 bits only"]
    return []


def packs_of(kernel: Kernel) -> int:
    """128-bit accesses that a vector takes."""
    return VECTOR * ELEMENT_BITS[kernel.element] // WIDE


def faults_of_loads(kernel: Kernel, found: Instructions) -> list[str]:
    """Wherever a vector is stored, two were loaded: of the input and of the residual, or of the gradient and
    of the input. And the first pass has loads of its own.
    """
    outputs, first_pass = (1, 1) if kernel.direction == "forward" else (2, 2)
    loads, stores = (count_by_bits(found, operation)[WIDE] for operation in ("LDG", "STG"))
    needed = 2 * stores // outputs + first_pass * packs_of(kernel)
    return [f"{loads} 128-bit loads, of at least {needed}"] if loads < needed else []


def faults_of_stores(kernel: Kernel, found: Instructions) -> list[str]:
    """Elements leave in 128 bits; what is narrower is a channel's, or a byte of the mask."""
    stores = count_by_bits(found, "STG", "ST")
    faults = []
    outputs = 1 if kernel.direction == "forward" else 2
    if stores[WIDE] < outputs * packs_of(kernel):
        faults.append(f"{stores[WIDE]} 128-bit stores, of at least {outputs * packs_of(kernel)}")
    allowed = narrow_stores(kernel)
    if kernel.direction == "forward":
        allowed[8] += stores[WIDE] // packs_of(kernel)  # a byte of the mask beside each vector
    for bits, count in sorted(stores.items()):
        if bits < WIDE and count > allowed[bits]:
            faults.append(f"{count} {bits}-bit stores, of at most {allowed[bits]}")
    return faults


def narrow_stores(kernel: Kernel) -> Counter[int]:
    """By their bits, the stores of what a channel has one of. They stand in loops that are not unrolled."""
    compute = COMPUTE_BITS[kernel.element]
    # write() has one for each type, and is called for the running statistics or the gradients of weight and
    # bias. Two partial sums go to the
    # other blocks, and with two kernels their scale: three stores.
    counts = Counter({64: 2, 32: 2, 16: 2 * 2}) + Counter({compute: 3})
    if kernel.direction == "forward":
        counts += Counter({compute: 3}) + Counter({64: 1})  # saved statistics; the counter of batches
    return counts
