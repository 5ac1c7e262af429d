"""Faults to plant in the kernels, one at a time. A check must catch each one."""

from dataclasses import dataclass
from pathlib import Path

from tests.simt.build import HERE, ROOT

RACE = "WARNING: ThreadSanitizer: data race"
"""The report of a fault after which values may still be right by luck."""


@dataclass(frozen=True)
class Planted:
    """A fault in one file."""

    name: str
    file: str  # below csrc/; a fault in primitives.cuh is planted in its twin
    right: str
    wrong: str

    def plant(self, directory: Path) -> None:
        """Writes the faulty file below `directory`, an overlay."""
        twin = HERE / "twin" / self.file
        text = (twin if twin.exists() else ROOT / "csrc" / self.file).read_text()
        found = text.count(self.right)
        if found != 1:
            raise ValueError(f"{self.name}: {self.file} has {found} of the place where the fault belongs")
        target = directory / self.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace(self.right, self.wrong))


@dataclass(frozen=True)
class Mutation(Planted):
    caught_by: str  # a part of the report
    trials: tuple[int, ...]  # indices of watched.py's trials, which must show the fault
    quick: bool = True


EXCHANGE, RESIDENT = "cuda/kernels/exchange.cuh", "cuda/kernels/resident.cuh"
STREAMED, MASK, SUMS = "cuda/kernels/streamed.cuh", "cuda/kernels/mask.cuh", "cuda/kernels/sums.cuh"
FORWARD, BACKWARD = "cuda/kernels/forward.cuh", "cuda/kernels/backward.cuh"
PRIMITIVES = "cuda/kernels/primitives.cuh"

LEFT_OUT = "an element of the output was left out"
"""The report of memory that is read before it is written."""

WAIT_AND_PREPARE = """    wait_for_primary();
    for (int c = thread_index(); c < t_.channels(place_.tile); c += kThreads) {
      direction_.prepare_results(c, t_.first_channel(place_.tile) + c, place_.rank == 0);
    }
"""

MUTATIONS = (
    # ---- words
    Mutation(
        "a word that is taken whatever its epoch",
        EXCHANGE,
        "if (word.epoch != awaited) {",
        "if (word.epoch == awaited + 1000) {",
        "output: error",
        (2,),
    ),
    Mutation(
        "a result that is taken whatever its epoch",
        EXCHANGE,
        "while (word.epoch != epoch(iteration)) {",
        "while (word.epoch == epoch(iteration) + 1000) {",
        "output: error",
        (12,),
        quick=False,
    ),
    Mutation(
        "an epoch that does not go on",
        EXCHANGE,
        "    store_epoch(scratch_.epoch, shared_epoch() + static_cast<uint32_t>(t_.iterations));\n",
        "",
        "the epochs of its words",
        (6,),
        quick=False,
    ),
    Mutation(
        "one set of words",
        EXCHANGE,
        "int64_t{iteration & 1} * t_.groups",
        "int64_t{0} * t_.groups",
        "deadlock: no thread of the launch can go on",
        (2,),
        quick=False,
    ),
    # ---- clusters
    Mutation(
        "a push before the barrier of the other block is initialised",
        EXCHANGE,
        "      wait_cluster();\n",
        "",
        "whose barrier may not be initialised: no wait_cluster before",
        (1,),
        quick=False,
    ),
    Mutation(
        "an arrival left out",
        EXCHANGE,
        "      arrive_cluster();\n",
        "",
        "wait_cluster without arrive_cluster",
        (1,),
        quick=False,
    ),
    Mutation(
        "a barrier that expects what only a full tile has",
        EXCHANGE,
        "t_.group * t_.channels(index_)",
        "t_.group * t_.tile_channels",
        "threads at wait_barrier",
        (5,),
    ),
    Mutation(
        "nobody waits for what is pushed",
        EXCHANGE,
        "    if (kind_ == Exchange::cluster) wait_barrier(barrier());\n",
        "",
        LEFT_OUT,
        (1,),
        quick=False,
    ),
    # ---- two passes
    Mutation(
        "a last block that is the last but one",
        STREAMED,
        "const uint32_t last = static_cast<uint32_t>(t_.group - 1);",
        "const uint32_t last = static_cast<uint32_t>(t_.group - 2);",
        "the counters are not as the next launch needs them",
        (3,),
        quick=False,
    ),
    Mutation(
        "the last block to count sees nothing of the others",
        PRIMITIVES,
        "true, __ATOMIC_ACQ_REL,",
        "true, __ATOMIC_RELEASE,",
        RACE,
        (7,),
        quick=False,
    ),
    Mutation(
        "missing sync before the count",
        STREAMED,
        "      sync_block();\n      const uint32_t last",
        "      const uint32_t last",
        RACE,
        (7,),
    ),
    Mutation(
        "missing wait for the reduce pass",
        STREAMED,
        "    wait_for_primary();\n",
        "",
        "ended without wait_for_primary",
        (7,),
        quick=False,
    ),
    Mutation(
        "a wait for the reduce pass that comes too late",
        STREAMED,
        WAIT_AND_PREPARE,
        "".join(WAIT_AND_PREPARE.splitlines(keepends=True)[1:]) + "    wait_for_primary();\n",
        LEFT_OUT,
        (3, 7),
    ),
    # ---- shared memory
    Mutation(
        "missing async wait",
        RESIDENT,
        "      wait_copies();\n",
        "",
        "copies that nobody waited for",
        (0,),
        quick=False,
    ),
    Mutation(
        "missing sync after the copies",
        RESIDENT,
        "      wait_copies();\n      sync_block();\n",
        "      wait_copies();\n",
        RACE,
        (2,),
        quick=False,
    ),
    Mutation(
        "missing sync between two tiles",
        RESIDENT,
        "      sync_block();  // the next tile",
        "      // the next tile",
        RACE,
        (6,),
        quick=False,
    ),
    # ---- sums
    Mutation(
        "a pivot that is an outlier",
        FORWARD,
        "numbers_.at(kPivot, c) = last < low ? low : (last > high ? high : last);",
        "numbers_.at(kPivot, c) = last < low ? first : first;",
        "output: error",
        (14,),
        quick=False,
    ),
    Mutation(
        "wrong shuffle distance",
        SUMS,
        "while (distance * 2 < 32) distance *= 2;",
        "while (distance * 4 < 32) distance *= 2;",
        "output: error",
        (0,),
        quick=False,
    ),
    Mutation(
        "a copy of sums left out",
        SUMS,
        "copy < copies; copy += copy_stride",
        "copy < copies - 1; copy += copy_stride",
        "output: error",
        (4,),
        quick=False,
    ),
    Mutation(
        "blocks that all count as the first one",
        "cuda/kernels/finish.cuh",
        "t.block_values(block)",
        "t.block_values(0)",
        "output: error",
        (6,),
        quick=False,
    ),
    # ---- masks
    Mutation(
        "a bit of the mask that wipes out its neighbours",
        MASK,
        "and_atomic(word, ~own);",
        "and_atomic(word, ~(own | own >> 1));",
        "bits are not what the output tells",
        (9,),
    ),
    Mutation(
        "lanes that need not lie side by side",
        MASK,
        "(actives >> lane & run) == run && together;",
        "(actives >> lane & run) == run;",
        "bits are not what the output tells",
        (6, 9),
        quick=False,
    ),
    Mutation(
        "a mask that NaN does not pass",
        "cuda/kernels/activate.cuh",
        "passes<kind, Math<A>>(z[k])",
        "(passes<kind, Math<A>>(z[k]) && z[k] > 0)",
        "bits are not what the output tells",
        (4,),
        quick=False,
    ),
    Mutation(
        "a saved residual that is not added",
        BACKWARD,
        "z[k] += residual[k];",
        "z[k] += 0 * residual[k];",
        "grad_residual: error",
        (12,),
        quick=False,
    ),
    Mutation(
        "a vector off by one",
        "cuda/kernels/elements.cuh",
        "static_cast<const Raw<T, vector>*>(data) + index;",
        "static_cast<const Raw<T, vector>*>(data) + index + 1;",
        "of a global buffer",
        (4,),
        quick=False,
    ),
)
