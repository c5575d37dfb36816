"""Part of gpu.py: compile what later parts need, many at once, into PyTorch's cache on disk."""

from collections.abc import Callable
from dataclasses import replace
from time import sleep

import torch
from gpu_base import Plan, Report
from gpu_run import results_of, start_job
from gpu_training import contenders, time_updates
from speedups import Variant, measure

from nanogpt_lib.device import choose_dtype


def compile_jobs(plan: Plan) -> dict[str, tuple[float, Callable[[], object]]]:
    """What later parts will compile, most important first: name → (gigabytes, job).

    All share PyTorch's cache on disk. Compiling keeps one core busy and the GPU idle, so several at
    once take little longer than one.
    """
    sizes, compile = plan.sizes, "default" if plan.compile == "on" else "off"
    rows = sizes["rows"]
    base = Variant(compile=compile, dtype=choose_dtype(plan.on), tf32=plan.compile == "on")
    sdpa = replace(base, attention="sdpa")
    wide = replace(sdpa, vocab_multiple=64, fused=True)
    kernel = "cudnn" if plan.on.type == "cuda" else "flash"

    def step(variant: Variant) -> Callable[[], object]:
        return lambda: measure(variant, plan.shape, rows, 1, plan.on)

    def updates(name: str) -> Callable[[], object]:
        return lambda: time_updates(plan, name, only_compile=True)

    gb = rows * 0.9
    large = sizes["update_rows"] * 0.75
    ladder = {
        "vocabulary 50304": (gb, step(wide)),
        "SDPA: cudnn": (gb, step(replace(wide, kernel=kernel))),
        "torch.compile": (1.5 * gb, step(base)),
        "fused attention": (gb, step(sdpa)),
    }
    first, *more = ((name, (large, updates(name))) for name in contenders(plan))
    return dict([first, *more[:3], *ladder.items(), *more[3:]])


def compile_one(plan: Plan, report: Report, job: str) -> None:
    """One of `compile_jobs`, in a process of its own."""
    found = report.attempt(job, compile_jobs(plan)[job][1])
    report[job] = {name: found[name] for name in ("missing", "took") if name in found}


def compile_ahead(plan: Plan, report: Report) -> None:
    """Run compile_jobs, as many at once as fit into the card's memory."""
    jobs = compile_jobs(plan)
    if plan.mode == "rehearsal":
        jobs = dict(list(jobs.items())[:1])
    budget, running, started = free_gigabytes(plan), {}, set()
    while len(started) < len(jobs) or running:
        for name, (gigabytes, _) in jobs.items():
            used = sum(jobs[other][0] for other in running)
            if name not in started and (not running or used + gigabytes < budget):
                running[name] = start_job(plan, f"compile:{name}")
                started.add(name)
        sleep(0.1)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                found = results_of(plan, f"compile:{name}")
                report[name] = found.get(name, f"ended with status {process.returncode}")


def free_gigabytes(plan: Plan) -> float:
    """Memory of the card that compiling may use; beside a quick run's other parts, less."""
    share = 0.85 if plan.mode == "full" else 0.35
    return share * torch.cuda.mem_get_info()[0] / 1e9 if plan.on.type == "cuda" else 1.0
