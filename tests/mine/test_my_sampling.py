"""Your sampling loop: the prompt stays, seeds repeat, top-k and greedy keep their promises."""

import inspect

import pytest
import torch
from mine_parts import build, logits_of, mine, part, tokens  # noqa: F401


@pytest.fixture
def generate(mine):
    """The learner's generate, called with only those options that it takes."""
    function = part(mine, "generate")
    takes = inspect.signature(function).parameters
    loose = any(p.kind is p.VAR_KEYWORD for p in takes.values())

    def call(model, idx, n, **options):
        for name in options:
            if name not in takes and not loose:
                pytest.skip(f"generate takes no {name} yet")
        with torch.no_grad():
            return function(model, idx, n, **options)

    return call


def test_the_prompt_stays_and_new_tokens_follow(build, generate):
    idx = tokens(2, 5)
    out = generate(build(), idx, 7)
    assert tuple(out.shape) == (2, 12), f"5 + 7 tokens in 2 rows, yours is {tuple(out.shape)}"
    assert torch.equal(out[:, :5], idx), "the prompt came back changed"
    assert out.min() >= 0 and out.max() < 61, "a token outside the vocabulary was drawn"


def test_the_same_seed_gives_the_same_text_and_another_one_another(build, generate):
    model, texts = build(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generate(model, tokens(1, 3), 12))
    assert torch.equal(texts[0], texts[1]), "the same seed gave two texts"
    assert not torch.equal(texts[0], texts[2]), "two seeds, one text: are tokens drawn at all?"


def test_it_goes_on_when_the_context_is_full(build, generate):
    try:
        out = generate(build(), tokens(1, 10), 20)
    except Exception as error:
        pytest.fail(f"30 tokens with a context of 16: {error}. Feed only the last block_size")
    assert out.shape[1] == 30, f"asked for 20 more tokens than 10, got {out.shape[1] - 10}"


def test_top_k_1_always_takes_the_likeliest(build, generate):
    model, idx = build(), tokens(1, 4)
    out, expected = generate(model, idx, 8, top_k=1), idx
    with torch.no_grad():
        for _ in range(8):
            best = logits_of(model, expected)[:, -1, :61].argmax(dim=-1, keepdim=True)
            expected = torch.cat([expected, best], dim=1)
    assert torch.equal(out, expected), "with top_k=1 each token should be the argmax"


def test_top_k_draws_only_the_k_likeliest(build, generate):
    model, idx = build(), tokens(64, 3)
    with torch.no_grad():
        best = logits_of(model, idx)[:, -1, :61].topk(5).indices
    drawn = generate(model, idx, 1, top_k=5)[:, -1:]
    outside = int((~(best == drawn).any(dim=1)).sum())
    assert not outside, f"{outside} of 64 tokens were not among the 5 likeliest"
    assert len(set(drawn.flatten().tolist())) > 1, "always the same token: draw, don't take the max"
