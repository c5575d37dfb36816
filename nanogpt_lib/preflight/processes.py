"""The checks of a run's model: it compiles and fits, all ranks are as fast, and compute the same.

A job with collectives inside is marked `together`; see support.checks.
"""

import math
import statistics
from dataclasses import replace
from functools import partial

import torch

from nanogpt_lib.config import TrainConfig, micro_batch
from nanogpt_lib.device import autocast, median_seconds
from nanogpt_lib.forecast import in_time
from nanogpt_lib.preflight.flight import Flight, build, let_go, state_of, take
from nanogpt_lib.run import Run
from nanogpt_lib.support.checks import Note
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.memory import is_out_of_memory, rows_to_try
from nanogpt_lib.support.processes import World, on_every_rank

STEPS = 5  # updates in which W processes are compared with one
SECONDS = 20  # for these, and for timing whole updates: with slow steps fewer micro-steps are done
# largest difference of a loss; a gradient norm may differ ten times as much, relative to itself
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-3, torch.float16: 2e-3}
# a rank's micro-step, relative to the median: worth a look, and a reason to stop; other programs
# may be using a CPU
SLOW, TOO_SLOW, TOO_SLOW_ON_CPU = 1.15, 1.5, 3.0
AGAIN = 3  # times a rank that seems too slow is timed once more


# --- one process: compilation, memory, speed of each rank ---------------------------------------


def twin(flight: Flight) -> TrainConfig:
    """The run's settings so that one process can repeat what all do: the same rows, no dropout.

    If the model is sharded because it does not fit, it has fewer layers.
    """
    rows, _ = micro_batch(flight.config, flight.world.size)
    config = replace(flight.config, batch_size=rows)
    if flight.world.size == 1:
        return config
    room = 0.9 * flight.memory / flight.need(rows, 1)
    if config.parallel == "ddp" or room >= 1:
        return replace(config, dropout=0.0)
    layers = max(1, math.floor(config.n_layer * room / 2))
    return replace(config, dropout=0.0, n_layer=layers, resume=False, init_from="scratch")


def one_process(flight: Flight) -> bool:
    """Build the model on every rank as if it were alone; check compilation and each rank's speed.

    There are no collectives, so a rank that runs out of memory leaves nobody waiting.
    """
    found = flight.checks("compile", partial(try_alone, flight), compile_line)
    if not found:
        return False
    seconds = [ours["micro"] for ours in found]
    limit = TOO_SLOW_ON_CPU if flight.device.type == "cpu" else TOO_SLOW
    for _ in range(AGAIN):  # a core may have been another program's at that moment
        if max(seconds) <= limit * statistics.median_low(seconds):
            break
        once_more = partial(micro_seconds, flight.run, flight.optimizer_bytes)
        seconds = [*map(min, seconds, on_every_rank(once_more, flight.world))]
    layers = flight.config.n_layer / flight.run.config.n_layer  # 1, if the model was not too large
    flight.seconds["micro"] = layers * max(seconds)
    return bool(flight.checks("ranks", lambda: seconds, lambda _: ranks_line(seconds, limit)))


def try_alone(flight: Flight) -> dict:
    """Build, and time a micro-step; if it does not fit, raises UserError that names what does."""
    config, (rows, micro_steps) = twin(flight), micro_batch(flight.config, flight.world.size)
    if found := built_alone(flight, config):
        return found
    text, share = f"out of memory with {rows} rows", rows * micro_steps
    sizes = flight.optimizer_bytes, flight.ranks
    while rows := rows_to_try(flight.model, flight.dtype, flight.memory, share, rows, *sizes):
        if built_alone(flight, replace(config, batch_size=rows)):
            raise UserError(f"{text}; --batch-size {rows} fits (the tokens per step stay the same)")
    raise UserError(f"{text}, and with any number: a smaller model, or --parallel fsdp")


def built_alone(flight: Flight, config: TrainConfig) -> dict | None:
    """`try_alone` with these rows; None if the memory is too small."""
    try:
        flight.run = build(flight, replace(config, parallel="ddp"), World())
        seconds = micro_seconds(flight.run, flight.optimizer_bytes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        seconds = None
    if flight.run and flight.run.step >= config.max_steps and not flight.config.length_is_open:
        raise UserError(f"{flight.config.out} has its {config.max_steps} steps: nothing is left")
    if seconds is None:  # outside the handler, which keeps the frames and their tensors
        let_go(flight)
        return None
    return {"compiled": flight.run.compiled, "micro": seconds, **flight.seconds}


def micro_seconds(run: Run, optimizer_bytes: int) -> float:
    """Seconds of forward and backward on random tokens: the fastest, to be rid of noise.

    As much memory is taken as the optimizer will need, so that what fits here fits later, too.
    """
    later = torch.empty(optimizer_bytes, dtype=torch.uint8, device=run.device)
    shape = (run.rows, run.config.block_size)
    x = torch.randint(run.raw.config.vocab_size, shape, device=run.device)

    def micro() -> None:
        with autocast(run.device, run.dtype):
            _, loss = run.model(x, x)
        run.scaler.scale(loss).backward()

    seconds = [median_seconds(micro, run.device, repeats=1, warmup=1)]
    while sum(seconds) < 0.5:
        seconds.append(median_seconds(micro, run.device, repeats=1, warmup=0))
    run.optimizer.zero_grad(set_to_none=True)
    del later
    return min(seconds)


def compile_line(found: list[dict]) -> str:
    """What became of the compilation; raises UserError if it was wanted and failed."""
    failed = next((f["compiled"] for f in found if f["compiled"].startswith("not compiled (")), "")
    if failed:
        raise UserError(f"{failed}: the run would be slower; mend it, or accept by --compile off")
    return f"{found[0]['compiled']}; building took {max(f['start'] for f in found):.1f} s"


def ranks_line(seconds: list[float], limit: float) -> str:
    """Each rank's micro-step beside the median; raises UserError for one above the limit."""
    usual, slowest = statistics.median_low(seconds), max(seconds)
    text = f"a micro-step takes {in_time(slowest)}"
    if len(seconds) == 1:
        return text
    rank, ratio = seconds.index(slowest), slowest / usual
    text += f" on rank {rank}, the slowest: {ratio:.2f} times the median"
    if ratio > limit:
        raise UserError(f"{text}; all wait for it: nvidia-smi -q -d PERFORMANCE, or another card")
    return Note(text) if ratio > SLOW else text


# --- W processes against one --------------------------------------------------------------------


def against_one(flight: Flight) -> bool:
    """Five updates of each process alone, and of all together: losses and norms must be equal."""
    size = flight.world.size
    name = f"{size} against 1" if size > 1 else "updates"
    layers = flight.run.config.n_layer
    line = partial(difference_line, flight.dtype, layers if layers < flight.config.n_layer else 0)
    found = flight.checks(name, partial(take_both, flight), line, together=True)
    if not found:
        return False
    first = found[0]["together"][0][0]
    line = partial(first_loss_line, flight.config, flight.run)
    return bool(flight.checks("first loss", lambda: first, lambda losses: line(losses[0])))


def take_both(flight: Flight) -> dict:
    """Losses and norms of five updates alone and together; of fewer tokens if steps are slow."""
    size = flight.world.size
    _, micro_steps = micro_batch(flight.config, size)
    affordable = int(SECONDS / (STEPS * size * flight.seconds["micro"]))
    micro_steps = min(micro_steps, max(1, affordable))
    taken = take(flight, flight.run, STEPS, micro_steps * size)
    if size == 1:
        return {"alone": taken, "together": taken, "state": {}}
    let_go(flight)
    flight.run = build(flight, twin(flight), flight.world)
    together = take(flight, flight.run, STEPS, micro_steps)
    sharded = flight.config.parallel == "fsdp"  # then each has its own share
    return {"alone": taken, "together": together, "state": {} if sharded else state_of(flight.run)}


def difference_line(dtype: torch.dtype, layers: int, found: list[dict]) -> str:
    """How far losses and norms differ; raises UserError that names the ranks too far off.

    `layers`: how many the model had, if fewer than the run's.
    """
    if len(found) == 1:
        first, *_, last = (loss for loss, _ in found[0]["alone"])
        return f"{STEPS} of them, loss {first:.4f} → {last:.4f}"
    allowed, losses, norms = TOLERANCE[dtype], [], []
    for ours in found:
        pairs = [*zip(ours["alone"], ours["together"], strict=True)]
        losses.append(max(abs(a[0] - b[0]) for a, b in pairs))
        norms.append(max(relative(a[1], b[1]) for a, b in pairs))
    off = [
        str(rank)
        for rank, (loss, norm) in enumerate(zip(losses, norms, strict=True))
        if not (loss <= allowed and norm <= 10 * allowed)
    ]
    text = (
        f"{STEPS} updates{f' of {layers} layers' if layers else ''}: "
        f"losses differ by {max(losses):.1e} (allowed {allowed:.0e}), gradient "
        f"norms by {max(norms):.1e} (allowed {10 * allowed:.0e})"
    )
    if off:
        raise UserError(f"{text} on rank {', '.join(off)}: a card or link computes or sends badly")
    states = [ours["state"] for ours in found]
    if wrong := next((name for name in states[0] if len({s[name] for s in states}) > 1), ""):
        raise UserError(f"{text}; but the ranks' {wrong} are no longer the same")
    return text


def relative(one: float, other: float) -> float:
    """The difference of two norms relative to the first; 0 if both overflow, as in float16."""
    if not (math.isfinite(one) or math.isfinite(other)):
        return 0.0
    return abs(other - one) / one


def first_loss_line(config: TrainConfig, run: Run, loss: float) -> str:
    """The first loss beside that of guessing; raises UserError if it is not what it should be.

    A fresh model's logits are not all equal: they have variance n_embd · 0.02², which adds half of
    that to ln V (0.15 for 124M). One that has learned must be better than guessing.
    """
    guess = math.log(run.raw.config.vocab_size)
    if config.resume or config.init_from != "scratch":
        text = f"{loss:.4f}; guessing would be {guess:.4f}"
        if loss >= guess:
            raise UserError(f"{text}: the weights have not learned this text; another tokenizer?")
        return text
    spread = run.raw.config.n_embd * 0.02**2 / 2
    text = f"{loss:.4f}; ln {run.raw.config.vocab_size} + {spread:.2f} = {guess + spread:.4f}"
    if not abs(loss - guess - spread) < 0.1:
        raise UserError(f"{text}: more than 0.1 apart; are model and tokens as they should be?")
    return text
