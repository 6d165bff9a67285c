"""Packing: which examples share a pack, as pure functions of (seed, epoch).

No global random state and no state at all but a cache: the pack at any position of the endless stream follows from
lengths, weights, budget and seed, with keyed draws (``bagpiper.draws``).
"""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bagpiper.draws import words

_WINDOW = 2048
"""Examples that are packed together. Larger windows fill packs no better and make short companions less random."""

_SMALL = 8
"""Examples up to 1/_SMALL of a pack are packed in random order. Sorting them too would fill packs no better, but put
examples of one length, and so of one task, together: the first packs of the quickstart held nothing but captions."""

_GRAIN = 1 << 20
"""Phases of ``copies`` are multiples of 1/_GRAIN, so that sums with epoch numbers are exact in float64."""


def copies(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """How often each example is drawn in an epoch.

    Example i has a fixed phase u_i; it is drawn floor((epoch + 1) * w + u_i) - floor(epoch * w + u_i) times: always
    once at weight 1, in every other epoch at weight 0.5, and exactly w times an epoch in the long run.

    Args:
        weights: ``[n]``, greater than 0.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 ``[n]``.
    """
    phases = (words(len(weights), seed, "phase") % _GRAIN).astype(np.float64) / _GRAIN
    return (np.floor((epoch + 1) * weights + phases) - np.floor(epoch * weights + phases)).astype(np.int64)


def plan_epoch(
    lengths: Sequence[int] | NDArray[np.int64],
    budget: int,
    seed: int,
    epoch: int,
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    window: int = _WINDOW,
) -> list[list[int]]:
    """Packs of an epoch.

    An example longer than the budget has a pack to itself.
    The examples are shuffled and cut into windows. In each window every example goes into the fullest pack that has
    room (best fit): first the large ones, longest first, then the small ones in random order, so that packs are full
    and yet mixed. The emptiest pack of a window is dissolved into the next one, and in the end the packs are shuffled.

    Args:
        lengths: rows of each example, at least 1.
        budget: rows of a pack.
        seed: of the run.
        epoch: from 0.
        weights: of each example; None draws each once.
        window: examples packed together.

    Returns:
        Numbers of the examples in each pack.
    """
    rows = np.asarray(lengths, dtype=np.int64)
    numbers = np.arange(len(rows))
    if weights is not None:
        numbers = np.repeat(numbers, copies(np.asarray(weights, dtype=np.float64), seed, epoch))
    order = numbers[np.argsort(words(len(numbers), seed, "order", epoch), kind="stable")].tolist()
    packs: list[list[int]] = []
    carried: list[int] = []
    for start in range(0, len(order), window):
        filled = _best_fit(carried + order[start : start + window], rows, budget)
        carried = filled.pop() if start + window < len(order) else []
        packs.extend(filled)
    shuffle = np.argsort(words(len(packs), seed, "packs", epoch), kind="stable")
    return [packs[number] for number in shuffle]


def _best_fit(items: list[int], rows: NDArray[np.int64], budget: int) -> list[list[int]]:
    """Packs of ``items``, the emptiest last."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free rows, number of the pack), sorted
    large = [item for item in items if rows[item] * _SMALL > budget]
    small = [item for item in items if rows[item] * _SMALL <= budget]
    for item in sorted(large, key=lambda item: -rows[item]) + small:
        length = int(rows[item])
        place = bisect.bisect_left(room, (length, -1))
        if place == len(room):
            packs.append([item])
            bisect.insort(room, (budget - length, len(packs) - 1))
        else:
            free, pack = room.pop(place)
            packs[pack].append(item)
            bisect.insort(room, (free - length, pack))
    return [packs[pack] for _, pack in room]


def fill_of(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
    """Share of the rows of packs that hold examples."""
    rows = [sum(lengths[item] for item in pack) for pack in packs]
    return sum(rows) / max(1, sum(max(budget, number) for number in rows))


class PackStream:
    """The endless stream of packs: epoch 0, then epoch 1, and so on, dealt round-robin to the ranks.

    Pack ``position * world + rank`` of the stream is what ``rank`` sees at ``position``; an epoch's end need not fall
    between two positions, so every rank has a pack at every position and no example is left out or repeated.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        seed: int,
        weights: Sequence[float] | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        starts: Sequence[int] = (0,),
    ) -> None:
        """Args: see ``plan_epoch``; starts: first pack of each epoch known so far, from an earlier stream."""
        assert 0 <= rank < world
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._weights = np.ones(len(lengths)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not len(self._lengths):
            raise ValueError("no examples to pack")
        self.budget, self.seed, self.rank, self.world = budget, seed, rank, world
        self._starts = list(starts)
        self._plans: dict[int, list[list[int]]] = {}
        self._lock = threading.Lock()

    @property
    def starts(self) -> list[int]:
        """First pack of each epoch known so far; given to a new stream they save planning those epochs again."""
        return list(self._starts)

    def pack(self, position: int) -> tuple[int, list[int]]:
        """The pack at a position: (epoch, numbers of its examples)."""
        number = position * self.world + self.rank
        with self._lock:
            while number >= self._starts[-1]:
                epoch = len(self._starts) - 1
                self._starts.append(self._starts[-1] + len(self._cached_plan(epoch)))
            epoch = bisect.bisect_right(self._starts, number) - 1
            return epoch, self._cached_plan(epoch)[number - self._starts[epoch]]

    def plan(self, epoch: int) -> list[list[int]]:
        """All packs of an epoch."""
        with self._lock:
            return self._cached_plan(epoch)

    def fingerprint(self) -> str:
        """Hash of all that the stream follows from, but for rank and world."""
        digest = hashlib.sha256(repr((self.budget, self.seed, _WINDOW)).encode())
        digest.update(self._lengths.tobytes())
        digest.update(self._weights.tobytes())
        return digest.hexdigest()

    def _cached_plan(self, epoch: int) -> list[list[int]]:
        if epoch not in self._plans:
            if len(self._plans) > 1:  # an epoch's last packs and the next one's first are laid out at the same time
                del self._plans[min(self._plans)]
            self._plans[epoch] = plan_epoch(self._lengths, self.budget, self.seed, epoch, self._weights)
        return self._plans[epoch]
