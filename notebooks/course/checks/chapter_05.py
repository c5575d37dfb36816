"""Checks of chapter 05's exercises: steps of formats, TF32, a loss scale, flash attention."""

import itertools
import math
from contextlib import ExitStack
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt_course.checks import Wrong, as_number, as_tensors, call, exercise, hint

MANTISSA = {"fp32": 23, "TF32": 10, "fp16": 10, "bf16": 7}


@exercise(
    "In bf16 the neighbours of 1000 are four apart: it knows 1000 about as well as a slide rule "
    "does. And 1 + 0.003 is 1."
)
def check_05_1(answer) -> None:
    """Steps are 2^(exponent - mantissa bits); three correct digits are enough."""
    hint(not isinstance(answer, dict), "give a dictionary: name → (step at 1, step at 1000)")
    given = {str(name).lower(): steps for name, steps in answer.items()}
    missing = [name for name in MANTISSA if name.lower() not in given]
    hint(bool(missing), f"{', '.join(missing)} is missing")
    for name, bits in MANTISSA.items():
        steps = given[name.lower()]
        try:
            steps = list(steps)
        except TypeError as error:
            raise Wrong(f"{name}: give two steps, at 1 and at 1000") from error
        hint(len(steps) != 2, f"{name}: give two steps, at 1 and at 1000")
        for number, exponent, step in zip((1, 1000), (0, 9), steps, strict=True):
            check_step(name, number, 2.0 ** (exponent - bits), as_number(step))


def check_step(name: str, number: int, right: float, step: float) -> None:
    """One step of one format, with a hint for each usual mistake."""

    def near(value: float) -> bool:
        return math.isclose(step, value, rel_tol=5e-3)

    at, bits = f"{name} at {number}: ", MANTISSA[name]
    hint(near(right / 2), at + "that is the largest rounding error, half a step")
    hint(
        near(2 * right),
        at + "twice too large: below 1000 the last power of two is 512, and the mantissa has "
        f"{bits} bits, besides the leading 1",
    )
    if number == 1000:
        hint(near(1000 * 2.0**-bits), at + "steps grow at powers of two, not with the number")
        hint(near(2.0**-bits), at + "that is the step at 1; it doubles at each power of two")
    hint(not near(right), at + f"{bits} bits of mantissa; which powers of 2 is it between?")


@exercise(
    "Six operations on integers, and the carry out of the mantissa raises the exponent by itself. "
    "A tensor core does this to every factor it reads."
)
def check_05_2(answer) -> None:
    """Zero tail bits, the nearest number, ties to even, both signs, fp32's whole range."""
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    x = x * 2.0 ** torch.linspace(-100, 100, 10_000)
    before = x.clone()
    out = call(answer, x)
    hint(not torch.is_tensor(out), "return a tensor")
    hint(not torch.equal(x, before), "a view shares its memory, and you changed the input")
    hint(out.dtype == torch.int32, "those are the bits: view them as float32 again")
    hint(out.dtype != torch.float32, f"the result must be fp32, not {out.dtype}")
    hint(out.shape != x.shape, "the result must have x's shape")
    hint(
        bool((~torch.isfinite(out)).any()) or bool((out == 0).any()),
        "large numbers became infinite or small ones zero: TF32 has fp32's range, fp16 has not",
    )
    bits = out.contiguous().view(torch.int32)
    as_integers = torch.isclose(out.double(), before.view(torch.int32).double(), rtol=1e-2)
    hint(
        bool(as_integers.all()),
        ".float() converts the integer's value; .view(torch.float32) reads its bits as a number",
    )
    hint(bool((bits & 0x1FFF).any()), "the result must end with 13 zero bits")
    off = (out.double() - x.double()).abs() / x.abs().double()
    away = (out.abs() >= x.abs()).all()
    hint(bool(away), "that always rounds away from zero; choose the nearest number")
    hint(bool((off > 2.0**-9).any()), "more than a whole step away: how many bits are kept, 10?")
    hint(bool((off > 2.0**-11).any()), "some are more than half a step away: cut, not rounded?")
    ties = 1 + torch.tensor([1.0, 3.0, 5.0, 7.0]) * 2.0**-11
    even = 1 + torch.tensor([0.0, 4.0, 4.0, 8.0]) * 2.0**-11
    middle = "exactly in the middle, choose the neighbour whose last kept bit is 0"
    hint(not torch.equal(call(answer, ties), even), middle)
    negative = "right for positive numbers; a negative one must give the mirror image"
    hint(not torch.equal(call(answer, -ties), -even), negative)
    check_with_integers(answer, before)


def check_with_integers(answer, x: torch.Tensor) -> None:
    """The task asks for integer operations: frexp and other arithmetic on floats do not count."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        call(answer, x.clone())
    floats = seen & {"frexp", "ldexp", "round", "log2", "floor", "trunc"}
    hint(bool(floats), f"right, but with {', '.join(sorted(floats))}: try integers on the bits")


@exercise(
    "For the lecture's micro-batch of 16,384 tokens it is 2^16, which is where GradScaler begins. "
    "A power of two moves the exponent alone, so scaling and dividing back are exact."
)
def check_05_3(answer) -> None:
    """The smallest normal fp16 number is 2^-14."""
    sizes = [(1024, 50257), (16 * 1024, 50257), (8, 96), (4, 4), (1024, 65536), (1, 2), (8, 65)]
    pairs = [(as_number(call(answer, N, V)), 2.0 ** (math.ceil(math.log2(N * V)) - 14), N, V)
             for N, V in sizes]  # fmt: skip
    given, wanted = [p[0] for p in pairs], [p[1] for p in pairs]
    hint(not all(isinstance(g, int | float) and g > 0 for g in given), "a scale is above zero")
    hint(
        given == [w * 2.0**-10 for w in wanted],
        "2^-24 is the smallest subnormal number; the smallest normal one is larger",
    )
    hint(given == [2 * w for w in wanted], "half of it would do; is your smallest normal 2^-13?")
    hint(given == [w / 2 for w in wanted], "twice that is needed; is your smallest normal 2^-15?")
    exact = [N * V * 2.0**-14 for N, V in sizes]
    close = all(math.isclose(g, e, rel_tol=1e-6) for g, e in zip(given, exact, strict=True))
    hint(close, "a power of two, please: it changes no bit of a mantissa")
    floors = [2.0 ** math.floor(math.log2(e)) for e in exact]
    hint(given == floors, "rounded down to a power of two, the gradient stays just below normal")
    nearest = [2.0 ** round(math.log2(e)) for e in exact]
    below = "rounded to the nearest power of two, which may lie below: round up"
    hint(given == nearest, below)
    above = [2.0 ** (math.floor(math.log2(e)) + 1) for e in exact]
    hint(given == above, "where N·V is a power of two itself, yours is twice too large")
    hint(
        given == [max(1.0, w) for w in wanted],
        "with few positions and tokens the gradients are large: the scale may be below 1",
    )
    for g, w, N, V in pairs:
        text = f"N = {N}, V = {V}: compare 1/(N·V) with the smallest normal number, 2^(1 - bias)"
        hint(g != w, text)


class Sizes(TorchDispatchMode):
    """Notes the largest result per head, and how many keys the widest scores have."""

    def __init__(self, T: int):
        super().__init__()
        self.T, self.square, self.widest, self.names = T, False, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for out in result if isinstance(result, tuple | list) else [result]:
            if torch.is_tensor(out) and out.dim() >= 2:
                tall, wide = sorted(out.shape[-2:])
                self.square |= tall >= self.T // 2 and wide >= self.T // 2
                if wide == self.T and "expand" not in func.overloadpacket.__name__:
                    self.widest = max(self.widest, tall)
        return result


@exercise(
    "That is the trick of the real kernel: one number per row, lse, is all it must remember of "
    "T × T weights."
)
def check_05_4(answer) -> None:
    """Equal to autograd through SDPA, for incomplete blocks too, and without a (T, T) tensor."""
    hint(not callable(answer), "pass the function itself, without calling it")
    inputs, want = attention_problem(T=200)
    got = as_tensors(guarded(answer, *inputs, 50), 3)
    orders = list(itertools.permutations(got))[1:]  # all but theirs
    mixed = any(all(map(alike, order, want)) for order in orders) or alike(got[1], want[2])
    hint(mixed, "return them in the order dq, dk, dv")
    for i in (2, 0, 1):  # dv first: it needs the weights alone
        compare_gradient(("dq", "dk", "dv")[i], got[i], want[i])
    inputs, want = attention_problem(T=203)  # the last block is not whole
    got = as_tensors(guarded(answer, *inputs, 50), 3)
    same = all(g.shape == w.shape and torch.allclose(g, w, atol=1e-4)
               for g, w in zip(got, want, strict=True))  # fmt: skip
    hint(not same, "right for 200 tokens in blocks of 50, wrong for 203: the last block is shorter")
    with Sizes(203) as sizes:
        guarded(answer, *inputs, 50)
    kernel = any("attention" in name for name in sizes.names)
    hint(kernel, "leave autograd and PyTorch's attention aside: write the four formulas")
    whole = "right, but a whole (T, T) tensor was made (or most of one); take keys block by block"
    hint(sizes.square, whole)
    hint(sizes.widest > 50, f"right, but one block has {sizes.widest} keys; `block` says 50")


def alike(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether two gradients are the same, but for rounding."""
    return got.shape == want.shape and torch.allclose(got.float(), want, atol=1e-4)


def attention_problem(T: int):
    """q, k, v, out, lse, d_out, and the gradients that autograd finds."""
    generator = torch.Generator().manual_seed(T)
    q, k, v, d_out = (torch.randn(1, 2, T, 8, generator=generator) for _ in range(4))
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    with torch.enable_grad():
        out = F.scaled_dot_product_attention(*leaves, is_causal=True)
        want = torch.autograd.grad(out, leaves, d_out)
    late = torch.ones(T, T, dtype=torch.bool).triu(1)
    lse = (q @ k.mT / 8**0.5).masked_fill(late, -math.inf).logsumexp(-1, keepdim=True)
    return (q, k, v, out.detach(), lse, d_out), want


def guarded(answer, *args):
    """Call it while autograd and PyTorch's own attention are out of reach."""

    def refuse(*_, **__):
        raise Wrong("leave autograd and PyTorch's attention aside: write the four formulas")

    names = ["torch.autograd.grad", "torch.autograd.backward", "torch.Tensor.backward"]
    names += ["torch.func.vjp", "torch.func.grad", "torch.Tensor.requires_grad_"]
    names += ["torch.nn.functional.scaled_dot_product_attention"]
    copies = [a.clone() if torch.is_tensor(a) else a for a in args]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch(name, refuse))
        result = call(answer, *copies)
    hint(
        any(not torch.equal(a, b) for a, b in zip(args, copies, strict=True) if torch.is_tensor(a)),
        "it changed one of its inputs; leave them as they are",
    )
    return result


def compare_gradient(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    """One of the three gradients, with a hint for each usual mistake."""
    hint(got.shape != want.shape, f"{name} must have shape {tuple(want.shape)}")
    got = got.detach().float()
    if torch.allclose(got, want, atol=1e-4):
        return
    hint(bool(got.isnan().any()), f"{name} has entries that are not numbers: check the mask")
    hint(not got.any(), f"{name} is still zero")
    if name == "dv":
        raise Wrong(
            "dv differs from autograd's; is S divided by √D, and does the weight P of a later key "
            "vanish?"
        )
    unscaled = torch.allclose(got / 8**0.5, want, atol=1e-4)
    hint(unscaled, f"{name}: the scores were divided by √D, so their gradient is too")
    raise Wrong(
        f"{name} differs from autograd's, dv is right; is rowsum(dO ⊙ O) subtracted, "
        "and is dq the sum over all blocks?"
    )
