"""The cache of codec codes: every clip is encoded once per codec, before training, and read by data threads."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bagpiper.codecs.configs import CodecConfig
from bagpiper.data.audio import ClipInfo, read_clip
from bagpiper.errors import UserError
from bagpiper.files import write_for_user
from bagpiper.recipe.settings import Channel, Resampler

logger = logging.getLogger(__name__)

Codes = NDArray[np.int64]

_MAGIC = b"bpcodes1"
_HEADER = struct.Struct("<8sIIIB")
"""Magic, CRC-32 of the codes, frames, codebooks, bytes of a code."""


class CodeCache:
    """Codes by (hash of the clip's file, fingerprint of the codec, resampler and channel of the clip).

    An entry is a file of a fixed header, whose checksum shows damage, and the codes as they are. They are written under
    a temporary name and renamed, so several processes may fill one cache. (NumPy's own files are not safe here: their
    header is read by ``ast.literal_eval``, which in Python 3.11 fails at random when two threads use it at once:
    "AST constructor recursion depth mismatch".)
    """

    def __init__(
        self,
        folder: str | Path,
        codec_fingerprint: str,
        resampler: Resampler = "soxr",
        channel: Channel = "first",
    ) -> None:
        """Open a cache, empty or not.

        Args:
            folder: of the cache, shared by all codecs.
            codec_fingerprint: hash of the codec's weights.
            resampler: what the codec hears of clips at other rates; ``fill_codes`` reads clips with it.
            channel: what it hears of clips of several channels; likewise.
        """
        self.resampler: Resampler = resampler
        self.channel: Channel = channel
        suffix = ("" if resampler == "soxr" else f"-{resampler}") + ("" if channel == "first" else f"-{channel}")
        self._folder = Path(folder) / "codes" / f"{codec_fingerprint[:32]}{suffix}"

    def has(self, sha256: str) -> bool:
        """Whether the codes of a clip are there and whole; a damaged entry is logged and counts as missing."""
        path = self._path(sha256)
        if not path.exists():
            return False
        try:
            self._load(path)
        except (OSError, ValueError) as error:
            logger.warning("%s: damaged entry of the code cache (%s); the codes are computed again", path, error)
            return False
        return True

    def get(self, sha256: str) -> Codes:
        """Codes of a clip.

        Returns:
            int64 ``[T, K]``.

        Raises:
            UserError: not in the cache, or damaged.
        """
        path = self._path(sha256)
        try:
            return self._load(path)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: codes are missing from the cache; start again, with --resume if there is a checkpoint, to "
                "compute them"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged entry of the code cache ({error}); start again, with --resume if there is a "
                "checkpoint, to compute it anew"
            ) from error

    def put(self, sha256: str, codes: NDArray[np.integer]) -> None:
        """Store the codes ``[T, K]`` of a clip.

        Raises:
            UserError: the folder cannot be written or the disk is full.
        """
        assert codes.ndim == 2, f"codes of shape {codes.shape}"
        width = 2 if codes.max(initial=0) < 2**15 else 4
        body = np.ascontiguousarray(codes, dtype=f"<i{width}").tobytes()
        header = _HEADER.pack(_MAGIC, zlib.crc32(body), *codes.shape, width)
        write_for_user(self._path(sha256), header + body)

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256}.codes"

    @staticmethod
    def _load(path: Path) -> Codes:
        data = path.read_bytes()
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise ValueError("no header")
        _, checksum, frames, codebooks, width = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if len(body) != frames * codebooks * width or zlib.crc32(body) != checksum:
            raise ValueError("its checksum differs")
        return np.frombuffer(body, dtype=f"<i{width}").reshape(frames, codebooks).astype(np.int64)


def fill_codes(
    cache: CodeCache,
    clips: Iterable[ClipInfo],
    config: CodecConfig,
    encode: Callable[[list[NDArray[np.float32]]], Sequence[NDArray[np.integer]]],
    *,
    batch_seconds: float = 60.0,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Encode the clips that the cache lacks.

    Args:
        cache: the cache.
        clips: the clips, each once (``distinct_clips(examples, spoken=True)``).
        config: of the codec.
        encode: waves at ``config.sample_rate`` -> codes ``[config.num_frames(N_i), K]``, each clip as if alone.
        batch_seconds: audio handed to ``encode`` at once.
        progress: told how many clips are done after each batch.

    Returns:
        Number of clips that were encoded.

    Raises:
        BadAudio: a clip can no longer be read.
    """
    batch: list[ClipInfo] = []
    done = encoded = 0

    def flush() -> None:
        nonlocal encoded
        waves = [
            read_clip(clip.path, config.sample_rate, resampler=cache.resampler, channel=cache.channel) for clip in batch
        ]
        for clip, wave, codes in zip(batch, waves, encode(waves) if waves else [], strict=True):
            expected = (config.num_frames(len(wave)), config.num_codebooks)
            assert codes.shape == expected, (
                f"{clip.path}: codec gave codes {codes.shape}, its config promises {expected}"
            )
            cache.put(clip.sha256, codes)
        encoded += len(batch)
        batch.clear()
        if progress is not None:
            progress(done)

    for clip in clips:
        long_enough = config.num_frames(clip.samples_at(config.sample_rate)) > 0  # shorter ones are refused by Layout
        if long_enough and not cache.has(clip.sha256):
            batch.append(clip)
        done += 1
        if sum(item.seconds for item in batch) >= batch_seconds:
            flush()
    flush()
    return encoded
