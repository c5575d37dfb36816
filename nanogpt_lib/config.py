"""What a training run can be told: TrainConfig, the named presets, and the command line.

This is the ground floor of the library; it imports nothing of it.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import read_sealed


def option(default, help: str, choices: tuple[str, ...] | None = None):
    """A dataclass field that carries its own help text (and choices) for the command line."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class TrainConfig:
    """All settings of a run. Saved as a plain dict in config.json and in every checkpoint."""

    # where
    data: str = option(
        "data/pydocs", "folder with token shards and meta.json (python data/NAME.py)"
    )
    out: str = option("runs/quickstart", "run directory: log, checkpoints, samples, plot")
    seed: int = option(1337, "seed of the initialisation, the shuffle, dropout and the samples")
    resume: bool = option(False, "continue the run in --out from its newest whole checkpoint")
    auto_resume: bool = option(
        False, "the same if --out holds a run, else begin one (for --max-restarts and Slurm)"
    )
    init_from: str = option("scratch", "scratch, gpt2, gpt2-medium/-large/-xl, a folder, or a run")
    # how it computes
    device: str = option("auto", "auto, cpu, cuda or mps", ("auto", "cpu", "cuda", "mps"))
    dtype: str = option(
        "auto",
        "arithmetic of the matrix products; auto takes bfloat16 where it is fast",
        ("auto", "float32", "bfloat16", "float16"),
    )
    compile: str = option("auto", "torch.compile; auto: on for CUDA", ("auto", "on", "off"))
    parallel: str = option(
        "ddp",
        "several processes: ddp, every one holds the whole model, 16 bytes per parameter; or fsdp, "
        "each holds a share, for a model that does not fit one card; either resumes the other",
        ("ddp", "fsdp"),
    )
    # model
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
    batch_size: int = option(64, "rows per micro-batch and process: as many as fit in memory")
    total_batch_size: int = option(524288, "tokens per optimizer step, over all processes")
    max_steps: int = option(19073, "optimizer steps")
    learning_rate: float = option(6e-4, "peak learning rate, reached after the warm-up")
    min_lr: float = option(6e-5, "learning rate at the end of the cosine")
    muon_learning_rate: float = option(
        0.0, "peak learning rate of the blocks' matrices under Muon (0: AdamW for all)"
    )
    warmup_steps: int = option(715, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices only")
    beta1: float = option(0.9, "AdamW: decay of the gradient's running mean")
    beta2: float = option(0.95, "AdamW: decay of the squared gradient's running mean")
    grad_clip: float = option(1.0, "largest gradient norm (0: no clipping)")
    shuffle: bool = option(True, "visit the windows of each epoch in a seeded random order")
    verify_data: bool = option(True, "compare the shards with their SHA-256 before the first step")
    skip_bad_steps: int = option(
        0,
        "leave out up to so many updates in a row whose loss or gradient is not finite, then stop",
    )
    # watching
    eval_every: int = option(250, "steps between validation losses (0: only at the end)")
    eval_tokens: int = option(10_485_760, "validation tokens per evaluation, always the same ones")
    save_every: int = option(1000, "steps between checkpoints (0: only at the end)")
    keep_checkpoints: int = option(
        2, "newest checkpoints to keep (0: all), besides that of the lowest validation loss"
    )
    sample_every: int = option(250, "steps between samples (0: only at the end)")
    sample_tokens: int = option(64, "tokens per sample")
    sample_prompt: str = option("Hello, I'm a language model,", "prompt of the samples")
    hellaswag_every: int = option(0, "steps between HellaSwag scores (0: never)")
    hellaswag_data: str = option(
        "data/hellaswag/val.jsonl", "items made by python data/hellaswag.py"
    )
    log_every: int = option(10, "steps between lines on the terminal (log.jsonl has every step)")
    logger: str = option("none", "also log to this", ("none", "tensorboard", "wandb"))


GPT2_124M = dict(
    data="data/fineweb", eval_every=250, save_every=1000, sample_every=250, hellaswag_every=250
)

# Sizes: GPT-2 paper, table 2. Peak learning rates: GPT-3 paper, table 2.1 (floor: a tenth).
PRESETS: dict[str, dict] = {
    "quickstart": dict(
        data="data/pydocs", out="runs/quickstart",
        n_layer=4, n_head=4, n_embd=256, block_size=64, bias=False, vocab_multiple=1,
        attention="manual",  # on a CPU in bfloat16 SDPA's backward pass takes longer
        batch_size=16, total_batch_size=16 * 64, max_steps=1200,
        learning_rate=4e-3, min_lr=1e-4, muon_learning_rate=0.03, warmup_steps=20,
        weight_decay=0.0,
        eval_every=200, eval_tokens=65_536, save_every=400, sample_every=400,
        sample_prompt="The ", sample_tokens=200, log_every=100,
    ),
    # the model the chapters look into (notebooks/recorded): quickstart's kind, a longer context
    "recorded": dict(
        data="data/pydocs", out="runs/recorded",
        n_layer=4, n_head=4, n_embd=256, block_size=256, bias=False, vocab_multiple=1,
        attention="manual", dropout=0.1,
        batch_size=8, total_batch_size=8 * 256, max_steps=6000,
        learning_rate=3e-3, min_lr=1e-4, muon_learning_rate=0.02, warmup_steps=100,
        weight_decay=0.1,
        eval_every=250, eval_tokens=200_000, save_every=500, sample_every=500,
        sample_prompt="The ", sample_tokens=400, log_every=100,
    ),
    # the model, data and batch of nanoGPT's README example for a laptop; a recipe of our own
    "shakespeare-char": dict(
        data="data/shakespeare", out="runs/shakespeare-char",
        n_layer=4, n_head=4, n_embd=128, block_size=64, bias=False, vocab_multiple=1,
        attention="manual",
        batch_size=12, total_batch_size=12 * 64, max_steps=1000,
        learning_rate=6e-3, min_lr=1e-4, muon_learning_rate=0.03, warmup_steps=20, beta1=0.85,
        weight_decay=0.0,
        eval_every=250, eval_tokens=110_592, save_every=500, sample_every=500,
        sample_prompt="\n", sample_tokens=200, log_every=50,
    ),
    # nanoGPT's config/train_shakespeare_char.py, three minutes of an A100
    "shakespeare-char-gpu": dict(
        data="data/shakespeare", out="runs/shakespeare-char-gpu",
        n_layer=6, n_head=6, n_embd=384, block_size=256, bias=False, vocab_multiple=1, dropout=0.2,
        batch_size=64, total_batch_size=64 * 256, max_steps=5000,
        learning_rate=1e-3, min_lr=1e-4, warmup_steps=100, beta2=0.99,
        eval_every=250, eval_tokens=110_592, save_every=1000, sample_every=1000,
        sample_prompt="\n", sample_tokens=500,
    ),
    "gpt2-124m": dict(GPT2_124M, out="runs/gpt2-124m"),
    "gpt2-350m": dict(
        GPT2_124M, out="runs/gpt2-350m", n_layer=24, n_head=16, n_embd=1024,
        batch_size=32, learning_rate=3e-4, min_lr=3e-5,
    ),
    "gpt2-774m": dict(
        GPT2_124M, out="runs/gpt2-774m", n_layer=36, n_head=20, n_embd=1280,
        batch_size=16, learning_rate=2.5e-4, min_lr=2.5e-5,
    ),
    "gpt2-1558m": dict(
        GPT2_124M, out="runs/gpt2-1558m", n_layer=48, n_head=25, n_embd=1600,
        batch_size=8, learning_rate=2e-4, min_lr=2e-5,
    ),
    "gpt3-125m": dict(GPT2_124M, out="runs/gpt3-125m", block_size=2048, batch_size=32),
    "finetune-shakespeare": dict(
        data="data/shakespeare_gpt2", out="runs/finetune-shakespeare", init_from="gpt2",
        batch_size=4, total_batch_size=32 * 1024, max_steps=40,
        learning_rate=3e-5, min_lr=3e-5, warmup_steps=0,
        eval_every=10, eval_tokens=32_768, save_every=20, sample_every=20,
        sample_prompt="\n", log_every=1,
    ),
}  # fmt: skip


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """Read `[PRESET] [--field value …]`; `--max-steps 10` and `--max_steps=10` are the same."""
    names = ", ".join(PRESETS)
    parser = OneLineParser(
        prog="train.py",
        usage="train.py [PRESET] [--field value …]",
        description=f"Train a GPT. Presets: {names}. Flags override the preset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for f in fields(TrainConfig):
        flags = list(dict.fromkeys([f"--{f.name.replace('_', '-')}", f"--{f.name}"]))
        kind = {"type": f.type, "choices": f.metadata["choices"]}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(*flags, default=f.default, help=f.metadata["help"], **kind)
    argv = list(sys.argv[1:] if argv is None else argv)
    preset = argv.pop(0) if argv and not argv[0].startswith("-") else "quickstart"
    if preset not in PRESETS:
        parser.error(f"unknown preset {preset!r}; choose one of {names}")
    parser.set_defaults(**PRESETS[preset])
    chosen = parser.parse_args(argv)
    resume = chosen.resume or (chosen.auto_resume and bool(settings_files(Path(chosen.out))))
    if resume:  # the run's own settings, unless a flag says otherwise
        parser.set_defaults(**saved_settings(Path(chosen.out)))
    config = TrainConfig(**{**vars(parser.parse_args(argv)), "resume": resume})
    check_config(config)
    return config


def settings_files(out: Path) -> list[Path]:
    """The files that hold a run's settings: config.json, and copies in its checkpoints."""
    copies = sorted(out.glob("checkpoints/step_*/state.json"), reverse=True)
    return [path for path in (out / "config.json", *copies) if path.exists()]


def saved_settings(out: Path) -> dict:
    """The settings of a run to be resumed, from the first file that is whole; else a UserError."""
    damaged = None
    for path in settings_files(out):
        try:
            saved = read_sealed(path)
        except (UserError, OSError) as error:
            damaged = damaged or error
            continue
        saved = saved.get("train_config", saved)
        known = {f.name: f.type for f in fields(TrainConfig)}
        if not all(type(value) is known.get(name) for name, value in saved.items()):
            raise UserError(f"{path}: has settings this version does not know")
        return {n: v for n, v in saved.items() if n not in ("out", "resume", "auto_resume")}
    raise UserError(str(damaged or f"{out}: no run to resume here (no config.json)"))


def check_config(config: TrainConfig) -> None:
    """Raise UserError for a value that cannot work on any machine."""
    positive = (
        "n_layer n_head n_embd block_size vocab_multiple batch_size total_batch_size max_steps "
        "eval_tokens sample_tokens log_every learning_rate"
    )
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be greater than 0")
    for f in fields(TrainConfig):
        if f.type in (int, float) and not 0 <= getattr(config, f.name) < 2**40:
            raise UserError(f"--{f.name.replace('_', '-')} must be from 0 to 2^40")
    if config.seed >= 2**32:
        raise UserError("--seed must be less than 2^32")
    parameters = 12 * config.n_layer * config.n_embd**2 + config.vocab_multiple * config.n_embd
    if parameters > 1e12:
        raise UserError(f"--n-layer, --n-embd: a model of {parameters:.0e} parameters")
    for name in ("dropout", "beta1", "beta2"):
        if not getattr(config, name) < 1:
            raise UserError(f"--{name} must be less than 1")
    if config.muon_learning_rate and config.parallel == "fsdp":
        raise UserError("--muon-learning-rate needs whole matrices, --parallel fsdp splits them")
    if config.n_embd % config.n_head:
        raise UserError(f"--n-embd {config.n_embd} cannot be divided by --n-head {config.n_head}")


def grad_accum_steps(config: TrainConfig, world_size: int) -> int:
    """Micro-steps per optimizer step: total_batch_size over what all processes read at once."""
    tokens = config.batch_size * config.block_size * world_size
    if config.total_batch_size % tokens:
        nearest = max(1, round(config.total_batch_size / tokens)) * tokens
        raise UserError(
            f"--total-batch-size {config.total_batch_size} cannot be divided by batch_size × "
            f"block_size × processes = {config.batch_size} × {config.block_size} × {world_size} = "
            f"{tokens}; the nearest that can is {nearest}"
        )
    return config.total_batch_size // tokens


def as_dict(config: TrainConfig) -> dict:
    """The settings as plain Python values, for JSON."""
    return dataclasses.asdict(config)
