"""What a finished run leaves in its folder."""

import json
from pathlib import Path

import pytest
import soundfile

from bagpiper.parity.report import BATCH, MERGED, RELOADED, STEP
from bagpiper.tracking.mlflow_store import default_uri
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.weights.model_folder import load_model


def test_records_and_checkpoints(tiny_run):
    assert {"recipe.yaml", "environment.json", "fingerprint.json", "metrics.jsonl", "mlflow.db", "model"} <= {
        path.name for path in tiny_run.iterdir()
    }
    assert [c.step for c in list_checkpoints(tiny_run)] == [3, 6]
    assert not list(tiny_run.rglob(".tmp*"))


def test_the_model_is_that_of_the_last_checkpoint_and_frozen_tensors_are_stored_once(tiny_run):
    last = list_checkpoints(tiny_run)[-1].model
    for name in ("trained.safetensors", "frozen.safetensors"):
        assert (tiny_run / "model" / name).stat().st_ino == (last / name).stat().st_ino
    frozen = {c.model.joinpath("frozen.safetensors").stat().st_ino for c in list_checkpoints(tiny_run)}
    assert len(frozen) == 1
    assert not load_model(tiny_run / "model").training


def test_metrics_have_loss_and_accuracy_per_codebook_and_the_ledger(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == [2, 4, 6]
    wanted = {"loss", "loss/text", "loss/codebook0", "loss/codebook1", "accuracy/codebook1", "gradient_norm"}
    assert wanted <= train[0].keys()
    assert train[0]["learning_rate"] == pytest.approx(3e-3 / 2)  # step 2 of a warm-up over 2 steps that began at 0
    assert {"speed/text_tokens", "speed/audio_frames", "speed/audio_seconds"} <= train[0].keys()
    assert [row["step"] for row in rows if row["split"] == "valid"] == [3, 6]
    assert [row["skipped"] for row in rows if row["split"] == "data"] == [0.0]


def test_listening_leaves_sound_picture_and_text(tiny_run):
    folder = tiny_run / "listening" / "step-000003"
    samples, rate = soundfile.read(folder / "valid_audio0.wav")
    assert rate == 16000
    assert len(samples) > 0
    assert (folder / "valid_audio0.png").read_bytes()[:4] == b"\x89PNG"
    answers = json.loads((folder / "answers.json").read_text())
    assert [answer["name"] for answer in answers] == ["valid_text0", "valid_audio0"]
    assert all(answer["truth"] for answer in answers)
    page = (folder / "answers.md").read_text()
    assert "valid_audio0.png" in page
    cut = [answer["stopped_at_max_rows"] for answer in answers]
    assert any(cut) and page.count("stopped at max_rows") == sum(cut)  # nothing is cut in silence


def test_training_ends_with_a_parity_check(tiny_run):
    record = json.loads((tiny_run / "parity.json").read_text())
    assert record["passed"] and record["numbers"] == "float32"
    assert [c["way"] for c in record["comparisons"]] == [STEP, BATCH, MERGED, RELOADED]
    assert len(record["examples"]) == 2 and all("valid" in Path(where).name for where in record["examples"])


def test_mlflow_has_recipe_metrics_and_sounds(tiny_run):
    from mlflow import MlflowClient

    client = MlflowClient(default_uri(tiny_run))
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.max_steps"] == "6"
    assert {"train/loss", "valid/loss", "train/accuracy/codebook1"} <= run.data.metrics.keys()
    assert {name.partition("/")[0] for name in run.data.metrics} == {"train", "valid"}, "no chart before the loss"
    assert run.data.tags["data.skipped"] == "0" and run.data.tags["data.soundscapes-train/read"] == "48"
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert top == {"recipe.yaml", "environment.json", "listening", "parity.json"}
    sounds = {item.path for item in client.list_artifacts(run.info.run_id, "listening/step-000003")}
    assert "listening/step-000003/valid_audio0.wav" in sounds
