"""A run: what its parts share, how they are put together, restored and saved; for train.py."""

import math
import re
from dataclasses import dataclass, field
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
from nanogpt_lib.config import TrainConfig, as_dict, grad_accum_steps
from nanogpt_lib.device import allow_tf32, choose_dtype, compile_model
from nanogpt_lib.distributed import all_reduce_sum, wrap_ddp
from nanogpt_lib.hellaswag import Item, read_items
from nanogpt_lib.loader import ReadAhead, TokenLoader, feed
from nanogpt_lib.logbook import series
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import seal, write_atomically, write_json
from nanogpt_lib.support.memory import keep_freed_memory, memory_bytes, rows_to_try, training_bytes
from nanogpt_lib.support.processes import World
from nanogpt_lib.support.run_log import RunLog, external_logger, read_log
from nanogpt_lib.support.sharding import shard_fsdp
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
    peak = world.size * training_bytes(raw, config.batch_size, dtype)  # all on one machine, mostly
    if device.type == "cpu" and 2 * peak < (memory_bytes(device) or math.inf):
        keep_freed_memory()
    if config.parallel == "fsdp":
        shard_fsdp(raw, raw.transformer.h, world, device)
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
    if all_reduce_sum([run.step], world, device)[0] != run.step * world.size:
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
