"""The checks of the run as it will be: speed and peak memory, checkpoints, evaluation, its hours.

The run is the one that processes.py has built.
"""

import math
import shutil
from dataclasses import replace
from functools import partial
from time import perf_counter

from nanogpt_lib.config import micro_batch
from nanogpt_lib.forecast import Forecast, in_hours, in_time, times_due
from nanogpt_lib.pace import set_length
from nanogpt_lib.preflight.flight import Flight, build, let_go, state_of, take
from nanogpt_lib.preflight.processes import SECONDS, STEPS, TOLERANCE, twin
from nanogpt_lib.run import save
from nanogpt_lib.support.checks import Note, quiet
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import in_units
from nanogpt_lib.support.memory import peak_memory

LINKS_SHARE = 0.3  # of a step, above which exchanging gradients deserves a look


def whole_run(flight: Flight) -> bool:
    """Updates of the run itself, its checkpoint, its evaluations, its hours."""
    check = flight.checks
    return (
        check("step", partial(whole_updates, flight), together=True) is not None
        and check("checkpoint", partial(save_and_restore, flight), together=True) is not None
        and check("evaluation", partial(evaluate_once, flight), together=True) is not None
        and check("time", partial(forecast_line, flight)) is not None
    )


def whole_updates(flight: Flight) -> str:
    """Time updates of the run itself; the line tells their speed and the peak of memory."""
    _, micro_steps = micro_batch(flight.config, flight.world.size)
    micro = flight.seconds["micro"]
    many = min(micro_steps, max(1, int(SECONDS / micro)))
    if flight.world.size > 1 and twin(flight) != replace(
        flight.config, batch_size=flight.run.rows
    ):  # until now it was a twin
        let_go(flight)
        flight.run = build(flight, flight.config, flight.world)
        take(flight, flight.run, 1, many)
    count = max(1, min(STEPS, int(SECONDS / (many * micro))))
    start = perf_counter()
    take(flight, flight.run, count, many)
    seconds = (perf_counter() - start) / count * micro_steps / many
    flight.seconds["step"] = seconds
    if flight.config.length_is_open:
        pace = flight.config.step_seconds or seconds
        set_length(flight.config, flight.first_step, flight.run.progress.elapsed, pace)
    fast = flight.loop.speed(flight.run, seconds)
    text = f"{in_time(seconds)}, {fast['tokens_per_sec']:,.0f} tokens/s"
    text += f", MFU {fast['mfu']:.1%}" if fast["mfu"] else ""
    if peak := peak_memory(flight.device):
        text += f"; peak memory {in_units(peak)} of {in_units(flight.memory)}"
        if peak > 0.97 * flight.memory:
            return Note(f"{text}, which is tight: a smaller --batch-size is safer")
    share = flight.seconds["links"] / seconds
    if share > LINKS_SHARE:
        return Note(f"{text}; exchanging gradients takes {share:.0%} of it: slow links")
    return text


# --- checkpoints --------------------------------------------------------------------------------


def save_and_restore(flight: Flight) -> str:
    """Save, update; rebuild, restore, update: state and loss must be the same.

    Raises UserError that names what differs. The run is then the restored one.
    """
    run = flight.run
    start = perf_counter()
    save(run)
    flight.seconds["save"] = perf_counter() - start
    size = sum(path.stat().st_size for path in flight.folder.glob("checkpoints/*/*"))
    saved, config = state_of(run), run.config
    [(loss, _)] = take(flight, run, 1, 1)
    del run
    let_go(flight)
    flight.run = build(flight, replace(config, resume=True), flight.world)
    restored = state_of(flight.run)
    if wrong := [name for name in saved if restored.get(name) != saved[name]]:
        raise UserError(f"{len(wrong)} of {len(saved)} parts differ when restored, e.g. {wrong[0]}")
    [(again, _)] = take(flight, flight.run, 1, 1)
    if not abs(again - loss) <= TOLERANCE[flight.dtype]:
        raise UserError(f"the loss after restoring is {again:.5f}, without it {loss:.5f}")
    if flight.world.is_main:  # all have restored it: they have made an update together
        shutil.rmtree(flight.folder / "checkpoints", ignore_errors=True)
    rate = in_units(size / flight.seconds["save"])
    return (
        f"{in_units(size)} saved in {flight.seconds['save']:.2g} s ({rate}/s), rebuilt and "
        f"restored: {len(saved)} parts equal, and the next loss"
    )


# --- evaluation and hours -----------------------------------------------------------------------


def evaluate_once(flight: Flight) -> str:
    """Validate on a part of the text, score a part of HellaSwag's items, and write samples, once.

    The times are those of the whole, in proportion.
    """
    run, given = flight.run, flight.config
    batch = run.world.size * run.eval_rows * given.block_size
    whole = min(given.eval_tokens, len(run.val_stream))
    tokens = min(4 * batch, whole)
    items, all_items = 16 * run.world.size, len(run.items)
    items = min(all_items, items if run.device.type == "cpu" else 16 * items)
    run.items = run.items[:items]
    parts = {"validation": ("eval_every", whole / tokens)}
    if all_items:
        parts["HellaSwag"] = ("hellaswag_every", all_items / items)
    parts["samples"] = ("sample_every", 1.0)
    never = dict.fromkeys(("eval_every", "hellaswag_every", "sample_every"), 0)
    config, said = run.config, {}
    for name, (every, factor) in parts.items():
        this_one = {**never, every: 1, "max_steps": run.step + 1, "eval_tokens": tokens}
        run.config = replace(config, **this_one)
        for _ in range(1 if run.device.type == "cpu" else 2):  # on a GPU the first time is slower
            start = perf_counter()
            with quiet() as lines:
                flight.loop.evaluate_and_sample(run)
            flight.seconds[name] = factor * (perf_counter() - start)
        said[name] = lines.getvalue()
    run.config = config
    times = ", ".join(f"{name} {in_hours(flight.seconds[name])}" for name in parts)
    loss = run.val_losses.get(run.step, math.nan)
    sample = " ".join(said["samples"].split("samples", 1)[-1].split())
    return f"{times}; validation loss {loss:.4f}; a sample begins {sample[:30]!r}"


def forecast_line(flight: Flight) -> str:
    """The run's hours and, with --price, its cost."""
    config, seconds = flight.config, flight.seconds
    first, last = flight.first_step, config.max_steps
    extras = {"start": seconds["start"]}
    for name, every in (("validation", config.eval_every), ("HellaSwag", config.hellaswag_every)):
        if name in seconds:
            extras[name] = seconds[name] * times_due(every, first, last)
    extras["samples"] = seconds["samples"] * times_due(config.sample_every, first, last)
    extras["checkpoints"] = seconds["save"] * times_due(config.save_every, first + 1, last)
    hours = Forecast(config, seconds["step"], first, extras)
    text = hours.describe()
    if config.price:
        gpus = flight.world.size
        cost = hours.seconds / 3600 * gpus * config.price
        each = f" for each of {gpus}" if gpus > 1 else ""
        text += f"; at {config.price:g} an hour{each}: {cost:,.2f}"
    return text
