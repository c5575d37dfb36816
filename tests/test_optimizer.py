"""What optimizer.py promises."""

import math

import pytest
import torch
import torch.nn as nn

from nanogpt_lib.config import PRESETS, TrainConfig
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.optimizer import (
    Muon,
    decay_groups,
    learning_rate_at,
    make_optimizer,
    orthogonalise,
    set_learning_rate,
)

TINY = dict(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16)
GPT2 = dict(max_lr=6e-4, min_lr=6e-5, warmup_steps=715, max_steps=19_073)


def tiny(seed=1, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**TINY, **changes}))


def batch(rows=4, seed=2):
    tokens = torch.randint(0, 50, (rows, 17), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def textbook_update(w, g, m, v, t, lr, decay):
    """AdamW in float64, from the paper (Loshchilov and Hutter 2017, algorithm 2)."""
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.95).add_(0.05 * g * g)
    w -= lr * decay * w + lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)


# --- AdamW ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_updates_equal_the_textbook(bias):
    model = tiny(bias=bias)
    optimizer = make_optimizer(model, learning_rate=1e-3)
    ours = [p.detach().double() for p in model.parameters()]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in ours]
    for t in range(1, 11):
        model(*batch(seed=t))[1].backward()
        for w, p, (m, v) in zip(ours, model.parameters(), moments, strict=True):
            decay = 0.1 if p.dim() >= 2 else 0.0
            textbook_update(w, p.grad.double(), m, v, t, lr=1e-3, decay=decay)
        optimizer.step()
        optimizer.zero_grad()
    for w, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_the_same_gradients_give_the_same_weights_bit_for_bit():
    results = []
    for _ in range(2):
        model = tiny()
        optimizer = make_optimizer(model, learning_rate=1e-3)
        for t in range(5):
            model(*batch(seed=t))[1].backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(flat(model))
    assert torch.equal(*results)


def test_it_learns_a_batch():
    model, (x, y) = tiny(), batch()
    optimizer = make_optimizer(model, learning_rate=1e-2)
    for _ in range(100):
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5 < math.log(50) - 3


def test_the_settings_are_those_of_gpt3_and_the_update_is_fused():
    optimizer = make_optimizer(tiny(), learning_rate=6e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95) and group["eps"] == 1e-8 and group["fused"]
        assert group["lr"] == 6e-4


# --- decay groups ---------------------------------------------------------------------------------


def test_matrices_decay_and_everything_of_one_dimension_does_not():
    model = tiny()
    decayed, kept = (set(map(id, group["params"])) for group in decay_groups(model, 0.1))
    for name, p in model.named_parameters():
        matrix = "ln_" not in name and name.endswith("weight")
        assert (id(p) in decayed) == matrix and (id(p) in kept) != matrix, name


def test_every_trainable_parameter_is_in_exactly_one_group_and_a_tied_one_once():
    model = tiny()
    model.transformer.wpe.weight.requires_grad_(False)
    listed = [p for group in decay_groups(model, 0.1) for p in group["params"]]
    assert len(listed) == len(set(map(id, listed)))
    assert sum(p.numel() for p in listed) == count_parameters(model) - 16 * 16
    assert model.lm_head.weight is model.transformer.wte.weight


def test_counts_of_gpt2_are_those_of_the_lecture():
    with torch.device("meta"):
        groups = decay_groups(GPT(GPTConfig(vocab_multiple=64)), 0.1)
    assert [len(group["params"]) for group in groups] == [50, 98]
    numbers = [sum(p.numel() for p in group["params"]) for group in groups]
    assert numbers == [124_354_560, 121_344]


def test_without_gradient_only_decay_moves_matrices():
    model = tiny()
    nn.init.ones_(model.transformer.ln_f.bias)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 0.95 if p.dim() >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


# --- schedule -------------------------------------------------------------------------------------


def test_the_schedule_equals_pytorchs_own():
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=6e-4)
    linear = torch.optim.lr_scheduler.LinearLR(sgd, 1 / 715, 1.0, 714)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 19_073 - 715, 6e-5)
    both = torch.optim.lr_scheduler.SequentialLR(sgd, [linear, cosine], [715])
    for step in range(19_073):
        assert math.isclose(learning_rate_at(step, **GPT2), both.get_last_lr()[0], rel_tol=1e-9)
        sgd.step()
        both.step()


def test_the_schedule_rises_to_the_peak_once_and_never_below_the_floor():
    rates = [learning_rate_at(step, **GPT2) for step in range(20_000)]
    assert rates[0] > 0 and rates[714] == rates[715] == max(rates) == 6e-4
    assert rates[:715] == sorted(rates[:715])
    assert rates[715:] == sorted(rates[715:], reverse=True)
    assert rates[19_072] > 6e-5 and rates[19_073:] == [6e-5] * (20_000 - 19_073)
    middle = learning_rate_at((715 + 19_073) // 2, **GPT2)
    assert math.isclose(middle, (6e-4 + 6e-5) / 2)


@pytest.mark.parametrize("warmup, steps", [(0, 10), (10, 10), (20, 10), (0, 1), (1, 1)])
def test_odd_plans_give_a_rate_for_every_update(warmup, steps):
    plan = dict(max_lr=1.0, min_lr=0.1, warmup_steps=warmup, max_steps=steps)
    rates = [learning_rate_at(step, **plan) for step in range(steps)]
    assert all(0 < rate <= 1.0 for rate in rates)
    if warmup == 0:
        assert rates[0] == 1.0


def test_an_equal_floor_and_peak_keep_the_rate_constant():
    plan = dict(max_lr=3e-5, min_lr=3e-5, warmup_steps=0, max_steps=40)
    assert {learning_rate_at(step, **plan) for step in range(50)} == {3e-5}


def test_the_preset_counts_its_tokens_as_gpt3_does():
    config = TrainConfig(**PRESETS["gpt2-124m"])
    assert config.warmup_steps == int(375e6 / config.total_batch_size) == 715
    assert config.max_steps == int(10e9 / config.total_batch_size) == 19_073
    assert math.isclose(config.min_lr, 0.1 * config.learning_rate)


# --- clipping and accumulation, as train.py does them ---------------------------------------------


def test_accumulated_gradients_equal_the_large_batch_only_with_the_division():
    model, (x, y) = tiny(), batch(rows=8)
    model(x, y)[1].backward()
    whole = [p.grad.clone() for p in model.parameters()]

    def accumulated(divisor):
        model.zero_grad()
        for i in range(0, 8, 2):
            (model(x[i : i + 2], y[i : i + 2])[1] / divisor).backward()
        return [p.grad.clone() for p in model.parameters()]

    for a, b in zip(accumulated(4), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    worst = max((a - b).abs().max() for a, b in zip(accumulated(1), whole, strict=True))
    assert worst > 1e-2


# --- Muon


def muon_pair(shapes, **how):
    """Equal parameters under our Muon and PyTorch's, both with products in bfloat16."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(0.1 * torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = Muon([{"params": ours, "muon": True}], torch.bfloat16, betas=(0.9, 0.95), **how)
    return (
        ours,
        theirs,
        mine,
        torch.optim.Muon(theirs, momentum=0.9, adjust_lr_fn="original", **how),
    )


def test_muon_equals_pytorchs_up_to_bfloat16():
    ours, theirs, mine, reference = muon_pair([(24, 6), (6, 24), (6, 6)], lr=0.02, weight_decay=0.1)
    before = [p.detach().clone() for p in ours]
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    for p, q, was in zip(ours, theirs, before, strict=True):
        moved, expected = (p - was).flatten(), (q - was).flatten()
        assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > 0.99
        assert abs(moved.norm() / expected.norm() - 1) < 0.05


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (3, 7, 7)])
def test_orthogonalise_brings_singular_values_near_one_and_keeps_directions(shape):
    torch.manual_seed(1)
    G = torch.randn(shape)
    result = orthogonalise(G)
    values = torch.linalg.svdvals(result)
    assert result.shape == G.shape and values.min() > 0.3 and values.max() < 1.3
    left, _, right = torch.linalg.svd(G, full_matrices=False)
    aligned = (left.mT @ result @ right.mT).diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(aligned.abs().sort().values, values.sort().values, atol=1e-4)


def test_muon_takes_the_blocks_matrices_and_keeps_its_rate_in_proportion():
    model = tiny()
    optimizer = make_optimizer(model, learning_rate=1e-3, muon_learning_rate=0.02)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = [names[id(p)] for p in optimizer.param_groups[0]["params"]]
    assert all(".h." in name and name.endswith("weight") for name in muon) and len(muon) % 4 == 0
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(model.parameters()))
    set_learning_rate(optimizer, 5e-4)
    assert [round(group["lr"], 9) for group in optimizer.param_groups] == [0.01, 5e-4, 5e-4]


def test_an_overflow_found_by_the_scaler_changes_nothing_under_muon():
    model = tiny()
    optimizer = make_optimizer(model, learning_rate=1e-3, muon_learning_rate=0.02)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("inf"))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for overflow in (0.0, 1.0, 0.0):  # and the run goes on, through another one
        optimizer.found_inf = torch.tensor(overflow)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert all(same) if overflow else not any(same)
