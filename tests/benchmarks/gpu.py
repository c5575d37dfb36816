"""Everything that a GPU must show, in one run of at most 8 minutes; writes one JSON file.

    python tests/benchmarks/gpu.py --out gpu.json --hellaswag data/hellaswag/val.jsonl \\
        --build-nanogpt BUILD_NANOGPT --nanogpt NANOGPT
    python tests/benchmarks/gpu.py --out quick.json --quick       every part once, in two minutes
    python tests/benchmarks/gpu.py --out tiny.json --rehearse     the same on any CPU, tiny
    python tests/benchmarks/gpu.py --record                       on a CPU: the losses to compare

The most important parts come first, after those that measure no time, which run together. Each
runs in a process of its own with a time limit, so that none can take the others with it, and
FILE.json is written again after each; what they print, with all tracebacks, is in FILE.log. Parts
for which the time does not suffice are noted as skipped.

FILE.json: `about` (card, driver, versions, commit, date, mode), `clocks` (of the card: before,
after, and their spread), and `parts`: name → `status` (ok, failed, stopped or skipped), `seconds`,
`note` (the reason if it is not ok) and `result`. Within a result, an entry that could not be
measured is {"missing": reason}.
"""

import argparse
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import gpu_compile
import gpu_inference
import gpu_machine
import gpu_training
import torch
from gpu_base import RECORDED, Plan, Report, reason
from gpu_run import Clocks, Part, Record, part_file, run_all, wait_for_plan

from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.machine import describe_machine, name_of, output_of

BUDGET = {"full": 470.0, "quick": 112.0, "rehearsal": 600.0}  # seconds


PARTS = {
    "compile": Part(gpu_compile.compile_ahead, 45, 85),
    "losses": Part(gpu_training.losses, 0, 75),
    "parallel": Part(gpu_training.parallel, 0, 80),
    "others": Part(gpu_training.others, 45, 90),
    "ladder": Part(gpu_training.ladder, 45, 140),
    "sampling": Part(gpu_inference.sampling, 18, 45),
    "hellaswag": Part(gpu_inference.hellaswag, 12, 35),
    "memory": Part(gpu_machine.memory, 9, 30),
    "peak": Part(gpu_machine.peak, 5, 15),
    "programs": Part(gpu_machine.programs, 20, 75),
}


# --- one part, in its own process -----------------------------------------------------------------


def run_part(plan: Plan, name: str) -> None:
    """Run one part and write down how it ended."""
    report, started = Report(part_file(plan, name)), monotonic()
    print(f"== {name}", flush=True)
    try:
        if plan.on.type == "cuda":
            torch.cuda.set_device(plan.on)  # starts CUDA, which some functions expect
        if name.startswith("compile:"):
            gpu_compile.compile_one(plan, report, name.removeprefix("compile:"))
        else:
            PARTS[name].function(plan, report)
        report["status"] = "ok"
    except Exception as error:
        traceback.print_exc()
        report["note"], report["status"] = reason(error), "failed"
    report["seconds"] = round(monotonic() - started, 1)


# --- the program ----------------------------------------------------------------------------------


def describe(plan: Plan, commit: str | None, budget: float) -> dict:
    """The machine and the run; the card's name without starting CUDA in this process."""
    card = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    name = card if card and plan.device == "cuda" else name_of(torch.device("cpu"))
    about = describe_machine(name)
    about |= {"python": sys.version.split()[0], "mode": plan.mode, "budget_seconds": budget}
    about["commit"] = commit or about["commit"]
    return about | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


def record_on_cpu() -> None:
    """Write the file of a CPU's losses, with which a GPU's are compared."""
    about = describe_machine(name_of(torch.device("cpu")))
    own = {"hellaswag_own": gpu_inference.own_losses(torch.device("cpu"))}
    write_json(RECORDED, {"about": about, **gpu_training.record_losses(), **own})


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = OneLineParser(prog="gpu.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, help="the JSON file to write; FILE.log goes beside it")
    add("--quick", action="store_true", help="every part once, several at a time: two minutes")
    add("--rehearse", action="store_true", help="tiny sizes on the CPU")
    add("--record", action="store_true", help="write the CPU's losses to compare with")
    add("--budget", type=float, help="seconds for all parts (default: 470; --quick: 112)")
    add("--parts", default=",".join(PARTS), help="only these, separated by commas")
    add("--build-nanogpt", type=Path, help="a checkout of build-nanogpt")
    add("--nanogpt", type=Path, help="a checkout of nanoGPT")
    add("--hellaswag", type=Path, help="HellaSwag's items as JSON lines (default: our own)")
    add("--commit", help="the commit to name, where this is no repository")
    add("--part", help=argparse.SUPPRESS)
    add("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (args.out or args.record or args.part):
        parser.error("--out FILE.json is required")
    if odd := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: no {sorted(odd)[0]!r}; choose from {', '.join(PARTS)}")
    for flag in ("build_nanogpt", "nanogpt", "hellaswag"):
        path = getattr(args, flag)
        if path and not path.exists():
            raise UserError(f"--{flag.replace('_', '-')} {path}: does not exist")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the parts; or, in a child, those that --part names."""
    args = arguments(argv)
    if args.record:
        record_on_cpu()
        return 0
    if args.part:
        plan = wait_for_plan(args.plan)
        for name in args.part.split(","):
            run_part(plan, name)
        return 0
    mode = "rehearsal" if args.rehearse else "quick" if args.quick else "full"
    device = "cpu" if args.rehearse else "cuda"
    if device == "cuda" and output_of("nvidia-smi", "-L") is None:
        raise UserError("no NVIDIA GPU here; --rehearse runs every part on the CPU")
    given = {n: getattr(args, n) for n in ("build_nanogpt", "nanogpt", "hellaswag")}
    given = {name: str(path.resolve()) for name, path in given.items() if path}
    budget = args.budget or BUDGET[mode]
    chosen = {name: part for name, part in PARTS.items() if name in args.parts.split(",")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        plan = Plan(mode, device, folder, monotonic() + budget, **given)
        record, clocks = Record(args.out, describe(plan, args.commit, budget)), None
        try:
            clocks = Clocks(Path(folder, "clocks.csv"))
            run_all(plan, record, chosen, budget)
        finally:
            record.values["clocks"] = clocks.close() if clocks else {}
            record.write()
    print(f"wrote {args.out} and {record.log}")
    return 0


if __name__ == "__main__":
    run_program("gpu.py", main)
