"""The typed form of a recipe: plain dataclasses, no torch, one place for every default.

``bagpiper.recipe.load`` reads YAML into these; components add their own ``Config`` under ``model``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bagpiper.llms.configs import LoraSettings

RECIPE_VERSION = 1

Resampler = Literal["soxr", "official"]
"""How clips come to another sample rate, see ``bagpiper.data.audio.resample``."""

Channel = Literal["first", "mean", "loudest"]
"""What becomes of clips of several channels, see ``bagpiper.data.sound.ChannelMix``."""


@dataclass
class ModelSettings:
    """The four parts, the codec and how codes are laid out.

    Attributes:
        encoder, adaptor, llm, codec, head: the Config of a registered component (``name:`` picks it in YAML).
        pattern: codebook pattern.
        stream_weights: loss weight of each codebook; null gives 1/K each, so that a frame counts like a text token.
        text_zero_is_pad: reproduce the official loss of text id 0.
    """

    encoder: Any = None
    adaptor: Any = None
    llm: Any = None
    codec: Any = None
    head: Any = None
    pattern: str = "delay"
    stream_weights: list[float] | None = None
    text_zero_is_pad: bool = False


@dataclass
class SourceSettings:
    """One file of conversations (JSON lines). In YAML a bare string is its path.

    Attributes:
        path: the file; audio paths inside are relative to its folder.
        weight: how often each of its examples is drawn (1: once an epoch, 2: twice, 0.5: every other epoch).
        name: shown in logs; null takes the file's stem.
    """

    path: str = ""
    weight: float = 1.0
    name: str | None = None


@dataclass
class SoundscapesSettings:
    """The corpus that the project makes itself, written to ``<run_dir>/corpus`` (or ``folder``) when missing.

    Attributes:
        train, valid, test: number of clips of each split.
        variety: ``quick`` (1 or 2 sounds) or ``long`` (up to 3, richer mixtures).
        speech: one more kind of sound, a voice that says one of twelve sentences (extra ``speech``).
        seed: of the corpus; independent of the run's seed.
        folder: where it is written; null means ``<run_dir>/corpus``.
    """

    train: int = 4000
    valid: int = 100
    test: int = 300
    variety: Literal["quick", "long"] = "quick"
    speech: bool = False
    seed: int = 7
    folder: str | None = None


@dataclass
class DataSettings:
    """Where examples come from and how they are packed.

    Attributes:
        sources: training files.
        valid_sources: validation files.
        soundscapes: make the soundscapes corpus and use it when ``sources`` is empty.
        token_budget: rows of a pack.
        max_rows: longest example allowed; null means the budget. Examples longer than the budget have a pack to
            themselves, so that a few long ones need not make every step a large one.
        on_bad_example: ``fail`` stops at the first bad example; ``skip`` leaves it out, counts and reports it.
        max_seconds: longest clip allowed.
        cfg_dropout: probability that a training example of speech out loses its condition (spec section 4.5).
        frame_dropout: probability that a frame of target audio is hidden from the model's own input, at the start of
            training; it falls to 0 where the schedule ends (``optimizer.decay_end_step``). What comes next must then
            be found in the caption rather than copied from the frame before.
        loss_region: what is trained on in a conversation.
        workers: threads that read and lay out packs ahead of the training step.
        cache: folder of codec codes; null means ``<run_dir>/cache``.
        resampler: of clips at other rates: ``soxr``, or the official code's windowed sinc (``official``).
        channel: of clips that have several: the ``first``, as in the official code, the ``mean`` of all, or the
            ``loudest`` (over the whole clip).
    """

    sources: list[SourceSettings] = field(default_factory=list)
    valid_sources: list[SourceSettings] = field(default_factory=list)
    soundscapes: SoundscapesSettings | None = None
    token_budget: int = 4096
    max_rows: int | None = None
    on_bad_example: Literal["fail", "skip"] = "fail"
    max_seconds: float = 30.0
    cfg_dropout: float = 0.05
    frame_dropout: float = 0.0
    loss_region: Literal["assistant", "all"] = "assistant"
    workers: int = 2
    cache: str | None = None
    resampler: Resampler = "soxr"
    channel: Channel = "first"


@dataclass
class StageSettings:
    """What trains.

    Attributes:
        name: ``warmup`` freezes the LLM's layers and the text rows; ``pretrain`` and ``sft`` train them.
        train_encoder: whether the encoder trains (never in the official model; yes for encoders made from nothing).
        lora: adaptors instead of full training of the LLM; the text rows freeze, new rows and adaptor train.
    """

    name: Literal["warmup", "pretrain", "sft"] = "pretrain"
    train_encoder: bool = False
    lora: LoraSettings | None = None


@dataclass
class OptimizerSettings:
    """The optimizer and the official schedule: linear warm-up from 0, cosine to ``min_lr_ratio``, then constant.

    Attributes:
        name: ``adamw``, as in the official code; ``muon`` trains the matrices of encoder, adaptor and LLM by Muon and
            the rest by AdamW, which learns several times faster from nothing (docs/benchmarks.md).
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon.
        warmup_steps: steps of the linear warm-up; the first step has learning rate 0 as in the official code.
        min_lr_ratio: floor as a share of the peak.
        decay_end_step: step that reaches the floor, and from which on no frame is hidden (``data.frame_dropout``); null
            means ``trainer.max_steps``, which a resumed run then cannot change.
        weight_decay: on every trained tensor but the embedding rows.
        clip_norm: global gradient norm; 0 switches clipping off.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    matrix_lr: float = 0.02
    warmup_steps: int = 100
    min_lr_ratio: float = 0.1
    decay_end_step: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 3e-7
    clip_norm: float = 1.0


@dataclass
class TrainerSettings:
    """The run.

    Attributes:
        max_steps: optimizer steps.
        accumulate: micro-batches (packs) per step.
        precision: float32 masters always; ``bf16-mixed`` computes in bfloat16.
        matmul_precision: of float32 products while training, see ``torch.set_float32_matmul_precision``: ``high``
            allows TF32 on a GPU, ``medium`` bfloat16 products, also on CPUs that have them (Intel AMX).
        devices: processes on this machine.
        nodes: machines.
        strategy: ``auto`` (one device, or DDP), ``ddp`` (every rank has the whole model) or ``fsdp2`` (it is spread
            over the ranks; docs/scale.md).
        validate_every, checkpoint_every: in steps; 0 switches off (a checkpoint is always written at the end).
        validate_packs: packs per validation; 0 means all.
        keep_checkpoints: newest checkpoints kept.
        log_every: steps between two rows of metrics.
        gradient_checkpointing: recompute the LLM's layers in the backward pass.
        compile: torch.compile the LLM's layers.
        threads: CPU threads; null leaves torch's choice.
    """

    max_steps: int = 1000
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    validate_every: int = 0
    validate_packs: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 10
    gradient_checkpointing: bool = False
    compile: bool = False
    threads: int | None = None


@dataclass
class ListeningSettings:
    """What the model says and plays while it trains.

    Attributes:
        every: steps between two listenings; 0 switches off.
        captions: texts to render.
        clips: audio files to describe.
        from_valid: how many validation examples of each direction are added.
    """

    every: int = 0
    captions: list[str] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    from_valid: int = 2


@dataclass
class TrackingSettings:
    """MLflow.

    Attributes:
        enabled: write metrics, pictures, sounds and the recipe to MLflow.
        uri: tracking server; null means the SQLite file ``<run_dir>/mlflow.db``. A user and password in it are kept in
            no file: a resumed run is given them again, or takes those of MLFLOW_TRACKING_USERNAME and _PASSWORD.
        experiment: experiment name.
        run_name: null means the recipe's name.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "bagpiper"
    run_name: str | None = None


@dataclass
class DecodeSettings:
    """How one modality is sampled. The defaults of text and audio are the official ones (spec section 4.6).

    Attributes:
        temperature: 0 takes the most probable id.
        top_k: ids kept; 0 keeps all.
        cfg: classifier-free guidance scale; 1 is off.
        max_rows, min_rows: rows of a segment.
    """

    temperature: float = 0.6
    top_k: int = 20
    cfg: float = 1.0
    max_rows: int = 2048
    min_rows: int = 1


@dataclass
class GenerationSettings:
    """Decoding.

    Attributes:
        text, audio: per modality.
        enforce_pads: forbid ids that the codebook pattern rules out (the official code does not).
        unused_text_ids: allow text ids for which the tokenizer has no token, as the official code does.
        cfg_keeps_assistant: the branch without condition sees ``<|assistant|>``, as in training; the official code
            hides it.
        end_cut_segments: a segment stopped by ``max_rows`` gets an END row; the official code feeds its last row a
            second time, with stream 0 only.
        max_segments: most segments of an answer; null means those of the plan, or 8 where the model chooses. The
            official code goes on for as long as segments end with ``<|eot|>``.
        max_seconds: longest clip in a request.
        batch_size: conversations decoded together.
        system_prompt: put before every request that has no system message of its own, or null.
        render_prompt: takes the place of ``system_prompt`` where a sound is asked for, or null.
        resampler: of clips in requests; null means ``data.resampler`` in a recipe, soxr for a model without one.
        channel: of clips in requests; null means ``data.channel`` in a recipe, first for a model without one.
    """

    text: DecodeSettings = field(default_factory=DecodeSettings)
    audio: DecodeSettings = field(
        default_factory=lambda: DecodeSettings(temperature=0.8, top_k=20, cfg=3.0, max_rows=2048, min_rows=50)
    )
    enforce_pads: bool = True
    unused_text_ids: bool = False
    cfg_keeps_assistant: bool = True
    end_cut_segments: bool = True
    max_segments: int | None = None
    max_seconds: float = 30.0
    batch_size: int = 16
    system_prompt: str | None = None
    render_prompt: str | None = None
    resampler: Resampler | None = None
    channel: Channel | None = None


@dataclass
class EvalSettings:
    """What ``bagpiper eval`` does, and training at its end when ``at_end`` is set.

    Attributes:
        at_end: evaluate when training ends.
        clips: held-out clips used for each direction; 0 means all.
        cycles: clips used for the two cycle figures, not more than ``clips``; 0 leaves them out.
    """

    at_end: bool = False
    clips: int = 0
    cycles: int = 50


@dataclass
class ParitySettings:
    """Whether training, decoding and the exported model compute the same (``bagpiper parity``).

    Attributes:
        at_end: compare when training ends, on two examples of the data.
    """

    at_end: bool = True


@dataclass
class Recipe:
    """Everything about a run.

    Attributes:
        version: of the recipe format.
        name: set by the loader: the recipe's name.
        seed: every random draw is keyed by (seed, purpose, step or example).
        run_dir: the run folder; null means ``runs/<name>``.
        device: auto, cpu, cuda or mps.
        plugins: modules that register further components.
        start_from: run folder or model folder whose weights this run begins with. Parts, tokenizer and, where the
            recipe has no such keys, the way of sampling come from there; keys of ``model`` may be left out.
    """

    version: int = RECIPE_VERSION
    name: str = "recipe"
    seed: int = 42
    run_dir: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    plugins: list[str] = field(default_factory=list)
    start_from: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    stage: StageSettings = field(default_factory=StageSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    listening: ListeningSettings = field(default_factory=ListeningSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    parity: ParitySettings = field(default_factory=ParitySettings)

    @property
    def run_folder(self) -> str:
        """The run folder."""
        return self.run_dir or f"runs/{self.name}"

    @property
    def corpus_folder(self) -> Path:
        """Where the soundscapes corpus of the run lies."""
        made = self.data.soundscapes
        return Path(made.folder) if made is not None and made.folder else Path(self.run_folder, "corpus")

    @property
    def can_evaluate(self) -> bool:
        """Whether there are sounds with known facts: soundscapes that the run makes, or those of an earlier one."""
        return not self.data.sources or (self.corpus_folder / "test.jsonl").is_file()

    @property
    def cache_folder(self) -> Path:
        """Where codes, and what is known of clips, are kept."""
        return Path(self.data.cache) if self.data.cache else Path(self.run_folder, "cache")

    @property
    def sampling(self) -> GenerationSettings:
        """``generation``, with what is null there and stands in another section.

        The first channel stays null, so that a run that starts from the model may choose by ``data.channel``.
        """
        chosen = None if self.data.channel == "first" else self.data.channel
        return replace(
            self.generation,
            resampler=self.generation.resampler or self.data.resampler,
            channel=self.generation.channel or chosen,
        )
