"""A step of quickstart in parts, on an idle machine and beside one busy process.

    python tests/benchmarks/bench_step.py --json step.json       (needs an idle machine)

Each row is a process of its own, since how threads wait is settled when torch is loaded: by
default, as our programs set it, and sleeping at once. The 20th percentile of the steps counts.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from record import write_record

from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import ROOT
from nanogpt_lib.support.threads import SPINS

WAITS = {
    "default": {},
    "ours": {"GOMP_SPINCOUNT": SPINS},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
SPIN = [sys.executable, "-c", "while True: pass"]


def time_parts(method: str, seconds: float) -> dict[str, float]:
    """Milliseconds of a step's parts in this process: model, muon, rest, and all."""
    import torch

    from nanogpt_lib.choices import OPTIMIZERS, model_config
    from nanogpt_lib.config import TrainConfig
    from nanogpt_lib.device import autocast, choose_dtype
    from nanogpt_lib.model import GPT
    from nanogpt_lib.presets import PRESETS
    from nanogpt_lib.support.memory import keep_freed_memory

    keep_freed_memory()
    config = TrainConfig(**{**PRESETS["quickstart"], "muon_method": method})
    device, rows = torch.device("cpu"), config.batch_size
    dtype = choose_dtype(device)
    torch.manual_seed(0)
    model = GPT(model_config(config, 96))
    muon, adamw = OPTIMIZERS["muon"](model, config, dtype).parts
    x = torch.randint(96, (rows, config.block_size))
    steps, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(steps) < 8:
        times = [time.perf_counter()]
        with autocast(device, dtype):
            _, loss = model(x, x)
        loss.backward()
        times.append(time.perf_counter())
        muon.step()
        times.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        model.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
        steps.append([b - a for a, b in zip(times, [*times[1:], times[0]], strict=True)])
    steps = [[*parts[:3], -parts[3]] for parts in steps[3:]]
    low = [sorted(column)[len(column) // 5] for column in zip(*steps, strict=True)]
    return {
        n: round(1e3 * v, 1) for n, v in zip(("model", "muon", "rest", "all"), low, strict=True)
    }


def in_a_process(method: str, wait: str, seconds: float, busy: bool) -> dict[str, float]:
    """`time_parts` in a process whose threads wait this way; `busy`: beside a spinning process."""
    env = {n: v for n, v in os.environ.items() if n not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {**WAITS[wait], "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(SPIN) if busy else None
    try:
        command = [sys.executable, __file__, "--part", method, "--seconds", str(seconds)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    finally:
        if other:
            other.kill()
            other.wait()
    if done.returncode:
        raise UserError(done.stderr.strip().split("\n")[-1])
    return json.loads(done.stdout)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, keep the record."""
    parser = OneLineParser(prog="bench_step.py", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row")
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    parser.add_argument("--part", help="time one method in this process, print JSON")
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(time_parts(args.part, args.seconds)))
        return
    rows = []
    print(f"{'threads wait':<14}{'muon by':<16}{'machine':<9}{'model':>8}{'muon':>8}{'all':>8} ms")
    plan = [("ours", "newton-schulz", False)]
    plan += [(wait, "halley", busy) for wait in WAITS for busy in (False, True)]
    for wait, method, busy in plan:
        row = in_a_process(method, wait, args.seconds, busy)
        rows.append({"wait": wait, "method": method, "busy": busy, **row})
        where = "busy" if busy else "idle"
        print(
            f"{wait:<14}{method:<16}{where:<9}{row['model']:8.1f}{row['muon']:8.1f}{row['all']:8.1f}",
            flush=True,
        )
    if args.json:
        write_record(args.json, rows)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run_program("bench_step.py", main)
