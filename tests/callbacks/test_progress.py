"""The progress report."""

import io

from rich.console import Console

from bagpiper.callbacks.progress import ProgressReport, describe
from bagpiper.tracking.records import Record

RECORD = Record(
    20,
    "train",
    {
        "loss": 2.5,
        "loss/text": 1.25,
        "loss/codebook0": 3.0,
        "loss/codebook10": 5.0,
        "loss/codebook2": 4.0,
        "speed/text_tokens": 1234.0,
        "speed/audio_frames": 321.0,
        "speed/audio_seconds": 12.6,
    },
)


def test_record_in_words_has_loss_per_stream_group_and_both_speeds():
    assert describe(RECORD) == "loss 2.500  text 1.250  audio 3.00 4.00 5.00  1.2k tok/s  321 frames/s  13 s audio/s"


def test_records_without_audio_or_text_are_described_too():
    assert describe(Record(1, "valid", {})) == ""
    assert describe(Record(1, "valid", {"loss": 1.0})) == "loss 1.000"


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    report = ProgressReport(Console(file=out, width=40), max_steps=100)
    report.write(RECORD)
    report.write(Record(20, "valid", {"loss": 9.0}))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 20/100  loss 2.500")
    assert "ETA" in lines[0]
    assert lines[1] == "step 20  valid: loss 9.000"


def test_a_bar_in_a_terminal_shows_the_last_record_and_ends_with_the_run(tmp_path, shared_parts):
    from runs import tiny_recipe

    from bagpiper.run import run

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    run(tiny_recipe(tmp_path / "run", shared_parts, max_steps=2, log_every=1), console=console)
    shown = out.getvalue()
    assert "2/2" in shown
    assert "tok/s" in shown
    assert "ETA" in shown
    assert shown.count("step 1/2") == 0  # no plain lines beside the bar
