"""Checks of chapter 13's exercises: a distance, a turned part, a cap's slope, grouped queries."""

import torch
from torch.nn import functional as F

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint
from nanogpt_lib.modern import BASE, rotate


@exercise(
    "20 − 7 = 13. So a cache never has to be turned again: whatever is generated, the distance of "
    "two tokens stays what it is."
)
def check_13_1(answer) -> None:
    """The same distance, 7 before the query."""
    position = as_number(answer)
    hint(position == 27, "that is the mirror image: the key stood *before* its query.")
    hint(position == 7, "7 is the distance; at which position is the key then?")
    hint(position in (893, 900), "not the position counts, but the distance between the two.")
    hint(position == 20, "there they stand at the same place; before, they did not.")
    hint(position != 13, "how far before the query was the key? It must be as far again.")


def turned_part(x, position, count):
    """The right answer of exercise 2."""
    return torch.cat([rotate(x[..., :count], position), x[..., count:]], dim=-1)


@exercise(
    "Pythia turns a quarter of the channels. A head whose best channels never turn can look for a "
    "content wherever it is."
)
def check_13_2(answer) -> None:
    """Several sizes, the whole head included; x must stay as it is."""
    g = torch.Generator().manual_seed(0)
    x, position = torch.randn(2, 3, 7, 16, generator=g), torch.arange(7) + 5
    for count in (4, 8, 16):
        given = x.clone()
        got = call(answer, x, position, count)
        if not torch.is_tensor(got):
            raise Wrong(f"return a tensor, not {type(got).__name__}")
        hint(not torch.equal(x, given), "it changed x in place; return a new tensor.")
        hint(got.shape != x.shape, f"the shape must stay {tuple(x.shape)}; yours: {(*got.shape,)}.")
        want = turned_part(x, position, count)
        rest = torch.equal(got[..., count:], x[..., count:])
        hint(
            not rest and torch.allclose(got, rotate(x, position), atol=1e-5),
            "that turns all channels.",
        )
        pieces = torch.cat([x[..., :-count], rotate(x[..., -count:], position)], dim=-1)
        hint(
            count < 16 and torch.allclose(got, pieces, atol=1e-5),
            "those are the last channels; turn the first.",
        )
        half = count // 2
        speeds = BASE ** (-torch.arange(half) / (x.size(-1) // 2))  # those of the whole head
        turn = torch.polar(torch.ones(len(position), half), position[:, None] * speeds)
        z = torch.complex(x[..., :half], x[..., half:count]) * turn
        whole = torch.cat([z.real, z.imag, x[..., count:]], dim=-1)
        hint(
            count < 16 and torch.allclose(got, whole, atol=1e-5),
            f"the speeds are those of a head with {count} channels, not of the whole one.",
        )
        cut = torch.cat([rotate(x, position)[..., :count], x[..., count:]], dim=-1)
        hint(
            count < 16 and torch.allclose(got, cut, atol=1e-5),
            "cut first, then turn: in the whole head channel 0 has another partner.",
        )
        hint(count < 16 and torch.equal(got, x), "nothing has turned.")
        hint(not rest, f"with count = {count}, the channels from {count} on must stay as they are.")
        hint(
            not torch.allclose(got, want, atol=1e-5),
            f"with count = {count}, the first {count} channels are not what rotate makes of them.",
        )


@exercise(
    "1 at 0, 0.42 at the cap, 0.001 at four times the cap: a token that is sure enough gets no "
    "more reward for being surer, and its weights stop growing."
)
def check_13_3(answer) -> None:
    """Against autograd, for two caps."""
    for cap in (15.0, 4.0):
        z = torch.linspace(-60, 60, 25, requires_grad=True)
        (want,) = torch.autograd.grad((cap * torch.tanh(z / cap)).sum(), z)
        z = z.detach()
        got = call(answer, z.clone(), cap)
        if not torch.is_tensor(got):
            raise Wrong(f"return a tensor, not {type(got).__name__}")
        hint(got.shape != z.shape, f"one slope for each logit: {tuple(z.shape)} of them.")
        got = got.detach()
        tanh = torch.tanh(z / cap)

        def is_like(other, got=got) -> bool:
            return torch.allclose(got, other, atol=1e-4)

        hint(is_like(cap * tanh), "that is the capped logit, not its slope.")
        hint(is_like(want / cap), "the inner derivative 1/cap and the factor cap cancel.")
        hint(is_like(want * cap), "do not forget the inner derivative, 1/cap.")
        hint(is_like(1 - tanh), "the derivative of tanh u is 1 - tanh² u: square it.")
        hint(
            is_like(1 - torch.tanh(z) ** 2) or is_like(1 - (cap * tanh) ** 2),
            "tanh stands at z / cap, and is not multiplied by cap before it is squared.",
        )
        fifteen = 1 - torch.tanh(z / 15.0) ** 2
        hint(cap != 15.0 and is_like(fifteen), "use the cap that is given, not always 15.")
        hint(not is_like(want), f"with cap = {cap:g} it is not the derivative everywhere.")


@exercise(
    "Llama 3 has 32 query heads and 8 of keys and values: a cache of a quarter of the size. In "
    "PyTorch it is scaled_dot_product_attention(…, enable_gqa=True)."
)
def check_13_4(answer) -> None:
    """Several groupings, against repeated keys and values."""
    g = torch.Generator().manual_seed(0)
    for H, G in ((4, 2), (6, 2), (4, 4), (4, 1)):
        q = torch.randn(2, H, 5, 8, generator=g)
        k, v = torch.randn(2, 2, G, 5, 8, generator=g)
        try:
            got = call(answer, q.clone(), k.clone(), v.clone())
        except RuntimeError as error:
            if "must match" in str(error):
                raise Wrong("q has more heads than k and v: repeat each of theirs.") from error
            raise
        if not torch.is_tensor(got):
            raise Wrong(f"return a tensor, not {type(got).__name__}")
        hint(
            got.shape != q.shape,
            f"with {H} and {G} heads the shape must be {tuple(q.shape)}; yours: {(*got.shape,)}.",
        )

        def attention(repeat, causal=True, scale=None, q=q, k=k, v=v):
            keys, values = repeat(k), repeat(v)
            return F.scaled_dot_product_attention(q, keys, values, is_causal=causal, scale=scale)

        def together(t, n=H // G):
            return t.repeat_interleave(n, dim=1)

        def in_turn(t, n=H // G):
            return t.repeat(1, n, 1, 1)

        def is_like(other, got=got) -> bool:
            return torch.allclose(got, other, atol=1e-4)

        hint(is_like(attention(together, causal=False)), "it looks into the future: causal.")
        hint(is_like(attention(together, scale=1.0)), "divide the scores by √D.")
        hint(
            1 < G < H and is_like(attention(in_turn)),
            "the heads take turns there; the first H/G query heads share key head 0.",
        )
        hint(
            not is_like(attention(together)),
            f"with {H} and {G} heads the numbers differ: repeat each of k's and v's heads H/G "
            "times, side by side, then attend as ever.",
        )
