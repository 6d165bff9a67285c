"""The system prompt of SFT data reaches requests for sounds, and its absence is told."""

import hashlib
import json
import warnings

import pytest
import torch

from bagpiper import api
from bagpiper.data.importers import UNDERSTANDING_PROMPT
from bagpiper.errors import UserError
from bagpiper.inference import generate as generating
from bagpiper.interop import system_prompt
from bagpiper.interop.espnet import PartFolders, import_espnet
from bagpiper.interop.espnet_config import official_generation
from bagpiper.interop.system_prompt import OFFICIAL_MD5, find_system_prompt
from bagpiper.language.conversation import Conversation, Message
from bagpiper.weights.model_folder import generation_of

PROMPT = "Make what is asked for.\nThree sentences. Byte by byte. "


def rows(path, *systems, form="official"):
    lines = []
    for number, system in enumerate(systems):
        official = [["system", "text", system], ["user", "text", "hi"]]
        own = [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": "hi"}]
        plain = [{"role": "system", "content": system}]
        row = {"official": {"messages": official}, "own": {"messages": own}, "plain": {"messages": plain}}
        lines.append(json.dumps({"id": str(number), **row.get(form, {"system": system})}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("form", ["official", "own", "plain", "demo"])
def test_found_byte_by_byte_in_every_form(tmp_path, form):
    assert find_system_prompt(rows(tmp_path / "r.jsonl", PROMPT, PROMPT, form=form)) == PROMPT


def test_the_published_one_wins_and_two_others_are_refused(tmp_path, monkeypatch):
    path = rows(tmp_path / "r.jsonl", PROMPT, UNDERSTANDING_PROMPT)
    with pytest.raises(UserError, match="2 different system prompts, none of them the published one"):
        find_system_prompt(path)
    monkeypatch.setattr(system_prompt, "OFFICIAL_MD5", hashlib.md5(PROMPT.encode()).hexdigest())
    assert find_system_prompt(path) == PROMPT
    with pytest.raises(UserError, match="no line has a system message"):
        path.write_text('{"messages": [["system", "text", null], ["user", "text", "hi"]]}\n')
        find_system_prompt(path)


@pytest.mark.parametrize("line", ['{"messages": 5}', '{"messages": {"role": "system"}}', "7", '{"system": ["x"]}'])
def test_lines_of_other_shapes_hold_no_prompt(tmp_path, line):
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="no line has a system message"):
        find_system_prompt(tmp_path / "r.jsonl")


def test_the_demo_rows_hold_the_published_prompt(real_audio):
    found = find_system_prompt(real_audio / "bagpiper_demo" / "manifest.jsonl")
    assert hashlib.md5(found.encode()).hexdigest() == OFFICIAL_MD5
    assert len(found) == 364


def test_sounds_and_texts_are_asked_for_with_their_own_prompt(monkeypatch):
    settings = official_generation(PROMPT)
    seen = []

    class StopError(Exception):
        pass

    class Watch:
        def __init__(self, *_args):
            pass

        def run(self, batch):
            seen.append([message.text for message in batch[0].messages if message.role == "system"])
            raise StopError

    monkeypatch.setattr(generating, "Decoder", Watch)
    request = Conversation("r", (Message("user", "text", "hi"),))
    for plan in (["text", "audio"], ["text"], None):
        with pytest.raises(StopError):
            generating.generate(torch.nn.Module(), [request], settings, seeds=[0], plan=plan)
    assert seen == [[PROMPT], [UNDERSTANDING_PROMPT], [UNDERSTANDING_PROMPT]]


@pytest.mark.parametrize(("stage", "prompt"), [("sft", None), ("sft", PROMPT), ("pretrain", None)])
def test_render_warns_where_an_sft_model_has_none(official_once, tmp_path, monkeypatch, stage, prompt):
    import_espnet(
        official_once.checkpoint,
        official_once.config,
        tmp_path / "m",
        folders=PartFolders(**official_once.folders),
        stage=stage,
        system_prompt=prompt,
    )
    assert generation_of(tmp_path / "m").render_prompt == prompt
    piper = api.load(tmp_path / "m", "cpu")
    monkeypatch.setattr(piper, "answer", lambda *_args, **_options: [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        piper.render(["a bell"])
    told = [str(warning.message) for warning in caught if "--system-prompt-from" in str(warning.message)]
    assert bool(told) == (stage == "sft" and prompt is None)
