"""nanogpt_lib/modern.py: without its parts it is GPT-2, each part is what its paper says."""

import json
import math
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import ROOT, TINY, log_of, program
from nanogpt_lib import train
from nanogpt_lib.choices import MODELS, model_config
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.context import Context, new_cache
from nanogpt_lib.graphs import fast_sampling
from nanogpt_lib.hellaswag import Item, ending_losses
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.modern import CAP, PARTS, ModernGPT, norm, rotate
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.sampling import generate
from nanogpt_lib.scoring import item_losses
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError

SHAPE = dict(block_size=24, vocab_size=19, n_layer=3, n_head=2, n_embd=16, bias=False)


def uneven(parts=PARTS, **shape) -> ModernGPT:
    """A model in which no matrix is zero and no mix is what it began as."""
    torch.manual_seed(0)
    model = ModernGPT(GPTConfig(**{**SHAPE, **shape}), parts).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.1 if p.dim() < 2 else 0.0, 0.4)
    return model


def tokens(rows: int = 2, length: int = 24):
    return torch.randint(19, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["manual", "sdpa"])
def test_without_its_parts_it_is_gpt2_without_biases(attention):
    model = uneven(parts=(), attention=attention)
    gpt2 = GPT(GPTConfig(**SHAPE)).eval()
    assert set(model.state_dict()) == set(gpt2.state_dict())
    gpt2.load_state_dict(model.state_dict())
    idx = tokens()
    torch.testing.assert_close(model(idx)[0], gpt2(idx)[0], atol=1e-5, rtol=1e-5)
    torch.manual_seed(3)
    fresh = ModernGPT(GPTConfig(**SHAPE), ())
    torch.manual_seed(3)
    same = GPT(GPTConfig(**SHAPE))
    for (name, a), b in zip(fresh.state_dict().items(), same.state_dict().values(), strict=True):
        assert a.std() == pytest.approx(b.std().item(), rel=0.3), name  # GPT-2's initialisation


def test_rotation_equals_complex_numbers_and_depends_on_the_distance_only():
    x = torch.randn(2, 3, 10, 8)
    turned = rotate(x, torch.arange(10))
    z = torch.complex(x[..., :4].double(), x[..., 4:].double())
    angle = torch.arange(10).double()[:, None] * 10_000.0 ** (-torch.arange(4).double() / 4)
    z = z * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([z.real, z.imag], dim=-1).float()
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)
    q, k = torch.randn(2, 1, 1, 1, 8)
    score = [
        (rotate(q, torch.tensor([t + 5])) * rotate(k, torch.tensor([t]))).sum() for t in (0, 3, 90)
    ]
    torch.testing.assert_close(score[1:], score[:1] * 2, atol=1e-4, rtol=1e-4)
    other = (rotate(q, torch.tensor([6])) * rotate(k, torch.tensor([0]))).sum()
    assert abs(other - score[0]) > 1e-3


def test_rotation_is_that_of_llama_in_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = torch.randn(2, 2, 3, 10, 8)
    angle = torch.arange(10.0)[:, None] * 10_000.0 ** (-torch.arange(4.0) / 4)
    cos, sin = (f(torch.cat([angle, angle], dim=-1))[None] for f in (torch.cos, torch.sin))
    theirs_q, theirs_k = apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close(rotate(q, torch.arange(10)), theirs_q, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotate(k, torch.arange(10)), theirs_k, atol=1e-5, rtol=1e-5)


def test_the_norm_is_pytorchs():
    x = torch.randn(4, 16)
    torch.testing.assert_close(norm(x), nn.RMSNorm(16, elementwise_affine=False)(x))


def test_it_is_causal():
    model, idx = uneven(), tokens()
    changed = idx.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 19
    moved = (model(idx)[0] - model(changed)[0]).abs().amax(dim=(0, 2))
    assert moved[:15].max() < 1e-5 < 1e-3 < moved[15:].min()


@pytest.mark.parametrize("parts", [PARTS, (), *[tuple(p for p in PARTS if p != q) for q in PARTS]])
def test_with_a_cache_it_computes_the_same(parts):
    model, idx = uneven(parts), tokens()
    whole = model(idx)[0]
    cache, pieces = new_cache(3, 24), []
    for piece in idx.split([5, 1, 1, 10, 7], dim=1):
        pieces.append(model(piece, context=Context.after(cache, piece))[0])
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    texts = [
        generate(
            model, idx[:, :4], 30, generator=torch.Generator().manual_seed(5), use_cache=cached
        )
        for cached in (True, False)
    ]
    assert torch.equal(*texts)


def test_logits_stay_below_the_cap_and_begin_at_zero():
    model = uneven()
    assert model(tokens())[0].abs().max() <= CAP
    fresh = ModernGPT(GPTConfig(**SHAPE))
    logits, loss = fresh(tokens(), tokens())
    assert not logits.any() and loss.item() == pytest.approx(
        torch.tensor(19.0).log().item(), abs=1e-5
    )
    uncapped = uneven(tuple(p for p in PARTS if p != "softcap"))
    uncapped.load_state_dict(model.state_dict())
    expected = CAP * torch.tanh(uncapped(tokens())[0] / CAP)
    torch.testing.assert_close(model(tokens())[0], expected, atol=1e-5, rtol=1e-5)


def test_every_part_changes_what_is_computed_and_every_parameter_gets_a_gradient():
    for part in PARTS:
        if part in ("zero-init", "untied"):
            continue
        rest = tuple(p for p in PARTS if p != part)
        model, other = uneven(), uneven(rest)
        other.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(model(tokens())[0], other(tokens())[0], atol=1e-3), part
    model = uneven()
    model(tokens(), tokens())[1].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_padding_rows_are_never_logits():
    model = uneven(vocab_multiple=8)
    logits, loss = model(tokens(), tokens())
    assert logits.shape[-1] == 19 and len(model.lm_head.weight) == 24
    expected = F.cross_entropy(logits.flatten(0, 1), tokens().flatten())
    torch.testing.assert_close(loss, expected)


def test_it_learns():
    torch.manual_seed(0)
    model = ModernGPT(GPTConfig(**SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = tokens(4)
    for _ in range(60):
        loss = model(x[:, :-1], x[:, 1:])[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.3


# --- the programs -------------------------------------------------------------------------------

MODERN = [*TINY, "--model", "modern", "--n-layer", "2", "--no-bias", "--optimizer", "muon"]
MODERN += ["--schedule", "wsd"]


def model_vocab(data) -> int:
    return read_meta(data)["vocab_size"]


@pytest.fixture(scope="module")
def modern_run(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("modern") / "run"
    done = program("train.py", *MODERN, "--data", tiny_data, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_train_py_trains_it_and_resumes_bit_for_bit(modern_run, tiny_data, tmp_path):
    log = log_of(modern_run)
    assert log[0]["val_loss"] == pytest.approx(math.log(model_vocab(tiny_data)), abs=1e-3)
    assert log[-1]["val_loss"] < log[0]["val_loss"] - 0.1
    out = shutil.copytree(modern_run, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(out / "checkpoints" / f"step_{step:06d}")
    assert train.main([*MODERN, "--resume", "--out", str(out), "--data", str(tiny_data)]) == 0
    assert log_of(out) == log
    a, b = (load_model(run, say=lambda line: None)[0].state_dict() for run in (modern_run, out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(UserError, match="--model: the run to resume has modern"):
        train.main(["--resume", "--out", str(out), "--data", str(tiny_data), "--model", "gpt2"])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_it_as_one(parallel, tiny_data, tmp_path):
    flags = [*MODERN, "--optimizer", "adamw", "--data", tiny_data, "--parallel", parallel]
    losses = []
    for ranks in (0, 2):
        out = tmp_path / f"{ranks}"
        done = program("train.py", *flags, "--out", out, ranks=ranks)
        assert done.returncode == 0, done.stderr
        losses.append([r.get("train_loss", r.get("val_loss")) for r in log_of(out)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_its_checkpoint_is_loaded_sampled_and_scored_like_any_other(modern_run, capsys):
    model, tokenizer = load_model(modern_run, say=lambda line: None)
    assert type(model) is ModernGPT and model.parts == PARTS
    done = program("sample.py", "--checkpoint", modern_run, "--prompt", "the ", "--num-samples", 1)
    assert done.returncode == 0 and done.stdout.startswith("--- sample 1\nthe ")
    idx = torch.tensor([tokenizer.encode("the dog sees ")])
    plain = generate(model, idx, 12, temperature=0)
    with fast_sampling(model, torch.device("cpu"), torch.float32, rows=1, weights="float16"):
        fast = generate(model, idx, 12, temperature=0)
    assert fast.shape == plain.shape
    item = Item(
        tokenizer.encode("the dog"), [tokenizer.encode(" " + w) for w in ENDINGS], [4] * 4, 1
    )
    one_by_one = ending_losses(model.eval(), item)
    together = item_losses(model, [item])[0]
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=1e-5)


ENDINGS = ("sees", "runs to", "hears the cat", "fox")


def test_what_only_gpt2_can_do_is_refused_in_a_line(modern_run, tmp_path):
    page = ("page.py", "--checkpoint", modern_run, "--out", tmp_path / "x.html")
    for name, *args in (("huggingface.py", modern_run, tmp_path / "hf"), page):
        done = program(name, *args)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "architecture" in done.stderr
    assert not (tmp_path / "hf").exists() and not (tmp_path / "x.html").exists()


def test_the_preset_is_the_124m_shape():
    config = TrainConfig(**PRESETS["modern-124m"])
    with torch.device("meta"):
        model = MODELS[config.model](model_config(config, 50257))
    blocks = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    assert blocks == 12 * 12 * 768**2 and model.transformer.h[0].attn.n_head == 6
    assert config.max_steps * config.total_batch_size == 1_703_936_000


def benchmark(name: str, *args):
    return program(ROOT / "tests/benchmarks" / name, *args)


def test_the_runs_of_the_ladder_can_be_rehearsed_and_are_not_repeated(tiny_data, tmp_path):
    out = tmp_path / "runs.jsonl"
    flags = ["--out", out, "--data", tiny_data, "--steps", 1, "--seeds", 1]
    done = benchmark("modern.py", *flags, "--only", "ladder,others")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 13 and records[0]["parts"] == [] and records[9]["parts"] == list(PARTS)
    assert [r["optimizer"] for r in records[:5]] == ["adamw"] * 4 + ["muon"]
    assert all(math.isfinite(r["losses"][-1][1]) for r in records)
    benchmark("modern.py", *flags, "--only", "ladder")
    assert len(out.read_text(encoding="utf-8").splitlines()) == 13
    said = benchmark("modern.py", "--out", out, "--report").stdout
    assert "+ linear decay" in said and "last + swiglu" in said


LOOKS_AHEAD = """
import torch

class Model(torch.nn.Module):
    def forward(self, idx):
        ahead = torch.cat([idx[:, 1:], idx[:, :1]], dim=1)
        return 9.0 * torch.nn.functional.one_hot(ahead, {V}).float()

def train(tokens, vocab_size, seconds_left):
    return Model()
"""


def test_a_speedrun_judges_by_its_rules(tiny_data, tmp_path):
    runs, vocab_size = tmp_path / "runs.jsonl", read_meta(tiny_data)["vocab_size"]
    how = ["--data", tiny_data, "--out", runs]
    for entry in ("gpt2", "modern"):
        path = ROOT / f"tests/benchmarks/speedruns/{entry}.py"
        done = benchmark("speedrun.py", path, *how, "--seconds", 6)
        assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in runs.read_text().splitlines()]
    assert max(losses) < math.log(vocab_size)
    board = benchmark("speedrun.py", "--board", runs).stdout.splitlines()
    assert [float(line.split()[0]) for line in board] == sorted(losses)
    cheat = tmp_path / "cheat.py"
    cheat.write_text(LOOKS_AHEAD.replace("{V}", str(vocab_size)))
    late = tmp_path / "late.py"
    late.write_text("import time\ndef train(t, v, left):\n    time.sleep(left() + 1)\n")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for path, message in ((cheat, "looks ahead"), (late, "returned after"), (empty, "no function")):
        done = benchmark("speedrun.py", path, *how, "--seconds", 1)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert len(runs.read_text().splitlines()) == 2
