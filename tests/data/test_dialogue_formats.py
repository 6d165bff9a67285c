"""Dialogues go to the official rows, as JSON lines and as Parquet, and come back as they were."""

import json
import shutil
import sys

import pytest

from bagpiper.data.exporters import export_dialogues
from bagpiper.data.importers import import_dialogues
from bagpiper.errors import UserError

ROWS = [
    {"example_id": "one", "messages": [["user", "audio", "a.wav"], ["assistant", "text", "ein Ton — 声"]]},
    {"example_id": "two", "messages": [["user", "text", "ring"], ["assistant", "audio", "sub/b.wav"]]},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.wav", "sub/b.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def conversations(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_there_and_back(folder, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    import_dialogues(folder / "rows.jsonl", folder / "mine.jsonl")
    (folder / "out").mkdir()
    out = folder / "out" / f"rows.{ending}"
    assert export_dialogues(folder / "mine.jsonl", out).dialogues == 2
    if ending == "jsonl":
        assert conversations(out)[1]["messages"][1] == ["assistant", "audio", "../sub/b.wav"]
    import_dialogues(out, folder / "again.jsonl")
    assert conversations(folder / "again.jsonl") == conversations(folder / "mine.jsonl")


def test_exported_paths_lead_to_the_clips_across_links_or_nothing_is_written(folder):
    import_dialogues(folder / "rows.jsonl", folder / "mine.jsonl")
    (folder / "far" / "away").mkdir(parents=True)
    (folder / "near").symlink_to("far/away")
    export_dialogues(folder / "mine.jsonl", folder / "near" / "rows.jsonl")
    assert import_dialogues(folder / "near" / "rows.jsonl", folder / "again.jsonl").train == 2
    with pytest.raises(UserError, match="is its clip; write the dialogues to another file"):
        export_dialogues(folder / "mine.jsonl", folder / "near" / ".." / ".." / "a.wav")
    (folder / "a.wav").unlink()
    with pytest.raises(UserError, match="mine.jsonl:1: a.wav: no such file"):
        export_dialogues(folder / "mine.jsonl", folder / "never.jsonl")
    assert not (folder / "never.jsonl").exists()


@pytest.mark.parametrize("form", ["lists", "structs", "text", "zstd"])
def test_every_form_of_messages_in_parquet(folder, form):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    def told(messages):
        text = json.dumps(messages)
        if form == "structs":
            return [dict(zip(("role", "modality", "content"), turn, strict=True)) for turn in messages]
        if form == "zstd":
            return pyarrow.compress(text.encode(), codec="zstd", asbytes=True)
        return text if form == "text" else messages

    columns = {"utt_id": [row["example_id"] for row in ROWS], "messages": [told(row["messages"]) for row in ROWS]}
    parquet.write_table(pyarrow.table({**columns, "score": [1.5, 2.5]}), folder / "rows.parquet")
    imported = import_dialogues(folder / "rows.parquet", folder / "parquet.jsonl")
    import_dialogues(folder / "rows.jsonl", folder / "lines.jsonl")
    assert (imported.lines, imported.faults) == (2, ())
    from_parquet, from_lines = conversations(folder / "parquet.jsonl"), conversations(folder / "lines.jsonl")
    assert [row.pop("score") for row in from_parquet] == [1.5, 2.5]
    for row in from_parquet:
        row.pop("example_id", None)
    assert from_parquet == from_lines


def test_bad_parquet_is_told_row_by_row(folder):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = {"example_id": ["one", "bad"], "messages": [json.dumps(ROWS[0]["messages"]), "no json"]}
    parquet.write_table(pyarrow.table(table), folder / "rows.parquet")
    imported = import_dialogues(folder / "rows.parquet", folder / "out.jsonl")
    assert imported.train == 1
    assert "rows.parquet:2" in imported.faults[0]
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        import_dialogues(folder / "broken.parquet", folder / "x.jsonl")
    parquet.write_table(pyarrow.table({"messages": [str(number) for number in range(3000)]}), folder / "pages.parquet")
    content = bytearray((folder / "pages.parquet").read_bytes())
    content[10:60] = bytes(50)
    (folder / "pages.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"pages.parquet: damaged after row 0 of 3000 \("):
        import_dialogues(folder / "pages.parquet", folder / "x.jsonl")
    parquet.write_table(pyarrow.table({"text": ["a"]}), folder / "other.parquet")
    with pytest.raises(UserError, match="no column 'messages', only text"):
        import_dialogues(folder / "other.parquet", folder / "x.jsonl")


def test_without_pyarrow_the_extra_is_named(folder, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    import_dialogues(folder / "rows.jsonl", folder / "mine.jsonl")
    with pytest.raises(UserError, match=r"bagpiper\[parquet\]"):
        export_dialogues(folder / "mine.jsonl", folder / "x.parquet")


def test_what_has_no_place_is_counted_or_refused(folder):
    import_dialogues(folder / "rows.jsonl", folder / "mine.jsonl")
    rows = conversations(folder / "mine.jsonl")
    rows[0]["messages"][1]["loss"] = False
    (folder / "flags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert export_dialogues(folder / "flags.jsonl", folder / "out.jsonl").flags == 1
    shutil.copy(folder / "flags.jsonl", folder / "bad.jsonl")
    with (folder / "bad.jsonl").open("a") as file:
        file.write('{"id": "x", "messages": 3}\n')
    with pytest.raises(UserError, match="bad.jsonl:3"):
        export_dialogues(folder / "bad.jsonl", folder / "never.jsonl")
    assert not (folder / "never.jsonl").exists()
    with pytest.raises(UserError, match="the file of conversations itself"):
        export_dialogues(folder / "mine.jsonl", folder / "mine.jsonl")
