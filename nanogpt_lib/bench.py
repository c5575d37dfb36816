"""The ladder of speed-ups on this machine, and how long each preset's real run would take here.

    python nanogpt_lib/bench.py                        GPT-2 124M, sizes that suit the device
    python nanogpt_lib/bench.py --preset gpt2-350m --batch-size 16 --block-size 1024
    python nanogpt_lib/bench.py --json ladder.json --build-nanogpt DIR --nanogpt DIR
                                                       their own steps too; write all rows, with
                                                       card, driver, versions and commit
    python nanogpt_lib/bench.py --sampling --nanogpt DIR       tokens per second when drawing text

Every rung keeps what the rungs above it changed. A rung this machine cannot climb says so.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import contextlib
import platform
import re
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from nanogpt_lib.config import PRESETS, TrainConfig
from nanogpt_lib.device import choose_dtype, detect_device, flops_per_token
from nanogpt_lib.ladder import Rung, further_changes, lecture_rungs, measure_or_note, row_of
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.others import time_theirs
from nanogpt_lib.samplers import print_sampling
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.memory import rows_that_fit, training_bytes

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "bias")
WORTH = 1.01  # a rung beyond the lecture is kept if it is faster by more than this: noise is not


def print_row(row: dict, first: dict) -> None:
    """One line of the ladder; ratio: tokens per second over those of the first rung."""
    mfu = f"{row['mfu']:.1%}" if row["mfu"] else "—"
    memory = f"{row['memory_gb']:.1f}" if row["memory_gb"] else "—"
    ratio = row["tokens_per_sec"] / first["tokens_per_sec"]
    moved = "" if "moved" not in row else f"{row['moved']:.0e}"
    print(
        f"{row['rung']:<26}{row['ms']:>9.1f}{row['tokens_per_sec']:>11,.0f}{row['gflops']:>9,.0f}"
        f"{mfu:>7}{memory:>7}{ratio:>7.2f}{moved:>8}  {row['note']}",
        flush=True,
    )


def climb(rungs: list[Rung | str], further: dict, shape: dict, rows: int, steps: int, device):
    """Measure and print rung by rung; return the rows and the rung that was best."""
    print(
        f"{'rung':<26}{'ms/step':>9}{'tokens/s':>11}{'GFLOP/s':>9}{'MFU':>7}{'GB':>7}"
        f"{'ratio':>7}{'loss ±':>8}"
    )
    results: list[dict] = []
    best, fastest = None, None

    def try_rung(rung: Rung, always: bool) -> None:
        nonlocal best, fastest
        row = measure_or_note(rung, shape, rows, steps, device)
        if isinstance(row, str):
            print(f"  — {row}")
            results.append({"rung": rung.name, "missing": row, "kept": False})
            return
        first = next((r for r in results if "loss" in r), row)
        if rung.factor == 1 and not rung.data:  # otherwise another batch: no comparison
            row["moved"] = abs(row["loss"] - first["loss"])
        faster = best is None or row["tokens_per_sec"] > WORTH * fastest["tokens_per_sec"]
        row["kept"] = always or faster
        if row["kept"]:
            best, fastest = rung, row
        row["note"] = row["note"] or ("" if row["kept"] else "dropped")
        results.append(row)
        print_row(row, first)

    for rung in rungs:
        if isinstance(rung, str):
            print(f"  — {rung}")
            results.append({"rung": rung.split(":")[0], "missing": rung, "kept": False})
        else:
            try_rung(rung, always=True)
    print("beyond the lecture, each on top of what was kept:")
    for name, change in further.items():
        try_rung(replace(best, name=name, **change), always=False)
    for data, name in (("loader", "data from the disk"), ("ahead", "the same, read ahead")):
        add_row(results, replace(best, name=name, data=data), shape, rows, steps, device)
    return results, best


def add_row(results: list[dict], rung: Rung, shape: dict, rows: int, steps: int, device) -> None:
    """Measure and print the best step in other surroundings; it is no rung to stand on."""
    row = measure_or_note(rung, shape, rows, steps, device)
    if isinstance(row, str):
        print(f"  — {row}")
        return
    results.append({**row, "kept": False})
    print_row(row, next(r for r in results if "loss" in r))


def print_others(checkouts: dict, shape: dict, rows: int, steps: int, device, compile: bool):
    """Their own steps on the same card in the same run; return the rows."""
    results: list[dict] = []
    for name, folder in checkouts.items():
        for compiled in (False, True) if compile else (False,):
            label = name + (" compiled" if compiled else "")
            dtype = choose_dtype(device)
            how = (name, folder, shape, rows, steps, device, dtype, compiled)
            try:
                seconds, loss = time_theirs(*how)
            except RuntimeError as error:
                print(f"  — {label}: {str(error).strip().splitlines()[0][:80]}")
                continue
            ours = GPT(GPTConfig(**shape, vocab_multiple=64))  # operations: of the same shape
            tokens = rows * shape["block_size"]
            results.append(row_of(label, seconds, tokens, loss, ours, device))
            print_row(results[-1], results[0])
    return results


def preset_model(name: str) -> tuple[TrainConfig, GPT]:
    """A preset and its model without memory."""
    config = TrainConfig(**PRESETS[name])
    shape = {key: getattr(config, key) for key in (*SHAPE, "vocab_multiple", "attention")}
    vocabulary = {} if config.vocab_multiple > 1 else {"vocab_size": 96}  # characters
    with torch.device("meta"):
        return config, GPT(GPTConfig(**shape, **vocabulary))


def print_memory(dtype: torch.dtype) -> None:
    """Peak memory of a step by preset and micro-batch, and what fits, by chapter 05's formula."""
    cards = (8, 16, 24, 40, 80)
    print(f"\nPeak memory (GB) in {str(dtype).removeprefix('torch.')}, by rows per micro-batch;")
    print("then the largest micro-batch that divides the step and fits into so many GB:")
    rows = (1, 4, 16, 64)
    head = "".join(f"{f'{n} rows':>9}" for n in rows) + "".join(f"{f'{g} GB':>7}" for g in cards)
    print(f"  {'preset':<22}{head}")
    for name in PRESETS:
        config, model = preset_model(name)
        step_rows = config.total_batch_size // config.block_size
        needs = "".join(f"{training_bytes(model, n, dtype) / 1e9:9.2f}" for n in rows)
        fits = [rows_that_fit(model, dtype, gb * 1e9, step_rows) for gb in cards]
        print(f"  {name:<22}{needs}" + "".join(f"{n or '—':>7}" for n in fits))


def print_estimates(flops_per_second: float, device_name: str) -> None:
    """How long every preset would take at this rate: operations of the run over operations/s."""
    print(f"\nWhole runs at {flops_per_second / 1e9:,.0f} GFLOP/s, as measured on {device_name}:")
    for name in PRESETS:
        config, model = preset_model(name)
        tokens = config.max_steps * config.total_batch_size
        left = timedelta(seconds=round(flops_per_token(model) * tokens / flops_per_second))
        print(f"  {name:<22}{tokens / 1e6:>12,.1f}M tokens   {left}")


def output_of(*command: str) -> str | None:
    """What a program says on its first line; None if it is not there or fails."""
    here = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=here)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else None


def machine(name: str) -> dict:
    """Card, driver, versions and commit: what a recorded figure must say of itself."""
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver}
    return {"device": name, "threads": torch.get_num_threads(), **versions, "commit": commit}


def name_of(device: torch.device) -> str:
    """The card's or the processor's name, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> None:
    """Climb the ladder, then extrapolate; or, with --sampling, draw text."""
    parser = OneLineParser(prog="bench.py", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gpt2-124m", choices=list(PRESETS))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--batch-size", type=int, help="rows (default: 16 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--block-size", type=int, help="tokens per row (default: the preset's, 256 on a CPU)"
    )
    parser.add_argument("--steps", type=int, help="timed steps (default: 20 on a GPU, 3 on a CPU)")
    parser.add_argument("--compile", action="store_true", help="try torch.compile off CUDA, too")
    parser.add_argument("--build-nanogpt", type=Path, help="also time the step of this checkout")
    parser.add_argument("--nanogpt", type=Path, help="also time the step of this checkout")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--sampling", action="store_true", help="draw text instead, and time it")
    parser.add_argument("--new-tokens", type=int, default=400, help="tokens per text (--sampling)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="the best of these counts (--sampling)"
    )
    args = parser.parse_args(argv)
    device = detect_device(args.device)
    on_cpu = device.type == "cpu"
    config = TrainConfig(**PRESETS[args.preset])
    shape = {key: getattr(config, key) for key in SHAPE}
    if args.block_size or (on_cpu and not args.sampling):
        shape["block_size"] = args.block_size or min(256, config.block_size)
    rows = args.batch_size or (1 if on_cpu else 16)
    name = name_of(device)
    print(f"{args.preset} on {device} ({name}), torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    if args.sampling:
        rates = print_sampling(shape, device, args.new_tokens, args.rounds, args.nanogpt)
        if args.json:
            write_json(args.json, {**machine(name), "preset": args.preset, "sampling": rates})
        return
    print(f"{rows} × {shape['block_size']} tokens per step\n")
    compile = args.compile or device.type == "cuda"
    steps = args.steps or (3 if on_cpu else 20)
    further = further_changes(device, compile)
    results, best = climb(lecture_rungs(device, compile), further, shape, rows, steps, device)
    checkouts = {"build-nanogpt": args.build_nanogpt, "nanoGPT": args.nanogpt}
    checkouts = {key: folder for key, folder in checkouts.items() if folder}
    theirs = print_others(checkouts, shape, rows * best.factor, steps, device, compile)
    if on_cpu:  # cannot be undone, so after those who run without
        rung = replace(best, name="freed memory kept", keep_memory=True)
        add_row(results, rung, shape, rows, steps, device)
    print_memory(best.dtype)
    measured = [row for row in results if "gflops" in row]
    print_estimates(max(row["gflops"] for row in measured) * 1e9, name)
    if args.json:
        about = {**machine(name), "preset": args.preset, "rows": rows, **shape}
        write_json(args.json, {**about, "ladder": results, "others": theirs})
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run_program("bench.py", main)
