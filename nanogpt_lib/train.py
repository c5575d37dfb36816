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
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn as nn

from nanogpt_lib.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_model,
    load_optimizer,
    save_checkpoint,
)
from nanogpt_lib.config import (
    TrainConfig,
    UserError,
    as_dict,
    grad_accum_steps,
    parse_config,
    run_program,
    seal,
)
from nanogpt_lib.device import (
    allow_tf32,
    autocast,
    choose_dtype,
    compile_model,
    detect_device,
    flops_per_token,
    is_out_of_memory,
    memory_bytes,
    peak_flops,
    rows_to_try,
    training_bytes,
)
from nanogpt_lib.distributed import (
    World,
    add_up,
    clip_gradients,
    own_device,
    process_group,
    read_world,
    shard_fsdp,
    sync_gradients,
    unsharded,
    wait_for_all,
    wrap_ddp,
)
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.guard import Stopper, claim
from nanogpt_lib.hellaswag import Item, describe_items, read_items, score_items
from nanogpt_lib.loader import ReadAhead, TokenLoader, feed
from nanogpt_lib.logbook import RunLog, external_logger, plot_run, read_log, series
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.optimizer import learning_rate_at, make_optimizer, set_learning_rate
from nanogpt_lib.sampling import generate
from nanogpt_lib.shards import (
    TokenStream,
    read_meta,
    verify_shards,
    write_atomically,
    write_json,
)
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, tokenizer_from

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_multiple")


@dataclass
class Run:
    """What the parts of a run share."""

    config: TrainConfig
    world: World
    device: torch.device
    dtype: torch.dtype
    tokenizer: GPT2Tokenizer | CharTokenizer
    raw: GPT  # the plain module, or sharded: evaluation, samples and checkpoints use it
    model: nn.Module  # the same weights, compiled and wrapped: the training call
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: TokenLoader | ReadAhead
    val_stream: TokenStream
    items: list[Item]
    log: RunLog | None = None  # rank 0 only
    step: int = 0  # updates made so far
    elapsed: float = 0.0  # seconds spent in updates, earlier legs of a resumed run included
    skipped: int = 0  # updates left out in a row, up to now
    saved: int = 0  # step of the newest checkpoint
    val_losses: dict[int, float] = field(default_factory=dict)  # by step; rank 0 only

    def say(self, text: str) -> None:
        """Print, on rank 0."""
        if self.world.is_main:
            print(text, flush=True)

    def due(self, every: int) -> bool:
        """Is it time? Every so many steps (0: never), and always at the end."""
        last = self.step >= self.config.max_steps
        return last or (every > 0 and self.step % every == 0)


def build_model(config: TrainConfig, vocab_size: int) -> tuple[GPT, dict, Path | None]:
    """The model to begin with and, when resuming, the checkpoint's state and folder."""
    if config.resume and checkpoints(config.out):  # killed before the first save: begin again
        model, state, folder = load_checkpoint(config.out)
        for name in SHAPE:
            if getattr(config, name) != (saved := getattr(model.config, name)):
                raise UserError(f"--{name.replace('_', '-')}: the run to resume has {saved}")
        return model, state, folder
    if config.init_from == "scratch":
        torch.manual_seed(config.seed)
        shape = {name: getattr(config, name) for name in (*SHAPE, "dropout", "attention")}
        return GPT(GPTConfig(vocab_size=vocab_size, **shape)), {}, None
    model, _ = load_model(
        config.init_from,
        block_size=config.block_size,
        dropout=config.dropout,
        vocab_multiple=config.vocab_multiple,
    )
    if model.config.vocab_size != vocab_size:
        raise UserError(
            f"--init-from {config.init_from} knows {model.config.vocab_size} tokens, the data in "
            f"{config.data} {vocab_size}: another tokenizer"
        )
    for name in SHAPE:  # config.json shall say what is trained
        setattr(config, name, getattr(model.config, name))
    return model, {}, None


def prepare(config: TrainConfig, world: World, device: torch.device, meta: dict) -> Run:
    """Open the data, build or load the model, and put everything where it was."""
    dtype = choose_dtype(device, config.dtype)
    allow_tf32()
    tokenizer = tokenizer_from(meta["tokenizer"])
    if len(tokenizer.encode(config.sample_prompt)) not in range(1, config.block_size + 1):
        raise UserError(f"--sample-prompt must have 1 to {config.block_size} tokens")
    items = read_items(config.hellaswag_data, tokenizer) if config.hellaswag_every else []
    if config.verify_data:
        verify_shards(config.data, world.rank, world.size)
    loader = TokenLoader(
        TokenStream(config.data, "train"),
        config.batch_size,
        config.block_size,
        rank=world.rank,
        world_size=world.size,
        shuffle=config.shuffle,
        seed=config.seed,
    )
    val_stream = TokenStream(config.data, "val")
    raw, state, folder = build_model(config, meta["vocab_size"])
    raw.to(device).train()
    if config.parallel == "fsdp":
        shard_fsdp(raw, world, device)
    optimizer = make_optimizer(
        raw,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        muon_learning_rate=config.muon_learning_rate,
        dtype=torch.float32 if dtype == torch.float16 else dtype,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    x = torch.zeros(config.batch_size, config.block_size, dtype=torch.long, device=device)
    model, compiled = compile_model(raw, config.compile, device, x, x, dtype)
    if config.parallel == "ddp":
        model = wrap_ddp(model, world, device)
    run = Run(
        config,
        world,
        device,
        dtype,
        tokenizer,
        raw,
        model,
        optimizer,
        scaler,
        feed(loader, device),
        val_stream,
        items,
    )
    if folder:
        restore(run, state, folder)
    if add_up([run.step], world, device)[0] != run.step * world.size:
        raise UserError(
            f"{config.out}: other checkpoints on other nodes; it must be a shared folder"
        )
    run.say(f"{count_parameters(raw):,} parameters, {len(loader.stream):,} training tokens")
    run.say(f"{device}, {str(dtype).removeprefix('torch.')}, {compiled}")
    processes = f"{world.size} processes ({config.parallel})" if world.size > 1 else "1 process"
    if world.size == 1 and config.parallel == "fsdp":
        run.say("1 process, nothing to shard: --parallel fsdp changes nothing")
    run.say(
        f"{config.total_batch_size:,} tokens per step = {config.batch_size} rows × "
        f"{config.block_size} × {processes} × "
        f"{grad_accum_steps(config, world.size)} micro-step(s)"
    )
    return run


def restore(run: Run, state: dict, folder: Path) -> None:
    """Put everything but the weights where the checkpoint in `folder` left it."""
    load_optimizer(folder, run.optimizer)
    try:
        run.step = run.saved = int(state["step"])
        run.elapsed, run.skipped = float(state["elapsed"]), int(state["skipped"])
        run.loader.load_state_dict(state["loader"])
        run.scaler.load_state_dict(state["scaler"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder}/state.json: not of a run of train.py ({error})") from error
    run.say(f"resumed from {folder} at step {run.step}")


def open_log(run: Run) -> None:
    """Write config.json; open log.jsonl and samples.txt where the run goes on."""
    out, resume_step = Path(run.config.out), run.step if run.config.resume else None
    settings = as_dict(run.config)
    write_json(out / "config.json", seal(settings))
    also = external_logger(run.config.logger, out, settings)
    run.log = RunLog(out / "log.jsonl", resume_step, also)
    steps, values = series(read_log(out / "log.jsonl"), "val_loss")
    run.val_losses = dict(zip(steps, values, strict=True))
    samples = out / "samples.txt"
    if samples.exists():  # those of this step and later are drawn again
        parts = re.split(r"(?m)^(?==== step \d+$)", samples.read_text("utf-8", errors="replace"))
        kept = [
            p for p in parts if (at := re.match(r"=== step (\d+)", p)) and int(at[1]) < run.step
        ]
        write_atomically(samples, "".join(kept).encode("utf-8"))


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
        model = unsharded(run.raw, run.device)
        loss = validation_loss(model, run.val_stream, tokens=tokens, batch_size=rows, **where)
        run.say(f"step {run.step:5d} | validation loss {loss:.4f}")
        if not math.isfinite(loss):
            raise UserError(f"step {run.step}: the validation loss is {loss}: the run has diverged")
        if run.log:
            run.log.write(run.step, val_loss=loss)
            run.val_losses[run.step] = loss
    if run.items and run.due(config.hellaswag_every):
        scores = score_items(unsharded(run.raw, run.device), run.items, **where)
        run.say(
            f"step {run.step:5d} | {scores['acc_token']:.4f} right, {describe_items(run.items)}"
        )
        if run.log:
            run.log.write(run.step, hellaswag=scores["acc_token"])
    if run.step and run.due(config.sample_every):
        model = unsharded(run.raw, run.device)  # every rank helps, rank 0 draws
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
    loss, stop, *bad = add_up(share, world, run.device)
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


def save(run: Run) -> None:
    """Write a checkpoint: all there is to know, so that the run can go on from it."""
    run.saved = run.step
    if run.world.is_main and not (Path(run.config.out) / "log.jsonl").exists():
        raise UserError(f"{run.config.out}: the run directory is gone; nothing can be saved")
    state = {
        "train_config": as_dict(run.config),
        "tokenizer": run.tokenizer.describe(),
        "loader": run.loader.state_dict(),
        "scaler": run.scaler.state_dict(),
        "elapsed": run.elapsed,
        "skipped": run.skipped,
    }
    how = dict(keep=run.config.keep_checkpoints, val_losses=run.val_losses, world=run.world)
    save_checkpoint(run.config.out, run.step, run.raw, run.optimizer, state, **how)


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


def memory_advice(config: TrainConfig, vocab_size: int, world: World, device) -> str:
    """What to try when memory has run out, by the formula of chapter 05."""
    shape = {name: getattr(config, name) for name in (*SHAPE, "attention")}
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=vocab_size, **shape))
    dtype, rows = choose_dtype(device, config.dtype), config.batch_size
    step_rows = config.total_batch_size // (config.block_size * world.size)
    fewer = rows_to_try(model, dtype, memory_bytes(device), step_rows, rows)
    needed = f"a step needs about {training_bytes(model, rows, dtype) / 1e9:.1f} GB"
    if not fewer:
        return f"{needed}; try a smaller --block-size or model"
    return f"{needed}; try --batch-size {fewer} (the tokens per step stay the same)"


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
    run_program("train.py", main)
