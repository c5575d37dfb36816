"""Is all well for this run, on this machine? One line per check, then hours and cost.

    torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m --preflight --price 2

train.py --preflight calls `preflight` with the flags of the run. Nothing is written into the run
directory: what has to be written goes into a temporary folder beside it.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from nanogpt_lib.choices import MODELS, OPTIMIZERS, model_config, state_bytes
from nanogpt_lib.config import TrainConfig, micro_batch
from nanogpt_lib.forecast import (
    LOG_LINE,
    checkpoint_bytes,
    checkpoints_at_once,
    in_hours,
)
from nanogpt_lib.hellaswag import read_items
from nanogpt_lib.preflight.flight import Flight, Loop, let_go
from nanogpt_lib.preflight.machine import (
    data_line,
    data_needed,
    describe_process,
    disk_line,
    existing,
    fingerprints,
    links_line,
    processes_line,
    sameness_line,
    settings_line,
    time_all_reduce,
    tokens_line,
    verify_data,
)
from nanogpt_lib.preflight.processes import against_one, one_process
from nanogpt_lib.preflight.whole_run import whole_run
from nanogpt_lib.scaling import sizes_of
from nanogpt_lib.start import open_source
from nanogpt_lib.support.checks import Checks, Note, quiet
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import in_units
from nanogpt_lib.support.memory import rows_that_fit
from nanogpt_lib.support.processes import World
from nanogpt_lib.tokenizer import tokenizer_from

MAY_GO_ON = {"settings", "tokens"}  # a run must not start with these, but what follows can be seen


def preflight(
    config: TrainConfig, world: World, device: torch.device, loop: Loop, notes: list[str]
) -> int:
    """Do all checks; return the exit status: 1 if the run should not start. `notes`: see main."""
    start, checks = perf_counter(), Checks(world)
    what = config.preset or config.out
    if world.is_main:
        print(f"preflight of {what}; {config.out} is left alone", flush=True)
    flight = Flight(replace(config, verify_data=False), world, device, loop, checks)
    with contextlib.ExitStack() as stack:
        if before_a_model(flight, notes, stack):
            stack.callback(let_go, flight)
            _ = one_process(flight) and against_one(flight) and whole_run(flight)
    if world.is_main:
        print(f"preflight took {in_hours(perf_counter() - start)}", flush=True)
    return checks.verdict(what)


# --- before there is a model --------------------------------------------------------------------


def before_a_model(flight: Flight, notes: list[str], stack: contextlib.ExitStack) -> bool:
    """Check processes, settings, data, disk, memory by formula, links; True if one can go on."""
    check, config, world, device = flight.checks, flight.config, flight.world, flight.device
    known = check("processes", partial(describe_process, config, world, device), processes_line)
    hosts = len({ours["host"] for ours in known}) if known else 1
    check("settings", partial(settings_line, config, world, notes))
    found = check("data", partial(look_at_data, flight), lambda found: data_line(found, hosts))
    datasets = [ours["digest"] for ours in found] if found else [""]
    check("same", partial(fingerprints, config), lambda ours: sameness_line(ours, datasets))
    if not found:
        return False
    if not flight.config.length_is_open:
        check("tokens", partial(tokens_line, config, found[0]["tokens"][0]))
    flight.meta = found[0]["meta"]
    if not check("model", partial(plan_model, flight)):
        return False
    check("memory", partial(memory_line, flight))
    sizes = checkpoint_bytes(flight.model, flight.optimizer_bytes), checkpoints_at_once(config)

    def disk() -> tuple[str, Path]:
        text = disk_line(config, *sizes, LOG_LINE * config.max_steps)
        return text, stack.enter_context(temporary_folder(config)) if world.is_main else Path()

    places = check("disk", disk, lambda places: places[0][0])
    flight.folder = places[0][1] if places else Path()
    size = 4 * sum(p.numel() for p in flight.model.parameters())

    def line(seconds: list[float]) -> str:
        return links_line(size, max(seconds), world, device)

    links = check("links", partial(time_all_reduce, size, world, device), line, together=True)
    flight.seconds["links"] = max(links or [0.0])
    return {*check.stopped} <= MAY_GO_ON


def look_at_data(flight: Flight) -> dict:
    """`verify_data`; if there is no dataset, also say what it would take."""
    try:
        return verify_data(flight.config, flight.world)
    except UserError as error:
        if Path(flight.config.data).is_dir():
            raise
        raise UserError(f"{error}; {data_needed(flight.config)}") from error


def plan_model(flight: Flight) -> str:
    """Make the model without its weights; check HellaSwag's items and tokenizer."""
    config, vocab_size = flight.config, flight.meta["vocab_size"]
    tokenizer = tokenizer_from(flight.meta["tokenizer"])
    items = read_items(config.hellaswag_data, tokenizer) if config.hellaswag_every else []
    if config.init_from != "scratch" and not config.resume:  # it brings its shape
        with quiet():
            open_source(config, flight.meta, tokenizer, World())
    with torch.device("meta"):
        flight.model = MODELS[config.model](model_config(config, vocab_size))
    optimizer = OPTIMIZERS[config.optimizer](flight.model, config, flight.dtype)
    flight.optimizer_bytes = state_bytes(optimizer)
    sizes = sizes_of(flight.model)
    work = f"{sizes.flops / 1e9:.3g} GFLOP per token"
    text = f"{sizes.parameters:,} parameters, {work}, {config.optimizer}, {str(flight.dtype)[6:]}"
    return f"{text}; {len(items):,} HellaSwag items" if config.hellaswag_every else text


def memory_line(flight: Flight) -> str:
    """The memory of a step by the formula. It is for plain PyTorch: compiled, a step needs less, so
    on a GPU the formula alone stops nothing that is not far off."""
    rows, micro_steps = micro_batch(flight.config, flight.world.size)
    needed = flight.need(rows, flight.ranks)
    text = f"{in_units(needed)} for {rows} rows by formula, {in_units(flight.memory)} there"
    if needed <= 0.9 * flight.memory:
        return text
    what = flight.model, flight.dtype, flight.memory, rows * micro_steps
    fewer = rows_that_fit(*what, flight.optimizer_bytes, flight.ranks)
    advice = f"--batch-size {fewer} fits" if fewer else "a smaller --block-size or model, or fsdp"
    if needed > flight.memory * (1.25 if flight.device.type == "cuda" else 1):
        raise UserError(f"{text}; {advice}")
    return Note(f"{text}; {advice} for certain")


@contextlib.contextmanager
def temporary_folder(config: TrainConfig) -> Iterator[Path]:
    """A folder on the file system of the run directory, removed at the end, also after a kill.

    A child removes it when the pipe that it reads closes, in whatever way this process ends.
    """
    out = Path(config.out).resolve()
    beside = out if out.is_mount() else existing(out.parent)
    folder = Path(tempfile.mkdtemp(prefix=".preflight-", dir=beside))
    code = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        (folder / "log.jsonl").touch()  # as in a run directory
        yield folder
    finally:
        child.stdin.close()
        child.wait()
