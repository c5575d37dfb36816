"""Checks of chapter 02's exercises: pairs and matrices, a layer norm, an untied head, groups."""

import torch
from torch import nn
from torch.nn import functional as F

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint
from nanogpt_lib.model import GPT, GPTConfig, attention_by_hand, count_parameters


@exercise(
    "4,608 is far above GPT-2's 1,024 tokens, where pairs are less than a fifth of a block's "
    "work. With a context of 100,000 they would be nearly all of it."
)
def check_02_1(answer) -> None:
    """The context at which 4T²C equals 2T · 12C²."""
    n = as_number(answer)
    hint(n == 3 * 768, "each of the 12 C² weights costs two operations per token.")
    hint(n == 2 * 768, "that counts attention's matrices alone; the MLP has two more.")
    hint(n == 768, "that counts one operation for each weight of attention's matrices.")
    hint(n == 6, "in units of C, yes. GPT-2 124M has C = 768.")
    hint(n == 12 * 768, "attention makes two products over pairs: the scores, and the mean.")
    hint(n != 6 * 768, "what do the four matrices cost for T tokens? Set that equal to 4T²C.")


def as_tensor(answer, shape: tuple) -> torch.Tensor:
    """An answer that must be a tensor of this shape."""
    if not torch.is_tensor(answer):
        raise Wrong(f"return a tensor, not {type(answer).__name__}")
    hint(
        tuple(answer.shape) != shape, f"the shape must be {shape}; yours is {tuple(answer.shape)}."
    )
    return answer.detach().float()


@exercise(
    "PyTorch's own does this in one pass over the memory. Newer models leave out mean and bias "
    "(RMSNorm): only the size matters, it seems."
)
def check_02_2(answer) -> None:
    """Must equal PyTorch's own, also where the variance is tiny, and in any shape."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, generator=g) + 1
    w, b = torch.rand(2, 8, generator=g) + 0.5
    centred, variance = x - x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    expected = F.layer_norm(x, (8,), w, b)

    def norm(dims, correction=0):
        var = x.var(dims, correction=correction, keepdim=True)
        return (x - x.mean(dims, keepdim=True)) / (var + 1e-5).sqrt()

    mistakes = {
        "nothing happened to x yet.": x,
        "scale by weight and shift by bias at the end.": norm(-1),
        "scale by the weight at the end.": norm(-1) + b,
        "shift by the bias at the end.": norm(-1) * w,
        "divide by the square root of the variance.": centred / variance * w + b,
        "divide the variance by C, not by C - 1 (correction=0).": norm(-1, 1) * w + b,
        "subtract the mean, too.": x / (variance + 1e-5).sqrt() * w + b,
        "take the mean over each token's channels, not over all numbers.": norm((0, 1, 2)) * w + b,
        "take the mean over the channels, not over the tokens.": norm(1) * w + b,
    }
    try:
        got = as_tensor(call(answer, x.clone(), w.clone(), b.clone()), (2, 3, 8))
    except RuntimeError as error:
        raise Wrong(f"{error}. Do mean and var keep the last dimension (keepdim=True)?") from error
    for text, wrong in mistakes.items():
        hint(torch.allclose(got, wrong, atol=1e-3), text)
    formula = "y = (x - mean) / sqrt(variance + eps) * weight + bias, token by token."
    hint(not torch.allclose(got, expected, atol=1e-4), formula)
    small = x / 1000
    got = as_tensor(answer(small.clone(), w, b), (2, 3, 8))
    hint(
        not torch.allclose(got, F.layer_norm(small, (8,), w, b), atol=1e-3),
        "right, except for tiny numbers: eps is added to the variance, inside the root.",
    )
    got = as_tensor(answer(small.clone(), w, b, 1e-2), (2, 3, 8))
    hint(
        not torch.allclose(got, F.layer_norm(small, (8,), w, b, 1e-2), atol=1e-3),
        "use the eps that is passed; it is not always 1e-5.",
    )
    row = torch.randn(5, generator=g)
    shape = "it must work for any number of dimensions, (C,) included: use -1, and x.size(-1)."
    try:
        got = as_tensor(answer(row.clone(), torch.ones(5), torch.zeros(5)), (5,))
    except (IndexError, ValueError, RuntimeError) as error:
        raise Wrong(shape) from error
    hint(not torch.allclose(got, F.layer_norm(row, (5,)), atol=1e-4), shape)


@exercise(
    "GPT-2 124M grows to 163,037,184 parameters by this. Some recent models do it on purpose: "
    "reading and predicting a token are not quite the same job."
)
def check_02_3(answer) -> None:
    """More parameters, the same logits, no shared memory, and both trainable."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)).eval()
    tied, idx = count_parameters(model), torch.arange(8)[None]
    with torch.no_grad():
        before = model(idx)[0]
    result = call(answer, model)
    hint(result is not model, "change the model in place, and return it.")
    head, wte = model.lm_head.weight, model.transformer.wte.weight
    hint(model.lm_head.bias is not None, "the head has no bias, before and after.")
    hint(not isinstance(head, nn.Parameter), "lm_head.weight must be an nn.Parameter.")
    hint(head is wte, "one Parameter under two names; the head needs an nn.Parameter of its own.")
    hint(head.data_ptr() == wte.data_ptr(), "two Parameters, but one memory; clone the tensor.")
    hint(not (head.requires_grad and wte.requires_grad), "both must be trained: requires_grad.")
    with torch.no_grad():
        after = model(idx)[0]
    same = after.shape == before.shape and torch.allclose(after, before)
    hint(not same, "the logits changed; start from a copy of wte, not from new numbers.")
    grown = count_parameters(model) - tied
    hint(grown != 11 * 8, f"the model should grow by {11 * 8} parameters; it grew by {grown}.")
    model(idx)[0].sum().backward()
    hint(head.grad is None, "the head's weight is not in the computation any more.")


@exercise(
    "What must be remembered of each token while generating (chapter 03) shrinks by H/G: Llama 2 "
    "70B has 64 query heads and 8 groups."
)
def check_02_4(answer) -> None:
    """Compare with a loop over heads, for several numbers of heads and groups."""
    g = torch.Generator().manual_seed(0)
    for B, H, G in ((2, 6, 2), (1, 4, 4), (3, 8, 1), (2, 4, 2)):
        q = torch.randn(B, H, 5, 4, generator=g)
        k, v = torch.randn(2, B, G, 5, 4, generator=g)
        got = as_tensor(call(answer, q.clone(), k.clone(), v.clone()), (B, H, 5, 4))

        def loop(group, q=q, k=k, v=v, heads=H):
            each = [
                attention_by_hand(q[:, [h]], k[:, [group(h)]], v[:, [group(h)]])
                for h in range(heads)
            ]
            return torch.cat(each, dim=1)

        if torch.allclose(got, loop(lambda h, n=H // G: h // n), atol=1e-5):
            continue
        hint(
            torch.allclose(got, loop(lambda h, n=G: h % n), atol=1e-5),
            "neighbouring heads share a group; you want repeat_interleave, not repeat.",
        )
        hint(
            torch.allclose(got, loop(lambda h: 0), atol=1e-5),
            "all heads use the first group; query head h uses group h · G // H.",
        )
        hint(torch.allclose(got, q), "that is q itself.")
        each = (z.repeat_interleave(H // G, dim=1) for z in (k, v))
        hint(
            torch.allclose(got, F.scaled_dot_product_attention(q, *each), atol=1e-5),
            "the heads are right, but a token sees later ones: attend causally.",
        )
        hint((B, H, G) != (2, 6, 2), f"right for 6 heads and 2 groups, wrong for {H} and {G}.")
        raise Wrong(
            "give k and v as many heads as q along dimension 1, both in the same way, then attend."
        )
