"""We train as the lecture's script does. Needs a checkout of it:

git clone https://github.com/karpathy/build-nanogpt
NANOGPT_LECTURE=build-nanogpt pytest tests/test_equal_lecture.py
"""

import os
import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import equal_lecture  # noqa: E402

checkout = Path(os.environ.get("NANOGPT_LECTURE", "not given")).resolve()
needs_checkout = pytest.mark.skipif(
    not (checkout / "train_gpt2.py").exists(),
    reason="NANOGPT_LECTURE names no checkout of build-nanogpt",
)


@pytest.fixture(scope="module")
def lecture(tmp_path_factory):
    """The lecture's 20 steps, and where and how they were made."""
    folder = tmp_path_factory.mktemp("lecture")
    args = equal_lecture.read_arguments([str(checkout), "--device", "cpu"])
    equal_lecture.write_data(folder, args)
    return equal_lecture.run_theirs(checkout, folder, args), folder, args


@needs_checkout
def test_the_first_twenty_losses_equal_those_of_the_lectures_script(lecture):
    theirs, folder, args = lecture
    ours = equal_lecture.run_ours(folder, args)
    assert len(ours) == len(theirs) == 20
    assert equal_lecture.worst(ours, theirs, "loss") <= 1e-5
    assert equal_lecture.worst(ours, theirs, "lr") <= 1e-7  # printed with five digits
    assert equal_lecture.worst(ours, theirs, "norm") <= 1e-4  # printed with four decimals
    assert theirs[0]["loss"] - theirs[-1]["loss"] > 0.5  # they did train


@needs_checkout
@pytest.mark.parametrize("change", ["--shuffle", "--weight-decay=0", "--beta2=0.99"])
def test_the_comparison_notices_one_changed_setting(lecture, change):
    theirs, folder, args = lecture
    ours = equal_lecture.run_ours(folder, args, change)
    assert equal_lecture.worst(ours, theirs, "loss") > 3e-5


def test_a_script_with_other_constants_is_refused():
    args = equal_lecture.read_arguments(["somewhere"])
    with pytest.raises(SystemExit, match="occurs 0 times, expected 1"):
        equal_lecture.adapt("print('another script')", args)
