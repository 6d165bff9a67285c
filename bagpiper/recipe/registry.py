"""Names of components.

A component is known by its kind and name, and to the registry by two strings: where its torch-free ``Config``
dataclass lives and where its module lives. Nothing heavy is imported to check a recipe.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bagpiper.errors import reason

KINDS = ("encoder", "adaptor", "llm", "codec", "head")


@dataclass(frozen=True)
class Entry:
    """Where a component's config and module live, as ``package.module:Name``."""

    config: str
    component: str


_ENTRIES: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, *, config: str, component: str) -> None:
    """Add a component.

    Args:
        kind: one of ``KINDS``.
        name: what recipes call it.
        config: ``module:Class`` of its torch-free Config dataclass.
        component: ``module:Class`` of its LightningModule, built as ``Class(config, **context)``.

    Raises:
        ValueError: unknown kind, or the name is taken by another component.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of component '{kind}'; allowed: {', '.join(KINDS)}")
    entry = Entry(config, component)
    if _ENTRIES[kind].get(name, entry) != entry:
        raise ValueError(f"{kind} '{name}' is already registered as {_ENTRIES[kind][name].component}")
    _ENTRIES[kind][name] = entry


def names(kind: str) -> list[str]:
    """Registered names of a kind."""
    return sorted(_ENTRIES[kind])


def config_class(kind: str, name: str) -> type:
    """The Config dataclass of a component.

    Raises:
        ValueError: no such component; the message lists the names and suggests the nearest.
    """
    return _resolve(_entry(kind, name).config)


def component_class(kind: str, name: str) -> type:
    """The LightningModule of a component (this imports torch).

    Raises:
        ValueError: no such component.
    """
    return _resolve(_entry(kind, name).component)


def build(kind: str, config: Any, **context: Any) -> Any:
    """Build the component that ``config`` (an instance of a registered Config) describes.

    Raises:
        ValueError: its config describes none.
    """
    for name, entry in _ENTRIES[kind].items():
        if _resolve(entry.config) is type(config):
            try:
                return component_class(kind, name)(config, **context)
            except (RuntimeError, ArithmeticError, IndexError) as error:  # sizes that cannot be, or do not go together
                raise ValueError(f"{kind} '{name}' cannot be built with this config: {reason(error)}") from error
    raise ValueError(f"{type(config).__name__} is not the config of a registered {kind}")


def name_of(kind: str, config: Any) -> str:
    """Registered name of the component whose Config ``config`` is."""
    for name, entry in _ENTRIES[kind].items():
        if _resolve(entry.config) is type(config):
            return name
    raise ValueError(f"{type(config).__name__} is not the config of a registered {kind}")


def _entry(kind: str, name: str) -> Entry:
    if name not in _ENTRIES[kind]:
        near = difflib.get_close_matches(name, _ENTRIES[kind], n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"unknown {kind} '{name}'{hint}; allowed: {', '.join(names(kind))}")
    return _ENTRIES[kind][name]


def _resolve(address: str) -> Any:
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


for _kind, _name, _config, _component in (
    ("encoder", "mel", "bagpiper.encoders.configs:MelConfig", "bagpiper.encoders.mel:MelEncoder"),
    ("encoder", "whisper", "bagpiper.encoders.configs:WhisperConfig", "bagpiper.encoders.whisper:WhisperEncoder"),
    ("encoder", "qwen3_omni", "bagpiper.encoders.configs:Qwen3OmniConfig", "bagpiper.encoders.omni:Qwen3OmniEncoder"),
    (
        "encoder",
        "qwen2_5_omni",
        "bagpiper.encoders.configs:Qwen25OmniConfig",
        "bagpiper.encoders.omni:Qwen25OmniEncoder",
    ),
    ("adaptor", "linear", "bagpiper.adaptors.configs:LinearConfig", "bagpiper.adaptors.linear:LinearAdaptor"),
    ("adaptor", "mlp", "bagpiper.adaptors.configs:MlpConfig", "bagpiper.adaptors.mlp:MlpAdaptor"),
    ("adaptor", "conv", "bagpiper.adaptors.configs:ConvConfig", "bagpiper.adaptors.conv:ConvAdaptor"),
    ("adaptor", "qformer", "bagpiper.adaptors.configs:QformerConfig", "bagpiper.adaptors.qformer:QformerAdaptor"),
    ("llm", "hf", "bagpiper.llms.configs:HfConfig", "bagpiper.llms.hf:HfBackbone"),
    ("codec", "rvq", "bagpiper.codecs.configs:RvqConfig", "bagpiper.codecs.rvq:RvqCodec"),
    ("codec", "encodec", "bagpiper.codecs.configs:EncodecConfig", "bagpiper.codecs.encodec:EncodecCodec"),
    ("codec", "xcodec", "bagpiper.codecs.configs:XcodecConfig", "bagpiper.codecs.xcodec:XcodecCodec"),
    ("codec", "dac", "bagpiper.codecs.configs:DacConfig", "bagpiper.codecs.dac:DacCodec"),
    ("codec", "mimi", "bagpiper.codecs.configs:MimiConfig", "bagpiper.codecs.mimi:MimiCodec"),
    ("head", "parallel", "bagpiper.heads.configs:ParallelConfig", "bagpiper.heads.parallel:ParallelHead"),
    ("head", "depth", "bagpiper.heads.configs:DepthConfig", "bagpiper.heads.depth:DepthHead"),
):
    register(_kind, _name, config=_config, component=_component)
