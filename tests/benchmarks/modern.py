"""From GPT-2's recipe to a modern one, a part at a time, at a size that two CPU cores can train.

    python tests/benchmarks/modern.py --out modern.jsonl                  every run: about two hours
    python tests/benchmarks/modern.py --out modern.jsonl --only ladder --seeds 1
    python tests/benchmarks/modern.py --out modern.jsonl --report          what the file says so far

One JSON line per run: recipe, seed, losses by step, milliseconds, machine. A run whose line
is there is not repeated, so after a kill the same command goes on. All runs read the same text
(python data/pydocs.py; its fingerprint stands in the line) in the same order for a seed, and differ
only in what their name says. Groups:

    sweep       learning rates of the first and of the last recipe, one seed
    ladder      one part after the other, in the order in which they were found
    ablation    the last recipe without one part
    baseline    the first recipe with half, twice and four times as many steps
    short       the last recipe with a quarter, a third and half of the steps
    others      what did not pay for others: SwiGLU, clipping, predicting two tokens
"""

if __name__ == "__main__":
    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from record import about, append_line, read_lines
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nanogpt_lib.choices import Optimizers, block_matrices
from nanogpt_lib.device import autocast, choose_dtype
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPTConfig
from nanogpt_lib.modern import PARTS, ModernGPT
from nanogpt_lib.muon import Muon
from nanogpt_lib.optimizer import decay_groups
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import ROOT

SHAPE = dict(n_layer=4, n_head=4, n_embd=128, block_size=128, bias=False, attention="manual")
ROWS, STEPS, WARMUP = 16, 600, 30  # 2,048 tokens a step


@dataclass(frozen=True)
class Recipe:
    """What a run is made of."""

    parts: tuple[str, ...] = ()
    optimizer: str = "adamw"
    schedule: str = "cosine"
    rate: float = 4e-3  # AdamW's
    muon_rate: float = 0.02
    steps: int = STEPS
    extra: str = ""  # swiglu, clip or two-tokens

    def at(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        if step < WARMUP:
            return (step + 1) / WARMUP
        done = (step - WARMUP) / (self.steps - WARMUP)
        if self.schedule == "linear":
            return 1 - done
        return 0.1 + 0.45 * (1 + np.cos(np.pi * done))  # to a tenth, as GPT-2's


FIRST = Recipe()
LADDER = {  # each step changes the recipe before it
    "GPT-2": dict(),
    "+ rotary": dict(parts=("rotary",)),
    "+ RMS norm, QK norm": dict(parts=("rms-norm", "qk-norm")),
    "+ ReLU²": dict(parts=("relu2",)),
    "+ Muon": dict(optimizer="muon"),
    "+ zero init": dict(parts=("zero-init",)),
    "+ untied head": dict(parts=("untied",)),
    "+ softcap": dict(parts=("softcap",)),
    "+ values, skip": dict(parts=("values", "skip")),
    "+ linear decay": dict(schedule="linear"),
}


def ladder() -> dict[str, Recipe]:
    """Each recipe of the ladder, complete."""
    recipe, found = FIRST, {}
    for name, change in LADDER.items():
        recipe = replace(recipe, **{**change, "parts": recipe.parts + change.get("parts", ())})
        found[name] = recipe
    return found


def groups() -> dict[str, dict[str, Recipe]]:
    """Group → name → recipe."""
    steps = ladder()
    last = steps["+ linear decay"]
    sweep = {f"GPT-2, rate {r:g}": replace(FIRST, rate=r) for r in (1e-3, 2e-3, 4e-3, 8e-3)}
    for r in (2e-3, 4e-3, 8e-3):
        for m in (0.01, 0.02, 0.04):
            sweep[f"last, rates {r:g} and {m:g}"] = replace(last, rate=r, muon_rate=m)
    without = {
        f"last − {part}": replace(last, parts=tuple(p for p in PARTS if p != part))
        for part in PARTS
    }
    without["last − muon"] = replace(last, optimizer="adamw")
    without["last − linear decay"] = replace(last, schedule="cosine")
    lengths = {f"GPT-2, {n} steps": replace(FIRST, steps=n) for n in (300, 1200, 2400)}
    short = {f"last, {n} steps": replace(last, steps=n) for n in (150, 200, 300)}
    others = {f"last + {e}": replace(last, extra=e) for e in ("swiglu", "clip", "two-tokens")}
    return {
        "ladder": steps,
        "short": short,
        "baseline": lengths,
        "ablation": without,
        "others": others,
        "sweep": sweep,
    }


class SwiGLU(nn.Module):
    """Shazeer 2020, with as many parameters as the MLP it replaces."""

    def __init__(self, width: int):
        super().__init__()
        inner = 8 * width // 3 // 8 * 8
        self.c_fc = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.c_proj = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.c_fc.weight, std=0.5 * width**-0.5)
        nn.init.normal_(self.gate.weight, std=0.5 * width**-0.5)
        nn.init.zeros_(self.c_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) → (B, T, C)."""
        return self.c_proj(F.silu(self.gate(x)) * self.c_fc(x))


def make_model(recipe: Recipe, vocab_size: int) -> ModernGPT:
    """The model of a recipe, from the global random state."""
    model = ModernGPT(GPTConfig(vocab_size=vocab_size, **SHAPE), parts=recipe.parts)
    if recipe.extra == "swiglu":
        for block in model.transformer.h:
            block.mlp = SwiGLU(SHAPE["n_embd"])
    if recipe.extra == "two-tokens":
        model.second = nn.Linear(SHAPE["n_embd"], vocab_size, bias=False)
        nn.init.zeros_(model.second.weight)
    return model


def make_optimizers(model: ModernGPT, recipe: Recipe, dtype: torch.dtype):
    """Muon for the blocks' matrices if asked for, AdamW for the rest, with their peak rates."""
    blocks = block_matrices(model)
    chosen = set(map(id, blocks)) if recipe.optimizer == "muon" else set()
    groups = decay_groups(model, 0.1)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
    parts = [torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), eps=1e-10, fused=True)]
    if chosen:
        parts.append(Muon(blocks, lr=recipe.muon_rate, momentum=0.9, dtype=dtype, method="halley"))
    return Optimizers(*parts)


def loss_of(model: ModernGPT, recipe: Recipe, x: Tensor, y: Tensor) -> Tensor:
    """The training loss; with two-tokens also that of the token after the next, at half weight."""
    if recipe.extra != "two-tokens":
        return model(x, y)[1]
    hidden = model.transformer(x)
    first = F.cross_entropy(model.lm_head(hidden).float().flatten(0, 1), y.flatten())
    later = model.second(hidden[:, :-1]).float().flatten(0, 1)
    return first + 0.5 * F.cross_entropy(later, y[:, 1:].flatten())


def run(recipe: Recipe, seed: int, title: str, data: Path) -> dict:
    """Train once; the validation loss by step and the milliseconds of a step."""
    torch.manual_seed(seed)
    device, dtype = torch.device("cpu"), choose_dtype(torch.device("cpu"), "auto")
    train, val = (TokenStream(data, split) for split in ("train", "val"))
    model = make_model(recipe, train.vocab_size)
    optimizer = make_optimizers(model, recipe, dtype)
    peaks = [group["lr"] for group in optimizer.param_groups]
    loader = TokenLoader(train, ROWS, SHAPE["block_size"], seed=seed)
    losses, times = [], []
    for step in tqdm(range(recipe.steps), desc=title, leave=False):
        start = time.perf_counter()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * recipe.at(step)
        x, y = loader.next_batch()
        with autocast(device, dtype):
            loss = loss_of(model, recipe, x, y)
        loss.backward()
        if recipe.optimizer == "adamw" or recipe.extra == "clip":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        if (last := step + 1 == recipe.steps) or (step + 1) % 100 == 0:
            tokens = 200_000 if last else 32_768
            value = validation_loss(model, val, tokens=tokens, batch_size=32, dtype=dtype)
            losses.append([step + 1, round(value, 4)])
    return {"losses": losses, "ms": round(1e3 * statistics.median(times), 1)}


def report(records: list[dict]) -> None:
    """Mean and spread of the last losses, by group and name."""
    for group, recipes in groups().items():
        for name in recipes:
            ends = [r["losses"][-1][1] for r in records if r["run"] == name]
            if ends:
                spread = f" ± {statistics.stdev(ends):.4f}" if len(ends) > 1 else ""
                ms = statistics.median(r["ms"] for r in records if r["run"] == name)
                print(
                    f"{group:9} {name:28} {statistics.mean(ends):.4f}{spread} ({len(ends)}) {ms} ms"
                )


def main() -> None:
    """Do the runs that are missing in the file."""
    parser = OneLineParser(prog="modern.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file of JSON lines")
    add("--only", help=f"groups, with commas between: {', '.join(groups())}")
    add("--seeds", type=int, default=3, help="of each run; sweeps have one (default: %(default)s)")
    add("--steps", type=int, help="of every run, for a rehearsal")
    add("--data", type=Path, default=ROOT / "data/pydocs", help="the text (%(default)s)")
    add("--report", action="store_true", help="print what the file holds")
    args = parser.parse_args()
    if args.report:
        return report(read_lines(args.out))
    if not (args.data / "meta.json").exists():
        raise UserError(f"{args.data} is missing: python data/pydocs.py")
    text = read_meta(args.data)["splits"]["train"][0]["sha256"][:16]
    recipes = groups()
    wanted = args.only.split(",") if args.only else list(recipes)
    if unknown := set(wanted) - set(recipes):
        parser.error(f"unknown group {min(unknown)}")
    done = {(r["run"], r["seed"]) for r in read_lines(args.out)}
    for seed in range(args.seeds):
        for group in wanted:
            for name, recipe in recipes[group].items():
                if (name, seed) in done or (group == "sweep" and seed):
                    continue
                recipe = replace(recipe, steps=args.steps) if args.steps else recipe
                result = run(recipe, seed, f"{name}, seed {seed}", args.data)
                record = {"run": name, "group": group, "seed": seed, **asdict(recipe), **result}
                record |= {"text": text, "machine": about()}
                append_line(args.out, record)
                print(
                    f"{name}, seed {seed}: {result['losses'][-1][1]:.4f}, {result['ms']} ms",
                    flush=True,
                )
    return None


if __name__ == "__main__":
    run_program("modern.py", main)
