"""Checks of chapter 01's exercises: parameters, the stored c_attn, one tensor, one block less."""

import io
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from nanogpt_course.checks import Wrong, as_number, as_tensors, call, exercise, hint
from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.support.errors import UserError

GPT2 = 124_439_808


@exercise(
    "Twice the context costs 0.6 % more parameters: only the position table grows. "
    "What it really costs is time and memory, which chapters 03 and 05 measure."
)
def check_01_1(answer) -> None:
    """Parameters of GPT-2 124M with a context of 2,048 tokens."""
    n = as_number(answer)
    hint(n == 2 * GPT2, "that doubles every tensor. Which of the map's names knows the context?")
    hint(n == GPT2 + 1024 * 768 + 50257 * 768, "that counts the token table twice; lm_head is wte.")
    hint(n == GPT2 + 2048 * 768, "some of the 2,048 rows are in the count already.")
    hint(n == 2048 * 768, "that is the position table alone; add all that does not change.")
    hint(n == 1024 * 768, "those are the new rows alone; add them to the old count.")
    hint(n < GPT2, "it can't be fewer than before. Which tensor has a row for each position?")
    hint(
        n != GPT2 + 1024 * 768,
        "go through the map and ask of each shape: would it change with a longer context?",
    )


@exercise(
    "PyTorch's own attention keeps q, k and v in one matrix for the same reason: one large product "
    "is faster than three small ones."
)
def check_01_2(answer) -> None:
    """The three weights must give the three thirds of x @ weight."""
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))
    parts = call(answer, weight.clone())
    count = len(parts) if isinstance(parts, (tuple, list)) else 3
    hint(
        count != 3,
        "return 3 tensors: cut along dimension 1, into pieces of C columns (here C = 8; take it "
        "from weight.shape).",
    )
    raw = as_tensors(parts, 3)
    got = [w.detach().double() for w in raw]
    for w in got:
        hint(tuple(w.shape) != (8, 8), f"each must be (C, C), here (8, 8); one is {tuple(w.shape)}")
    expected = (x @ weight).double().split(8, dim=1)

    def equal(outputs) -> bool:
        return all(torch.allclose(o, e, atol=1e-4) for o, e in zip(outputs, expected, strict=True))

    x = x.double()
    linear = [x @ w.t() for w in got]
    hint(
        equal([x @ w for w in got]),
        "the right columns, but stored (in, out). nn.Linear keeps (out, in).",
    )
    shuffled = any(torch.allclose(o, e, atol=1e-4) for o in linear for e in expected)
    hint(shuffled and not equal(linear), "the right thirds in the wrong order: q, then k, then v.")
    low = all(w.dtype in (torch.bfloat16, torch.float16) for w in raw)
    hint(low and not equal(linear), "keep the weights' dtype: rounding them changes the outputs.")
    hint(not equal(linear), "the outputs of x @ W are W's columns. Cut those, along dimension 1.")


@exercise(
    "That is how a program on eight cards reads its share of a 100 GB checkpoint: each process "
    "seeks to its own bytes."
)
def check_01_3(answer) -> None:
    """Values and shape must be right for any tensor, and most of the file must stay unread."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": 10 + torch.arange(8.0).view(4, 2)}
    # their bytes come first and last
    tensors |= {"Big": torch.zeros(250_000), "zebra": torch.zeros(250_000)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "three.safetensors"
        save_file(tensors, path)
        for name in ("a", "b"):
            got = call(answer, path, name)
            hint(
                not torch.is_tensor(got),
                "return a tensor; torch.frombuffer makes one from a bytearray",
            )
            expected = tensors[name]
            hint(got.numel() != expected.numel(), "too many or too few numbers: check both offsets")
            hint(got.shape != expected.shape, "the header also holds the shape: .view(shape)")
            hint(
                not torch.equal(got.float(), expected),
                "other numbers: offsets count from the end of the header, which is at 8 + length",
            )
        hint(
            bytes_read(answer, path, "b") > 2_000, "it reads what it does not need: seek, then read"
        )


def bytes_read(answer, path: Path, name: str) -> int:
    """How many bytes of the file a learner's function reads; Wrong if a library reads them."""
    total, opened, plain_open = 0, False, open

    class Counting(io.FileIO):
        def read(self, size=-1):
            nonlocal total
            data = super().read(size)
            total += len(data)
            return data

        def readall(self):
            nonlocal total
            data = super().readall()
            total += len(data)
            return data

        def readinto(self, buffer):
            nonlocal total
            count = super().readinto(buffer)
            total += count
            return count

    def counting_open(file, mode="r", *args, **kwargs):
        nonlocal opened
        if Path(file) != path:
            return plain_open(file, mode, *args, **kwargs)
        opened = True
        return Counting(file, "r")

    # a notebook's `open` is IPython's, which keeps its own reference to io.open
    names = ["builtins.open", "io.open"]
    if "IPython.core.interactiveshell" in sys.modules:
        names.append("IPython.core.interactiveshell.io_open")
    with ExitStack() as patches:
        for target in names:
            patches.enter_context(mock.patch(target, counting_open))
        for method, stand_in in (
            ("open", lambda self, *args, **kwargs: counting_open(self, *args, **kwargs)),
            ("read_bytes", lambda self: counting_open(self).read()),
        ):
            patches.enter_context(mock.patch.object(Path, method, stand_in))
        call(answer, path, name)
    hint(
        not opened, "that leaves the reading to a library: open() the file yourself, seek and read"
    )
    return total


@exercise(
    "A block can go, because what follows still finds 768 numbers for each token. What a trained "
    "model loses with it, chapter 09's validation loss measures."
)
def check_01_4(answer) -> None:
    """The shortened checkpoint must load, and exactly block i must be gone."""
    config = dict(block_size=8, vocab_size=11, n_layer=12, n_head=2, n_embd=8)
    for i in (1, 10):
        torch.manual_seed(i)
        model = GPT(GPTConfig(**config)).eval()
        state = {n: t + 0.1 * torch.randn_like(t) for n, t in model.state_dict().items()}
        state["lm_head.weight"] = state["transformer.wte.weight"]
        load_weights(model, state)
        names, before = list(state), dict(config)
        result = call(answer, before, state, i)
        hint(not isinstance(result, tuple | list) or len(result) != 2, "return (config, state)")
        short, rest = result
        hint(list(state) != names or before != config, "leave the arguments as they are: copy")
        hint(short.get("n_layer") != 11, "the new config must have n_layer 11")
        check_tied(rest)
        smaller = GPT(GPTConfig(**short)).eval()
        try:
            load_weights(smaller, rest)
        except UserError as error:
            raise Wrong(
                f"it does not load: {error}. Keep all else of the config; number the blocks 0 to "
                "10; and mind that h.1 also begins h.10"
            ) from error
        del model.transformer.h[i]
        idx = torch.arange(8)[None]
        same = torch.allclose(model(idx)[0], smaller(idx)[0], atol=1e-5)
        hint(
            not same, f"it loads, but with i = {i} another block is gone, or something was changed"
        )


def check_tied(state: dict) -> None:
    """The head must still be wte's tensor."""
    head, wte = state.get("lm_head.weight"), state.get("transformer.wte.weight")
    hint(head is None or wte is None, "keep every tensor that belongs to no block")
    hint(head.data_ptr() != wte.data_ptr(), "lm_head.weight must stay the very tensor of wte")
