"""From a recipe to everything a run needs before its first step: corpus, examples, tokenizer, codec, codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from bagpiper.codecs.configs import RvqConfig
from bagpiper.component import Codec, Encoder
from bagpiper.console import counted, told
from bagpiper.data.audio import ClipInfo, read_clip
from bagpiper.data.codes import CodeCache, fill_codes
from bagpiper.data.examples import Example, count_shared, distinct_clips, read_sources
from bagpiper.data.importers import soundscape_sources
from bagpiper.data.ledger import Ledger
from bagpiper.draws import derive_seed
from bagpiper.errors import UserError, brief
from bagpiper.files import replacing_file, replacing_folder
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.recipe import registry
from bagpiper.recipe.rules import VOICE_MISSING
from bagpiper.recipe.settings import Recipe, SourceSettings
from bagpiper.soundscapes.corpus.make import make_corpus
from bagpiper.soundscapes.corpus.voice import HibariVoice

CODEC, TOKENIZER = "codec.safetensors", "tokenizer"
_CALIBRATION_SECONDS = 300.0


@dataclass(frozen=True)
class Examples:
    """What is trained on and what is held out.

    Attributes:
        train, valid: examples.
        ledger: what was read and left out.
    """

    train: list[Example]
    valid: list[Example]
    ledger: Ledger


def prepare_examples(recipe: Recipe, folder: Path, console: Console) -> Examples:
    """Make the corpus if the recipe has no sources, and read every manifest.

    Raises:
        UserError: no data, or bad data where the recipe says ``fail``.
    """
    train, valid = _sources(recipe, folder, console)
    ledger = Ledger()
    data = recipe.data
    with told(console, "read") as say:
        found = []
        for sources in (train, valid):
            found.append(
                read_sources(
                    sources,
                    on_bad=data.on_bad_example,
                    max_seconds=data.max_seconds,
                    ledger=ledger,
                    channel=data.channel,
                    clip_cache=recipe.cache_folder / "clips.json",
                )
                if sources
                else []
            )
        seconds = sum(clip.seconds for examples in found for e in examples for clip in e.clips.values())
        say(f"{len(found[0])} training and {len(found[1])} validation examples, {seconds / 60:.1f} min of audio")
    count_shared(found[0], found[1], ledger)
    return Examples(found[0], found[1], ledger)


def _sources(
    recipe: Recipe, folder: Path, console: Console
) -> tuple[Sequence[SourceSettings], Sequence[SourceSettings]]:
    data = recipe.data
    if data.sources:
        return data.sources, data.valid_sources
    if data.soundscapes is None:
        raise UserError("there is nothing to train on: set data.sources, or data.soundscapes to make a corpus")
    made = data.soundscapes
    corpus = recipe.corpus_folder
    with told(console, "corpus") as say, counted(console, "making clips") as advance:
        try:
            voice = HibariVoice() if made.speech else None
        except ModuleNotFoundError as error:
            raise UserError(VOICE_MISSING) from error
        make_corpus(corpus, made.train, made.valid, made.test, made.seed, made.variety, advance, voice)
        say(f"{made.train + made.valid + made.test} clips in {corpus}")
    return soundscape_sources(corpus)


def prepare_tokenizer(recipe: Recipe, folder: Path, train: Iterable[Example], console: Console) -> TextTokenizer:
    """The LLM's tokenizer, or a BPE trained on the training texts for an LLM made from nothing; the run keeps it.

    Raises:
        UserError: the folder has the tokenizer of another LLM.
    """
    kept, llm = folder / TOKENIZER, recipe.model.llm
    if kept.is_dir():
        tokenizer = TextTokenizer.load(kept)
        if llm.source is not None and tokenizer.hash() != TextTokenizer.from_transformers(llm.source).hash():
            raise UserError(f"{kept} is not the tokenizer of {brief(llm.source)}; remove it, or choose another run_dir")
        return tokenizer
    with told(console, "tokenizer") as say:
        if llm.source is not None:
            tokenizer = TextTokenizer.from_transformers(llm.source)
        else:
            texts = [m.text for e in train for m in e.conversation.messages if m.modality == "text"]
            tokenizer = TextTokenizer.train_bpe(texts, llm.tokenizer.vocab_size)
        keep_tokenizer(folder, tokenizer)
        say(f"{tokenizer.size} tokens" + ("" if llm.source else f", trained on {len(texts)} texts"))
    return tokenizer


def keep_tokenizer(folder: Path, tokenizer: TextTokenizer) -> None:
    """Write the tokenizer of a run."""
    with replacing_folder(folder / TOKENIZER) as temporary:
        tokenizer.save(temporary)


def prepare_codec(recipe: Recipe, folder: Path, train: Sequence[Example], console: Console) -> Codec:
    """The recipe's codec; an ``rvq`` without a file is fitted to the training clips and kept in the run folder.

    Raises:
        UserError: the codec must be fitted, but there is no audio.
    """
    known = codec_on_disk(recipe, folder)
    if known is not None:
        return known
    config = recipe.model.codec
    if not isinstance(config, RvqConfig):
        return registry.build("codec", config)
    clips = distinct_clips(train, spoken=True) or distinct_clips(train, spoken=False)
    if not clips:
        raise UserError("model.codec.path is null, so the codec is fitted to the training clips, but there is no audio")
    with told(console, "codec") as say:
        codec = registry.build("codec", config)
        waves = list(_sample(recipe, clips, config.sample_rate, config.fit_seconds))
        with counted(console, "fitting codebooks") as advance:
            codec.fit(waves, derive_seed(recipe.seed, "codec"), advance)
        with replacing_file(folder / CODEC) as temporary:
            codec.save(temporary)
        say(f"{config.num_codebooks} codebooks of {config.codebook_size} fitted to {_minutes(waves, config)} of audio")
    return codec


def codec_on_disk(recipe: Recipe, folder: Path) -> Codec | None:
    """The fitted codec that the recipe names or the run folder holds, if any."""
    config = recipe.model.codec
    if not isinstance(config, RvqConfig):
        return None
    path = Path(config.path) if config.path else folder / CODEC
    if not path.is_file():
        return None
    codec = registry.build("codec", replace(config, path=str(path)))
    assert isinstance(codec, Codec)
    return codec


def calibrate_encoder(recipe: Recipe, encoder: Encoder, train: Sequence[Example]) -> None:
    """Show an encoder that is to train from nothing some of the clips that it will hear."""
    clips = distinct_clips(train, spoken=False)
    if clips:
        waves = _sample(recipe, clips, recipe.model.encoder.sample_rate, _CALIBRATION_SECONDS)
        encoder.calibrate([torch.from_numpy(wave) for wave in waves])


def _sample(
    recipe: Recipe, clips: Sequence[ClipInfo], sample_rate: int, seconds: float
) -> Iterator[NDArray[np.float32]]:
    """Clips in an order that depends on the seed alone, until there is enough audio."""
    so_far = 0.0
    for clip in sorted(clips, key=lambda clip: derive_seed(recipe.seed, "codec clip", clip.sha256)):
        if so_far >= seconds:
            return
        so_far += clip.seconds
        yield read_clip(clip.path, sample_rate, resampler=recipe.data.resampler, channel=recipe.data.channel)


def prepare_codes(
    recipe: Recipe, folder: Path, codec: Codec, examples: Examples, device: torch.device, console: Console
) -> CodeCache:
    """Encode every clip that the model is to make, once."""
    cache = CodeCache(recipe.cache_folder, codec.weights_hash(), recipe.data.resampler, recipe.data.channel)
    clips = distinct_clips([*examples.train, *examples.valid], spoken=True)

    def encode(waves: list[NDArray[np.float32]]) -> list[NDArray[np.int64]]:
        with torch.no_grad():
            codes = codec.encode([torch.from_numpy(wave).to(device) for wave in waves])
        return [item.cpu().numpy() for item in codes]

    home = next(iter([*codec.parameters(), *codec.buffers()])).device
    with told(console, "codes") as say, counted(console, "encoding clips") as advance:
        codec.to(device)
        encoded = fill_codes(cache, clips, recipe.model.codec, encode, progress=lambda done: advance(done, len(clips)))
        codec.to(home)
        say(f"{encoded} clips encoded, {len(clips) - encoded} known")
    return cache


def _minutes(waves: Sequence[NDArray[np.float32]], config: RvqConfig) -> str:
    return f"{sum(len(wave) for wave in waves) / config.sample_rate / 60:.1f} min"
