"""The model a run starts from: random, another model, or its own newest checkpoint."""

from pathlib import Path

import torch

from nanogpt_lib.arguments import modern
from nanogpt_lib.checkpoint import load_weights_into, newest_checkpoint
from nanogpt_lib.choices import MODELS, SHAPE, model_config
from nanogpt_lib.config import TrainConfig, flag
from nanogpt_lib.load import load_model, say_on_stderr
from nanogpt_lib.model import GPT
from nanogpt_lib.support.checkpoint_files import shared_checkpoints
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.processes import World, on_every_rank
from nanogpt_lib.support.sharding import send_shares, sharded_model
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, same_tokenizer, tokenizer_from

Tokenizer = GPT2Tokenizer | CharTokenizer


def build_model(
    config: TrainConfig, meta: dict, tokenizer: Tokenizer, world: World, device: torch.device
) -> tuple[GPT, dict, Path | None]:
    """The model to start from, on its device; when resuming, also the checkpoint (state, folder).

    `meta` and `tokenizer` are the dataset's. Every rank must call this; with --parallel fsdp each
    gets its share of the model.
    """
    folder, state = None, {}
    if config.resume and shared_checkpoints(config.out, world):
        folder, state = newest_checkpoint(config.out, world)
        check_resumable(config, state, tokenizer)
    elif config.eval_only and config.resume:
        raise UserError(f"{config.out}: no checkpoint to evaluate")
    if config.parallel == "fsdp" and world.size > 1:
        model = shares_of_model(config, meta, tokenizer, world, device, folder, state)
    elif folder:
        model = MODELS[config.model](model_config(config, meta["vocab_size"]))
        load_weights_into(model, folder, state)
    else:
        model = first_model(config, meta, tokenizer, world.is_main)
    return model.to(device), state, folder


def first_model(config: TrainConfig, meta: dict, tokenizer: Tokenizer, is_main: bool) -> GPT:
    """The whole model of a new run, in main memory."""
    if config.init_from != "scratch":
        return model_to_start_from(config, meta, tokenizer, is_main)
    torch.manual_seed(config.seed)
    return MODELS[config.model](model_config(config, meta["vocab_size"]))


def shares_of_model(
    config: TrainConfig,
    meta: dict,
    tokenizer: Tokenizer,
    world: World,
    device: torch.device,
    folder: Path | None,
    state: dict,
) -> GPT:
    """The sharded model. From a checkpoint each rank reads its own rows.

    For a new run, rank 0 makes the whole model in main memory, from the usual seed, and sends the
    others their shares.
    """
    whole = None

    def make() -> dict:
        nonlocal whole
        if world.is_main:
            whole = first_model(config, meta, tokenizer, True)
        return {name: getattr(config, name) for name in ("model", *SHAPE)}

    if not folder:  # --init-from may have set its own shape
        for name, value in on_every_rank(make, world)[0].items():
            setattr(config, name, value)
    build = MODELS[config.model]
    model = sharded_model(lambda: build(model_config(config, meta["vocab_size"])), world, device)
    if folder:
        load_weights_into(model, folder, state)
    else:
        send_shares(whole, model)
    return model


def check_resumable(config: TrainConfig, state: dict, tokenizer: Tokenizer) -> None:
    """Raise UserError if the settings or the data do not fit the run to resume."""
    try:
        began, shape = modern(state["train_config"]), state["model_config"]
        alike = same_tokenizer(tokenizer_from(state["tokenizer"]), tokenizer)
        saved = {"model": "gpt2", "optimizer": "adamw", "init_from": config.init_from, **began}
        saved |= {name: shape[name] for name in SHAPE if name in shape}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config.out}: its checkpoint was not written by train.py") from error
    for name in (*SHAPE, "model", "optimizer", "init_from"):
        if name in saved and getattr(config, name) != saved[name]:
            raise UserError(f"{flag(name)}: the run to resume has {saved[name]}")
    if not alike:
        raise UserError(f"--data {config.data}: the run to resume has another tokenizer")


def model_to_start_from(
    config: TrainConfig, meta: dict, tokenizer: Tokenizer, is_main: bool
) -> GPT:
    """Load the model of --init-from; copy its kind and the shape of its weights into the settings.

    Raises UserError if a setting asked for a different shape, or if the tokenizers differ.
    """
    names = ("block_size", "dropout", "vocab_multiple", "attention")
    as_it_is = {"block_size", "vocab_multiple"} - config.asked_for
    changes = {name: getattr(config, name) for name in names if name not in as_it_is}
    say = say_on_stderr if is_main else lambda line: None
    model, own = load_model(config.init_from, say=say, **changes)
    if model.config.vocab_size != meta["vocab_size"] or not same_tokenizer(own, tokenizer):
        known = f"{model.config.vocab_size} tokens" + ("" if own else " of an unknown tokenizer")
        raise UserError(
            f"--init-from {config.init_from} has {known}, the data in {config.data} "
            f"{meta['vocab_size']}: the tokenizers differ"
        )
    kind = next(name for name, kind in MODELS.items() if kind is type(model))
    for name, value in {"model": kind, **{n: getattr(model.config, n) for n in SHAPE}}.items():
        if name in config.asked_for and getattr(config, name) != value:
            raise UserError(f"{flag(name)}: {config.init_from} has {value}")
        setattr(config, name, value)
    return model
