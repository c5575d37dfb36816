"""What the ladder of bench.py promises."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nanogpt_lib import bench, ladder
from nanogpt_lib.ladder import OtherLoss, Rung, measure, measure_or_note, padded
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.others import build_nanogpt, time_theirs
from nanogpt_lib.support.errors import UserError

CPU = torch.device("cpu")
SHAPE = dict(block_size=16, n_layer=2, n_head=2, n_embd=16)


def tiny(**changes) -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(**{**SHAPE, "vocab_size": 50, **changes}))


def batch(rows=5):
    tokens = torch.randint(0, 50, (rows, 17), generator=torch.Generator().manual_seed(2))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


@pytest.mark.parametrize("kind", ["linear", "chunks"])
def test_a_loss_without_all_logits_is_the_same_function(kind, monkeypatch):
    if kind == "linear" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this PyTorch has no linear_cross_entropy")
    monkeypatch.setattr(ladder, "CHUNK", 32)  # 80 positions: the last piece is shorter
    model, (x, y) = tiny(vocab_multiple=64), batch()
    want = model(x, y)[1]
    gradients = torch.autograd.grad(want, list(model.parameters()))
    got = OtherLoss(model, kind, torch.float32)(x, y)[1]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(got, list(model.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_padding_the_vocabulary_keeps_the_loss():
    model, (x, y) = tiny(), batch()
    wider = padded(model, 64)
    assert wider.lm_head.weight.shape == (64, 16)
    torch.testing.assert_close(wider(x, y)[1], model(x, y)[1])


def test_rungs_begin_with_equal_weights_and_an_equal_batch():
    rungs = [Rung(), Rung(attention="sdpa"), Rung(fused=True), Rung(vocab_multiple=64)]
    losses = [measure(rung, SHAPE, 2, 1, CPU)["loss"] for rung in rungs]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)


def test_data_read_from_the_disk_and_read_ahead_are_the_same():
    rows = [measure(Rung(data=data), SHAPE, 2, 1, CPU) for data in ("loader", "ahead")]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["tokens"] == 32


def test_a_rung_beyond_the_lecture_stays_only_if_it_is_faster(monkeypatch, capsys):
    speeds = {"slower": 0.9, "faster": 2.0, "hardly": 1.005, "upon": 3.0}
    tried = []

    def pretend(rung, shape, rows, steps, device):
        tried.append(rung)
        if rung.name == "broken":
            return "broken: out of memory"
        return ladder.row_of(rung.name, 1 / speeds.get(rung.name, 1.0), 8, 4.0, tiny(), device)

    monkeypatch.setattr(bench, "measure_or_note", pretend)
    further = {
        "slower": dict(loss="chunks"), "faster": dict(kernel="flash"), "broken": dict(factor=4),
        "hardly": dict(fused=True), "upon": dict(factor=2),
    }  # fmt: skip
    rows, best = bench.climb([Rung(), "TF32: not here"], further, SHAPE, 2, 1, CPU)
    assert best == replace(Rung(), name="upon", kernel="flash", factor=2)
    kept = {row["rung"]: row["kept"] for row in rows[:7]}
    assert kept == {
        "float32": True, "TF32": False, "slower": False, "faster": True, "broken": False,
        "hardly": False, "upon": True,
    }  # fmt: skip
    assert [rung.data for rung in tried[-2:]] == ["loader", "ahead"]
    assert "dropped" in capsys.readouterr().out


def test_a_rung_that_cannot_run_says_so_in_one_line(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    monkeypatch.setattr(ladder, "measure", full)
    assert measure_or_note(Rung(name="rows × 4"), SHAPE, 2, 1, CPU) == "rows × 4: out of memory"


def test_what_is_no_checkout_of_theirs_is_refused(tmp_path):
    with pytest.raises(UserError, match="train_gpt2.py: cannot be read"):
        build_nanogpt(tmp_path)
    (tmp_path / "train_gpt2.py").write_text("print('something else')")
    with pytest.raises(UserError, match="not the lecture's last version"):
        build_nanogpt(tmp_path)


def test_their_step_runs_out_of_their_own_file():
    checkout = Path(os.environ.get("NANOGPT_LECTURE", "not given"))
    if not checkout.exists():
        pytest.skip("NANOGPT_LECTURE names no checkout of build-nanogpt")
    how = ("build-nanogpt", checkout, SHAPE, 2, 1, CPU, torch.float32, False)
    seconds, loss = time_theirs(*how)
    assert seconds > 0 and 10 < loss < 12
