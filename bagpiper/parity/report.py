"""The outcome of a parity check: limits, one comparison per way, table and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

FILE = "parity.json"
STEP, BATCH, MERGED, RELOADED, AUTOCAST = (
    "cached, row by row",
    "cached, ragged batch",
    "LoRA merged",
    "exported and reloaded",
    "training precision",
)


@dataclass(frozen=True)
class Limit:
    """How far two logits may lie apart: ``absolute + relative * largest |logit|``.

    Attributes:
        absolute, relative: as above.
        same_ids: whether the most probable ids must agree, where the reference's margin is over a tenth of the limit
            (a smaller one is a tie, which rounding may break either way).
    """

    absolute: float
    relative: float
    same_ids: bool

    def at(self, largest: float) -> float:
        """The limit for logits up to ``largest``."""
        return self.absolute + self.relative * largest


LIMITS = {
    "float32": Limit(1e-4, 1e-5, same_ids=True),
    "bfloat16": Limit(1e-2, 5e-2, same_ids=False),
    "nf4": Limit(1e-3, 1e-4, same_ids=True),
}
"""By what the weights are kept in; ``bfloat16`` is also the limit of a training forward pass under ``bf16-mixed``.

Measured on CPUs, in parts of the largest logit: float32 1e-6 on tiny models and 2e-6 on SmolLM2 (30 layers). bfloat16
rounds every activation to 8 bits: 0.4 % (tiny, training precision), 2.2 % (tiny with large random adaptors, which
amplify), 1.4 % (SmolLM2, training precision), 2.3 % (SmolLM2, bfloat16 weights); 5 % is twice what was seen, and ids
are counted but not judged. NF4 weights are computed with in float32, after they are unpacked: 2e-6 on a CPU. Ten times
the float32 limit leaves room for CUDA, where other kernels unpack for one row than for many.
"""


@dataclass(frozen=True)
class Comparison:
    """One way to the logits against the reference.

    Attributes:
        way: which one.
        difference: largest absolute difference of two logits; infinite where masks or rows differ.
        limit: what is allowed.
        differing: most probable ids that differ, ties aside.
        same_ids: whether these count as a failure.
        skipped: why nothing was compared, or None.
    """

    way: str
    difference: float = 0.0
    limit: float = 0.0
    differing: int = 0
    same_ids: bool = True
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Within the limits; what was skipped does not fail. A NaN is no difference below a limit."""
        if self.skipped is not None:
            return True
        return self.difference <= self.limit and not (self.same_ids and self.differing)


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and how it went.

    Attributes:
        examples: where the examples come from.
        numbers: what the weights are kept in: float32, bfloat16 or nf4.
        ids: choices compared, one per row and drawn stream.
        largest: largest absolute logit of the reference.
        comparisons: one per way.
    """

    examples: tuple[str, ...]
    numbers: str
    ids: int
    largest: float
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison did."""
        return all(comparison.passed for comparison in self.comparisons)

    def as_json(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        return {
            "passed": self.passed,
            "examples": list(self.examples),
            "numbers": self.numbers,
            "ids_compared": self.ids,
            "largest_logit": self.largest,
            "comparisons": [
                {
                    "way": c.way,
                    "largest_difference": c.difference if c.skipped is None else None,
                    "limit": c.limit if c.skipped is None else None,
                    "ids_differing": c.differing if c.skipped is None else None,
                    "passed": c.passed,
                    "skipped": c.skipped,
                }
                for c in self.comparisons
            ],
        }

    def table(self) -> Table:
        """For people."""
        title = f"largest differences from the training forward pass ({self.numbers}, logits up to {self.largest:.3g})"
        table = Table("way", title=title)
        for column in ("difference", "limit", f"of {self.ids} ids differ", ""):
            table.add_column(column, justify="right")
        for c in self.comparisons:
            if c.skipped is not None:
                table.add_row(c.way, "", "", "", c.skipped)
            else:
                verdict = "ok" if c.passed else "DIFFERS"
                table.add_row(c.way, f"{c.difference:.2g}", f"{c.limit:.2g}", str(c.differing), verdict)
        return table

    def summary(self) -> str:
        """One line."""
        compared = [c for c in self.comparisons if c.skipped is None]
        worst = max(compared, key=lambda c: c.difference / c.limit)
        return (
            f"parity: {len(compared)} ways to {self.ids} choices agree with the training forward pass "
            f"(largest difference {worst.difference:.2g}: {worst.way})"
        )
