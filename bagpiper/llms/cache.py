"""The key/value cache of decoding: ragged, every row of the batch has its own length."""

from __future__ import annotations

from typing import Any

import torch


class KeyValueCache:
    """Keys and values of every layer for a batch of rows of different lengths.

    It answers to the methods of transformers' ``Cache`` that a model's forward pass calls. One step is
    ``begin(new_lengths, width)``, the model's forward pass (``update`` per layer), ``commit()``.

    Attributes:
        lengths: int64 ``[B]``, positions held by every row.
        visible: bool ``[B, 1, L, keys]``, what each query of the running step may see.
    """

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()

    def __init__(self, num_rows: int, device: torch.device | str = "cpu", capacity: int = 256) -> None:
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._longest = 0
        self._capacity = capacity
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._new_lengths: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None
        self.visible: torch.Tensor | None = None
        self._needed = 0

    def __len__(self) -> int:
        return int(self.lengths.shape[0])

    def begin(self, new_lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Announce the positions to come.

        Args:
            new_lengths: int64 ``[B]``; how many of the ``width`` columns are real, the rest is padding on the right.
            width: L, columns of the input.

        Returns:
            positions ``[B, L]``; ``visible`` is set for the forward pass.
        """
        assert self._new_lengths is None, "begin() without commit()"
        self._new_lengths = new_lengths
        self._needed = self._longest + width
        self._positions = self.lengths[:, None] + torch.arange(width, device=self.lengths.device)
        keys = torch.arange(self._needed, device=self.lengths.device)
        self.visible = keys <= self._positions[:, None, :, None]
        return self._positions

    def commit(self) -> None:
        """Keep what the forward pass wrote; padding columns will be overwritten."""
        assert self._new_lengths is not None, "commit() without begin()"
        self.lengths = self.lengths + self._new_lengths
        self._longest = int(self.lengths.max()) if len(self) else 0
        self._new_lengths = self._positions = self.visible = None

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values ``[B, kv_heads, L, D]``; return all ``[B, kv_heads, keys, D]``."""
        assert self._positions is not None, "update() outside begin() and commit()"
        if layer_idx == len(self._keys):
            shape = (key.shape[0], key.shape[1], max(self._capacity, self._needed), key.shape[3])
            self._keys.append(key.new_zeros(shape))
            self._values.append(value.new_zeros(shape))
        if self._keys[layer_idx].shape[2] < self._needed:
            self._keys[layer_idx] = _grown(self._keys[layer_idx], 2 * self._needed)
            self._values[layer_idx] = _grown(self._values[layer_idx], 2 * self._needed)
        rows = torch.arange(key.shape[0], device=key.device)[:, None]
        for held, new in ((self._keys[layer_idx], key), (self._values[layer_idx], value)):
            held[rows, :, self._positions] = new.transpose(1, 2)
        return self._keys[layer_idx][:, :, : self._needed], self._values[layer_idx][:, :, : self._needed]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Longest row; transformers asks, but positions are always given explicitly."""
        return self._longest

    def select(self, rows: torch.Tensor) -> KeyValueCache:
        """A cache of these rows (int64 ``[B']``, repeats allowed), independent of this one."""
        assert self._new_lengths is None, "select() between begin() and commit()"
        chosen = KeyValueCache(len(rows), self.lengths.device, self._capacity)
        chosen.lengths = self.lengths[rows]
        chosen._longest = int(chosen.lengths.max()) if len(rows) else 0
        chosen._keys = [keys[rows] for keys in self._keys]
        chosen._values = [values[rows] for values in self._values]
        return chosen

    @staticmethod
    def concatenate(first: KeyValueCache, second: KeyValueCache) -> KeyValueCache:
        """A cache that holds the rows of both, first those of ``first``."""
        joined = KeyValueCache(len(first) + len(second), first.lengths.device, first._capacity)
        joined.lengths = torch.cat([first.lengths, second.lengths])
        joined._longest = max(first._longest, second._longest)
        for name in ("_keys", "_values"):
            pairs = zip(getattr(first, name), getattr(second, name), strict=True)
            merged = []
            for one, other in pairs:
                size = max(one.shape[2], other.shape[2])
                merged.append(torch.cat([_grown(one, size), _grown(other, size)]))
            setattr(joined, name, merged)
        return joined


def _grown(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """``[B, heads, capacity, D]`` with room for ``size`` positions; the new ones are zero."""
    missing = size - tensor.shape[2]
    return torch.nn.functional.pad(tensor, (0, 0, 0, missing)) if missing > 0 else tensor
