"""What nanogpt_lib.model promises: GPT-2's function, its size, its start, and clear refusals."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nanogpt_lib.context import Context
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.model import (
    GPT,
    GPTConfig,
    attention_by_hand,
    attention_fused,
    count_parameters,
    load_weights,
)
from nanogpt_lib.pretrained import GPT2_SIZES
from nanogpt_lib.sampling import next_token_logits
from nanogpt_lib.support.errors import UserError

SMALL = dict(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=32)
TOKENS = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))


def odd_model(**changes) -> GPT:
    """A GPT without zero biases, unit norms or small matrices, so that no mistake can hide."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.3 if p.dim() == 1 else 2 * p.size(1) ** -0.5
            p.normal_(float("ln_" in name and name.endswith("weight")), std)
    return model


@torch.no_grad()
def logits_of_transformers(model: GPT, folder) -> torch.Tensor:
    """The logits of transformers' module with the same weights, for TOKENS."""
    from transformers import AutoModelForCausalLM

    save_huggingface(folder, vars(model.config), model.state_dict())
    return AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits


# ---- equals a reference


@pytest.mark.parametrize("size", GPT2_SIZES)
def test_logits_equal_transformers_for_the_recipe_of_every_size(size, tmp_path):
    model = odd_model(**{**GPT2_SIZES[size], "n_layer": 1})
    with torch.no_grad():
        ours = model(TOKENS)[0]
    assert ours.std() > 1  # large enough for the tolerance to mean something
    theirs = logits_of_transformers(model, tmp_path)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_weights_of_transformers_give_its_logits_here(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_positions=16, vocab_size=61, n_layer=3, n_head=4, n_embd=32,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.3 * torch.randn_like(p))
        theirs.save_pretrained(tmp_path)
        ours = GPT.from_pretrained(str(tmp_path)).eval()
        torch.testing.assert_close(ours(TOKENS)[0], theirs(TOKENS).logits, atol=1e-4, rtol=0)
        loss = theirs(TOKENS, labels=TOKENS).loss  # shifts by one inside
        torch.testing.assert_close(ours(TOKENS[:, :-1], TOKENS[:, 1:])[1], loss)


@pytest.mark.parametrize("fault", ["exact GELU", "no √D", "c_proj on its side", "norm eps"])
def test_the_comparison_with_transformers_notices_a_plausible_mistake(fault, tmp_path):
    model = odd_model()
    expected = logits_of_transformers(model, tmp_path)
    bad = copy.deepcopy(model)
    with torch.no_grad():
        for block in bad.transformer.h:
            if fault == "exact GELU":
                block.mlp.gelu = nn.GELU()
            elif fault == "no √D":
                block.attn.attend = lambda q, *rest: attention_by_hand(4 * q, *rest)  # D = 16
            elif fault == "c_proj on its side":
                block.attn.c_proj.weight.copy_(block.attn.c_proj.weight.t().clone())
            else:
                block.ln_1.eps = 1e-6
        assert (model(TOKENS)[0] - expected).abs().max() < 1e-4
        assert (bad(TOKENS)[0] - expected).abs().max() > 1e-4


@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (1, 7), (2, 7), (3, 7)])
def test_both_attentions_equal_a_loop_over_pairs(T, S):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, T, 8), torch.randn(2, 3, S, 8), torch.randn(2, 3, S, 8)
    expected = torch.zeros_like(q)
    for t in range(T):
        seen = S - T + t + 1
        scores = torch.stack([(q[..., t, :] * k[..., s, :]).sum(-1) for s in range(seen)], -1)
        weights = (scores / math.sqrt(8)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        expected[..., t, :] = sum(weights[..., [s]] * v[..., s, :] for s in range(seen))
    torch.testing.assert_close(attention_by_hand(q, k, v), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(attention_fused(q, k, v), expected, atol=1e-6, rtol=0)


def test_sizes_are_those_of_the_published_models():
    published = dict(zip(GPT2_SIZES, (124439808, 354823168, 774030080, 1557611200), strict=True))
    for name, size in GPT2_SIZES.items():
        with torch.device("meta"):
            model = GPT(GPTConfig(**size))
        assert count_parameters(model) == published[name]
        if name == "gpt2":
            assert sum(t.numel() for t in model.state_dict().values()) == 163_037_184


# ---- what the model promises


@pytest.mark.parametrize("attention", ["manual", "sdpa"])
def test_a_later_token_changes_no_earlier_logit(attention):
    model = odd_model(attention=attention)
    changed = TOKENS.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 61
    with torch.no_grad():
        moved = (model(TOKENS)[0] - model(changed)[0]).abs().amax(dim=(0, 2))
    assert moved[:9].max() < 1e-6
    assert moved[9:].min() > 1e-3


@pytest.mark.parametrize("attention", ["manual", "sdpa"])
def test_a_context_keeps_two_texts_in_one_row_apart(attention):
    """Positions and a table of who sees whom, another for each row of the batch."""
    model, lengths = odd_model(attention=attention), (5, 9)
    position = torch.stack([torch.cat([torch.arange(n), torch.arange(14 - n)]) for n in lengths])
    text = torch.stack([torch.arange(14) >= n for n in lengths])  # (B, T): the first or the second
    visible = (text[:, :, None] == text[:, None, :]).tril()[:, None]  # (B, 1, T, T)
    with torch.no_grad():
        together, _ = model(TOKENS[:, :14], context=Context(position, visible))
        for row, n in enumerate(lengths):
            alone = [model(part[None])[0][0] for part in TOKENS[row, :14].split([n, 14 - n])]
            torch.testing.assert_close(together[row], torch.cat(alone), atol=1e-5, rtol=0)
        in_line, _ = model(TOKENS[:, :14])
    assert (together - in_line).abs().max() > 0.1


def test_padding_ids_get_no_probability_and_no_gradient():
    plain, padded = odd_model(), odd_model(vocab_multiple=64)
    load_weights(padded, plain.state_dict())
    with torch.no_grad():
        padded.lm_head.weight[61:] = 100.0  # would win every softmax
    assert padded.lm_head.weight.shape == (64, 32)
    logits, loss = padded(TOKENS, TOKENS)
    assert logits.shape == (2, 16, 61)
    assert next_token_logits(padded, padded.transformer(TOKENS)).shape == (2, 16, 61)
    torch.testing.assert_close(logits, plain(TOKENS)[0], atol=1e-5, rtol=0)
    loss.backward()
    assert padded.lm_head.weight.grad[61:].abs().max() == 0
    assert padded.lm_head.weight.grad[:61].abs().max() > 0


def test_one_matrix_embeds_and_predicts():
    model = odd_model()
    assert model.lm_head.weight is model.transformer.wte.weight
    back = copy.deepcopy(model)
    back.load_state_dict(model.state_dict())
    assert back.lm_head.weight is back.transformer.wte.weight
    assert count_parameters(model) == sum(t.numel() for t in model.state_dict().values()) - 61 * 32


@pytest.mark.processor
def test_scores_are_float32_under_autocast():
    model = odd_model()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.transformer(TOKENS)
        logits, loss = model(TOKENS, TOKENS)
        scores = next_token_logits(model, hidden)
    assert logits.dtype == torch.bfloat16 and loss.dtype == scores.dtype == torch.float32
    expected = F.linear(hidden.float(), model.lm_head.weight)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_weights_start_as_gpt2_says():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=256, vocab_size=512, n_layer=8, n_head=4, n_embd=128))
    expected = {"wpe": 0.01, "wte": 0.02, "c_attn": 0.02, "c_fc": 0.02, "c_proj": 0.02 / 4}
    for name, p in model.named_parameters():
        if p.dim() == 2:
            std = expected[name.split(".")[-2]]
            assert abs(p.std().item() / std - 1) < 0.05, name
        else:
            assert torch.all(p == float(name.endswith("weight"))), name


def test_dropout_acts_in_training_only():
    model = odd_model(dropout=0.5)
    plain = odd_model()
    assert torch.equal(model(TOKENS)[0], plain(TOKENS)[0])
    assert not torch.allclose(model.train()(TOKENS)[0], plain(TOKENS)[0])


def test_importing_starts_nothing(tmp_path):
    code = (
        "import sys, torch\n"
        "before = torch.get_rng_state()\n"
        "import nanogpt_lib.model\n"
        "assert not torch.distributed.is_initialized()\n"
        "assert not {'transformers', 'huggingface_hub', 'tiktoken'} & set(sys.modules)\n"
        "assert torch.equal(before, torch.get_rng_state())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# ---- repeats bit for bit, and learns


def train(steps: int) -> tuple[GPT, float]:
    """Overfit one batch from a fixed seed; return the model and its last loss."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SMALL, vocab_multiple=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(TOKENS[:, :-1], TOKENS[:, 1:])[1]
        loss.backward()
        optimizer.step()
    return model, loss.item()


def test_a_fresh_model_knows_nothing_and_learns_a_batch_by_heart():
    assert abs(train(1)[1] - math.log(61)) < 0.1
    assert train(60)[1] < 0.05


def test_the_same_seed_trains_the_same_model_bit_for_bit():
    (one, first), (two, second) = train(5), train(5)
    assert first == second
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


# ---- bad input


def test_heads_that_cannot_share_the_channels_build_no_model():
    """The program reports it in one line (test_train.py); a library user gets this."""
    with pytest.raises(AssertionError, match="n_embd must be divisible by n_head"):
        GPT(GPTConfig(**{**SMALL, "n_head": 3}))


def test_a_sequence_over_the_context_never_gets_positions_that_do_not_exist():
    with pytest.raises(AssertionError, match="more tokens than block_size"):
        odd_model()(torch.zeros(1, 17, dtype=torch.long))


def test_weights_that_do_not_fit_are_named():
    model = odd_model()
    state = model.state_dict()
    with pytest.raises(UserError, match=r"e\.g\. transformer\.h\.2\.attn\.c_attn\.bias"):
        load_weights(odd_model(n_layer=3), state)
    with pytest.raises(UserError, match=r"wpe\.weight has shape \(16, 32\), the model needs \(8,"):
        load_weights(odd_model(block_size=8), state)


def test_padding_may_be_cut_from_the_vocabulary_and_a_token_never():
    padded = odd_model(vocab_multiple=64)
    plain = odd_model(vocab_multiple=1)
    state = padded.state_dict()
    load_weights(plain, state, vocab_size=61)  # 64 rows, of which 61 are tokens
    torch.testing.assert_close(plain(TOKENS)[0], padded(TOKENS)[0], atol=1e-5, rtol=0)
    for size, tokens in ((61, None), (60, 61), (60, None), (62, 61), (70, None)):
        with pytest.raises(UserError, match=f"has {tokens or 64} tokens, the model has {size}"):
            load_weights(odd_model(vocab_size=size), state, tokens)


def test_context_dropout_and_padding_may_be_chosen_on_load_but_not_the_vocabulary(tmp_path):
    model = odd_model()
    save_huggingface(tmp_path, vars(model.config), model.state_dict())
    changes = dict(block_size=8, dropout=0.5, vocab_multiple=64, attention="manual")
    loaded = GPT.from_pretrained(str(tmp_path), **changes)
    assert len(loaded.transformer.wte.weight) == 64 and len(loaded.transformer.wpe.weight) == 8
    some, other = loaded(TOKENS[:, :8])[0], loaded(TOKENS[:, :8])[0]
    assert not torch.equal(some, other)  # dropout acts
    expected = model(TOKENS[:, :8])[0]
    torch.testing.assert_close(loaded.eval()(TOKENS[:, :8])[0], expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="the checkpoint has 61 tokens, the model has 60"):
        GPT.from_pretrained(str(tmp_path), vocab_size=60)
