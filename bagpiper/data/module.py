"""The LightningDataModule: packs of the endless training stream and of the validation set."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torchdata.nodes
from lightning import LightningDataModule

from bagpiper.batch import Batch, Note, collate
from bagpiper.data.audio import ClipInfo
from bagpiper.data.examples import Example, count_clips
from bagpiper.data.layout import BadExample, LaidOut, Layout, Measured, condition_to_keep, count_rows
from bagpiper.data.ledger import LOST, REPEATED, RESAMPLED, Faults, Ledger
from bagpiper.data.packing import PackStream, fill_of, plan_epoch
from bagpiper.errors import UserError
from bagpiper.language.conversation import Message
from bagpiper.recipe.settings import DataSettings

FINGERPRINT_VERSION = 2
"""Of the data, in checkpoints; the first had neither texts nor roles and loss flags, and no version."""

_to_json = json.JSONEncoder(separators=(",", ":")).encode

_VALID_SEED = 0
"""Validation packs are the same in every run, whatever its seed."""


class PackDataModule(LightningDataModule):
    """Lays packs out ahead of the training step.

    What a micro-batch holds is a pure function of its position in the stream, whatever the number of workers.
    ``position`` counts the micro-batches that were *consumed*, that is, handed to the training step: Lightning fetches
    one batch ahead, and a loader's own count is past the truth. So any checkpoint, whoever writes it at the end of a
    step, says where to go on.
    """

    def __init__(
        self,
        train: Sequence[Example],
        valid: Sequence[Example],
        layout: Layout,
        settings: DataSettings,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        ledger: Ledger | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Measure every example and plan the first epoch.

        Args:
            train: training examples.
            valid: validation examples.
            layout: of the model; its cache holds the codes of every spoken clip before the first batch is asked for.
            settings: budget, workers, dropout, what happens to bad examples.
            seed: of the run.
            accumulate: micro-batches of an optimizer step, for ``describe``.
            rank, world: of this process.
            ledger: counts what is left out here; None makes one.
            tell: gets a line for the user when an example is lost while training.

        Raises:
            UserError: no usable training example; bad examples where the recipe says ``fail``.
        """
        super().__init__()
        self.settings, self.seed, self.accumulate = settings, seed, accumulate
        self.rank, self.world = rank, world
        self.ledger = ledger or Ledger()
        self.layout = layout
        self.position = 0
        self._tell = tell or (lambda text: None)
        self._told: set[str] = set()
        faults = Faults(settings.on_bad_example, self.ledger)
        self._train = self._measure(train, faults)
        self._valid = self._measure(valid, faults)
        faults.raise_if_any()
        if not self._train:
            raise UserError(
                f"no training example is left of {len(train)}; {self.ledger.summary() or 'set data.sources'}"
            )
        count_clips([*train, *valid], RESAMPLED, self._is_resampled, self.ledger)
        self._stream = self._make_stream(starts=(0,))
        self._valid_packs = plan_epoch(count_rows(self._valid), settings.token_budget, _VALID_SEED, epoch=0)

    def describe(self) -> str:
        """One line for the user: examples, packs, how full they are, steps of an epoch."""
        packs = self._stream.plan(0)
        fill = fill_of(packs, count_rows(self._train), self.settings.token_budget)
        steps = len(packs) / (self.world * self.accumulate)
        return (
            f"{len(self._train)} training examples in {len(packs)} packs of {self.settings.token_budget} rows "
            f"({fill:.1%} filled), {steps:.1f} steps an epoch; "
            f"{len(self._valid)} validation examples in {len(self._valid_packs)} packs"
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning hands a batch over: to the training step, which consumes it, or to a validation."""
        self._take_note(batch)
        if self.trainer is not None and self.trainer.training:
            self.position += 1
        return batch

    def _take_note(self, batch: Batch) -> None:
        """Count what happened to the batch's examples, and tell each fault once."""
        for note in batch.notes:
            self.ledger.count(note.source, note.what)
            if note.text and note.text not in self._told:
                self._told.add(note.text)
                self._tell(note.text)

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream, for the checkpoint; the same on every rank."""
        return {
            "position": self.position,
            "world": self.world,
            "starts": self._stream.starts,
            "fingerprint": self._fingerprint,
            "fingerprint_version": FINGERPRINT_VERSION,
            "valid_fingerprint": self._valid_fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stands, after ``check``.

        With another number of ranks the stream goes on at the same pack, rounded down to a whole micro-batch; that is
        told. Validation examples may be others, for nothing is trained on them; that is told too, because losses from
        here on do not compare with those before.
        """
        self.check(state)
        self._stream = self._make_stream(starts=state["starts"])
        self.position = state["position"] * state["world"] // self.world
        if self.rank == 0:
            self._tell_changes(state)

    def check(self, state: dict[str, Any]) -> None:
        """Compare the data with a checkpoint's.

        Raises:
            UserError: the examples, their order, the budget or the seed are not those of the checkpoint.
        """
        # checkpoints of before have the first version's alone
        known = self._fingerprint if "fingerprint_version" in state else self._first_fingerprint()
        if state["fingerprint"] != known:
            raise UserError(
                "the training data is not that of the checkpoint (examples, their texts, roles, loss flags or clips, "
                "weights, token_budget, resampler, channel or seed differ), so the run cannot go on exactly; restore "
                "the data, or start a new run with start_from=<this run folder> and another run_dir"
            )

    def _tell_changes(self, state: dict[str, Any]) -> None:
        """What is not as it was when the checkpoint was written, and is allowed."""
        if state["world"] != self.world:
            again = state["position"] * state["world"] - self.position * self.world
            self._tell(
                f"ranks: {self.world} instead of {state['world']}; packs in a step: {self.world * self.accumulate} "
                f"instead of {state['world'] * self.accumulate}"
                + (f"; packs of the last step that are trained on once more: {again}" if again else "")
            )
        if state.get("valid_fingerprint", self._valid_fingerprint) != self._valid_fingerprint:
            self._tell(
                "the validation examples are not those of before: losses on them do not compare with earlier ones"
            )

    def train_dataloader(self) -> _EndlessLoader:
        """The training stream from ``position`` on: an iterable without length and, on purpose, without state."""
        return _EndlessLoader(self)

    def val_dataloader(self) -> _ValidLoader:
        """The validation packs of this rank, the same every time."""
        return _ValidLoader(self)

    def batch_at(self, position: int) -> Batch:
        """The training micro-batch at a position: a pure function of it.

        A pack of which no example can be read any more is replaced by the next one that this rank would see; its
        examples are trained on once more, which is counted.

        Raises:
            UserError: an example can no longer be read and the recipe says ``fail``; or none can be.
        """
        notes: list[Note] = []
        for offset in range(len(self._train)):  # an epoch has no more packs than this
            epoch, numbers = self._stream.pack(position + offset)
            items = [self._train[number] for number in numbers]
            batch = self._lay_out(items, epoch, notes)
            if batch is not None:
                again = [
                    Note(item.example.source, REPEATED)
                    for item in items
                    if offset and item.example.conversation.id in batch.keys
                ]
                return replace(batch, notes=(*notes, *again))
        raise _all_lost("training", notes)

    def valid_batch_at(self, index: int) -> Batch:
        """A validation batch of this rank. Conditions are never dropped here.

        Every rank has the same number of batches; where packs run out (or cannot be read), a batch without weights
        and keys stands in, which counts for nothing.
        """
        number = index * self.world + self.rank
        notes: list[Note] = []
        candidates = range(number, number + len(self._valid_packs))
        for candidate in candidates:
            pack = self._valid_packs[candidate % len(self._valid_packs)]
            batch = self._lay_out([self._valid[item] for item in pack], None, notes)
            if batch is not None:
                batch = replace(batch, notes=tuple(notes))
                return batch if candidate == number < len(self._valid_packs) else _without_weight(batch)
        raise _all_lost("validation", notes)

    @property
    def num_valid_batches(self) -> int:
        """Validation batches of every rank."""
        return -(-len(self._valid_packs) // self.world)

    def _lay_out(self, items: list[Measured], epoch: int | None, notes: list[Note]) -> Batch | None:
        """Lay a pack out; ``epoch`` None means validation; faults are appended to ``notes``."""
        laid: list[tuple[Measured, LaidOut]] = []
        for item in items:
            keep = None
            if epoch is not None:
                keep = condition_to_keep(self.layout, item.example, self.settings.cfg_dropout, self.seed, epoch)
            try:
                laid.append((item, self.layout.lay_out(item, keep)))
            except UserError as error:
                if self.settings.on_bad_example == "fail":
                    raise
                notes.append(Note(item.example.source, LOST, f"{item.example.where}: left out: {error}"))
        if not laid:
            return None
        return collate(
            [out.grid for _, out in laid],
            [out.waves for _, out in laid],
            [item.example.conversation.id for item, _ in laid],
            audio_start=self.layout.audio_start,
            seconds=sum(out.seconds for _, out in laid),
        )

    def _measure(self, examples: Sequence[Example], faults: Faults) -> list[Measured]:
        max_rows = self.settings.max_rows or self.settings.token_budget
        measured = []
        for example in examples:
            try:
                measured.append(self.layout.measure(example, max_rows))
            except BadExample as error:
                faults.add(example.source, error.reason, str(error))
        return measured

    def _is_resampled(self, clip: ClipInfo, message: Message) -> bool:
        part = self.layout.codec if message.is_spoken else self.layout.encoder
        return clip.sample_rate != part.sample_rate

    def _make_stream(self, starts: Sequence[int]) -> PackStream:
        weights = [item.example.weight for item in self._train]
        return PackStream(
            count_rows(self._train),
            self.settings.token_budget,
            self.seed,
            weights,
            rank=self.rank,
            world=self.world,
            starts=starts,
        )

    @cached_property
    def _fingerprint(self) -> str:
        """Hash of all in the data that steps follow from; once, for it takes 5 s per million examples."""
        return self._hash(self._stream.fingerprint(), self._train)

    @cached_property
    def _valid_fingerprint(self) -> str:
        return self._hash(f"{self.settings.token_budget}", self._valid)

    def _hash(self, plan: str, items: Iterable[Measured]) -> str:
        digest = hashlib.sha256(f"{plan} {self.layout.reading}\n".encode())
        for item in items:
            digest.update(_contents(item.example))
        return digest.hexdigest()

    def _first_fingerprint(self) -> str:
        """As the first checkpoints have it, which knew texts by their length alone."""
        digest = hashlib.sha256(f"{self._stream.fingerprint()} {self.layout.reading}".encode())
        for item in self._train:
            clips = [clip.sha256 for clip in item.example.clips.values()]
            digest.update(repr((item.example.conversation.id, clips)).encode())
        return digest.hexdigest()


def _contents(example: Example) -> bytes:
    """All of an example that a step can follow from, the same with every release of Python."""
    messages = [
        (
            message.role,
            message.modality,
            message.loss,
            message.text if message.modality == "text" else example.clips[index].sha256,
        )
        for index, message in enumerate(example.conversation.messages)
    ]
    return _to_json((example.conversation.id, messages)).encode()


class _EndlessLoader:
    """The training stream as Lightning likes it least to interfere with: no ``__len__``, no ``state_dict``."""

    def __init__(self, module: PackDataModule) -> None:
        self._module = module

    def __iter__(self) -> Iterator[Batch]:
        start = self._module.position
        return _mapped(self._module.batch_at, range(start, sys.maxsize), self._module.settings.workers)


class _ValidLoader:
    """The validation packs: finite, with a length."""

    def __init__(self, module: PackDataModule) -> None:
        self._module = module

    def __len__(self) -> int:
        return self._module.num_valid_batches

    def __iter__(self) -> Iterator[Batch]:
        return _mapped(self._module.valid_batch_at, range(len(self)), self._module.settings.workers)


@dataclass(frozen=True)
class _Failure:
    """An exception on its way from a worker; torchdata would wrap its message in a traceback as text."""

    error: Exception


def _mapped(function: Callable[[int], Batch], indices: range, workers: int) -> Iterator[Batch]:
    """``map(function, indices)`` in order, by threads that work ahead."""
    if workers == 0:
        yield from map(function, indices)
        return

    def attempt(index: int) -> Batch | _Failure:
        try:
            return function(index)
        except Exception as error:  # raised again below, in the training thread
            return _Failure(error)

    # torchdata's workers call torch.set_num_threads(1), which is also what a thread that has not computed yet will
    # start with: settle this thread's number first
    torch.get_num_threads()
    # works up to 2 * workers packs ahead; a Prefetcher around it would make its threads end in one of themselves
    node = torchdata.nodes.ParallelMapper(
        torchdata.nodes.IterableWrapper(indices),
        attempt,
        num_workers=workers,
        in_order=True,
        method="thread",
        snapshot_frequency=0,
    )
    try:
        for item in node:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        del node  # ends the threads here and now, whatever an exception's traceback holds on to


def _all_lost(what: str, notes: Sequence[Note]) -> UserError:
    return UserError(f"not one {what} example can be read any more:\n  " + "\n  ".join(n.text for n in notes[:20]))


def _without_weight(batch: Batch) -> Batch:
    """The same pack, trained on nowhere and counted nowhere."""
    return replace(
        batch, weights=torch.zeros_like(batch.weights), keys=(), num_targets=0, num_text=0, num_frames=0, seconds=0.0
    )
