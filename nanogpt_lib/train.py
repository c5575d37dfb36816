"""Train a GPT, on a laptop or on many GPUs.

    torchrun nanogpt_lib/train.py                                     quickstart, on this machine
    torchrun nanogpt_lib/train.py shakespeare-char --max-steps 500    a preset and a change
    torchrun nanogpt_lib/train.py --resume --out runs/quickstart      go on where it stopped
    torchrun --max-restarts=9 nanogpt_lib/train.py --auto-resume      go on by itself after a crash
    torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
        nanogpt_lib/train.py gpt2-124m --batch-size 32                the same line on both nodes

`python nanogpt_lib/train.py` does too, for one process. --help lists every setting.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import math
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from nanogpt_lib.config import grad_accum_steps, parse_config
from nanogpt_lib.device import autocast, detect_device, flops_per_token, peak_flops
from nanogpt_lib.distributed import all_reduce_sum, clip_gradients, sync_gradients
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.hellaswag import describe_items
from nanogpt_lib.logbook import plot_run
from nanogpt_lib.model import GPT
from nanogpt_lib.optimizer import learning_rate_at, set_learning_rate
from nanogpt_lib.run import Run, memory_advice, open_log, prepare, save
from nanogpt_lib.sampling import generate
from nanogpt_lib.scoring import score_items
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.guard import Stopper, claim
from nanogpt_lib.support.memory import is_out_of_memory
from nanogpt_lib.support.processes import own_device, process_group, read_world, wait_for_all
from nanogpt_lib.support.run_log import read_log
from nanogpt_lib.support.sharding import unsharded


def draw_samples(run: Run, model: GPT) -> str:
    """Two continuations of the prompt, seeded by the step; also appended to samples.txt."""
    config = run.config
    prompt = torch.tensor([run.tokenizer.encode(config.sample_prompt)] * 2, device=run.device)
    generator = torch.Generator(run.device).manual_seed(config.seed + run.step)
    with autocast(run.device, run.dtype):
        rows = generate(model, prompt, config.sample_tokens, top_k=50, generator=generator)
    text = "\n---\n".join(run.tokenizer.decode(row) for row in rows.tolist())
    with open(Path(config.out) / "samples.txt", "a", encoding="utf-8") as file:
        file.write(f"=== step {run.step}\n{text}\n\n")
    return text


def watch(run: Run) -> None:
    """Validation loss, HellaSwag and samples, each when it is due; through the plain module."""
    config, where = run.config, dict(world=run.world, device=run.device, dtype=run.dtype)
    if run.due(config.eval_every):
        tokens, rows = config.eval_tokens, config.batch_size
        model = unsharded(run.raw, GPT, run.device)
        loss = validation_loss(model, run.val_stream, tokens=tokens, batch_size=rows, **where)
        run.say(f"step {run.step:5d} | validation loss {loss:.4f}")
        if not math.isfinite(loss):
            raise UserError(f"step {run.step}: the validation loss is {loss}: the run has diverged")
        if run.log:
            run.log.write(run.step, val_loss=loss)
            run.val_losses[run.step] = loss
    if run.items and run.due(config.hellaswag_every):
        scores = score_items(unsharded(run.raw, GPT, run.device), run.items, **where)
        run.say(
            f"step {run.step:5d} | {scores['acc_token']:.4f} right, {describe_items(run.items)}"
        )
        if run.log:
            run.log.write(run.step, hellaswag=scores["acc_token"])
    if run.step and run.due(config.sample_every):
        model = unsharded(run.raw, GPT, run.device)  # every rank helps, rank 0 draws
        if run.world.is_main:
            run.say(f"step {run.step:5d} | samples\n{draw_samples(run, model)}")
    wait_for_all(run.world)


def gradients(run: Run) -> tuple[float, float]:
    """Gradients over total_batch_size tokens, clipped; return this rank's loss and the norm."""
    config, device = run.config, run.device
    # dropout depends on seed, step and rank alone, so that a resumed run repeats it
    torch.manual_seed((config.seed * 1_000_003 + run.step) * 4096 + run.world.rank)
    micro_steps = grad_accum_steps(config, run.world.size)
    loss_sum = torch.zeros((), device=device)
    for micro in range(micro_steps):
        x, y = run.loader.next_batch()
        with sync_gradients(run.model, sync=micro == micro_steps - 1):
            with autocast(device, run.dtype):
                _, loss = run.model(x, y)
            loss = loss / micro_steps  # gradients add up; the step's loss is a mean
            loss_sum += loss.detach()
            run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    norm = clip_gradients(run.model, config.grad_clip or math.inf)
    return loss_sum.item(), norm.item()  # here the processor waits for the GPU, once per step


def update(run: Run, lr: float, stopper: Stopper) -> tuple[float, float, bool]:
    """One optimizer step; return the loss over all ranks, the gradient norm, and whether to stop.

    A loss or gradient that is not finite changes nothing: it is left out, or ends the run.
    """
    set_learning_rate(run.optimizer, lr)
    world, start = run.world, run.loader.state_dict()
    loss, norm = gradients(run)
    bad = [float(rank == world.rank and not math.isfinite(loss)) for rank in range(world.size)]
    share = [loss / world.size, float(stopper.signal), *bad]
    loss, stop, *bad = all_reduce_sum(share, world, run.device)
    if any(bad) or not (math.isfinite(norm) or searching_scale(run.scaler)):
        ranks = ", ".join(str(rank) for rank in range(world.size) if bad[rank]) or "each"
        leave_out(run, f"loss {loss} on rank {ranks}, gradient norm {norm}", start)
    else:
        run.scaler.step(run.optimizer)
        run.skipped = 0
    if run.scaler.is_enabled():
        run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss, norm, bool(stop)


def searching_scale(scaler: torch.amp.GradScaler) -> bool:
    """Float16 finds its scale by overflowing now and then, and skips; below 1 it is no search."""
    return scaler.is_enabled() and scaler.get_scale() >= 1


def leave_out(run: Run, what: str, start: dict) -> None:
    """Make no update; beyond --skip-bad-steps, save what was before it and end the run."""
    place = f"data: epoch {start['epoch']}, from window {start['position']} on"
    run.say(f"step {run.step + 1:5d} | left out: {what}; {place}")
    if run.skipped < run.config.skip_bad_steps:
        run.skipped += 1
        return
    run.loader.load_state_dict(start)
    if run.step > run.saved:
        save(run)
    if not run.world.is_main:  # one line is enough
        sys.exit(1)
    raise UserError(
        f"step {run.step + 1}: {what}; {place}. No update was made of it. Add --resume and a lower "
        f"--learning-rate, or --skip-bad-steps {run.config.skip_bad_steps + 1}"
    )


def report(run: Run, loss: float, norm: float, lr: float, seconds: float, left: float) -> None:
    """Write the step to the log and, every log_every steps, a line to the terminal."""
    rate = run.config.total_batch_size / seconds
    peak = peak_flops(run.device)
    mfu = flops_per_token(run.raw) * rate / (peak * run.world.size) if peak else None
    if run.log:  # JSON knows no NaN: a step that was left out has null
        run.log.write(
            run.step,
            train_loss=loss if math.isfinite(loss) else None,
            lr=lr,
            grad_norm=norm if math.isfinite(norm) else None,
            tokens_per_sec=round(rate, 1),
            mfu=mfu and round(mfu, 4),
            seconds=round(run.elapsed, 4),
        )
    if run.due(run.config.log_every) or run.step == 1:
        run.say(
            f"step {run.step:5d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
            f"{seconds * 1e3:.0f} ms | {rate:,.0f} tokens/s | "
            + (f"MFU {mfu:.1%} | " if mfu else "")
            + f"{timedelta(seconds=round(left))} left"
        )


def train(run: Run, stopper: Stopper) -> int:
    """The loop: watch, update, report, save, until max_steps; return the exit status."""
    config = run.config
    first_step, first_elapsed = run.step, run.elapsed
    while True:
        watch(run)
        if run.step >= config.max_steps:
            break
        start = time.perf_counter()
        lr = learning_rate_at(
            run.step,
            max_lr=config.learning_rate,
            min_lr=config.min_lr,
            warmup_steps=config.warmup_steps,
            max_steps=config.max_steps,
        )
        loss, norm, stop = update(run, lr, stopper)
        seconds = time.perf_counter() - start
        run.step += 1
        run.elapsed += seconds
        pace = (run.elapsed - first_elapsed) / (run.step - first_step)
        # the log first: a checkpoint never knows of a step that the log does not
        report(run, loss, norm, lr, seconds, left=pace * (config.max_steps - run.step))
        if stop or run.due(config.save_every):
            save(run)  # before evaluating: an evaluation that fails must not lose the run
        if stop:
            run.say(f"stopped after step {run.step}; --resume --out {config.out} continues")
            return 128 + int(stopper.signal or signal.SIGTERM)
    if run.log:
        run.log.close()
        out = Path(config.out)
        plot_run(read_log(out / "log.jsonl")).savefig(out / "loss.png", dpi=120)
    run.say(f"trained for {timedelta(seconds=round(run.elapsed))}; everything is in {config.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Read the command line, join the other processes, train."""
    config = parse_config(argv)
    world = read_world()
    device = own_device(detect_device(config.device), world)
    grad_accum_steps(config, world.size)
    meta = read_meta(config.data)
    lock = claim(config.out, config.resume) if world.is_main else contextlib.nullcontext()
    with lock, process_group(world, device):
        try:
            run = prepare(config, world, device, meta)
            if world.is_main:
                open_log(run)
            with Stopper() as stopper:
                return train(run, stopper)
        except OSError as error:  # a full disk, mostly
            raise UserError(f"{config.out}: {error}; --resume goes on from there") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            advice = memory_advice(config, meta["vocab_size"], world, device)
            raise UserError(f"out of memory with {config.batch_size} rows; {advice}") from error


if __name__ == "__main__":
    run_program("train.py", main, outlives_terminal=True)
