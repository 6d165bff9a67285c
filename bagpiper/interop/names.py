"""Names of the official checkpoint's tensors (spec section 8) and ours, in both directions.

Apart from prefixes two things differ: the official vocabulary matrices are one each, ours are two blocks of rows; and
the official file carries the loss weight of every id, which here follows from the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bagpiper.language.vocabulary import NUM_SPECIAL, Vocabulary

VOCAB_WEIGHT = "vocab_weight"
TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."
CODEC = "multimodal_io_dict.discrete_audio.codec_model."
_PREFIXES = (
    ("llm.model.", "model."),
    ("adaptor.output.", "adaptor.continuous_audio."),
    ("encoder.tower.", TOWER),
    ("codec.model.", CODEC),
)
_WHOLE = {"head.streams": "stream_emb.weight"}
_MATRICES = {"input_rows": "model.embed_tokens.weight", "output_rows": "lm_head.weight"}
_ORDER = (VOCAB_WEIGHT, "model.", "lm_head.", "stream_emb.", "adaptor.", TOWER, CODEC)


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a tensor; without ``stop`` all of it.

    Attributes:
        name: of the tensor, on the other side.
        start, stop: rows.
    """

    name: str
    start: int = 0
    stop: int | None = None


def pieces_of_own(name: str, vocabulary: Vocabulary) -> tuple[Piece, ...]:
    """What makes up one of our tensors: pieces of official ones, to be put one below the other.

    Raises:
        KeyError: the official model has no such tensor.
    """
    owner, _, rest = name.partition(".")
    if owner in _MATRICES:
        matrix, start, stop = _MATRICES[owner], vocabulary.text_start, vocabulary.audio_start
        if rest == "text":
            return (Piece(matrix, start, stop),)
        return (Piece(matrix, 0, start), Piece(matrix, stop, vocabulary.size))
    if name in _WHOLE:
        return (Piece(_WHOLE[name]),)
    for own, official in _PREFIXES:
        if name.startswith(own):
            return (Piece(official + name.removeprefix(own)),)
    raise KeyError(name)


def pieces_of_official(name: str) -> tuple[Piece, ...]:
    """What makes up an official tensor other than ``vocab_weight``: pieces of ours, one below the other.

    Raises:
        KeyError: there is no such tensor here.
    """
    for owner, matrix in _MATRICES.items():
        if name == matrix:
            new = f"{owner}.new"
            return (Piece(new, 0, NUM_SPECIAL), Piece(f"{owner}.text"), Piece(new, NUM_SPECIAL))
    for own, official in _WHOLE.items():
        if name == official:
            return (Piece(own),)
    for own, official in _PREFIXES:
        if name.startswith(official):
            return (Piece(own + name.removeprefix(official)),)
    raise KeyError(name)


def official_shapes(shapes: Mapping[str, tuple[int, ...]], vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official file, in its order, from ours.

    Args:
        shapes: of our model.
        vocabulary: of our model.

    Raises:
        KeyError: a tensor that the official model does not have.
    """
    found: dict[str, tuple[int, ...]] = {VOCAB_WEIGHT: (vocabulary.size,)}
    for name, shape in shapes.items():
        pieces = pieces_of_own(name, vocabulary)
        is_rows = pieces[0].stop is not None
        found[pieces[0].name] = (vocabulary.size, *shape[1:]) if is_rows else shape
    ranks = {name: next(rank for rank, prefix in enumerate(_ORDER) if name.startswith(prefix)) for name in found}
    return dict(sorted(found.items(), key=lambda item: ranks[item[0]]))
