"""The model a run starts from: random, another model, or its own newest checkpoint."""

from pathlib import Path

import torch
from torch.nn import functional as F

from nanogpt_lib.arguments import modern
from nanogpt_lib.checkpoint import load_weights_into, newest_checkpoint, weights_of
from nanogpt_lib.choices import MODELS, SHAPE, model_config
from nanogpt_lib.config import TrainConfig, flag
from nanogpt_lib.finetuning import extend_vocabulary, kept_rows
from nanogpt_lib.load import Found, errors_naming, open_model, say_on_stderr
from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.support.checkpoint_files import shared_checkpoints
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.initialising import sharded_model_of_seed
from nanogpt_lib.support.processes import World, on_every_rank
from nanogpt_lib.support.sharding import copy_rows, sharded_model, without_weights
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
    elif folder or config.init_from == "scratch":
        torch.manual_seed(config.seed)
        model = MODELS[config.model](model_config(config, meta["vocab_size"]))
        if folder:
            load_weights_into(model, folder, state)
    else:
        model = load_opened(config, *open_source(config, meta, tokenizer, world))
    return model.to(device), state, folder


def shares_of_model(
    config: TrainConfig,
    meta: dict,
    tokenizer: Tokenizer,
    world: World,
    device: torch.device,
    folder: Path | None,
    state: dict,
) -> GPT:
    """The sharded model; no rank ever holds more of it than its share and one whole tensor.

    From files, each rank reads its rows. A new model has the weights that a plain one would get
    from the same seed.
    """
    found = None

    def open_own() -> None:
        nonlocal found
        found, _ = open_source(config, meta, tokenizer, world)

    if not folder and config.init_from != "scratch":  # it may set its own shape
        on_every_rank(open_own, world)
    kind, shape = MODELS[config.model], model_config(config, meta["vocab_size"])
    if not (folder or found):
        return sharded_model_of_seed(lambda: kind(shape), config.seed, world, device)
    model = sharded_model(lambda: kind(shape), world, device)
    if folder:
        load_weights_into(model, folder, state)
    else:
        load_shares(model, config, found)
    return model


def check_resumable(config: TrainConfig, state: dict, tokenizer: Tokenizer) -> None:
    """Raise UserError if the settings or the data do not fit the run to resume."""
    try:
        began, shape = modern(state["train_config"]), state["model_config"]
        alike = same_tokenizer(tokenizer_from(state["tokenizer"]), tokenizer)
        saved = {"model": "gpt2", "optimizer": "adamw", "loss_on": "text"}
        saved |= {"init_from": config.init_from, **began}
        saved |= {name: shape[name] for name in SHAPE if name in shape}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config.out}: its checkpoint was not written by train.py") from error
    for name in (*SHAPE, "model", "optimizer", "loss_on", "init_from"):
        if name in saved and getattr(config, name) != saved[name]:
            raise UserError(f"{flag(name)}: the run to resume has {saved[name]}")
    if not alike:
        raise UserError(f"--data {config.data}: the run to resume has another tokenizer")


def open_source(
    config: TrainConfig, meta: dict, tokenizer: Tokenizer, world: World
) -> tuple[Found, list[int] | None]:
    """Open the model of --init-from; copy its kind and the shape of its weights into the settings.

    Also returns the rows for extend_vocabulary, or None if no token of the data is new. Raises
    UserError if a setting asked for a different shape, or if the model has tokens that the data
    lack; tokens that the model lacks can be added.
    """
    names = ("block_size", "dropout", "vocab_multiple", "attention")
    as_it_is = {"block_size", "vocab_multiple"} - config.asked_for
    changes = {name: getattr(config, name) for name in names if name not in as_it_is}
    say = say_on_stderr if world.is_main else lambda line: None
    found, own = open_model(config.init_from, say, **changes)
    vocab_size, shape = found.config["vocab_size"], GPTConfig(**found.config)
    rows = kept_rows(own, tokenizer) if own else None
    if rows is None or len(rows) != meta["vocab_size"]:
        known = f"{vocab_size} tokens" + ("" if own else " of an unknown tokenizer")
        raise UserError(
            f"--init-from {config.init_from} has {known}, the data in {config.data} "
            f"{meta['vocab_size']}: the tokenizers differ (make the data with "
            f"--tokenizer {config.init_from})"
        )
    new = rows.count(-1)
    if new and found.model is not GPT:
        raise UserError(f"{config.init_from}: tokens can be added to a gpt2 model only")
    if new and config.parallel == "fsdp" and world.size > 1:
        raise UserError("--parallel fsdp cannot add tokens to a model; --parallel ddp can")
    kind = next(name for name, kind in MODELS.items() if kind is found.model)
    for name, value in {"model": kind, **{n: getattr(shape, n) for n in SHAPE}}.items():
        if name in config.asked_for and getattr(config, name) != value:
            raise UserError(f"{flag(name)}: {config.init_from} has {value}")
        setattr(config, name, value)
    say(f"{config.init_from}: {found.about}" + (f"; {new} tokens are new" if new else ""))
    return found, rows if new else None


def load_opened(config: TrainConfig, found: Found, rows: list[int] | None) -> GPT:
    """The whole model of an opened source, with the tokens that are new in the data."""
    with errors_naming(config.init_from):
        model = found.model(GPTConfig(**found.config))
        load_weights(model, found.state, found.config["vocab_size"])
    return model if rows is None else extend_vocabulary(model, rows)


def load_shares(model: GPT, config: TrainConfig, found: Found) -> None:
    """Give each rank its rows of the weights of an opened source, one tensor at a time."""
    with errors_naming(config.init_from):
        with without_weights():
            like = found.model(model.config)
        load_weights(like, found.state.shapes, model.config.vocab_size)  # refuses what does not fit
        for name, share in weights_of(model).items():
            whole, rows = found.state[name], share.shape[0]
            if len(whole) != rows:  # wte, padded to another number of rows
                tokens = model.config.vocab_size
                whole = F.pad(whole[:tokens], (0, 0, 0, rows - tokens))
            copy_rows(share, lambda start, stop, whole=whole: whole[start:stop])
