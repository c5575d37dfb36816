"""Train a GPT, on a laptop or on many GPUs.

    torchrun nanogpt_lib/train.py                                     quickstart, on this machine
    torchrun nanogpt_lib/train.py shakespeare-char --max-steps 500    a preset and a change
    torchrun nanogpt_lib/train.py --data data/own --n-layer 6         no preset: GPT-2's defaults
    torchrun nanogpt_lib/train.py --resume --out runs/quickstart      continue a run
    torchrun --max-restarts=9 nanogpt_lib/train.py quickstart --auto-resume       also after a crash
    torchrun nanogpt_lib/train.py --eval-only --init-from gpt2 --data data/shakespeare_gpt2
    torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m
    torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m --preflight --price 2
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
        nanogpt_lib/train.py gpt2-124m --batch-size 32                the same line on both nodes

For one process, `python nanogpt_lib/train.py` works too. --help lists every setting.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import contextlib
import math
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from nanogpt_lib.answering import answer_loss
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.choices import MODELS, SCHEDULES
from nanogpt_lib.config import TrainConfig, micro_batch
from nanogpt_lib.conversations import roles_of
from nanogpt_lib.device import autocast, detect_device, flops_per_token, peak_flops
from nanogpt_lib.distributed import all_reduce_sum, clip_gradients, sync_gradients
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.hellaswag import describe_items
from nanogpt_lib.logbook import plot_run
from nanogpt_lib.model import GPT
from nanogpt_lib.optimizer import set_learning_rate
from nanogpt_lib.pace import Pace
from nanogpt_lib.preflight.flight import Loop
from nanogpt_lib.preflight.sequence import preflight
from nanogpt_lib.run import Run, describe_data, memory_advice, open_log, open_run, prepare, save
from nanogpt_lib.sampling import generate
from nanogpt_lib.scoring import score_items
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError, describe_os_error
from nanogpt_lib.support.evaluating import join_evaluation
from nanogpt_lib.support.guard import Stopper, claim
from nanogpt_lib.support.memory import is_out_of_memory
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.support.processes import (
    World,
    own_device,
    process_group,
    read_world,
    wait_for_all,
)
from nanogpt_lib.support.run_log import read_log
from nanogpt_lib.support.stopwatch import Stopwatch, slowest
from nanogpt_lib.watch import judge
from nanogpt_lib.webpage import fits_page


def draw_samples(run: Run, model: GPT) -> str:
    """Two continuations of the prompt, seeded by the step; also appended to samples.txt."""
    config = run.config
    prompt = torch.tensor([run.prompt] * 2, device=run.device)
    generator = torch.Generator(run.device).manual_seed(config.seed + run.step)
    with autocast(run.device, run.dtype):
        rows = generate(model, prompt, config.sample_tokens, top_k=50, generator=generator)
    text = "\n---\n".join(run.tokenizer.decode(row) for row in rows.tolist())
    path = Path(config.out) / "samples.txt"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"=== step {run.step}\n{text}\n\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return text


def evaluate(run: Run, model: GPT) -> dict[str, float]:
    """Validation loss and HellaSwag, each if due, with the plain `model`; returned as metrics."""
    config, metrics = run.config, {}
    where = dict(world=run.world, device=run.device, dtype=run.dtype)
    if run.due(config.eval_every):
        rows = run.eval_rows
        sizes = dict(tokens=config.eval_tokens, batch_size=rows)
        with fast_inference(model, run.device, run.dtype, rows * config.block_size):
            if config.loss_on == "text":
                loss = validation_loss(model, run.val_stream, **sizes, **where)
            else:
                loss = answer_loss(model, run.val_stream, roles_of(run.tokenizer), **sizes, **where)
        metrics["val_loss"] = loss
        run.say(f"step {run.step:5d} | validation loss {loss:.4f}")
        if not math.isfinite(loss):
            raise UserError(f"step {run.step}: the validation loss is {loss}: the run has diverged")
        judge(run, loss)
    if run.items and run.due(config.hellaswag_every):
        scores = score_items(model, run.items, **where)
        metrics["hellaswag"] = scores["acc_token"]
        run.say(
            f"step {run.step:5d} | {scores['acc_token']:.4f} right, {describe_items(run.items)}"
        )
    return metrics


def evaluate_and_sample(run: Run) -> None:
    """Do what is due before the next update; evaluations are logged, samples go to their file."""
    config = run.config
    if not any(map(run.due, (config.eval_every, config.hellaswag_every, config.sample_every))):
        return
    with run.plain_model() as model:
        metrics = evaluate(run, model)
        for name, value in metrics.items():
            if run.log:
                run.log.write(run.step, **{name: value})
        if "val_loss" in metrics:
            run.val_losses[run.step] = metrics["val_loss"]
        if run.step and run.due(config.sample_every):
            if run.world.is_main:
                run.say(f"step {run.step:5d} | samples\n{draw_samples(run, model)}")
            else:
                join_evaluation(model)
    wait_for_all(run.world)


def gradients(run: Run) -> tuple[float, float, float]:
    """Gradients of a step, clipped; this rank's loss, the norm, seconds before it first waits."""
    config, device = run.config, run.device
    # dropout depends only on seed, step and rank, so that a resumed run repeats it
    torch.manual_seed((config.seed * 1_000_003 + run.step) * 4096 + run.world.rank)
    loss_sum, watch = torch.zeros((), device=device), Stopwatch(device)
    always = config.parallel == "fsdp"  # else each rank would sum up whole gradients
    for micro in range(run.micro_steps):
        x, y = run.loader.next_batch()
        with sync_gradients(run.model, sync=always or micro == run.micro_steps - 1):
            with autocast(device, run.dtype):
                _, loss = run.model(x, y)
            loss = loss / run.micro_steps  # gradients add up; the step's loss is a mean
            loss_sum += loss.detach()
            if micro == run.micro_steps - 1:
                watch.stop()
            run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    norm = clip_gradients(run.model, config.grad_clip or math.inf)
    return loss_sum.item(), norm.item(), watch.seconds()  # waits for the GPU, once per step


def update(run: Run, stopper: Stopper) -> tuple[dict[str, float], bool]:
    """One optimizer step; return its metrics (loss averaged over all ranks) and whether to stop.

    If loss or gradient is not finite, the weights do not change: skip the update or end the run.
    """
    lr = SCHEDULES[run.config.schedule](run.step, run.config)
    set_learning_rate(run.optimizer, lr)
    world, start = run.world, run.loader.state_dict()
    loss, norm, seconds = gradients(run)
    mine = [float(rank == world.rank) for rank in range(world.size)]
    bad = [own * (not math.isfinite(loss)) for own in mine]
    share = [loss / world.size, float(stopper.signal), *bad, *(own * seconds for own in mine)]
    loss, stop, *each = all_reduce_sum(share, world, run.device)
    bad = each[: world.size]
    if any(bad) or not (math.isfinite(norm) or searching_scale(run.scaler)):
        ranks = ", ".join(str(rank) for rank in range(world.size) if bad[rank]) or "each"
        skip_update(run, f"loss {loss} on rank {ranks}, gradient norm {norm}", start)
    else:
        run.scaler.step(run.optimizer)
        run.progress.skipped = 0
    if run.scaler.is_enabled():
        run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if world.size > 1 and run.config.parallel == "ddp":  # fsdp's ranks wait in every layer
        run.lag = slowest(each[world.size :])
    return {"train_loss": loss, "lr": lr, "grad_norm": norm}, bool(stop)


def searching_scale(scaler: torch.amp.GradScaler) -> bool:
    """GradScaler probes by overflowing and skipping; a scale below 1 means divergence."""
    return scaler.is_enabled() and scaler.get_scale() >= 1


def skip_update(run: Run, what: str, start: dict) -> None:
    """Skip this update; after more than --skip-bad-steps in a row, save and end the run."""
    place = f"data: epoch {start['epoch']}, from window {start['position']} on"
    run.say(f"step {run.step + 1:5d} | skipped: {what}; {place}")
    if run.progress.skipped < run.config.skip_bad_steps:
        run.progress.skipped += 1
        return
    run.loader.load_state_dict(start)
    if run.step > run.saved:
        save(run)
    if not run.world.is_main:  # one line is enough
        sys.exit(1)
    raise UserError(
        f"step {run.step + 1}: {what}; {place}. No update was made. Add --resume and a lower "
        f"--learning-rate, or --skip-bad-steps {run.config.skip_bad_steps + 1}"
    )


# how metrics are printed; any other is printed with its name
TERMINAL = {"train_loss": "loss {:.4f}", "lr": "lr {:.2e}", "grad_norm": "norm {:.2f}"}
TERMINAL |= {"tokens_per_sec": "{:,.0f} tokens/s", "mfu": "MFU {:.1%}"}


def speed(run: Run, seconds: float) -> dict[str, float]:
    """Tokens per second of a step that took `seconds`, and MFU if the device's peak is known."""
    rate = run.config.total_batch_size / seconds
    peak = peak_flops(run.device)
    mfu = flops_per_token(run.raw) * rate / (peak * run.world.size) if peak else None
    return {"tokens_per_sec": round(rate, 1), "mfu": mfu and round(mfu, 4)}


def report(run: Run, metrics: dict[str, float], seconds: float, left: float) -> None:
    """Write the step's metrics to the log and, every log_every steps, a line to the terminal.

    The step took `seconds`; `left` is the run's remaining time. JSON has no NaN: numbers that are
    not finite are null in the log.
    """
    fast = speed(run, seconds)
    if run.log:
        finite = {n: v if v is None or math.isfinite(v) else None for n, v in metrics.items()}
        seconds_so_far = round(run.progress.elapsed, 4)
        run.log.write(run.step, **finite, **fast, **run.lag, seconds=seconds_so_far)
    if run.due(run.config.log_every) or run.step == 1:
        numbers, rates = (
            [TERMINAL.get(n, n + " {:.4g}").format(v) for n, v in of.items() if v is not None]
            for of in (metrics, fast)
        )
        end = f"{timedelta(seconds=round(left))} left"
        parts = [f"step {run.step:5d}", *numbers, f"{seconds * 1e3:.0f} ms", *rates, end]
        run.say(" | ".join(parts))


def train(run: Run, stopper: Stopper) -> int:
    """The loop: evaluate, update, report, save, until max_steps; return the exit status."""
    config, progress, pace = run.config, run.progress, Pace(run)
    while True:
        evaluate_and_sample(run)
        if run.finished:
            break
        start = time.perf_counter()
        metrics, stop = update(run, stopper)
        seconds = time.perf_counter() - start
        progress.step += 1
        progress.elapsed += seconds
        pace.add(seconds)
        # the log first: a checkpoint must never be ahead of the log
        report(run, metrics, seconds, pace.seconds_left())
        if stop or run.due(config.save_every):
            save(run)  # before evaluating, so that a failing evaluation cannot lose the run
        if stop:
            run.say(f"stopped after step {run.step}; --resume --out {config.out} continues")
            return 128 + int(stopper.signal or signal.SIGTERM)
    if run.log:
        run.log.close()
        out = Path(config.out)
        plot_run(read_log(out / "log.jsonl")).savefig(out / "loss.png", dpi=120)
    run.say(
        f"trained for {timedelta(seconds=round(progress.elapsed))}; everything is in {config.out}"
    )
    if MODELS[config.model] is GPT and fits_page(run.raw):
        page = f"python nanogpt_lib/page.py --checkpoint {config.out} --out my-gpt.html"
        run.say(f"the model as a web page, to try or to give away: {page}")
    return 0


def evaluate_only(config: TrainConfig, world: World, device: torch.device, meta: dict) -> int:
    """--eval-only: print a model's losses; write nothing."""
    run, state, _ = open_run(config, world, device, meta)
    run.progress.step = int(state.get("step", 0))
    run.say(f"{describe_data(meta)}, validation: {len(run.val_stream):,} tokens")
    config.max_steps = run.step  # so that everything is due
    with run.plain_model() as model:
        evaluate(run, model)
    return 0


def open_meta(config: TrainConfig) -> dict:
    """Read the dataset's meta.json; if it is missing, say if the user never named the folder."""
    try:
        return read_meta(config.data)
    except UserError as error:
        if config.preset or config.resume or "data" in config.flags:
            raise
        raise UserError(f"{error} (GPT-2's --data, because no preset is given)") from error


def main(argv: list[str] | None = None) -> int:
    """Read the command line, join the other processes, train."""
    world, notes = read_world(), []
    config = parse_config(argv, say=notes.append)
    device = own_device(detect_device(config.device), world)
    if config.init_from == "scratch" and not config.eval_only:  # a model may bring its block_size
        micro_batch(config, world.size)
    if config.preflight:
        with process_group(world, device, wait_minutes=10):  # a rank that hangs is soon known
            loop = Loop(update, evaluate_and_sample, speed)
            return preflight(config, world, device, loop, notes)
    meta = open_meta(config)
    claimed = world.is_main and not config.eval_only
    lock = claim(config.out, config.resume) if claimed else contextlib.nullcontext()
    with lock, process_group(world, device):
        try:
            if world.is_main:
                print(*notes, sep="\n", end="\n" * bool(notes), flush=True)
            if config.eval_only:
                return evaluate_only(config, world, device, meta)
            run = prepare(config, world, device, meta)
            if world.is_main:
                open_log(run)
            with contextlib.closing(run), Stopper() as stopper:
                return train(run, stopper)
        except OSError as error:  # in a file of the run or of the data
            raise UserError(f"{describe_os_error(error)}; continue with --resume") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(memory_advice(config, meta["vocab_size"], world, device)) from error


if __name__ == "__main__":
    run_program("train.py", main, outlives_terminal=True)
