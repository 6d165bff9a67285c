"""What every benchmark prints: one JSON object a line, and exit status 1 if a bar does not hold."""

from __future__ import annotations

import json
import sys
from typing import Literal

_failed = False


def figure(
    name: str, value: float, unit: str, bar: float | None = None, better: Literal["higher", "lower"] = "higher"
) -> None:
    """Print a figure.

    Args:
        name: what was measured.
        value: the figure.
        unit: its unit.
        bar: what it has to reach; None for a figure without a bar.
        better: which side of the bar is good.
    """
    global _failed
    holds = bar is None or (value >= bar if better == "higher" else value <= bar)
    _failed = _failed or not holds
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "holds": holds}), flush=True)


def finish() -> None:
    """Leave with status 1 if a bar did not hold."""
    sys.exit(1 if _failed else 0)
