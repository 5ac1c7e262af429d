"""Faults to plant in the kernels, one at a time, each of which a check must catch: else the check is none."""

from dataclasses import dataclass
from pathlib import Path

from tests.simt.build import HERE, ROOT

RACE = "WARNING: ThreadSanitizer: data race"
"""What a fault shows as where the values may be right by luck."""


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str  # below csrc/; what only a GPU has is planted in its twin
    right: str
    wrong: str
    caught_by: str  # words of the report
    trials: tuple[int, ...]  # of those in watched.py, which must show it
    quick: bool = True

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


MUTATIONS = (
    Mutation(
        "relaxed barrier atomics",
        "cuda/primitives.cuh",
        "return __atomic_fetch_add(word, value, __ATOMIC_RELEASE);",
        "return __atomic_fetch_add(word, value, __ATOMIC_RELAXED);",
        RACE,
        (6,),
        quick=False,
    ),
    Mutation(
        "relaxed wait",
        "cuda/primitives.cuh",
        "__atomic_load_n(word, __ATOMIC_ACQUIRE)",
        "__atomic_load_n(word, __ATOMIC_RELAXED)",
        RACE,
        (6,),
        quick=False,
    ),
    Mutation(
        "the last block to count sees nothing of the others",
        "cuda/primitives.cuh",
        "true, __ATOMIC_ACQ_REL,",
        "true, __ATOMIC_RELEASE,",
        RACE,
        (9,),
        quick=False,
    ),
    Mutation(
        "missing sync before arrive",
        "cuda/exchange.cuh",
        "      sync_block();\n      if (kind_ == Exchange::barrier) barrier();",
        "      if (kind_ == Exchange::barrier) barrier();",
        RACE,
        (6,),
    ),
    Mutation(
        "missing sync after a reduce write",
        "cuda/reduce.cuh",
        "    sync_block();\n    const int rows = shuffles",
        "    const int rows = shuffles",
        RACE,
        (0,),
        quick=False,
    ),
    Mutation(
        "missing sync after a wait",
        "cuda/exchange.cuh",
        "      wait_flip(word, add_release(word, step));\n    }\n    sync_block();",
        "      wait_flip(word, add_release(word, step));\n    }",
        RACE,
        (6,),
        quick=False,
    ),
    Mutation(
        "no double buffering of what blocks tell each other",
        "cuda/exchange.cuh",
        "turn_ ^= 1;",
        "",
        RACE,
        (2, 6),
        quick=False,
    ),
    Mutation(
        "missing sync between two slabs in evaluation",
        "cuda/forward.cuh",
        "      sync_block();  // the next slab",
        "      // the next slab",
        RACE,
        (10,),
        quick=False,
    ),
    Mutation(
        "missing async wait",
        "cuda/sweep.cuh",
        "    wait_copies();\n",
        "",
        "copies that nobody waited for",
        (0,),
    ),
    Mutation(
        "wrong shuffle distance",
        "cuda/reduce.cuh",
        "for (int distance = width; distance < kWarp",
        "for (int distance = 2 * width; distance < kWarp",
        "output: error",
        (0,),
    ),
    Mutation(
        "row off by one",
        "cuda/sweep.cuh",
        "const Vector at = view.vector(stretch.first + i);",
        "const Vector at = view.vector(stretch.first + i + 1);",
        "of a global buffer",
        (4,),
    ),
    Mutation(
        "shared memory too small",
        "cuda/params.h",
        "at.bytes = at.channels + 2 * g.slab_columns;",
        "at.bytes = at.channels;",
        "past the end of shared memory",
        (4,),
        quick=False,  # the bindings include it, which takes long to compile
    ),
    Mutation(
        "a mask that NaN does not pass",
        "cuda/activate.cuh",
        "(passes<curve, Math<A>>(z[k]) ? 1u : 0u)",
        "(z[k] > 0 ? 1u : 0u)",
        "bits are not what the output tells",
        (4,),
    ),
    Mutation(
        "a saved residual that is not added",
        "cuda/backward.cuh",
        "z[k] += residual[k];",
        "z[k] += 0 * residual[k];",
        "grad_residual: error",
        (11,),
    ),
    Mutation(
        "a block that leaves while others read its shared memory",
        "cuda/backward.cuh",
        "    exchange_.leave();\n",
        "",
        "ended without a sync_cluster after others read its shared memory",
        (1,),
    ),
    Mutation(
        "a lane of sums left out",
        "cuda/reduce.cuh",
        "const int rows = shuffles ? g_.threads / kWarp : g_.lanes;",
        "const int rows = shuffles ? g_.threads / kWarp : g_.lanes - 1;",
        "output: error",
        (4,),
        quick=False,
    ),
)
