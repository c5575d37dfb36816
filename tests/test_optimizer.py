"""What optimizer.py, muon.py and the registries of choices.py promise."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lib.choices import OPTIMIZERS, SCHEDULES
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.muon import METHODS, Muon, halley, newton_schulz
from nanogpt_lib.optimizer import (
    decay_groups,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
)
from nanogpt_lib.presets import PRESETS

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


@pytest.mark.parametrize("warmup, steps", [(71, 1907), (1, 40)])
def test_the_schedule_equals_pytorchs_own(warmup, steps):
    """GPT-2's plan with a tenth of its steps: PyTorch's schedulers need a step for every rate."""
    plan = {**GPT2, "warmup_steps": warmup, "max_steps": steps}
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=6e-4)
    linear = torch.optim.lr_scheduler.LinearLR(sgd, 1 / warmup, 1.0, max(1, warmup - 1))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps - warmup, 6e-5)
    both = torch.optim.lr_scheduler.SequentialLR(sgd, [linear, cosine], [warmup])
    for step in range(steps):
        assert math.isclose(learning_rate_at(step, **plan), both.get_last_lr()[0], rel_tol=1e-9)
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


def test_wsd_warms_up_stays_and_falls_linearly():
    config = TrainConfig(max_steps=100, warmup_steps=10, learning_rate=1.0, min_lr=0.1)
    rates = [SCHEDULES["wsd"](step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert set(rates[10:51]) == {1.0}  # half of the run
    falls = [a - b for a, b in zip(rates[50:100], rates[51:], strict=True)]
    assert falls == pytest.approx([0.9 / 50] * 50) and rates[100] == pytest.approx(0.1)
    assert SCHEDULES["wsd"](120, config) == pytest.approx(0.1)  # resumed with fewer steps
    short = TrainConfig(max_steps=12, warmup_steps=10, learning_rate=1.0, min_lr=0.1)
    assert SCHEDULES["wsd"](11, short) == pytest.approx(0.55)  # the decay begins after warm-up


# --- Muon, and two optimizers as one --------------------------------------------------------------


def mixed(model, **settings):
    """The optimizer of --optimizer muon."""
    settings = {"learning_rate": 1e-3, "muon_learning_rate": 0.02, **settings}
    return OPTIMIZERS["muon"](model, TrainConfig(optimizer="muon", **settings), torch.float32)


@pytest.mark.processor
def test_muon_equals_pytorchs_up_to_bfloat16():
    torch.manual_seed(0)
    ours = [nn.Parameter(0.1 * torch.randn(shape)) for shape in [(24, 6), (6, 24), (6, 6)]]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    how = dict(lr=0.02, weight_decay=0.1, momentum=0.9)
    mine = Muon(ours, dtype=torch.bfloat16, **how)
    reference = torch.optim.Muon(theirs, adjust_lr_fn="original", **how)
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


def matrix_with_known_singular_values(rows, columns, spread, scale, seed):
    """G = left · diag(sigma) · rightᵀ in float32 times 10^scale, and its three parts in float64."""
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(n, count, generator=generator, dtype=torch.float64))[0]
        for n in (rows, columns)
    )
    sigma = torch.exp(-spread * torch.rand(count, generator=generator, dtype=torch.float64))
    return (left * sigma @ right.mT * 10**scale).float(), left, sigma, right


# method → the norm n of the singular values, with what keeps it from zero; the least σ/n that ends
# near one, where it ends, and what a smaller one is multiplied by at most
PROMISES = {
    "newton-schulz": (lambda sigma: sigma.norm() + 1e-7, 0.002, (0.68, 1.20), 485),
    "halley": (lambda sigma: (sigma**4).sum() ** 0.25, 0.01, (0.67, 1.33), 73),
}


@pytest.mark.parametrize("method", METHODS)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    spread=st.floats(0, 12),
    scale=st.floats(-6, 6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_orthogonalising_does_what_its_docstring_says(method, rows, columns, spread, scale, seed):
    """Large singular values end near one, small ones grow by a bounded factor, directions stay."""
    norm, least, (low, high), factor = PROMISES[method]
    G, left, sigma, right = matrix_with_known_singular_values(rows, columns, spread, scale, seed)
    result = METHODS[method](G).double()
    assert result.shape == G.shape
    moved = left.mT @ result @ right
    sigma *= 10**scale
    values, share = moved.diagonal(), sigma / norm(sigma)
    large = share >= least
    assert large.any() or sigma.norm() < 1e-8  # then it is nearly zero, and stays so
    assert (values[large] > low - 0.01).all() and (values[large] < high + 0.01).all()
    assert (values[~large] <= 1.01 * factor * share[~large] + 1e-3).all()
    assert (moved - values.diag()).abs().max() < 1e-3


@pytest.mark.parametrize("method", METHODS.values())
def test_orthogonalising_takes_many_matrices_of_one_shape_at_once(method):
    G = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(method(G), torch.stack([method(g) for g in G]))
    assert torch.equal(method(torch.zeros(2, 7, 5)), torch.zeros(2, 7, 5))


def test_halleys_update_points_where_newton_and_schulzs_does():
    """Both approximate the nearest orthogonal matrix; neither is exact."""
    G = torch.randn(4, 24, 64, generator=torch.Generator().manual_seed(2))
    U, _, V = torch.linalg.svd(G, full_matrices=False)
    for method in (halley, newton_schulz):
        for dtype in (torch.float32, torch.bfloat16):
            result = method(G, dtype).flatten()
            alike = torch.nn.functional.cosine_similarity(result, (U @ V).flatten(), dim=0)
            assert alike > 0.97


def test_halleys_gram_matrix_is_positive_definite_whatever_the_products_dtype():
    """Cholesky needs that, also where few singular values are large and the others are noise."""
    generator = torch.Generator().manual_seed(3)
    for rank in (1, 2, 4, 64):
        left, right = (torch.randn(2, n, rank, generator=generator) for n in (64, 256))
        G = left @ right.mT + 1e-6 * torch.randn(2, 64, 256, generator=generator)
        assert halley(G, torch.bfloat16).isfinite().all()


def test_muon_refuses_what_is_not_a_matrix():
    with pytest.raises(ValueError, match=r"matrices; a parameter has shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])


def closure_of(model, optimizer, calls):
    def closure():
        calls.append(flat(model))
        optimizer.zero_grad()
        loss = model(*batch())[1]
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("kind", ["muon", "both"])
def test_a_closure_is_evaluated_first_once_and_with_gradients(kind):
    """As torch.optim promises: step(closure) is closure(), then step(), and returns the loss."""

    def build():
        model = tiny()
        blocks = [p for p in model.transformer.h.parameters() if p.dim() == 2]
        return model, Muon(blocks) if kind == "muon" else mixed(model)

    (model, optimizer), calls = build(), []
    start = flat(model)
    loss = optimizer.step(closure_of(model, optimizer, calls))
    assert len(calls) == 1 and torch.equal(calls[0], start)
    by_hand, again = build()
    expected = by_hand(*batch())[1]
    expected.backward()
    again.step()
    assert torch.equal(loss, expected) and torch.equal(flat(model), flat(by_hand))


def test_muon_takes_the_blocks_matrices_and_keeps_its_rate_in_proportion():
    model = tiny()
    optimizer = mixed(model)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = [names[id(p)] for p in optimizer.param_groups[0]["params"]]
    assert all(".h." in name and name.endswith("weight") for name in muon) and len(muon) == 2 * 4
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(names)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    set_learning_rate(optimizer, 5e-4)
    assert [round(group["lr"], 9) for group in optimizer.param_groups] == [0.01, 5e-4, 5e-4]


def test_two_optimizers_as_one_update_as_each_alone_would():
    model, alone = tiny(), tiny()
    optimizer = mixed(model)
    blocks = [p for p in alone.transformer.h.parameters() if p.dim() == 2]
    muon = Muon(blocks, lr=0.02, momentum=0.9, weight_decay=0.1)
    adamw = make_optimizer(alone, learning_rate=1e-3)
    for t in range(3):
        for of, parts in ((model, [optimizer]), (alone, [muon, adamw])):
            of(*batch(seed=t))[1].backward()
            for part in parts:
                part.step()
                if part is muon:  # AdamW alone would update them, too
                    for p in blocks:
                        p.grad = None
            for part in parts:
                part.zero_grad()
    assert torch.equal(flat(model), flat(alone))


def test_the_state_of_two_optimizers_goes_back_where_it_was():
    model, copy = tiny(), tiny(seed=9)
    optimizer, other = mixed(model), mixed(copy)
    for t in range(3):
        model(*batch(seed=t))[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    saved = deepcopy(optimizer.state_dict())
    indices = [i for group in saved["param_groups"] for i in group["params"]]
    assert indices == list(range(len(list(model.parameters()))))
    assert sorted(saved["state"]) == indices
    copy.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    for t in range(3, 5):
        for m, o in ((model, optimizer), (copy, other)):
            m(*batch(seed=t))[1].backward()
            o.step()
            o.zero_grad()
    assert torch.equal(flat(model), flat(copy))
    with pytest.raises(ValueError, match="2 parameter groups, not 3"):
        other.load_state_dict(make_optimizer(copy, learning_rate=1e-3).state_dict())


def test_an_overflow_found_by_the_scaler_changes_nothing_in_either_optimizer():
    model = tiny()
    optimizer = mixed(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # the scale comes into being when it is first used
    for poisoned in ("wte.weight", "h.0.mlp.c_fc.weight", None, "h.1.ln_1.bias", None):
        for name, p in model.named_parameters():
            p.grad = torch.full_like(p, math.inf if poisoned and name.endswith(poisoned) else 1.0)
        before, state = flat(model), optimizer.state_dict()["state"]
        held = {i: {k: v.clone() for k, v in entry.items()} for i, entry in state.items()}
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        after = optimizer.state_dict()["state"]
        if poisoned:
            assert torch.equal(flat(model), before) and after.keys() == held.keys()
            assert all(torch.equal(v, after[i][k]) for i in held for k, v in held[i].items())
        else:
            assert not (flat(model) == before).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_a_batch_and_repeats_bit_for_bit(name):
    ends = []
    for _ in range(2):
        model, (x, y) = tiny(), batch()
        config = TrainConfig(optimizer=name, learning_rate=1e-2)
        optimizer = OPTIMIZERS[name](model, config, torch.float32)
        for _ in range(60):
            loss = model(x, y)[1]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss.item() < 1.5 < math.log(50) - 2
        ends.append(flat(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_to_the_peak_and_never_leaves_the_two_rates(name):
    config = TrainConfig(max_steps=100, warmup_steps=10, learning_rate=1.0, min_lr=0.1)
    rates = [SCHEDULES[name](step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == 1.0 and all(0.1 <= rate <= 1 for rate in rates[10:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_muons_products_never_run_in_float16(dtype):
    optimizer = OPTIMIZERS["muon"](tiny(), TrainConfig(optimizer="muon"), dtype)
    expected = torch.float32 if dtype == torch.float16 else dtype
    assert optimizer.parts[0].dtype == expected
