"""Scaling laws that fit a CPU: what size of model, how much text, and which learning rate.

    python data/text.py FOLDER_WITH_TEXT --out data/prose      at least 20 million characters
    python tests/benchmarks/scaling.py --data data/prose --out scaling.jsonl     two hours, one core
    python tests/benchmarks/scaling.py --data data/prose --out scaling.jsonl --only grid --seeds 1
    python tests/benchmarks/scaling.py --out scaling.jsonl --report                so far

One JSON line per run; a run whose line is there is not repeated, so after a kill the same command
goes on. No character is read twice. Groups:

    rates       Muon's learning rate for a small and for a large model
    grid        three budgets of FLOPs, each spent on five sizes
    schedule    a run that is stopped at a quarter of its schedule
    held-out    one run with three times the largest budget; the prediction in its line is older
    width       learning rates at four widths, in the standard and in the maximal update
                parametrisation
"""

if __name__ == "__main__":
    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from record import about, append_line, read_lines
from torch import nn
from tqdm import tqdm

from nanogpt_lib.choices import SCHEDULES, muon_and_adamw
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import autocast, choose_dtype, flops_per_token
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import set_learning_rate
from nanogpt_lib.scaling import STARTS, fit_loss_law, make_mup
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError

ROWS, BLOCK, WARMUP = 16, 64, 20  # 1,024 tokens an update
SHAPES = [(2, 32), (2, 48), (2, 64), (3, 80), (4, 96), (4, 128), (5, 160)]  # layers, width
BUDGETS = {1e12: SHAPES[:5], 3e12: SHAPES[1:6], 1e13: SHAPES[2:]}  # FLOPs: shapes
HELD_OUT = 3e13
BASE = 64  # the width at which both parametrisations are the same


@dataclass(frozen=True)
class Run:
    """What a run is made of."""

    layers: int
    width: int
    budget: float = 0.0  # FLOPs; 0: `steps` says how long
    steps: int = 0
    stretch: int = 1  # the schedule is made for so many times the steps
    rate: float = 4e-3  # AdamW's
    muon_rate: float = 0.03  # 0: AdamW for everything
    mup: bool = False

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's shape; heads of 16 channels."""
        return GPTConfig(
            block_size=BLOCK, vocab_size=vocab_size, n_layer=self.layers, n_head=self.width // 16,
            n_embd=self.width, bias=False, attention="manual",
        )  # fmt: skip


def size(layers: int, width: int) -> float:
    """N of a shape: the operations of a token over 6, for 96 characters."""
    with torch.device("meta"):
        return flops_per_token(GPT(Run(layers, width).config(96))) / 6


def law_of(records: list[dict], factors=1.0, starts=STARTS):
    """The law of the grid's first runs, with their losses multiplied by `factors`."""
    grid = [r for r in records if r["group"] == "grid" and r["seed"] == 0]
    N, D, losses = (
        np.array(v) for v in zip(*[(r["N"], r["D"], r["losses"][-1][1]) for r in grid], strict=True)
    )
    return fit_loss_law(N, D, losses * factors, starts)


def predicted(records: list[dict], N: float, D: float, draws: int = 200) -> dict:
    """The loss that the grid's law expects, and where nine of ten bootstraps lie."""
    law = law_of(records)
    grid = [r for r in records if r["group"] == "grid" and r["seed"] == 0]
    errors = np.array([math.log(r["losses"][-1][1] / law.loss(r["N"], r["D"])) for r in grid])
    errors *= math.sqrt(len(grid) / (len(grid) - 5))  # five numbers were fitted
    start = [(math.log(law.E), math.log(law.A), law.alpha, math.log(law.B), law.beta)]
    base = np.array([law.loss(r["N"], r["D"]) / r["losses"][-1][1] for r in grid])
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        noise = np.exp(rng.choice(errors, len(grid)))
        found.append(law_of(records, base * noise, start).loss(N, D) * math.exp(rng.choice(errors)))
    low, high = np.quantile(found, [0.05, 0.95])
    return {name: round(float(v), 4) for name, v in
            (("loss", law.loss(N, D)), ("low", low), ("high", high))}  # fmt: skip


def groups(records: list[dict]) -> dict[str, dict[str, Run]]:
    """Group → name → run. The held-out run's shape is what the grid's records predict."""
    rates = {
        f"rate {m:g}, {c} channels at {b:g}": Run(n, c, b, muon_rate=m)
        for (n, c), b in ((SHAPES[2], 1e12), (SHAPES[5], 3e12))
        for m in (0.01, 0.03, 0.09)
    }
    grid = {
        f"{c} channels at {b:g}": Run(n, c, b) for b, shapes in BUDGETS.items() for n, c in shapes
    }
    schedule = {"stopped early": Run(*SHAPES[4], 3e12, stretch=4)}
    width = {
        f"{'muP' if mup else 'standard'}, {c} channels, rate {r:g}": Run(
            2, c, steps=200, rate=r, muon_rate=0.0, mup=mup
        )
        for c in (64, 128, 256, 512)
        for mup in (False, True)
        for r in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        if c > BASE or not mup
    }
    found = {"rates": rates, "grid": grid, "schedule": schedule}
    if any(r["group"] == "grid" for r in records):
        best = law_of(records).best_size(HELD_OUT)
        shape = min([*SHAPES, (6, 192)], key=lambda s: abs(math.log(size(*s) / best)))
        found["held-out"] = {"held out": Run(*shape, HELD_OUT)}
    return {**found, "width": width}


def train(run: Run, seed: int, title: str, data: Path) -> dict:
    """Train once: N, D, FLOPs, losses by step, seconds."""
    torch.manual_seed(seed)
    device, dtype = torch.device("cpu"), choose_dtype(torch.device("cpu"), "auto")
    streams = {split: TokenStream(data, split) for split in ("train", "val")}
    model = GPT(run.config(streams["train"].vocab_size))
    per_update = flops_per_token(model) * ROWS * BLOCK
    steps = run.steps or max(2, round(run.budget / per_update))
    if steps * ROWS * BLOCK > len(streams["train"]):
        raise UserError(f"{title} reads {steps * ROWS * BLOCK:,} characters; the text is too short")
    config = TrainConfig(
        learning_rate=run.rate, min_lr=0.0, muon_learning_rate=run.muon_rate or run.rate,
        muon_method="halley", warmup_steps=WARMUP, max_steps=steps * run.stretch,
        weight_decay=0.0, schedule="wsd",
    )  # fmt: skip
    if run.muon_rate:
        optimizer = muon_and_adamw(model, config, dtype)
    else:
        groups = make_mup(model, run.width / BASE) if run.mup else [{"params": model.parameters()}]
        optimizer = torch.optim.AdamW(
            groups, lr=run.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
    loader, losses, times = TokenLoader(streams["train"], ROWS, BLOCK, seed=seed), [], []
    marks = {round(steps * part / 10) for part in range(1, 10)}
    for step in tqdm(range(steps), desc=title, leave=False):
        start = time.perf_counter()
        set_learning_rate(optimizer, SCHEDULES["wsd"](step, config))
        x, y = loader.next_batch()
        with autocast(device, dtype):
            loss = model(x, y)[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        if (last := step + 1 == steps) or step + 1 in marks:
            tokens = 200_000 if last else 32_768
            value = validation_loss(
                model, streams["val"], tokens=tokens, batch_size=64, dtype=dtype
            )
            losses.append([step + 1, round(value, 4)])
    return {
        "N": round(per_update / (6 * ROWS * BLOCK)), "D": steps * ROWS * BLOCK,
        "C": per_update * steps, "losses": losses, "ms": round(1e3 * statistics.median(times), 1),
    }  # fmt: skip


def report(records: list[dict]) -> None:
    """One line for each run."""
    for r in records:
        size = f"N {r['N']:>9,}, {r['D']:>11,} characters"
        print(f"{r['group']:9} {r['run']:34} {size}: {r['losses'][-1][1]:.4f}, {r['ms']} ms")


def main() -> None:
    """Do the runs that are missing in the file."""
    parser = OneLineParser(prog="scaling.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file of JSON lines")
    add("--only", help="groups, with commas between: rates, grid, schedule, held-out, width")
    add("--seeds", type=int, default=2, help="of grid, schedule and width (default: %(default)s)")
    add("--data", type=Path, help="a dataset of characters")
    add("--share", type=float, default=1.0, help="of every budget and length, for a rehearsal")
    add("--report", action="store_true", help="print what the file holds")
    args = parser.parse_args()
    if args.report:
        return report(read_lines(args.out))
    if args.data is None or not (args.data / "meta.json").exists():
        raise UserError("name a dataset of characters: python data/text.py FOLDER --out data/prose")
    text = read_meta(args.data)["splits"]["train"][0]["sha256"][:16]
    order = (
        args.only.split(",") if args.only else ["rates", "grid", "schedule", "held-out", "width"]
    )
    for seed in range(args.seeds):
        for group in order:
            records = read_lines(args.out)
            done = {(r["run"], r["seed"]) for r in records}
            runs = groups(records)
            if group not in runs:
                parser.error(f"no group {group}" + " without a grid" * (group == "held-out"))
            for name, run in runs[group].items():
                if (name, seed) in done or (seed and group in ("rates", "held-out")):
                    continue
                run = replace(
                    run, budget=args.share * run.budget, steps=round(args.share * run.steps)
                )
                record = {"run": name, "group": group, "seed": seed, **asdict(run)}
                if group == "held-out":
                    N = size(run.layers, run.width)
                    record["predicted"] = predicted(records, N, run.budget / (6 * N))
                    print("predicted before the run:", record["predicted"], flush=True)
                record |= train(run, seed, f"{name}, seed {seed}", args.data)
                append_line(args.out, record | {"text": text, "machine": about()})
                print(f"{name}, seed {seed}: {record['losses'][-1][1]:.4f}", flush=True)
    return None


if __name__ == "__main__":
    run_program("scaling.py", main)
