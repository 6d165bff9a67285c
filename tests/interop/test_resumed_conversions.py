"""A conversion killed at any instant is continued by running it again, with the same result."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from interop.official_model import OfficialFiles
from tiny import tiny_model

from bagpiper.interop import espnet, espnet_export, espnet_file, merge
from bagpiper.interop.resume import continued_file, continued_folder
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import add_lora
from bagpiper.recipe.settings import GenerationSettings
from bagpiper.weights.model_folder import read_tensors, save_model
from bagpiper.weights.safetensors import write_shards


class Killed(BaseException):
    """Stands for kill -9: nothing that the code does about errors may help it."""


class After:
    """Progress that kills after so many calls of a step."""

    def __init__(self, what: str, calls: int) -> None:
        self.what, self.left = what, calls

    def __call__(self, what: str, done: int, total: int) -> None:
        self.left -= what == self.what
        if self.left < 0:
            raise Killed


@pytest.fixture
def small_shards(monkeypatch):
    for module in (espnet, merge):
        monkeypatch.setattr(module, "write_shards", lambda *a, **k: write_shards(*a, **k, limit=3000))
    monkeypatch.setattr(espnet_file, "_SYNC_BYTES", 1000)


def whole_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def same(first, second):
    one, two = read_tensors(first), read_tensors(second)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("calls", [1, 40, 200])
def test_import_goes_on_with_whole_files(official_once, imported, tmp_path, small_shards, calls):
    out, partial = tmp_path / "m", tmp_path / "m.partial" / "folder"
    arguments = (official_once.checkpoint, official_once.config, out)
    folders = espnet.PartFolders(**official_once.folders)
    with pytest.raises(Killed):
        espnet.import_espnet(*arguments, folders=folders, progress=After("writing", calls))
    kept = whole_files(partial)
    assert bool(kept) == (calls > 1)
    assert not out.exists()
    espnet.import_espnet(*arguments, folders=folders)
    assert not partial.parent.exists()
    assert kept.items() <= whole_files(out).items()
    same(out, imported)
    assert (out / "config.json").read_text() == (imported / "config.json").read_text()


def test_import_of_another_file_starts_anew(official, imported, tmp_path, small_shards):
    folders = espnet.PartFolders(**official.folders)
    changed = {**official.tensors, "stream_emb.weight": torch.zeros_like(official.tensors["stream_emb.weight"])}
    given = official.checkpoint.read_bytes()
    official.write_checkpoint({"module": changed})
    with pytest.raises(Killed):
        espnet.import_espnet(
            official.checkpoint, official.config, tmp_path / "m", folders=folders, progress=After("writing", 100)
        )
    official.checkpoint.write_bytes(given)
    espnet.import_espnet(official.checkpoint, official.config, tmp_path / "m", folders=folders)
    same(tmp_path / "m", imported)


@pytest.mark.parametrize("calls", [1, 60, 150])
def test_export_goes_on_where_it_was(official_once, imported, tmp_path, small_shards, calls):
    out = tmp_path / "out.pt"
    with pytest.raises(Killed):
        espnet_export.export_espnet(imported, out, progress=After("writing", calls))
    assert not out.exists()
    told = []
    espnet_export.export_espnet(imported, out, progress=lambda what, done, total: told.append((done, total)))
    assert (told[0][0] > 3000) == (calls > 1)  # what was done before counts at once
    assert told[-1][0] == told[-1][1]
    written = torch.load(out, weights_only=True)["module"]
    for name, tensor in official_once.tensors.items():
        assert torch.equal(written[name], tensor), name
    espnet_file.check_sums(out, lambda count: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]


def test_merge_goes_on_with_whole_files(tmp_path, small_shards):
    model, lora = tiny_model(), LoraSettings(rank=2)
    add_lora(model.llm, lora)
    save_model(model, tmp_path / "lora", generation=GenerationSettings(), lora=lora)
    merge.merge_folder(tmp_path / "lora", tmp_path / "straight")
    with pytest.raises(Killed):
        merge.merge_folder(tmp_path / "lora", tmp_path / "m", progress=After("merging", 20))
    kept = whole_files(tmp_path / "m.partial" / "folder")
    assert kept
    merge.merge_folder(tmp_path / "lora", tmp_path / "m")
    assert kept.items() <= whole_files(tmp_path / "m").items()
    same(tmp_path / "m", tmp_path / "straight")


def test_another_plan_gets_an_empty_folder(tmp_path):
    with pytest.raises(Killed), continued_folder(tmp_path / "m", {"plan": 1}) as folder:
        (folder / "a").write_text("1")
        raise Killed
    with continued_folder(tmp_path / "m", {"plan": 2}) as folder:
        assert not list(folder.iterdir())
    with pytest.raises(Killed), continued_file(tmp_path / "f", {"plan": 1}) as file:
        file.write_text("1")
        raise Killed
    with continued_file(tmp_path / "f", {"plan": 1}) as file:
        assert file.read_text() == "1"
    assert (tmp_path / "f").read_text() == "1"


@pytest.mark.slow
def test_killed_process(tmp_path_factory, tmp_path):
    """The real thing: SIGKILL while the shards are written, then the same command again."""
    official = OfficialFiles(tmp_path_factory.mktemp("killed"))
    folders = [part for name, folder in official.folders.items() for part in (f"--{name}", str(folder))]
    command = [sys.executable, "-m", "bagpiper", "convert", "import", str(official.checkpoint)]
    command += ["--config", str(official.config), "-o", str(tmp_path / "m"), *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(20):
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "m.partial").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "m.partial").exists():
            break
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert len(read_tensors(tmp_path / "m")) == len(official.tensors) + 1
