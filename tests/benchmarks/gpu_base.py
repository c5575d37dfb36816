"""What the parts of gpu.py share: sizes, data, a training loop, a report written as it grows."""

import gc
import json
import random
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
import torch.nn as nn
from torch import Tensor

from nanogpt_lib.device import autocast, synchronize
from nanogpt_lib.distributed import clip_gradients
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support.files import write_json

RECORDED = Path(__file__).resolve().parent / "gpu_on_a_cpu.json"  # written by gpu.py --record
TINY = dict(n_layer=2, n_head=2, n_embd=16, block_size=32)

# by mode: full is GPT-2 124M; quick goes through every part once; rehearsal does so on any CPU
SIZES = {
    "full": dict(
        shape={}, rows=16, steps=8, loss_steps=100, update_rows=32, micro_steps=16, updates=3,
        new_tokens=400, items=None, matrix=8192, guess=20.0,
    ),
    "quick": dict(
        shape=dict(n_layer=2), rows=8, steps=3, loss_steps=100, update_rows=16, micro_steps=2,
        updates=2, new_tokens=300, items=1000, matrix=4096, guess=8.0,
    ),
    "rehearsal": dict(
        shape=TINY, rows=1, steps=1, loss_steps=10, update_rows=2, micro_steps=2, updates=1,
        new_tokens=40, items=6, matrix=64, guess=0.0,
    ),
}  # fmt: skip


@dataclass
class Plan:
    """What one part is asked to do; travels to its process as JSON."""

    mode: str
    device: str
    folder: str  # where the parts write their results
    deadline: float  # on the clock of time.monotonic, which all processes share
    build_nanogpt: str | None = None
    nanogpt: str | None = None
    hellaswag: str | None = None
    earlier: dict = field(default_factory=dict)  # results of earlier parts, by name

    @property
    def on(self) -> torch.device:
        """The device, with its number on CUDA."""
        return torch.device("cuda", 0) if self.device == "cuda" else torch.device(self.device)

    @property
    def sizes(self) -> dict:
        """The sizes of this mode."""
        return SIZES[self.mode]

    @property
    def shape(self) -> GPTConfig:
        """The model's shape, with GPT-2's vocabulary."""
        return GPTConfig(**self.sizes["shape"])

    @property
    def compile(self) -> str:
        """Compile on a GPU; compiling on a CPU would only make the rehearsal long."""
        return "on" if self.on.type == "cuda" else "off"

    def checkouts(self) -> dict[str, Path]:
        """The checkouts that were given, by name."""
        given = {"build-nanogpt": self.build_nanogpt, "nanoGPT": self.nanogpt}
        return {name: Path(folder) for name, folder in given.items() if folder}


def reason(error: BaseException) -> str:
    """An exception as one line."""
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0][:160]}".removesuffix(": ")


class Report(dict):
    """A part's results; the file is written again after each entry, so that a kill loses none."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)

    def __setitem__(self, name: str, value) -> None:
        """Add an entry, print it and write the file."""
        super().__setitem__(name, value)
        if not isinstance(value, list):  # too long
            text = json.dumps(value)
            print(f"  {name}: {text if len(text) < 300 else text[:300] + ' …'}", flush=True)
        write_json(self.path, self)

    def attempt(self, name: str, function: Callable[[], object]) -> object:
        """Add what `function` returns, or why it failed; its traceback goes to stderr."""
        start = perf_counter()
        try:
            result = function()
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            result = {"missing": reason(error)}
        if isinstance(result, dict):
            result = {**result, "took": round(perf_counter() - start, 2)}
        self[name] = result
        free_memory()
        return result


def free_memory() -> None:
    """Forget what was compiled and give back what PyTorch keeps."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> float | None:
    """Most gigabytes allocated since the last `free_memory`; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None


# --- data -----------------------------------------------------------------------------------------


def words(count: int = 6000) -> str:
    """Words in random order: a text that a small model learns within 100 steps."""
    pick = random.Random(0)  # whose random() is the same in every version of Python
    vocabulary = "the a cat dog sees hears runs to from and with big small The quick red fox."
    choices = vocabulary.split()
    return " ".join(choices[int(pick.random() * len(choices))] for _ in range(count))


def zipf_batches(count: int, rows: int, T: int, device: torch.device) -> list:
    """`count` micro-batches (x, y) of tokens with P(t) ∝ 1 / t, roughly as words are: the loss
    falls from the first update on, unlike that of uniform ones."""
    generator = torch.Generator().manual_seed(1)
    exponents = torch.rand(count, rows, T + 1, generator=generator)
    tokens = (50257.0**exponents).long().sub_(1).clamp_(0, 50256).to(device)
    return [(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in tokens]


# --- training -------------------------------------------------------------------------------------


def new_model(shape: GPTConfig, device: torch.device) -> GPT:
    """A model whose first weights are drawn on the CPU: the same on every device."""
    torch.manual_seed(0)
    return GPT(shape).to(device)


def train(
    model: nn.Module,
    raw: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    micro_steps: int = 1,
) -> tuple[list[float], list[float]]:
    """One update per `micro_steps` batches; the loss and the seconds of every update."""
    losses, seconds = [], []
    for first in range(0, len(batches), micro_steps):
        synchronize(device)
        start, total = perf_counter(), torch.zeros((), device=device)
        for x, y in batches[first : first + micro_steps]:
            with autocast(device, dtype):
                _, loss = model(x, y)
            (loss / micro_steps).backward()
            total += loss.detach() / micro_steps
        clip_gradients(raw, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total.item())
        seconds.append(perf_counter() - start)
    return losses, seconds


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """GPT-2's optimizer at its peak rate."""
    return make_optimizer(model, learning_rate=6e-4)


def rate(seconds: list[float], tokens: int, warmup: int) -> dict:
    """Milliseconds per update and tokens per second: the median after `warmup` updates."""
    middle = statistics.median(seconds[warmup:] or seconds)
    return {"ms": round(middle * 1e3, 2), "tokens_per_sec": round(tokens / middle, 1)}
