"""Your GPT: shapes, causality, parameters, initialisation, loss, and the same logits as GPT-2's."""

import math

import pytest
import torch
from mine_parts import SHAPE, build, logits_of, loss_of, mine, tokens  # noqa: F401
from torch.nn import functional as F


def test_it_gives_a_score_for_each_token_at_each_position(build):
    shape = tuple(logits_of(build(), tokens(2, 16)).shape)
    assert shape[:2] == (2, 16), f"logits should be (B, T, V) = (2, 16, 61); yours are {shape}"
    assert shape[2] >= 61, f"there should be a score for each of 61 tokens; yours has {shape[2]}"


def test_it_reads_texts_shorter_than_its_context(build):
    model = build()
    for length in (1, 5):
        try:
            shape = logits_of(model, tokens(2, length)).shape
        except Exception as error:
            pytest.fail(f"{length} tokens, of 16 that fit: {error}. cut positions and mask to T")
        assert shape[1] == length, (
            f"{length} tokens in, scores for {shape[1]} out: cut positions to T"
        )


def test_a_later_token_changes_no_earlier_score(build):
    model, idx = build(), tokens(1, 16)
    changed = idx.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 61
    with torch.no_grad():
        moved = (logits_of(model, idx) - logits_of(model, changed)).abs().amax(dim=-1)[0]
    early = moved[:10].max().item()
    assert early < 1e-5, f"token 10 changes scores before it, by {early:.1e}: mask before softmax"
    assert moved[10:].max() > 0, "token 10 changes nothing at all: does attention add anything?"
    assert moved[11:].max() > 1e-7, "a token is not seen by later ones: is the mask too strict?"


def test_it_knows_where_a_token_stands(build):
    with torch.no_grad():
        logits = logits_of(build(), torch.full((1, 8), 5))[0]
    same = torch.allclose(logits[0], logits[7], atol=1e-5)
    assert not same, "one token repeated, the same scores everywhere: are positions (wpe) added?"


def test_each_row_of_a_batch_is_computed_by_itself(build):
    model, idx = build(), tokens(3, 16)
    with torch.no_grad():
        gap = (logits_of(model, idx)[1:2] - logits_of(model, idx[1:2])).abs().max().item()
    assert gap < 1e-4, f"a row's scores depend on the other rows, by {gap:.1e}: check view, softmax"


def test_the_number_of_parameters_is_gpt2s(build):
    V, T, C, L = (SHAPE[name] for name in ("vocab_size", "block_size", "n_embd", "n_layer"))
    count = sum(p.numel() for p in build().parameters())
    expected = V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
    if count == expected + V * C:
        pytest.fail(f"{V * C} too many: lm_head and wte should be one tensor (chapter 04)")
    less = L * (4 * C + 5 * C + 2 * C) + C
    if count in (expected - less, expected - L * 9 * C):
        return  # without biases: fine, too
    assert count == expected, f"{count:,} parameters, GPT-2 of this shape has {expected:,}"


def test_the_first_loss_is_a_guess_among_all_tokens(build):
    model = build()
    loss = F.cross_entropy(
        logits_of(model, tokens(8, 16)).flatten(0, 1), tokens(8, 16, seed=1).flatten()
    )
    guess = math.log(61)
    assert abs(loss.item() - guess) < 0.3, (
        f"first loss {loss.item():.2f}, a fair guess has ln 61 = {guess:.2f}: "
        "are weights initialised with std 0.02?"
    )


def test_the_loss_is_the_mean_cross_entropy(build):
    model, idx, targets = build(), tokens(2, 16), tokens(2, 16, seed=1)
    loss = loss_of(model, idx, targets)
    expected = F.cross_entropy(logits_of(model, idx).flatten(0, 1), targets.flatten())
    ratio = loss.item() / expected.item()
    assert loss.dim() == 0, f"the loss should be one number, yours has shape {tuple(loss.shape)}"
    assert abs(ratio - 1) < 1e-4, f"your loss is {ratio:.3f} times the mean over all positions"


def test_every_parameter_gets_a_gradient(build):
    model = build().train()
    logits = logits_of(model, tokens(2, 16))
    F.cross_entropy(logits.flatten(0, 1), tokens(2, 16, seed=1).flatten()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert not idle, f"no gradient reaches {', '.join(idle[:3])}: it is made but never used"


def test_it_learns_one_batch_by_heart(build):
    model, (idx, targets) = build().train(), (tokens(2, 16), tokens(2, 16, seed=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits_of(model, idx).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1, f"after 120 steps on one batch the loss is still {loss.item():.2f}"


def test_with_gpt2s_names_it_computes_gpt2s_scores(build):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = build()
    torch.manual_seed(1)
    sizes = {name: SHAPE[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    theirs = GPT2LMHeadModel(
        GPT2Config(n_positions=16, bos_token_id=0, eos_token_id=0, **sizes)
    ).eval()
    own = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        if name not in own:
            pytest.skip(f"your model has no {name}: the comparison needs GPT-2's names")
        sideways = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        tensor = 8 * tensor if tensor.dim() == 2 else tensor  # large values hide no mistake
        own[name] = tensor.t() if sideways else tensor
        theirs.state_dict()[name].copy_(tensor)
    model.load_state_dict(own)
    with torch.no_grad():
        gap = (logits_of(model, tokens(2, 16))[..., :61] - theirs(tokens(2, 16)).logits).abs().max()
    assert gap < 1e-3, (
        f"with the same weights, scores differ by {gap:.1e}. Usual reasons: exact GELU instead of "
        "tanh, a norm after the addition, no final norm, scores not divided by √D"
    )
