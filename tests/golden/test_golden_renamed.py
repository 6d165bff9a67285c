"""The golden tests read names and ids from the set: they pass on a copy in which every name is another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden.renamed import new_names, rename_set

pytestmark = pytest.mark.golden

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def renamed(golden, tmp_path_factory):
    target = tmp_path_factory.mktemp("renamed") / "golden"
    rename_set(golden, target)
    return target


def test_a_renamed_copy_has_the_same_arrays_and_none_of_the_names(golden, renamed):
    names = new_names(golden)
    assert set(new_names(renamed)) == set(names.values())
    assert not set(names) & set(names.values())
    old_name = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])")
    strings = [str(path.relative_to(renamed)) for path in renamed.rglob("*")]
    for path in sorted(golden.glob("*.npz")):
        old, new = np.load(path), np.load(renamed / path.name)
        for key, copied in zip(old.files, new.files, strict=True):
            assert old[key].dtype == new[copied].dtype and np.array_equal(old[key], new[copied], equal_nan=True), key
        strings += new.files
    for path in (*renamed.glob("*.json"), *renamed.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            strings += list(paths_in(json.loads(line)))
    assert not [text for text in strings if old_name.search(text)]


def paths_in(value):
    """All keys and texts of a document but sentences."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from (key, *paths_in(entry))
    elif isinstance(value, list):
        for entry in value:
            yield from paths_in(entry)
    elif isinstance(value, str) and " " not in value:
        yield value


def test_all_golden_tests_pass_on_a_renamed_copy(renamed):
    files = [path for path in TESTS.rglob("test_*.py") if "pytest.mark.golden" in path.read_text()]
    others = [str(path) for path in files if path != Path(__file__).resolve()]
    assert len(others) > 1
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "golden", "-p", "no:cacheprovider", *others],
        env={**os.environ, "BAGPIPER_GOLDEN": str(renamed)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, "the copy was not found"
