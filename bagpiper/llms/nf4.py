"""A linear layer whose frozen weight is kept in 4 bits (NF4, arXiv:2305.14314 section 3)."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import bitsandbytes.functional as bnb_functional
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

QUANT_TYPE = "nf4"
BLOCK_SIZE = 64
"""Weights that share one scale."""


class Nf4Linear(Linear4bit):
    """bitsandbytes' 4-bit layer with a state dict that can be loaded again.

    The state dict holds ``weight`` (uint8, two weights a byte), ``absmax`` (float32, one scale per 64 weights) and
    ``bias``; the scales are not quantised a second time. Loading takes these, or an ordinary float ``weight``, which
    it quantises. (bitsandbytes' own layer writes keys that ``load_state_dict`` refuses.)
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Nf4Linear:
        """Quantise a layer, on its device; on the meta device the weight waits for ``load_state_dict``.

        Its products are computed in float32; see ``lora.set_compute_dtype``.
        """
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.float32,
            compress_statistics=False,
            quant_type=QUANT_TYPE,
            device="meta",
        )
        layer._set_float_weight(linear.weight.detach())
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``, computed in ``compute_dtype``; nothing of the layer changes.

        The forward pass of bitsandbytes 0.50 rounds the bias to ``compute_dtype`` for good. And on CPUs with
        AVX512-BF16 it repacks a layer that first runs in eval mode: the scales are rounded to bfloat16, and undoing
        that, at every save, leaves them transposed (SmolLM2's logits were off by 49, of 35, once it had been listened
        to and saved).
        """
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        states = x.to(self.compute_dtype)
        weight: Any = self.weight
        product = bitsandbytes.matmul_4bit(states, weight, bias=bias, quant_state=weight.quant_state)
        return product.to(x.dtype)

    def to_linear(self) -> nn.Linear:
        """An ordinary float32 layer with the weights that this one computes with."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.dequantized(), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().float().clone(), requires_grad=False)
        return linear

    def dequantized(self) -> torch.Tensor:
        """float32 ``[out, in]``."""
        return dequantize(*self._packed(), (self.out_features, self.in_features))

    def packed_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the tensors that hold the weight in a state dict, filled or not."""
        size = self.in_features * self.out_features
        return {"weight": torch.Size([-(-size // 2), 1]), "absmax": torch.Size([-(-size // BLOCK_SIZE)])}

    def _packed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed weight and scales."""
        destination: dict[str, Any] = {}
        super()._save_to_state_dict(destination, "", keep_vars=False)
        return destination["weight"], destination["weight.absmax"]

    def _set_float_weight(self, weight: torch.Tensor) -> None:
        parameter: Any = Params4bit(
            weight.float(),
            requires_grad=False,
            blocksize=BLOCK_SIZE,
            compress_statistics=False,
            quant_type=QUANT_TYPE,
            module=self,
        )
        self.weight = parameter if weight.is_meta else parameter.to(weight.device)

    def _set_packed_weight(self, packed: torch.Tensor, absmax: torch.Tensor) -> None:
        self.quant_state = _quant_state(absmax, (self.out_features, self.in_features))
        self.weight = Params4bit(
            packed,
            requires_grad=False,
            quant_state=self.quant_state,
            blocksize=BLOCK_SIZE,
            compress_statistics=False,
            quant_type=QUANT_TYPE,
            bnb_quantized=True,
            module=self,
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if getattr(self.weight, "quant_state", None) is None:  # on the meta device
            nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)
            return
        destination[prefix + "weight"], destination[prefix + "absmax"] = self._packed()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight, absmax = state_dict.get(prefix + "weight"), state_dict.get(prefix + "absmax")
        device = self.weight.device if not self.weight.is_meta else None
        if weight is None or (absmax is None and not weight.is_floating_point()):
            missing_keys.append(prefix + ("weight" if weight is None else "absmax"))
        elif absmax is None:
            self._set_float_weight(weight.detach().to(device or weight.device))
        else:
            self._set_packed_weight(
                *(tensor.detach().to(device or tensor.device).clone() for tensor in (weight, absmax))
            )
        bias: torch.Tensor | None = self.bias
        if bias is not None and prefix + "bias" in state_dict:
            given = state_dict[prefix + "bias"].detach()
            # not copied into the one that is there, which may be on the meta device
            self.bias = nn.Parameter(given.to(device or given.device, bias.dtype).clone(), requires_grad=False)
        elif bias is not None:
            missing_keys.append(prefix + "bias")


def dequantize(packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """float32 ``[out, in]`` of a layer's ``weight`` and ``absmax`` as they stand in the state dict."""
    return bnb_functional.dequantize_4bit(packed, _quant_state(absmax, shape))


def _quant_state(absmax: torch.Tensor, shape: tuple[int, int]) -> Any:
    return bnb_functional.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        code=bnb_functional.get_4bit_type(QUANT_TYPE, device=absmax.device),
        blocksize=BLOCK_SIZE,
        quant_type=QUANT_TYPE,
        dtype=torch.float32,
    )
