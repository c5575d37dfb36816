"""nanogpt_lib/scaling.py: costs are those of real models, fits find what was put in, muP holds."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from conftest import ROOT, program
from nanogpt_lib.context import Context, new_cache
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.scaling import STARTS, LossLaw, fit_loss_law, make_mup, power_law, sizes_of, vertex
from nanogpt_lib.support.memory import training_bytes

LAW = LossLaw(E=1.2, A=55.0, alpha=0.38, B=90.0, beta=0.41)


@pytest.mark.parametrize(
    "shape",
    [
        dict(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=96, bias=False),
        dict(n_layer=3, n_head=4, n_embd=64, block_size=48, vocab_size=500, vocab_multiple=64),
    ],
)
def test_the_costs_of_a_shape_are_those_of_the_model(shape, tmp_path):
    config = GPTConfig(**shape, attention="manual")
    model = GPT(config)
    with torch.device("meta"):
        paper = GPT(config)
    said = sizes_of(paper)
    assert said.parameters == count_parameters(model)
    assert said.step == training_bytes(model, rows=1, dtype=torch.bfloat16)
    ids = torch.randint(config.vocab_size, (1, config.block_size + 1))
    with FlopCounterMode(display=False) as counter:
        model(ids[:, :-1], ids[:, 1:])[1].backward()
    assert counter.get_total_flops() / config.block_size == pytest.approx(said.flops, rel=0.01)
    cache = new_cache(config.n_layer, config.block_size)
    model(ids[:, :-1], context=Context.after(cache, ids[:, :-1]))
    held = sum(layer.k[:, :, :1].numel() + layer.v[:, :, :1].numel() for layer in cache)
    assert said.cache == 2 * held  # 16 bits each
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {f"{k}.{n}": torch.zeros_like(p) for n, p in tensors.items() for k in ("m", "v")}
    save_file(tensors, tmp_path / "x.safetensors")
    header = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "x.safetensors").stat().st_size == said.checkpoint + header + 8


def test_gpt2s_size_is_the_papers():
    with torch.device("meta"):
        assert sizes_of(GPT(GPTConfig())).parameters == 124_439_808


def test_a_vertex_is_where_it_was_put():
    sizes = np.geomspace(1e4, 1e6, 5)
    N, loss = vertex(sizes, 1.5 + 0.02 * (np.log(sizes) - math.log(7e4)) ** 2)
    assert pytest.approx(7e4) == N and loss == pytest.approx(1.5)
    with pytest.raises(ValueError, match="no valley"):
        vertex(sizes, -(np.log(sizes) ** 2))


def test_a_power_law_is_found_again():
    x = np.array([1e10, 3e11, 1e12])
    assert power_law(x, 0.3 * x**0.48) == pytest.approx((0.3, 0.48))


def test_the_law_is_found_again_and_an_odd_run_does_not_bend_it():
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e4, 2e6, 5), np.geomspace(3e5, 3e7, 5)))
    exact = fit_loss_law(N, D, LAW.loss(N, D))
    assert pytest.approx(LAW.E, abs=0.02) == exact.E
    assert (exact.alpha, exact.beta) == pytest.approx((LAW.alpha, LAW.beta), abs=0.02)
    odd = LAW.loss(N, D)
    odd[7] *= 1.2
    bent = fit_loss_law(N, D, odd)
    assert bent.loss(3e6, 1e8) == pytest.approx(LAW.loss(3e6, 1e8), rel=0.005)


@pytest.mark.parametrize("delta", [1e-2, 1e-3])
def test_every_start_ends_in_the_same_valley(delta):
    text = (ROOT / "notebooks/recorded/scaling.jsonl").read_text(encoding="utf-8")
    grid = [r for r in map(json.loads, text.splitlines()) if r["group"] == "grid"]
    runs = [(r["N"], r["D"], r["losses"][-1][1]) for r in grid if r["seed"] == 0]
    N, D, losses = np.array(runs).T
    laws = [fit_loss_law(N, D, losses, [start], delta) for start in STARTS]
    for law in laws[1:]:
        assert law == pytest.approx(laws[0], rel=2e-2)
        assert law.loss(5e5, 1e7) == pytest.approx(laws[0].loss(5e5, 1e7), abs=1e-4)


def test_the_best_size_is_the_cheapest():
    for C in (1e12, 1e15):
        sizes = np.geomspace(1e3, 1e9, 200_001)
        cheapest = sizes[np.argmin(LAW.loss(sizes, C / (6 * sizes)))]
        assert LAW.best_size(C) == pytest.approx(cheapest, rel=1e-3)


def test_mup_at_the_base_width_changes_nothing():
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=20, bias=False)
    torch.manual_seed(0)
    plain = GPT(config)
    torch.manual_seed(0)
    same = GPT(config)
    groups = make_mup(same, 1.0)
    ids = torch.randint(20, (2, 16))
    assert torch.equal(plain(ids)[0], same(ids)[0])
    assert sum(len(group["params"]) for group in groups) == len(list(same.parameters()))
    assert groups[0]["lr_factor"] == 1 and len(groups[0]["params"]) == 8


@pytest.mark.parametrize("mup", [False, True])
def test_under_mup_the_width_does_not_move_the_logits(mup):
    """Two updates of Adam at one rate: without muP a wider model moves farther."""
    moved = []
    for width in (32, 256):
        torch.manual_seed(0)
        config = GPTConfig(n_layer=2, n_head=width // 16, n_embd=width, block_size=16,
                           vocab_size=20, bias=False)  # fmt: skip
        model = GPT(config)
        groups = make_mup(model, width / 32) if mup else [{"params": model.parameters()}]
        for group in groups:
            group["lr"] = 2e-3 * group.get("lr_factor", 1.0)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        ids = torch.randint(20, (4, 17), generator=torch.Generator().manual_seed(1))
        before = model(ids[:, :-1])[0].detach()
        for _ in range(4):
            optimizer.zero_grad()
            model(ids[:, :-1], ids[:, 1:])[1].backward()
            optimizer.step()
        moved.append((model(ids[:, :-1])[0].detach() - before).std().item())
    assert (moved[1] / moved[0] < 1.5) == mup


def test_the_program_predicts_before_it_runs_and_repeats_nothing(tiny_data, tmp_path):
    out = tmp_path / "runs.jsonl"
    flags = ["--out", out, "--data", tiny_data, "--share", 1e-5, "--seeds", 1]
    done = program(ROOT / "tests/benchmarks/scaling.py", *flags, "--only", "held-out")
    assert done.returncode == 2 and "without a grid" in done.stderr
    done = program(ROOT / "tests/benchmarks/scaling.py", *flags, "--only", "grid,schedule,held-out")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [r["group"] for r in records] == ["grid"] * 15 + ["schedule", "held-out"]
    assert all(6 * r["N"] * r["D"] == pytest.approx(r["C"], rel=1e-3) for r in records)
    said = records[-1]["predicted"]
    assert said["low"] < said["high"] and done.stdout.index("predicted") < done.stdout.index("held")
    program(ROOT / "tests/benchmarks/scaling.py", *flags, "--only", "grid")
    assert len(out.read_text(encoding="utf-8").splitlines()) == 17
    done = program(ROOT / "tests/benchmarks/scaling.py", "--out", out)
    assert done.returncode == 1 and "name a dataset" in done.stderr
