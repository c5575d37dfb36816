"""What sampling promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lib.context import Context, new_cache
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.sampling import (
    context_start,
    draw,
    generate,
    keep_top_k,
    keep_top_p,
    next_token_logits,
    next_token_probabilities,
    stream,
)
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.tokenizer import CharTokenizer

BLOCK = 16
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def make_model(seed: int = 0, **changes) -> GPT:
    """A small model with weights large enough that its choices differ."""
    shape = dict(block_size=BLOCK, vocab_size=37, n_layer=2, n_head=2, n_embd=32)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**shape, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return model.eval()


def prompts(B: int, T: int, vocab_size: int = 37) -> torch.Tensor:
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(T))


def text(model, idx, n, seed=7, **how):
    return generate(model, idx, n, generator=torch.Generator().manual_seed(seed), **how)


# --- the probabilities


def test_probabilities_equal_the_definition():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    for temperature in (0.5, 1.0, 3.0):
        weights = [math.exp(z / temperature) for z in (0.0, 1.0, 2.0)]
        expected = torch.tensor([weights]) / sum(weights)
        assert torch.allclose(next_token_probabilities(logits, temperature), expected, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 50, 1000])
def test_top_k_equals_transformers(k):
    from transformers.generation.logits_process import TopKLogitsWarper

    logits = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    expected = TopKLogitsWarper(min(k, 200))(None, logits).softmax(-1)
    assert torch.allclose(next_token_probabilities(logits, top_k=k), expected, atol=1e-7)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_equals_transformers(p):
    from transformers.generation.logits_process import TopPLogitsWarper

    logits = 3 * torch.randn(8, 200, generator=torch.Generator().manual_seed(1))
    expected = TopPLogitsWarper(p)(None, logits).softmax(-1)
    assert torch.allclose(next_token_probabilities(logits, top_p=p), expected, atol=1e-6)


def test_top_p_of_one_and_top_k_of_all_change_nothing():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    plain = next_token_probabilities(logits)
    assert torch.equal(next_token_probabilities(logits, top_p=1.0), plain)
    assert torch.equal(next_token_probabilities(logits, top_k=50), plain)


@FEW
@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30),
    temperature=st.one_of(st.just(0.0), st.floats(1e-3, 100)),
    top_k=st.one_of(st.none(), st.integers(1, 40)),
    top_p=st.one_of(st.none(), st.floats(1e-6, 1)),
)
def test_probabilities_sum_to_one_and_no_cut_removes_the_likeliest(
    logits, temperature, top_k, top_p
):
    row = torch.tensor([logits])
    probs = next_token_probabilities(row, temperature, top_k, top_p)[0]
    assert probs.dtype == torch.float32 and (probs >= 0).all()
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    assert probs[row[0].argmax()] == probs.max()
    if top_k is not None:  # ties with the k-th stay
        kth = row[0].sort(descending=True).values[min(top_k, len(logits)) - 1]
        assert ((probs > 0) <= (row[0] >= kth)).all()
    if top_p is not None and temperature > 0:
        full = next_token_probabilities(row, temperature, top_k)[0]
        kept = probs > 0
        # enough of the mass, and not without the least likely of those that stay
        assert full[kept].sum() >= top_p - 1e-5
        assert full[kept].sum() - full[kept].min() < top_p + 1e-5
        assert full[~kept].max() <= full[kept].min() if (~kept).any() else True


def test_the_likeliest_token_always_stays():
    logits = torch.tensor([[9.0, 0.0, 0.0]])
    for how in ({"top_p": 1e-6}, {"top_k": 1}, {"temperature": 0.0}, {"temperature": 1e-3}):
        assert next_token_probabilities(logits, **how).tolist() == [[1.0, 0.0, 0.0]]
    assert keep_top_p(torch.tensor([[0.5, 0.3, 0.2]]), 0.6)[0, 2] == 0
    assert keep_top_k(torch.tensor([[1.0, 2.0, 2.0]]), 1)[0].isfinite().tolist() == [0, 1, 1]


@pytest.mark.processor
def test_probabilities_are_float32_even_for_bfloat16_logits():
    logits = torch.tensor([[3.0, 3.0078125, 2.0]])  # bf16 cannot tell the first two apart
    assert next_token_probabilities(logits.bfloat16()).dtype == torch.float32
    model = make_model()
    hidden = model.transformer(prompts(1, 4))[:, -1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        careful, careless = next_token_logits(model, hidden), model.lm_head(hidden)
    assert careful.dtype == torch.float32 and careless.dtype == torch.bfloat16
    assert len(careful.unique()) == 37  # as many values as tokens


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": -1}, "temperature -1 is negative"),
        ({"top_k": 0}, "top_k 0 keeps no token"),
        ({"top_p": 0}, "top_p 0 is out of range"),
        ({"top_p": 1.5}, "top_p 1.5 is out of range"),
    ],
)
def test_a_setting_that_cannot_work_is_named(how, message):
    with pytest.raises(UserError, match=message):
        generate(make_model(), prompts(1, 3), 2, **how)


# --- the loop


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    model, idx = make_model(), prompts(2, 5)
    first = text(model, idx, 30)
    assert torch.equal(first, text(model, idx, 30))
    assert not torch.equal(first, text(model, idx, 30, seed=8))
    assert torch.equal(first[:, :5], idx) and first.shape == (2, 35)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_cached_and_uncached_give_the_same_tokens_for_every_prompt_length(attention):
    model = make_model(attention=attention)
    for length in range(1, BLOCK + 1):
        for how in ({"temperature": 0}, {"top_k": 10}, {"top_p": 0.9}):
            idx = prompts(3, length)
            cached = text(model, idx, BLOCK + 8, **how)  # past the end of the context
            assert torch.equal(cached, text(model, idx, BLOCK + 8, use_cache=False, **how))


@FEW
@given(
    block_size=st.integers(1, 9),
    length=st.integers(1, 30),
    new=st.integers(1, 30),
    rows=st.integers(1, 3),
    attention=st.sampled_from(["sdpa", "manual"]),
    greedy=st.booleans(),
)
def test_cached_equals_uncached_for_any_lengths(block_size, length, new, rows, attention, greedy):
    model = make_model(block_size=block_size, attention=attention)
    how = {"temperature": 0} if greedy else {"top_k": 10}
    cached = text(model, prompts(rows, length), new, **how)
    assert cached.shape == (rows, length + new)
    uncached = text(model, prompts(rows, length), new, use_cache=False, **how)
    assert torch.equal(cached, uncached)


def test_every_token_comes_from_what_the_model_sees_and_nothing_else():
    model, idx = make_model(), prompts(1, 5)
    row = generate(model, idx, 40, temperature=0)
    for t in range(5, 45):
        seen = row[:, context_start(t, BLOCK) : t]
        logits = next_token_logits(model, model.transformer(seen)[:, -1])
        assert logits.argmax() == row[0, t]


def test_the_cache_computes_every_position_once():
    model, fed = make_model(), []
    model.transformer.ln_f.register_forward_hook(lambda m, x, y: fed.append(y.size(1)))
    generate(model, prompts(1, 5), BLOCK - 4)
    assert fed == [5] + [1] * (BLOCK - 5)
    fed.clear()
    generate(model, prompts(1, 5), BLOCK - 4, use_cache=False)
    assert fed == list(range(5, BLOCK + 1))


def test_a_full_context_is_rebuilt_once_per_half_context():
    model, fed = make_model(), []
    model.transformer.ln_f.register_forward_hook(lambda m, x, y: fed.append(y.size(1)))
    generate(model, prompts(1, BLOCK), 4 * BLOCK + 1)
    assert fed[0] == BLOCK
    assert sum(n > 1 for n in fed[1:]) == 8 and sum(fed[1:]) == 2 * 4 * BLOCK


@pytest.mark.parametrize("block_size", [1, 2, 7, 16])
def test_the_visible_context_is_never_empty_nor_too_long(block_size):
    starts = [context_start(length, block_size) for length in range(1, 100)]
    for length, start in enumerate(starts, 1):
        assert 0 < length - start <= block_size
        assert start == 0 or length - start >= block_size // 2
    assert starts == sorted(starts)
    assert torch.equal(  # and the loop lives with it
        text(make_model(block_size=block_size), prompts(1, 1), 20),
        text(make_model(block_size=block_size), prompts(1, 1), 20, use_cache=False),
    )


def test_feeding_the_cache_in_chunks_equals_one_pass():
    model, idx = make_model(), prompts(2, 12)
    cache, whole = new_cache(2, BLOCK), model.transformer(idx)
    parts = idx.split([1, 7, 4], dim=1)
    chunks = [model.transformer(part, Context.after(cache, part)) for part in parts]
    assert torch.allclose(torch.cat(chunks, dim=1), whole, atol=1e-5)


def test_a_cached_token_at_the_wrong_position_would_be_noticed():
    model, idx = make_model(), prompts(1, 6)
    cache = new_cache(2, BLOCK)
    model.transformer(idx[:, :5], Context.after(cache, idx[:, :5]))
    wrong = model.transformer(idx[:, 5:], Context(torch.tensor([0]), cache=cache))  # should be 5
    right = model.transformer(idx)[:, 5:]
    assert (wrong - right).abs().max() > 1e-2


def test_greedy_text_equals_that_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    from nanogpt_lib.huggingface import save_huggingface

    model = make_model(vocab_size=50257, block_size=32)
    save_huggingface(tmp_path, vars(model.config), model.state_dict())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    idx = prompts(2, 6, 50257)
    mask = torch.ones_like(idx)
    expected = theirs.generate(
        idx, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=50256
    )
    assert torch.equal(generate(model, idx, 20, temperature=0), expected)


def test_a_padding_id_is_never_returned():
    characters = "".join(chr(97 + i) for i in range(26))
    model = make_model(vocab_size=26, vocab_multiple=64)
    hidden = model.transformer(prompts(1, 4, 26))[:, -1]
    uncut = model.lm_head(hidden).softmax(-1)
    assert uncut[:, 26:].sum() > 0.05  # the mass that a careless draw would give them
    rows = text(model, prompts(50, 1, 26), 60, temperature=2.0)
    assert rows.max() < 26
    CharTokenizer(characters).decode(rows[0].tolist())


def test_a_row_that_drew_the_eot_token_stays_there_and_all_rows_done_stops():
    model = make_model()
    plain = text(model, prompts(4, 3), 40)
    eot = int(plain[0, 10])
    ended = text(model, prompts(4, 3), 40, eot=eot)
    first = (plain[0, 3:] == eot).nonzero()[0, 0] + 3
    assert torch.equal(ended[0, : first + 1], plain[0, : first + 1])
    assert (ended[0, first:] == eot).all()
    one = text(model, prompts(1, 3), 400, eot=eot)
    assert one.size(1) < 403 and one[0, -1] == eot


def test_an_eot_token_in_the_prompt_does_not_end_the_text():
    start = torch.tensor([[5]])
    with_eot, plain = text(make_model(), start, 8, eot=5), text(make_model(), start, 8)
    assert plain[0, 1] != 5  # otherwise the next line would prove nothing
    assert torch.equal(with_eot[0, :2], plain[0, :2]) and with_eot.size(1) > 2


def test_tokens_are_handed_over_as_they_are_drawn():
    model, idx = make_model(), prompts(2, 5)
    growing = stream(model, idx, 6, generator=torch.Generator().manual_seed(7))
    first = next(growing)
    assert first.shape == (2, 1)
    assert torch.equal(torch.cat([first, *growing], dim=1), text(model, idx, 6)[:, 5:])


def test_the_model_gets_its_mode_back_and_dropout_is_off_meanwhile():
    model, idx = make_model(dropout=0.5), prompts(2, 5)
    calm = text(model, idx, 10)
    model.train()
    assert torch.equal(text(model, idx, 10), calm) and model.training
    with pytest.raises(UserError, match="temperature"):
        generate(model, idx, 3, temperature=-1)
    assert model.training


def test_generated_tokens_can_be_trained_on():
    model = make_model()
    rows = text(model, prompts(2, 3), 8)
    _, loss = model(rows[:, :-1], rows[:, 1:])
    loss.backward()
    assert model.transformer.wpe.weight.grad.abs().sum() > 0


def test_of_a_prompt_over_the_context_the_model_sees_the_end():
    model, idx = make_model(), prompts(2, 3 * BLOCK + 5)
    long = text(model, idx, 6)
    start = context_start(idx.size(1), BLOCK)
    assert BLOCK // 2 <= idx.size(1) - start <= BLOCK
    assert torch.equal(long[:, start:], text(model, idx[:, start:], 6))
    assert torch.equal(long, text(model, idx, 6, use_cache=False))


def test_sampling_works_while_the_training_module_is_compiled():
    from torch._dynamo.utils import counters

    model, idx = make_model().train(), prompts(2, 8)
    before = text(model, idx, 12)
    compiled = torch.compile(model, backend="aot_eager")
    _, loss = compiled(idx, idx)
    loss.backward()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    assert torch.equal(text(model, idx, 12), before)
    assert torch.equal(text(compiled, idx, 12), before)  # through the wrapper too
    assert counters["stats"]["unique_graphs"] == graphs  # and nothing was compiled for it
    assert not [name for name in model.state_dict() if "_orig_mod" in name]


def test_a_trained_model_writes_what_it_was_taught():
    text = "the quick brown fox jumps over the lazy dog. " * 2
    tokenizer = CharTokenizer(text)
    torch.manual_seed(0)
    model = GPT(make_model(vocab_size=tokenizer.vocab_size, block_size=32).config)
    ids = torch.tensor(tokenizer.encode(text))
    rows = ids.unfold(0, 33, 1)  # every window
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        _, loss = model(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start = torch.tensor([tokenizer.encode("the q")])
    out = tokenizer.decode(generate(model, start, 60, temperature=0)[0].tolist())
    assert text.startswith(out)


# --- one draw


def test_draws_follow_the_probabilities():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])
    n = 20_000
    tokens = draw(probs.expand(n, -1), torch.Generator().manual_seed(0))
    seen = tokens.flatten().bincount(minlength=6) / n
    assert tokens.shape == (n, 1) and seen[0] == seen[2] == seen[5] == 0
    assert ((seen - probs[0]).abs() <= 4 * (probs[0] * (1 - probs[0]) / n).sqrt()).all()


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_no_draw_leaves_the_tokens_that_have_mass(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.full(shape, u))
    uneven = (4 * torch.randn(50, 999, generator=torch.Generator().manual_seed(1))).softmax(-1)
    uneven[:, :10] = uneven[:, -10:] = 0  # neither the first tokens nor the last, nor a sum of 1
    chosen = draw(uneven)
    assert (uneven.gather(1, chosen) > 0).all()


def test_a_model_that_diverged_gets_one_clear_line():
    model = make_model()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate(model, prompts(1, 3), 2)


# --- packed weights


@pytest.mark.processor
def test_packed_weights_write_the_same_text_in_float32():
    model, idx = make_model(), prompts(2, 5)
    with fast_inference(model, torch.device("cpu"), torch.float32, rows=1):
        packed = text(model, idx, 30, top_k=9)
    assert torch.equal(packed, text(model, idx, 30, top_k=9))


@pytest.mark.processor
@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_moves_the_logits_a_little_and_the_head_stays_float32(bias):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, bias=bias)).eval()
    idx = prompts(2, 40, 50257)
    with torch.no_grad():
        exact = next_token_logits(model, model.transformer(idx))
        with fast_inference(model, torch.device("cpu"), torch.bfloat16, rows=1):
            logits = next_token_logits(model, model.transformer(idx))
    assert 0 < (logits - exact).abs().max() < 0.03
    assert (logits.bfloat16().float() == logits).float().mean() < 0.1  # not on the grid of bf16
