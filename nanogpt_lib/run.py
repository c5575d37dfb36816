"""A run's shared state, and how to set it up, restore and save it; for train.py."""

import contextlib
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn as nn

from nanogpt_lib.checkpoint import load_optimizer, save_checkpoint
from nanogpt_lib.choices import MODELS, OPTIMIZERS, Optimizers, model_config, state_bytes
from nanogpt_lib.config import TrainConfig, as_dict, micro_batch
from nanogpt_lib.conversations import ConversationLoader, roles_of
from nanogpt_lib.device import allow_tf32, choose_dtype
from nanogpt_lib.hellaswag import Item, read_items
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.logbook import series
from nanogpt_lib.model import GPT, count_parameters
from nanogpt_lib.prompts import prompt_tokens
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.start import build_model
from nanogpt_lib.support.datasets import verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import seal, write_json
from nanogpt_lib.support.lock_step import layer_by_layer
from nanogpt_lib.support.memory import (
    keep_freed_memory,
    memory_bytes,
    return_freed_memory,
    rows_to_try,
    training_bytes,
)
from nanogpt_lib.support.processes import World
from nanogpt_lib.support.read_ahead import ReadAhead, feed
from nanogpt_lib.support.run_log import RunLog, external_logger, read_log, trim_samples
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, tokenizer_from
from nanogpt_lib.training_loss import compile_for_training

EVAL_TOKENS, EVAL_LOGITS = 4096, 2**22  # of an evaluation batch on a CPU, at most


@dataclass
class Progress:
    """A run's progress, saved in every checkpoint under these names."""

    step: int = 0  # updates so far
    elapsed: float = 0.0  # seconds spent in updates, including those before a resume
    skipped: int = 0  # consecutive updates skipped up to now
    loader: dict = field(default_factory=dict)  # the position in the data
    scaler: dict = field(default_factory=dict)  # float16's loss scale


@dataclass
class Run:
    """The state that the parts of a run share. The second half is only for training."""

    config: TrainConfig
    world: World
    device: torch.device
    dtype: torch.dtype
    meta: dict  # of the dataset
    tokenizer: GPT2Tokenizer | CharTokenizer
    val_stream: TokenStream
    items: list[Item]
    raw: GPT  # the plain or sharded module, for evaluation, samples and checkpoints

    compiled: str = ""  # what became of the compilation
    rows: int = 0  # per process and micro-step
    micro_steps: int = 0  # per update
    model: nn.Module | None = None  # the same weights, compiled and wrapped, for training
    optimizer: torch.optim.Optimizer | Optimizers | None = None
    scaler: torch.amp.GradScaler | None = None
    loader: TokenLoader | ConversationLoader | ReadAhead | None = None
    prompt: list[int] = field(default_factory=list)  # tokens of the samples' prompt
    log: RunLog | None = None  # rank 0 only
    progress: Progress = field(default_factory=Progress)
    undecided: bool = False  # --minutes has still to set max_steps (pace.py)
    saved: int = 0  # step of the newest checkpoint
    val_losses: dict[int, float] = field(default_factory=dict)  # by step; rank 0 only
    lag: dict[str, float] = field(default_factory=dict)  # of the slowest rank in the last step
    symptoms: set[str] = field(default_factory=set)  # said so far; see watch.py

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.progress.step

    @property
    def eval_rows(self) -> int:
        """Rows per evaluation batch: batch_size, but no more than a step has.

        On a CPU a few thousand tokens at a time are faster, if their logits stay small.
        """
        config = self.config
        rows = min(config.batch_size, config.total_batch_size // config.block_size)
        few = min(EVAL_TOKENS, EVAL_LOGITS // self.raw.config.vocab_size) // config.block_size
        return max(rows, few) if self.device.type == "cpu" else rows

    def plain_model(self) -> contextlib.AbstractContextManager[GPT]:
        """A context with the model to evaluate; if it is sharded, every rank must enter it."""
        return layer_by_layer(self.raw, MODELS[self.config.model], self.device)

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.world.is_main:
            print(text, flush=True)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return not self.undecided and self.step >= self.config.max_steps

    def due(self, every: int) -> bool:
        """Whether something is due that happens every `every` steps (0: never) and at the end."""
        return self.finished or (every > 0 and self.step % every == 0)

    def close(self) -> None:
        """End the thread that reads ahead, if there is one."""
        if isinstance(self.loader, ReadAhead):
            self.loader.close()


# --- setting up ---------------------------------------------------------------------------------


def open_run(
    config: TrainConfig, world: World, device: torch.device, meta: dict
) -> tuple[Run, dict, Path | None]:
    """Open the data and build or load the model, which is all that evaluation needs.

    Returns the Run and, when resuming, the checkpoint's state and folder.
    """
    allow_tf32()
    tokenizer = tokenizer_from(meta["tokenizer"])
    items = read_items(config.hellaswag_data, tokenizer) if config.hellaswag_every else []
    if config.verify_data:
        verify_shards(config.data, world.rank, world.size)
    raw, state, folder = build_model(config, meta, tokenizer, world, device)
    raw.train()
    run = Run(
        config=config,
        world=world,
        device=device,
        dtype=choose_dtype(device, config.dtype),
        meta=meta,
        tokenizer=tokenizer,
        val_stream=TokenStream(config.data, "val"),
        items=items,
        raw=raw,
    )
    return run, state, folder


def prepare(config: TrainConfig, world: World, device: torch.device, meta: dict) -> Run:
    """A run ready to train: a new one, or restored from its newest checkpoint."""
    sharded = config.parallel == "fsdp" and world.size > 1
    if device.type == "cpu" and sharded:  # chosen to save memory, not time
        return_freed_memory()
    run, state, folder = open_run(config, world, device, meta)
    run.rows, run.micro_steps = micro_batch(config, world.size)
    run.loader = open_loader(run)
    run.prompt = choose_prompt(run)
    peak = world.size * training_bytes(run.raw, run.rows, run.dtype)  # usually all on one machine
    enough = 2 * peak < (memory_bytes(device) or math.inf)
    if device.type == "cpu" and enough and not sharded:
        keep_freed_memory()
    make_trainable(run)
    if folder:
        restore(run, state, folder)
    announce(run)
    return run


def open_loader(run: Run) -> TokenLoader | ConversationLoader | ReadAhead:
    """A loader at the start of the training data."""
    config, kind = run.config, TokenLoader
    how = dict(rank=run.world.rank, world_size=run.world.size, shuffle=config.shuffle)
    if config.loss_on != "text":
        kind, how["roles"] = ConversationLoader, roles_of(run.tokenizer)
        how["answers_only"] = config.loss_on == "answers"
    tokens = TokenStream(config.data, "train")
    return feed(kind(tokens, run.rows, config.block_size, seed=config.seed, **how), run.device)


def choose_prompt(run: Run) -> list[int]:
    """The samples' prompt as tokens. A default that cannot be encoded is replaced, with a note."""
    config = run.config
    options = dict(block_size=config.block_size, say=run.say, flag="--sample-prompt")
    try:
        return prompt_tokens(run.tokenizer, config.sample_prompt, **options)
    except UserError as error:
        if "sample_prompt" in config.flags:
            raise
        characters = run.tokenizer.characters
        config.sample_prompt = next((c for c in characters if c.isalnum()), characters[0])
        run.say(f"{error}; samples begin with {config.sample_prompt!r}")
    return prompt_tokens(run.tokenizer, config.sample_prompt, **options)


def make_trainable(run: Run) -> None:
    """Compile and wrap the model, make the optimizer."""
    config, world, device = run.config, run.world, run.device
    run.optimizer = OPTIMIZERS[config.optimizer](run.raw, config, run.dtype)
    run.scaler = torch.amp.GradScaler(device.type, enabled=run.dtype == torch.float16)
    x = torch.zeros(run.rows, config.block_size, dtype=torch.long, device=device)
    run.model, run.compiled = compile_for_training(run.raw, config, device, x, run.dtype, world)


def describe_data(meta: dict) -> str:
    """A dataset's name and source, from its meta.json."""
    return f"{meta.get('name', 'unnamed')} ({meta.get('source', 'source unknown')})"


def announce(run: Run) -> None:
    """Print what is trained, on which data, where and how."""
    config, world = run.config, run.world
    run.say(
        f"{count_parameters(run.raw):,} parameters, {len(run.loader.tokens):,} training tokens of "
        f"{describe_data(run.meta)}"
    )
    run.say(f"{run.device}, {str(run.dtype).removeprefix('torch.')}, {run.compiled}")
    processes = f"{world.size} processes ({config.parallel})" if world.size > 1 else "1 process"
    if world.size == 1 and config.parallel == "fsdp":
        run.say("1 process, nothing to shard: --parallel fsdp has no effect")
    fewer = f", not {config.batch_size} rows: they must divide the step"
    fewer = fewer if run.rows < config.batch_size else ""
    run.say(
        f"{config.total_batch_size:,} tokens per step = {run.rows} rows × {config.block_size} × "
        f"{processes} × {run.micro_steps} micro-step(s){fewer}"
    )


# --- restoring and saving -----------------------------------------------------------------------


def restore(run: Run, state: dict, folder: Path) -> None:
    """Restore everything but the weights from the checkpoint in `folder`."""
    load_optimizer(run.raw, run.optimizer, folder, state)
    try:
        saved = {f.name: state[f.name] for f in fields(Progress)}
        run.progress = Progress(**saved)
        run.loader.load_state_dict(run.progress.loader)
        run.scaler.load_state_dict(run.progress.scaler)
        run.saved = run.step
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder}/state.json: not written by train.py ({error})") from error
    run.say(f"resumed from {folder} at step {run.step}")


def write_settings(run: Run) -> dict:
    """Write config.json; return the settings."""
    settings = as_dict(run.config)
    write_json(Path(run.config.out) / "config.json", seal(settings))
    return settings


def open_log(run: Run) -> None:
    """Write config.json; open log.jsonl and trim samples.txt to where the run resumes."""
    out, resume_step = Path(run.config.out), run.step if run.config.resume else None
    settings = write_settings(run)
    also = external_logger(run.config.logger, out, settings)
    run.log = RunLog(out / "log.jsonl", resume_step, also)
    steps, values = series(read_log(out / "log.jsonl"), "val_loss")
    run.val_losses = dict(zip(steps, values, strict=True))
    trim_samples(out / "samples.txt", run.step)


def save(run: Run) -> None:
    """Write a checkpoint with everything that resuming needs."""
    if run.world.is_main and not (Path(run.config.out) / "log.jsonl").exists():
        raise UserError(f"{run.config.out}: the run directory was removed; cannot save")
    run.saved, progress = run.step, run.progress
    progress.loader, progress.scaler = run.loader.state_dict(), run.scaler.state_dict()
    state = {
        "train_config": as_dict(run.config),
        "tokenizer": run.tokenizer.describe(),
        **asdict(progress),
    }
    options = dict(keep=run.config.keep_checkpoints, val_losses=run.val_losses, world=run.world)
    save_checkpoint(run.config.out, run.step, run.raw, run.optimizer, state, **options)


def memory_advice(config: TrainConfig, vocab_size: int, world: World, device) -> str:
    """What to try after running out of memory, by the formula of support/memory.py."""
    with torch.device("meta"):
        model = MODELS[config.model](model_config(config, vocab_size))
    dtype, (rows, micro_steps) = choose_dtype(device, config.dtype), micro_batch(config, world.size)
    own = state_bytes(OPTIMIZERS[config.optimizer](model, config, dtype))
    ranks = world.size if config.parallel == "fsdp" else 1
    memory = memory_bytes(device)
    fewer = rows_to_try(model, dtype, memory, rows * micro_steps, rows, own, ranks)
    gigabytes = training_bytes(model, rows, dtype, own, ranks) / 1e9
    needed = f"out of memory with {rows} rows; a step needs about {gigabytes:.1f} GB"
    if not fewer:
        return f"{needed}; try a smaller --block-size or model"
    return f"{needed}; try --batch-size {fewer} (the tokens per step stay the same)"
