"""The settings of a training run: their plain defaults, which are GPT-2's (124M), and their checks.

A preset (presets.py) applies only if it is named on the command line (arguments.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from nanogpt_lib.presets import PRESETS
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import ROOT


class Need(NamedTuple):
    """A condition on other settings for this one to have an effect: as text and as a function."""

    words: str
    met: Callable[["TrainConfig"], bool]


DTYPES = ("auto", "float32", "bfloat16", "float16")
MUON = Need("--optimizer muon", lambda config: config.optimizer == "muon")
PREFLIGHT = Need("--preflight", lambda config: config.preflight)
MINUTES = Need("--minutes greater than 0", lambda config: config.minutes > 0)
HELLASWAG = Need("--hellaswag-every greater than 0", lambda config: config.hellaswag_every > 0)


def option(default, help: str, choices: tuple[str, ...] | str | None = None, need=None):
    """A field that is also a command-line flag: help text with its unit, choices, condition.

    A string as `choices` names a registry of choices.py.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "need": need})


@dataclass
class TrainConfig:
    """All settings of a run. Saved as a plain dict in config.json and in every checkpoint."""

    # where and how to start
    data: str = option(
        "data/fineweb",
        "folder of token shards (made by python data/NAME.py); looked up in the working directory, "
        "then in the repository",
    )
    out: str = option("runs/unnamed", "run directory: log, checkpoints, samples, plot")
    seed: int = option(1337, "seed for initialisation, shuffling, dropout and samples")
    resume: bool = option(False, "continue the run in --out from its newest intact checkpoint")
    auto_resume: bool = option(
        False, "resume if --out holds a run, else start one (for --max-restarts and Slurm)"
    )
    init_from: str = option("scratch", "scratch, gpt2, gpt2-medium/-large/-xl, a folder, or a run")
    eval_only: bool = option(
        False,
        "print the validation loss (and, with --hellaswag-every 1, HellaSwag) of --init-from or of "
        "the run in --out (--resume), then exit; nothing is trained or written",
    )
    preflight: bool = option(
        False,
        "check machine, data, disk, memory, links, compilation and checkpoints for the run that "
        "the other settings describe, forecast its hours, and exit; the run directory is untouched",
    )
    price: float = option(
        0.0, "price of a GPU-hour, in any currency, for the forecast", need=PREFLIGHT
    )
    # how it computes
    device: str = option("auto", "auto, cpu, cuda or mps", ("auto", "cpu", "cuda", "mps"))
    dtype: str = option(
        "auto", "dtype of the matrix products; auto: bfloat16 where it is fast", DTYPES
    )
    compile: str = option("auto", "torch.compile; auto: on for CUDA", ("auto", "on", "off"))
    parallel: str = option(
        "ddp",
        "with several processes: ddp, each holds the whole model and optimizer state; or fsdp, "
        "each holds a share (AdamW only), for a model that does not fit on one card",
        ("ddp", "fsdp"),
    )
    # model
    model: str = option("gpt2", "kind of model", "MODELS")
    n_layer: int = option(12, "transformer blocks")
    n_head: int = option(12, "attention heads per block")
    n_embd: int = option(768, "channels of the residual stream")
    block_size: int = option(1024, "context length (tokens)")
    dropout: float = option(0.0, "dropout probability in training")
    bias: bool = option(True, "biases in linear layers and layer norms, as GPT-2 has")
    vocab_multiple: int = option(
        64, "rows of wte are padded up to a multiple of this (1: no padding)"
    )
    attention: str = option("sdpa", "attention kernel; sdpa is PyTorch's", ("sdpa", "manual"))
    # batch and schedule
    batch_size: int = option(
        64,
        "most rows per micro-batch and process that fit in memory; fewer are used if the number "
        "of tokens per step requires it",
    )
    total_batch_size: int = option(524288, "tokens per optimizer step, over all processes")
    max_steps: int = option(19073, "optimizer steps; with --minutes set by the time a step takes")
    minutes: float = option(
        0.0,
        "minutes of training, without evaluations and samples: the first steps are timed, then "
        "max_steps is set, and the *_every settings in proportion (0: max_steps as given)",
    )
    step_seconds: float = option(
        0.0, "seconds a step takes, for --minutes (0: time the first steps)", need=MINUTES
    )
    optimizer: str = option(
        "adamw",
        "adamw for all parameters, or muon for the matrices in the blocks and adamw for the rest",
        "OPTIMIZERS",
    )
    schedule: str = option(
        "cosine",
        "learning rate after the warm-up: cosine, or wsd (constant, then linear decay)",
        "SCHEDULES",
    )
    learning_rate: float = option(6e-4, "peak learning rate (AdamW's), reached after the warm-up")
    min_lr: float = option(6e-5, "learning rate at the end of the schedule")
    muon_learning_rate: float = option(
        0.02, "peak learning rate of Muon, on the same schedule", need=MUON
    )
    muon_method: str = option(
        "newton-schulz",
        "how Muon orthogonalises; halley takes a quarter of the time on a CPU",
        "METHODS",
        need=MUON,
    )
    warmup_steps: int = option(715, "steps of linear warm-up")
    weight_decay: float = option(
        0.1, "decoupled weight decay of matrices, multiplied by the learning rate"
    )
    beta1: float = option(0.9, "decay of the gradient's running mean (AdamW's and Muon's)")
    beta2: float = option(0.95, "decay of the squared gradient's running mean (AdamW's)")
    grad_clip: float = option(1.0, "clip the gradient to this norm (0: no clipping)")
    loss_on: str = option(
        "text",
        "text: every token of one long text; or whole conversations packed into rows, with the "
        "loss on their answers only, or on all their tokens (conversations)",
        ("text", "answers", "conversations"),
    )
    shuffle: bool = option(True, "visit the windows of each epoch in a seeded random order")
    verify_data: bool = option(True, "check the shards' SHA-256 before the first step")
    skip_bad_steps: int = option(
        0, "skip up to this many updates in a row if loss or gradient is not finite, then stop"
    )
    # evaluation, checkpoints, samples
    eval_every: int = option(250, "steps between validation losses (0: only at the end)")
    eval_tokens: int = option(10_485_760, "validation tokens per evaluation, always the same ones")
    save_every: int = option(1000, "steps between checkpoints (0: only at the end)")
    keep_checkpoints: int = option(
        2, "newest checkpoints to keep (0: all), besides the one with the lowest validation loss"
    )
    sample_every: int = option(250, "steps between samples (0: only at the end)")
    sample_tokens: int = option(64, "tokens per sample")
    sample_prompt: str = option("Hello, I'm a language model,", "prompt of the samples")
    hellaswag_every: int = option(0, "steps between HellaSwag scores (0: never)")
    hellaswag_data: str = option(
        "data/hellaswag/val.jsonl", "items made by python data/hellaswag.py", need=HELLASWAG
    )
    log_every: int = option(10, "steps between lines on the terminal (log.jsonl has every step)")
    logger: str = option("none", "also log to this", ("none", "tensorboard", "wandb"))

    # where the values came from; not settings
    preset: str | None = None
    flags: frozenset[str] = frozenset()

    @property
    def length_is_open(self) -> bool:
        """Whether a start has still to set the number of steps, by --minutes; see pace.py."""
        timed = self.step_seconds and "step_seconds" not in self.flags  # by the run to resume
        return self.minutes > 0 and not timed

    @property
    def asked_for(self) -> set[str]:
        """Names of the settings set by the preset or by a flag."""
        return {*self.flags, *PRESETS.get(self.preset, {})}


OPTIONS = {f.name: f for f in fields(TrainConfig) if f.metadata}
PATHS = ("data", "hellaswag_data", "init_from")  # inputs; found from any working directory
INTERVALS = ("eval_every", "save_every", "sample_every", "hellaswag_every", "log_every")
PACED = ("max_steps", "step_seconds", *INTERVALS)  # what --minutes sets
TIMED_STEPS = 10  # from their time --minutes sets the rest
# concern one start only; not saved
OF_A_START = ("resume", "auto_resume", "eval_only", "preflight", "price")


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return f"--{name.replace('_', '-')}"


def check_config(config: TrainConfig) -> None:
    """Raise UserError for values that are invalid on any machine or contradict each other."""
    positive = (
        "n_layer n_head n_embd block_size vocab_multiple batch_size total_batch_size max_steps "
        "eval_tokens sample_tokens log_every learning_rate muon_learning_rate"
    )
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise UserError(f"{flag(name)} must be greater than 0")
    for name, f in OPTIONS.items():
        if f.type in (int, float) and not 0 <= getattr(config, name) < 2**40:
            raise UserError(f"{flag(name)} must be from 0 to 2^40")
    if config.seed >= 2**32:
        raise UserError("--seed must be less than 2^32")
    parameters = 12 * config.n_layer * config.n_embd**2 + config.vocab_multiple * config.n_embd
    if parameters > 1e12:
        raise UserError(f"--n-layer, --n-embd: a model of {parameters:.0e} parameters")
    for name in ("dropout", "beta1", "beta2"):
        if not getattr(config, name) < 1:
            raise UserError(f"{flag(name)} must be less than 1")
    if config.n_embd % config.n_head:
        raise UserError(f"--n-embd {config.n_embd} is not divisible by --n-head {config.n_head}")
    check_contradictions(config)


def check_contradictions(config: TrainConfig) -> None:
    """Raise UserError for incompatible settings, or a flag that would have no effect."""
    if config.learning_rate < config.min_lr:
        raise UserError(
            f"--learning-rate {config.learning_rate:g} is below --min-lr {config.min_lr:g}, so the "
            "rate would rise; lower --min-lr too"
        )
    if {"minutes", "max_steps"} <= config.flags and config.minutes:
        raise UserError("--minutes and --max-steps both set the run's length: give one of them")
    if config.optimizer == "muon" and config.parallel == "fsdp":
        raise UserError("--optimizer muon needs whole matrices, --parallel fsdp splits them")
    for name in sorted(config.flags):
        need = OPTIONS[name].metadata["need"]
        if need and not need.met(config):
            raise UserError(f"{flag(name)} has an effect only with {need.words}")
    if config.eval_only and config.preflight:
        raise UserError("--preflight is for a training run, --eval-only trains nothing; drop one")
    if config.minutes and not config.resume and config.warmup_steps < TIMED_STEPS:
        raise UserError(
            f"--minutes times the first {TIMED_STEPS} steps, which must be warm-up: --warmup-steps "
            f"{TIMED_STEPS} or more"
        )
    if config.eval_only and not config.resume and config.init_from == "scratch":
        raise UserError("--eval-only: name the model with --init-from or --resume --out RUN")


def divisors(n: int) -> list[int]:
    """All divisors of n in ascending order."""
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    return small + [n // i for i in reversed(small) if i * i != n]


def micro_batch(config: TrainConfig, world_size: int) -> tuple[int, int]:
    """Rows per process and micro-step, and micro-steps per optimizer step.

    Uses the most rows, up to batch_size, that divide a process's share of a step, so that the
    tokens per step never change. Raises UserError if the processes cannot share a step equally, and
    names the numbers that can.
    """
    windows, rest = divmod(config.total_batch_size, config.block_size)
    if rest or not windows:
        nearest = max(1, round(config.total_batch_size / config.block_size)) * config.block_size
        raise UserError(
            f"--total-batch-size {config.total_batch_size} cannot be divided into rows of "
            f"--block-size {config.block_size} tokens; the nearest that can be is {nearest}"
        )
    if windows % world_size:
        able = [str(n) for n in divisors(windows) if n <= 2 * world_size]
        raise UserError(
            f"the {windows} rows of a step (--total-batch-size {config.total_batch_size} in rows "
            f"of {config.block_size} tokens) cannot be shared equally by {world_size} processes; "
            f"start {', '.join(able)} of them"
        )
    share = windows // world_size
    rows = max(n for n in divisors(share) if n <= config.batch_size)
    return rows, share // rows


def as_dict(config: TrainConfig) -> dict:
    """The settings that have an effect, as plain values for JSON, valid in any directory."""
    needs = {name: f.metadata["need"] for name, f in OPTIONS.items() if name not in OF_A_START}
    values = {n: getattr(config, n) for n, need in needs.items() if not need or need.met(config)}
    for name in PATHS:  # relative to the repository if inside it, else absolute
        if Path(values.get(name, "")).is_relative_to(ROOT):
            values[name] = Path(values[name]).relative_to(ROOT).as_posix()
    return values
