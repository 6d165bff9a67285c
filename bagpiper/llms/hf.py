"""A causal LM of transformers without its vocabulary matrices."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bagpiper.batch import Spans
from bagpiper.component import Backbone, KeysValues
from bagpiper.llms.checks import check_isolation, check_rows, read_reference
from bagpiper.llms.configs import HfConfig
from bagpiper.llms.sources import config_from_fields, fields_of, find_source, random_causal_lm
from bagpiper.ops.attention import register_attention


class HfBackbone(Backbone):
    """The layers of a causal LM, from embeddings to the hidden states after the final norm.

    Attributes:
        model: transformers' base model; its token embedding is gone.
    """

    config: HfConfig

    def __init__(self, config: HfConfig, vocab_size: int | None = None) -> None:
        """Build.

        Args:
            config: see ``HfConfig``.
            vocab_size: rows of the text block of an LLM made from nothing; with a source it may be left out.

        Raises:
            ValueError: the LLM cannot be loaded, or cannot run packs.
        """
        super().__init__(config)
        self._text_rows: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        is_meta = torch.empty(0).device.type == "meta"
        attention = register_attention()
        reference = None
        if config.source is None:
            assert vocab_size is not None, "an LLM made from nothing needs the size of its tokenizer"
            if not config.config:
                raise ValueError("llm: give 'source' (a pretrained LLM) or 'config' (random weights)")
            causal_lm = random_causal_lm(config_from_fields(config.config, vocab_size))
        elif is_meta:
            causal_lm = random_causal_lm(find_source(config.source).config())
        else:
            causal_lm = find_source(config.source).causal_lm()
            reference = read_reference(causal_lm)
        self.tied = bool(causal_lm.config.tie_word_embeddings)
        rows_in = causal_lm.get_input_embeddings().weight.detach()
        self.text_size, self.width = int(rows_in.shape[0]), int(rows_in.shape[1])
        if vocab_size is not None and vocab_size != self.text_size:
            raise ValueError(f"llm '{config.source}' has {self.text_size} text rows, not {vocab_size}")
        if reference is not None:
            rows_out = None if self.tied else causal_lm.get_output_embeddings().weight.detach()
            self._text_rows = (rows_in, rows_out)
        # rotary positions go on beyond it, but to places that the LLM was never meant to see
        self.max_positions = getattr(causal_lm.config, "max_position_embeddings", None)
        self.model = _base_model(causal_lm)
        self.model.config.use_cache = False
        self.model.config._attn_implementation = attention
        self._cache_word = _cache_word(self.model)
        if not is_meta:
            check_isolation(self, self.alone, exact=not _has_experts(self.model.config))
        if reference is not None:
            check_rows(self, reference, *self._text_rows)

    @property
    def name(self) -> str:
        """The source, or the model type."""
        return str(self.config.source or self.model.config.model_type)

    @property
    def body(self) -> nn.Module:
        """See ``Backbone.body``."""
        return self.model

    @property
    def layers(self) -> nn.ModuleList:
        """See ``Backbone.layers``."""
        return next(module for module in self.model.children() if isinstance(module, nn.ModuleList))

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        spans: Spans | None = None,
        cache: KeysValues | None = None,
    ) -> torch.Tensor:
        """See ``Backbone.forward``."""
        assert (spans is None) == (cache is not None), "either the spans of a pack or a cache"
        assert spans is None or embeds.shape[0] == 1, "a pack is one row"
        known = {"spans": spans} if cache is None else {"visible": cache.visible, self._cache_word: cache}
        output = self.model(
            inputs_embeds=embeds, attention_mask=None, position_ids=positions, use_cache=cache is not None, **known
        )
        return output.last_hidden_state

    def alone(self, embeds: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[L, H]`` of one example alone, with the attention that transformers spells out."""
        config = self.model.config
        name = config._attn_implementation
        try:
            config._attn_implementation = "eager"
            return self.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]
        finally:
            config._attn_implementation = name

    def take_text_rows(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """See ``Backbone.take_text_rows``."""
        rows, self._text_rows = self._text_rows, (None, None)
        return rows

    def gradient_checkpointing(self, enable: bool = True) -> None:
        """See ``Backbone.gradient_checkpointing``."""
        # Not transformers' public switch: between 5.14 and 5.23 it changed its name, and it looks for the token
        # embedding that is gone here.
        self.model._set_gradient_checkpointing(enable, partial(checkpoint, use_reentrant=False))

    def portable_config(self) -> HfConfig:
        """See ``Component.portable_config``; ``vocab_size`` is the caller's to keep (``text_size``)."""
        return replace(self.config, source=None, config=fields_of(self.model.config))

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``: rotary frequencies, by transformers' own initialisation of their modules.

        Raises:
            ValueError: the LLM has buffers that transformers does not recompute.
        """
        owners = {name.rpartition(".")[0] for name, _ in self.model.named_non_persistent_buffers()}
        for owner in sorted(owners):
            module = self.model.get_submodule(owner)
            buffers = {name: module.get_buffer(name) for name in module._non_persistent_buffers_set}
            with torch.no_grad():
                for buffer in buffers.values():
                    buffer.fill_(float("nan") if buffer.is_floating_point() else 0)
                if not any(True for _ in module.parameters(recurse=False)):
                    self.model._init_weights(module)
            for name, buffer in buffers.items():
                if not buffer.is_floating_point() or bool(buffer.isnan().any()):
                    raise ValueError(
                        f"llm '{self.name}': cannot recompute the buffer {owner}.{name}; choose another LLM"
                    )


def _base_model(causal_lm: Any) -> Any:
    """The base model inside a causal LM, without its token embedding."""
    base = causal_lm.base_model
    assert base is not causal_lm, "transformers' causal LMs wrap a base model"
    base.set_input_embeddings(None)
    return base


def _has_experts(config: Any) -> bool:
    """Whether rows choose among experts; transformers' configs count them under names that differ by model."""
    return any("experts" in key and isinstance(value, int) and value > 1 for key, value in config.to_dict().items())


def _cache_word(model: nn.Module) -> str:
    """What the model calls its cache: ``cache`` since transformers 5.24, ``past_key_values`` before."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
