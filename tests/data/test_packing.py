"""Packing as a pure function of (seed, epoch): nothing lost, nothing twice, packs full, resume exact."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.data.packing import PackStream, copies, fill_of, plan_epoch
from bagpiper.draws import uniform

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=200)


@given(LENGTHS, st.integers(100, 300), st.integers(0, 2**40), st.integers(0, 1000), st.integers(2, 300))
@settings(max_examples=60, deadline=None)
def test_every_example_once_an_epoch_and_no_pack_over_budget(
    lengths: list[int], budget: int, seed: int, epoch: int, window: int
) -> None:
    packs = plan_epoch(lengths, budget, seed, epoch, window=window)
    assert sorted(item for pack in packs for item in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in pack) <= budget for pack in packs)
    assert packs == plan_epoch(lengths, budget, seed, epoch, [1.0] * len(lengths), window=window)


def test_plans_depend_on_seed_and_epoch_alone() -> None:
    lengths = list(range(10, 90))
    first = plan_epoch(lengths, 200, 1, 0)
    np.random.seed(7)
    assert plan_epoch(lengths, 200, 1, 0) == first
    assert plan_epoch(lengths, 200, 2, 0) != first != plan_epoch(lengths, 200, 1, 1)


def test_the_order_is_the_same_on_every_machine_and_numpy() -> None:
    """Recorded: a change of this order breaks the resume of every run that is under way."""
    assert plan_epoch([30, 40, 50, 60, 70, 20, 10], 100, 3, 1) == [[4, 0], [2, 5, 6], [3, 1]]
    assert uniform(3, "cfg", 0, "x") == 0.5846142587336127


@pytest.mark.parametrize(
    ("low", "high", "budget", "number"), [(60, 220, 4096, 8000), (60, 220, 1024, 200), (100, 900, 4096, 3000)]
)
def test_packs_of_many_short_examples_are_full(low: int, high: int, budget: int, number: int) -> None:
    lengths = np.random.default_rng(0).integers(low, high, number).tolist()
    packs = plan_epoch(lengths, budget, 0, 0)
    assert fill_of(packs, lengths, budget) >= 0.97


@pytest.mark.golden
def test_fill_is_at_least_the_official_one(golden: Path) -> None:
    recorded = json.loads((golden / "batching.json").read_text())
    lengths = [length for length in recorded["lengths"].values() if length <= recorded["budget"]]
    packs = plan_epoch(lengths, recorded["budget"], 0, 0)
    assert fill_of(packs, lengths, recorded["budget"]) >= recorded["pack_efficiency"]


def test_example_over_budget_has_a_pack_to_itself() -> None:
    lengths = [5, 101, 40, 300, 60]
    packs = plan_epoch(lengths, 100, 0, 0)
    assert sorted(map(sorted, packs)) == [[0], [1], [2, 4], [3]]
    assert fill_of(packs, lengths, 100) == 506 / (100 + 101 + 100 + 300), "a long pack is full, not over-full"


def test_nothing_to_pack() -> None:
    assert plan_epoch([], 100, 0, 0) == []
    with pytest.raises(ValueError, match="no examples"):
        PackStream([], 100, 0)


@given(st.floats(0.05, 5), st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_weights_are_repetition_factors(weight: float, seed: int, epochs: int) -> None:
    counts = np.stack([copies(np.full(30, weight), seed, epoch) for epoch in range(epochs)])
    assert counts.min() >= np.floor(weight) and counts.max() <= np.ceil(weight)
    assert np.abs(counts.sum(axis=0) - epochs * weight).max() < 1, "exact in the long run, for every example"


def test_weight_one_is_exactly_once_and_half_is_every_other_epoch() -> None:
    for epoch in (0, 1, 2**20, 2**31):
        assert (copies(np.ones(1000), 5, epoch) == 1).all()
    halves = copies(np.full(1000, 0.5), 5, 0), copies(np.full(1000, 0.5), 5, 1)
    assert (halves[0] + halves[1] == 1).all()
    assert 400 < halves[0].sum() < 600


def test_resampling_does_not_depend_on_pythons_hash_seed() -> None:
    """Defect of the official code (spec section 11.5): factors drew with the salted ``hash``. Recorded values."""
    assert copies(np.array([0.5, 0.25, 1.5, 2.0]), 11, 0).tolist() == [1, 0, 1, 2]


def test_weighted_packs_hold_the_copies() -> None:
    weights = [0.5] * 20 + [2.0] * 20
    packs = plan_epoch([10] * 40, 100, 0, 3, weights)
    drawn = Counter(item for pack in packs for item in pack)
    expected = copies(np.array(weights), 0, 3)
    assert [drawn[item] for item in range(40)] == expected.tolist()


@given(LENGTHS, st.integers(1, 5), st.integers(0, 60), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_resume_at_any_position_is_the_tail_of_the_stream(
    lengths: list[int], world: int, position: int, count: int
) -> None:
    whole = PackStream(lengths, 128, 1, rank=world - 1, world=world)
    told = [whole.pack(place) for place in range(position + count)]
    resumed = PackStream(lengths, 128, 1, rank=world - 1, world=world)
    assert [resumed.pack(place) for place in range(position, position + count)] == told[position:]
    quick = PackStream(lengths, 128, 1, rank=world - 1, world=world, starts=whole.starts)
    assert [quick.pack(place) for place in range(position, position + count)] == told[position:]


def test_resume_plans_only_the_epoch_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [10] * 30
    whole = PackStream(lengths, 100, 1)
    assert whole.pack(30)[0] == 10
    from bagpiper.data import packing

    planned = []
    plan = packing.plan_epoch
    monkeypatch.setattr(packing, "plan_epoch", lambda *args, **kw: planned.append(args[3]) or plan(*args, **kw))
    assert PackStream(lengths, 100, 1, starts=whole.starts).pack(30) == whole.pack(30)
    assert planned == [10]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_share_the_stream_without_loss_or_repetition(world: int) -> None:
    """Defect of the official code (spec section 9.4): ranks with few batches repeated their tail."""
    lengths = np.random.default_rng(1).integers(5, 60, 101).tolist()
    one = PackStream(lengths, 128, 4)
    ranks = [PackStream(lengths, 128, 4, rank=rank, world=world) for rank in range(world)]
    dealt = [ranks[rank].pack(position) for position in range(60) for rank in range(world)]
    assert dealt == [one.pack(position) for position in range(60 * world)]
    epochs = [epoch for epoch, _ in dealt]
    assert epochs == sorted(epochs) and epochs[-1] > 0
    first = Counter(item for epoch, pack in dealt if epoch == 0 for item in pack)
    assert first == Counter(range(101))


def test_fingerprint_tells_data_budget_and_seed_apart() -> None:
    prints = {
        stream.fingerprint()
        for stream in (
            PackStream([10, 20], 100, 1),
            PackStream([20, 10], 100, 1),
            PackStream([10, 20], 101, 1),
            PackStream([10, 20], 100, 2),
            PackStream([10, 20], 100, 1, [1.0, 2.0]),
        )
    }
    assert len(prints) == 5
    assert PackStream([10, 20], 100, 1, rank=1, world=2).fingerprint() in prints
