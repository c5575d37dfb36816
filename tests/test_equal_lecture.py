"""We train as the lecture's script does: compared with its recorded steps or, if given, the script.

git clone https://github.com/karpathy/build-nanogpt
NANOGPT_LECTURE=build-nanogpt pytest tests/test_equal_lecture.py
"""

import json
import os
import shutil
from pathlib import Path

import equal_lecture
import numpy as np
import pytest

from conftest import ROOT

RECORDED = ROOT / "tests/fixtures/lecture"  # made by equal_lecture.py --record
checkout = Path(os.environ.get("NANOGPT_LECTURE", "not given")).resolve()
needs_checkout = pytest.mark.skipif(
    not (checkout / "train_gpt2.py").exists(),
    reason="NANOGPT_LECTURE names no checkout of build-nanogpt",
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The lecture's recorded steps; its initial weights and tokens, in our formats."""
    folder = tmp_path_factory.mktemp("recorded")
    about = json.loads((RECORDED / "steps.json").read_text(encoding="utf-8"))
    args = equal_lecture.read_arguments(["nowhere", "--device", "cpu"])
    vars(args).update(about["settings"])
    with np.load(RECORDED / "tokens.npz") as splits:
        equal_lecture.write_data(folder, args, dict(splits))
    shutil.copy(RECORDED / "initial.safetensors", folder)
    return about["theirs"], folder, args


@pytest.fixture(scope="module")
def lecture(tmp_path_factory):
    """The lecture's 20 steps, run now by its script."""
    folder = tmp_path_factory.mktemp("lecture")
    args = equal_lecture.read_arguments([str(checkout), "--device", "cpu"])
    equal_lecture.write_data(folder, args, equal_lecture.cut_data(args))
    return equal_lecture.run_theirs(checkout, folder, args), folder, args


@pytest.mark.parametrize("source", ["recorded", pytest.param("lecture", marks=needs_checkout)])
def test_the_first_twenty_losses_equal_those_of_the_lectures_script(request, source):
    theirs, folder, args = request.getfixturevalue(source)
    ours = equal_lecture.run_ours(folder, args)
    assert len(ours) == len(theirs) == 20
    assert equal_lecture.worst(ours, theirs, "loss") <= 1e-5
    assert equal_lecture.worst(ours, theirs, "lr") <= 1e-7  # printed with five digits
    assert equal_lecture.worst(ours, theirs, "norm") <= 1e-4  # printed with four decimals
    assert theirs[0]["loss"] - theirs[-1]["loss"] > 0.3  # they did train


@pytest.mark.parametrize("change", ["--shuffle", "--weight-decay=0", "--beta2=0.99"])
def test_the_comparison_notices_one_changed_setting(recorded, change):
    theirs, folder, args = recorded
    ours = equal_lecture.run_ours(folder, args, change)
    assert ours[0]["lr"] == pytest.approx(theirs[0]["lr"], abs=1e-7)  # the rest is as it was
    assert equal_lecture.worst(ours, theirs, "loss") > 2e-5


def test_a_script_with_other_constants_is_refused():
    args = equal_lecture.read_arguments(["somewhere"])
    with pytest.raises(SystemExit, match="occurs 0 times, expected 1"):
        equal_lecture.adapt("print('another script')", args)
