"""Train a GPT, on a laptop or on many GPUs.

    torchrun nanogpt_lib/train.py                                     quickstart, on this machine
    torchrun nanogpt_lib/train.py shakespeare-char --max-steps 500    a preset and a change
    torchrun nanogpt_lib/train.py --resume --out runs/quickstart      go on where it stopped
    torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
        nanogpt_lib/train.py gpt2-124m --batch-size 32                the same line on both nodes

`python nanogpt_lib/train.py` does too, for one process. --help lists every setting.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
import re
import signal
import sys
import time
from dataclasses import dataclass
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
    own_device,
    process_group,
    read_world,
    sync_gradients,
    wait_for_all,
    wrap_ddp,
)
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.hellaswag import Item, describe_items, read_items, score_items
from nanogpt_lib.loader import ReadAhead, TokenLoader, feed
from nanogpt_lib.logbook import RunLog, external_logger, plot_run, read_log
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.optimizer import learning_rate_at, make_optimizer
from nanogpt_lib.sampling import generate
from nanogpt_lib.shards import TokenStream, read_meta, write_json
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
    raw: GPT  # the plain module: evaluation, samples and checkpoints use it
    model: nn.Module  # the same weights, compiled and wrapped: the training call
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: TokenLoader | ReadAhead
    val_stream: TokenStream
    items: list[Item]
    log: RunLog | None = None  # rank 0 only
    step: int = 0  # updates made so far
    elapsed: float = 0.0  # seconds spent in updates, earlier legs of a resumed run included

    def say(self, text: str) -> None:
        """Print, on rank 0."""
        if self.world.is_main:
            print(text, flush=True)

    def due(self, every: int) -> bool:
        """Is it time? Every so many steps (0: never), and always at the end."""
        last = self.step >= self.config.max_steps
        return last or (every > 0 and self.step % every == 0)


class Stopper:
    """Notes SIGTERM and Ctrl-C, so that the run can finish its step and save; a second kills."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number, frame) -> None:
        """Remember the signal and give the next one its usual effect."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def claim_directory(config: TrainConfig) -> None:
    """Make the run directory; refuse one that holds a run, unless it is to be resumed."""
    out = Path(config.out)
    if config.resume:
        return
    if (out / "log.jsonl").exists() or checkpoints(out):
        raise UserError(f"{out}: holds a run; add --resume to continue it, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be created ({error.strerror})") from error


def build_model(config: TrainConfig, vocab_size: int) -> tuple[GPT, dict, Path | None]:
    """The model to begin with and, when resuming, the checkpoint's state and folder."""
    if config.resume:
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
    betas = (config.beta1, config.beta2)
    optimizer = make_optimizer(
        raw, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=betas
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    x = torch.zeros(config.batch_size, config.block_size, dtype=torch.long, device=device)
    model, compiled = compile_model(raw, config.compile, device, x, x, dtype)
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
        run.step, run.elapsed = state["step"], state["elapsed"]
        load_optimizer(folder, optimizer)
        run.loader.load_state_dict(state["loader"])
        scaler.load_state_dict(state["scaler"])
        run.say(f"resumed from {folder} at step {run.step}")
    run.say(f"{count_parameters(raw):,} parameters, {len(loader.stream):,} training tokens")
    run.say(f"{device}, {str(dtype).removeprefix('torch.')}, {compiled}")
    run.say(
        f"{config.total_batch_size:,} tokens per step = {config.batch_size} rows × "
        f"{config.block_size} × {world.size} process{'es' * (world.size > 1)} × "
        f"{grad_accum_steps(config, world.size)} micro-step(s)"
    )
    return run


def open_log(run: Run) -> None:
    """Write config.json; open log.jsonl and samples.txt where the run goes on."""
    out, resume_step = Path(run.config.out), run.step if run.config.resume else None
    settings = as_dict(run.config)
    write_json(out / "config.json", settings)
    also = external_logger(run.config.logger, out, settings)
    run.log = RunLog(out / "log.jsonl", resume_step, also)
    samples = out / "samples.txt"
    if samples.exists():  # those of this step and later are drawn again
        parts = re.split(r"(?m)^(?==== step \d+$)", samples.read_text(encoding="utf-8"))
        kept = [p for p in parts if p and int(p.split()[2]) < run.step]
        samples.write_text("".join(kept), encoding="utf-8")


def draw_samples(run: Run) -> str:
    """Two continuations of the prompt, seeded by the step; also appended to samples.txt."""
    config = run.config
    prompt = torch.tensor([run.tokenizer.encode(config.sample_prompt)] * 2, device=run.device)
    generator = torch.Generator(run.device).manual_seed(config.seed + run.step)
    with autocast(run.device, run.dtype):
        rows = generate(run.raw, prompt, config.sample_tokens, top_k=50, generator=generator)
    text = "\n---\n".join(run.tokenizer.decode(row) for row in rows.tolist())
    with open(Path(config.out) / "samples.txt", "a", encoding="utf-8") as file:
        file.write(f"=== step {run.step}\n{text}\n\n")
    return text


def watch(run: Run) -> None:
    """Validation loss, HellaSwag and samples, each when it is due; through the plain module."""
    config, where = run.config, dict(world=run.world, device=run.device, dtype=run.dtype)
    if run.due(config.eval_every):
        tokens, rows = config.eval_tokens, config.batch_size
        loss = validation_loss(run.raw, run.val_stream, tokens=tokens, batch_size=rows, **where)
        run.say(f"step {run.step:5d} | validation loss {loss:.4f}")
        if run.log:
            run.log.write(run.step, val_loss=loss)
    if run.items and run.due(config.hellaswag_every):
        scores = score_items(run.raw, run.items, **where)
        run.say(
            f"step {run.step:5d} | {scores['acc_token']:.4f} right, {describe_items(run.items)}"
        )
        if run.log:
            run.log.write(run.step, hellaswag=scores["acc_token"])
    if run.world.is_main and run.step and run.due(config.sample_every):
        run.say(f"step {run.step:5d} | samples\n{draw_samples(run)}")
    wait_for_all(run.world)


def update(run: Run, lr: float) -> tuple[float, float]:
    """One optimizer step over total_batch_size tokens; return this rank's loss and the norm."""
    config, device = run.config, run.device
    # dropout depends on seed, step and rank alone, so that a resumed run repeats it
    torch.manual_seed((config.seed * 1_000_003 + run.step) * 4096 + run.world.rank)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
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
    limit = config.grad_clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), limit)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss_sum.item(), norm.item()


def report(run: Run, loss: float, norm: float, lr: float, seconds: float, left: float) -> None:
    """Write the step to the log and, every log_every steps, a line to the terminal."""
    rate = run.config.total_batch_size / seconds
    peak = peak_flops(run.device)
    mfu = flops_per_token(run.raw) * rate / (peak * run.world.size) if peak else None
    if run.log:
        run.log.write(
            run.step,
            train_loss=loss,
            lr=lr,
            grad_norm=norm,
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
    """Write a checkpoint, on rank 0: all there is to know, so that the run can go on from it."""
    if not run.world.is_main:
        return
    state = {
        "train_config": as_dict(run.config),
        "tokenizer": run.tokenizer.describe(),
        "loader": run.loader.state_dict(),
        "scaler": run.scaler.state_dict(),
        "elapsed": run.elapsed,
    }
    keep = run.config.keep_checkpoints
    save_checkpoint(run.config.out, run.step, run.raw, run.optimizer, state, keep=keep)


def train(run: Run) -> int:
    """The loop: watch, update, report, save, until max_steps; return the exit status."""
    config, stopper = run.config, Stopper()
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
        loss, norm = update(run, lr)
        share = [loss / run.world.size, float(stopper.signal)]
        loss, stop = add_up(share, run.world, run.device)
        seconds = time.perf_counter() - start
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss} at step {run.step + 1} (gradient norm {norm})")
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
    if world.is_main:
        claim_directory(config)
    with process_group(world, device):
        try:
            run = prepare(config, world, device, meta)
            if world.is_main:
                open_log(run)
            return train(run)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            advice = memory_advice(config, meta["vocab_size"], world, device)
            raise UserError(f"out of memory with {config.batch_size} rows; {advice}") from error


if __name__ == "__main__":
    run_program("train.py", main)
