"""How far the official resampling filter is from its own formula, rate by rate, and what limits follow for a clip."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from golden.official import RATE, error
from golden.rounding import exact_resample, rounded_resample
from golden.test_golden_hearing import OfficialHearing, mel

from bagpiper.data.sinc import sinc_resample

ROUNDING = {
    8000: 5e-7,
    11025: 5e-5,
    12000: 5e-7,
    22050: 4e-5,
    24000: 5e-7,
    32000: 5e-7,
    44100: 1e-5,
    48000: 5e-7,
}
"""Limit per rate for the rounding of signals at full scale (docs/fidelity.md has what was measured)."""


def signals(rate):
    """A second each of white noise and tones, all at full scale."""
    yield np.random.default_rng(0).uniform(-1, 1, rate).astype(np.float32)
    for share in (0.05, 0.2, 0.35, 0.45):  # of the rate
        yield np.sin(2 * np.pi * share * np.arange(rate) + 1).astype(np.float32)


@pytest.mark.parametrize("rate", ROUNDING)
def test_our_filter_is_the_formula_and_the_official_one_is_rounded(rate):
    ours, theirs = 0.0, 0.0
    for wave in signals(rate):
        exact = exact_resample(wave, rate, RATE)
        ours = max(ours, np.abs(sinc_resample(wave, rate, RATE) - exact).max())
        theirs = max(theirs, np.abs(rounded_resample(wave, rate, RATE) - exact).max())
    assert ours < 5e-7
    assert ROUNDING[rate] / 10 < theirs < ROUNDING[rate]


@pytest.fixture
def at_11025(golden, tmp_path):
    """The golden set with one more clip: noise at 11,025 Hz."""
    for path in golden.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("audio", "codes.json"):
        (tmp_path / name).unlink()
    shutil.copytree(golden / "audio", tmp_path / "audio", copy_function=shutil.copyfile)
    info = json.loads((golden / "codes.json").read_text())
    info["clips"]["noise"] = {"sample_rate": 11025}
    (tmp_path / "codes.json").write_text(json.dumps(info))
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 11025)
    soundfile.write(tmp_path / "audio" / "noise.flac", noise, 11025)
    return OfficialHearing(tmp_path)


@pytest.mark.golden
def test_limits_of_a_clip_allow_for_its_own_rounding_and_no_more(at_11025):
    def heard(view):
        return [mel(view, "noise")]

    (recorded,) = (array.numpy() for array in heard(at_11025.by(rounded_resample)))
    limit, rounding = 1e-4, error(mel(at_11025, "noise"), recorded)
    assert rounding > 3 * limit, "without an allowance correct code would fail"
    at_11025.compare(heard, [recorded], [limit], "noise")
    wrong = recorded.copy()
    wrong[len(wrong) // 2] += 2 * limit
    with pytest.raises(AssertionError):
        at_11025.compare(heard, [wrong], [limit], "noise")
    late = at_11025.by(lambda *clip: np.roll(exact_resample(*clip), 1))
    with pytest.raises(AssertionError):
        late.compare(heard, [recorded], [limit], "noise")
