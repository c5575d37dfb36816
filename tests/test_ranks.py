"""nanogpt_course.ranks: four processes that answer, and say so when one fails."""

import pytest
import torch

from nanogpt_course.ranks import Ranks, torchrun


def helper(x):
    return 10 * x


def answer(world):
    total = torch.tensor(float(helper(world.rank)))
    dist.all_reduce(total)  # noqa: F821 (one of ranks.NAMES)
    return world.rank, world.size, total.item()


def fails_on_one(world):
    if world.rank == 2:
        raise ValueError("the third of four")
    return world.rank


def test_four_ranks_answer_in_order_again_and_again_until_one_fails(tmp_path):
    ranks = Ranks(tmp_path)
    for _ in range(2):
        assert ranks.everywhere(helper, answer) == [(rank, 4, 60.0) for rank in range(4)]
    with pytest.raises(RuntimeError, match="the third of four"):
        ranks.everywhere(fails_on_one)
    assert all(node.wait(timeout=60) == 1 for node in ranks.nodes)


def test_they_end_when_their_folder_goes(tmp_path):
    ranks = Ranks(tmp_path)
    assert len(ranks.everywhere(helper, answer)) == 4
    ranks.folder.rename(tmp_path / "gone")
    assert all(node.wait(timeout=60) == 0 for node in ranks.nodes)


def test_a_script_that_fails_under_torchrun_says_why(tmp_path):
    script = tmp_path / "script.py"
    # torchrun's Python is unbuffered: print writes in pieces, which two ranks may interleave
    line = "f\"rank {os.environ['RANK']}\\n\""
    script.write_text(f"import os, sys\nsys.stdout.write({line})\n")
    assert sorted(torchrun(script, 2).splitlines()) == ["rank 0", "rank 1"]
    script.write_text("raise SystemExit('out of luck')\n")
    with pytest.raises(RuntimeError, match="out of luck"):
        torchrun(script, 2)
