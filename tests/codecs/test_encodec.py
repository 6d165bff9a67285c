from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_codecs import TINY as ALL_TINY
from tiny_codecs import tiny, wave

from bagpiper.codecs.configs import ENCODEC_BOOKS, EncodecConfig
from bagpiper.codecs.encodec import EncodecCodec, meta_names

TINY = ALL_TINY["encodec"]


def tiny_codec() -> EncodecCodec:
    codec = tiny("encodec")
    assert isinstance(codec, EncodecCodec)
    return codec


def meta_checkpoint(codec: EncodecCodec) -> dict[str, torch.Tensor]:
    """The codec's tensors under the names of Meta's checkpoint (written by hand from the `encodec` package)."""
    tensors = {}
    for name, tensor in codec.model.state_dict().items():
        part, *middle = name.split(".")
        if part == "quantizer":  # quantizer.layers.0.codebook.embed -> quantizer.vq.layers.0._codebook.embed
            _, number, _, leaf = middle
            tensors[f"quantizer.vq.layers.{number}._codebook.{leaf}"] = tensor
            continue
        is_transposed = part == "decoder" and middle[1] in ("3", "6", "9", "12")
        name = ".".join([part, "model", *middle[1:]])
        if ".conv." in name:
            name = name.replace(".conv.", ".convtr.convtr." if is_transposed else ".conv.conv.")
            name = name.replace("parametrizations.weight.original0", "weight_g")
            name = name.replace("parametrizations.weight.original1", "weight_v")
        tensors[name] = tensor
    return tensors


def test_what_follows_the_last_whole_hop_changes_no_code() -> None:
    codec = tiny_codec()
    whole, longer = wave(3200), torch.cat([wave(3200), wave(900, 1)])
    assert torch.equal(codec.encode([longer])[0][:10], codec.encode([whole])[0])


def test_checkpoint_of_meta_is_renamed(tmp_path: Path) -> None:
    codec, path = tiny_codec(), tmp_path / "encodec.th"
    tensors = meta_checkpoint(codec)
    assert "encoder.model.0.conv.conv.weight_g" in tensors and "decoder.model.3.convtr.convtr.weight_v" in tensors
    assert meta_names(tensors).keys() == codec.model.state_dict().keys()
    for content in (tensors, {"best_state": tensors}):
        torch.save(content, path)
        other = EncodecCodec(replace(TINY, source=str(path)))
        assert other.weights_hash() == codec.weights_hash()
        assert torch.equal(other.encode([wave(4000)])[0], codec.encode([wave(4000)])[0])


def test_sources_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encodec.th"
    with pytest.raises(ValueError, match="there is no file"):
        EncodecCodec(replace(TINY, source=str(path)))
    torch.save({"best_state": meta_checkpoint(tiny_codec()), "hook": os.system}, path)
    with pytest.raises(ValueError, match="tensors only"):
        EncodecCodec(replace(TINY, source=str(path)))
    torch.save({"encoder.model.0.conv.conv.bias": torch.zeros(4)}, path)
    with pytest.raises(ValueError, match="not EnCodec 24 kHz"):
        EncodecCodec(replace(TINY, source=str(path)))
    with pytest.raises(ValueError, match="cannot load"):
        EncodecCodec(replace(TINY, source=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop": 640}, r"hop 320 \(not 640\)"),
        ({"sample_rate": 16000}, r"sample_rate 24000 \(not 16000\)"),
        ({"config": {"num_filter": 4}}, "unknown fields num_filter"),
        ({"config": {"use_causal_conv": False, "num_filters": 4}}, "look-ahead"),
    ],
)
def test_promises_that_do_not_hold_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodecCodec(replace(TINY, **change))


def test_only_trained_numbers_of_codebooks_are_allowed() -> None:
    rates = [EncodecConfig(num_codebooks=books).frame_rate * 10 * books for books in ENCODEC_BOOKS]
    assert rates == [1500, 3000, 6000, 12000, 24000]
    with pytest.raises(ValueError, match="must be one of 2, 4, 8, 16, 32, got 3"):
        EncodecConfig(num_codebooks=3)


# The package imports torchaudio, whose wheel does not load beside a CPU build of torch. An empty module during the
# import is enough for the model's code; left there, it breaks transformers, so this runs in a process of its own.
_PACKAGE = """
import sys, types
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
from encodec import EncodecModel
del sys.modules["torchaudio"]
import torch
torch.manual_seed(0)
model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
for layer in model.quantizer.vq.layers:
    layer._codebook.embed.normal_(std=0.001)
    layer._codebook.inited.fill_(1)
for name, parameter in model.encoder.named_parameters():
    if "bias" in name:
        parameter.data.zero_()  # so that codes follow the waveform
torch.save(model.state_dict(), sys.argv[1])
model.set_target_bandwidth(6.0)
wave = 0.1 * torch.randn(1, 1, 24 * 320)
with torch.no_grad():
    frames = model.encode(wave)
    torch.save({"wave": wave[0, 0], "codes": frames[0][0][0].T, "decoded": model.decode(frames)[0, 0]}, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("encodec") is None or importlib.util.find_spec("einops") is None,
    reason="needs the extra [encodec]",
)
def test_equals_the_encodec_package(tmp_path: Path) -> None:
    weights, result = tmp_path / "encodec_24khz.th", tmp_path / "result.pt"
    subprocess.run([sys.executable, "-W", "ignore", "-c", _PACKAGE, str(weights), str(result)], check=True, timeout=120)
    expected = torch.load(result, weights_only=True)
    codec = EncodecCodec(EncodecConfig(source=str(weights), num_codebooks=8))
    codes = codec.encode([expected["wave"]])[0]
    assert all(len(column.unique()) > 3 for column in codes.T)
    assert torch.equal(codes, expected["codes"])
    assert torch.equal(codec.decode([codes])[0], expected["decoded"])
