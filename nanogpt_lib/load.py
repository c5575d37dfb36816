"""Load a model from anywhere: our runs and checkpoints, Hugging Face, nanoGPT, build-nanogpt.

    from nanogpt_lib import load_model

    model, tokenizer = load_model("runs/quickstart")   # a run: its newest complete checkpoint
    model, tokenizer = load_model("gpt2-medium")       # from the hub (./gpt2-medium: a folder)
    model, tokenizer = load_model("out/ckpt.pt")       # nanoGPT's or build-nanogpt's weights

The kind of source is detected from its contents and reported in one line on stderr.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nanogpt_lib.checkpoint import newest_checkpoint
from nanogpt_lib.choices import MODELS
from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.pretrained import GPT2_SIZES, crop_block_size, from_huggingface
from nanogpt_lib.support.checkpoint_files import TensorFiles
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.foreign_checkpoints import newest_file, read_foreign
from nanogpt_lib.support.huggingface import (
    WEIGHTS,
    check_sizes,
    checked_shape,
    read_config,
    read_weights,
)
from nanogpt_lib.support.lazy_tensors import LazyTensors, without_contents
from nanogpt_lib.support.tokenizer_files import by_rows, read_alphabet, read_tokenizer
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, tokenizer_from

RECORDED = Path(__file__).resolve().parents[1] / "notebooks" / "recorded" / "model"
LOOKED_FOR = ("state.json", "checkpoints/step_*", *WEIGHTS, "ckpt.pt", "model_*.pt")
Tokenizer = GPT2Tokenizer | CharTokenizer


@dataclass
class Found:
    """What was read from a source."""

    config: dict  # fields of a GPTConfig
    state: LazyTensors  # with the names and shapes of the model's own state dict
    tokenizer: dict | None  # its description, None if unknown
    about: str  # shown to the user
    model: type[GPT] = GPT


def say_on_stderr(line: str) -> None:
    """Print a line to stderr, so that it does not mix with a program's output."""
    print(line, file=sys.stderr, flush=True)


def load_model(
    source: str | Path, *, say: Callable[[str], None] = say_on_stderr, **changes
) -> tuple[GPT, Tokenizer | None]:
    """Load the model and tokenizer of a run, a checkpoint, a folder, a hub name or a file.

    `changes` override block_size (the context is cropped), dropout, attention and vocab_multiple
    (padding). The tokenizer is None if unknown. Weights are float32. `say` gets one line that says
    how the source was interpreted. Raises UserError if there is no model, or if the tokenizer files
    are neither GPT-2's nor a CharTokenizer's.
    """
    found, tokenizer = open_model(source, say, **changes)
    with errors_naming(source):
        model = found.model(GPTConfig(**found.config))
        load_weights(model, found.state, found.config["vocab_size"])
    say(f"{source}: {found.about}")
    return model, tokenizer


def open_model(
    source: str | Path, say: Callable[[str], None] = say_on_stderr, **changes
) -> tuple[Found, Tokenizer | None]:
    """What load_model would load, with the `changes` made, before any weights are read."""
    found, tokenizer = read_model(source, say), None
    if found.tokenizer is not None:
        tokenizer = tokenizer_from(found.tokenizer)
        found.config["vocab_size"] = tokenizer.vocab_size  # further rows are padding
    with errors_naming(source):
        length = found.config["block_size"]
        if changes.get("block_size", length) != length:
            crop_block_size(found.config, found.state, changes["block_size"])
    found.config |= changes
    return found, tokenizer


@contextlib.contextmanager
def errors_naming(source: str | Path) -> Iterator[None]:
    """Turn what a wrong config or wrong weights raise into a UserError that names the source."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (TypeError, ValueError, KeyError, AssertionError) as error:  # an unknown setting
        raise UserError(f"{source}: cannot be built here ({error!r})") from error


def recorded_model() -> tuple[GPT, CharTokenizer]:
    """The small trained model that comes with the course, in eval mode, and its tokenizer."""
    if not (RECORDED / "state.json").exists():
        raise UserError(f"{RECORDED}: missing; restore it with git checkout notebooks")
    model, tokenizer = load_model(RECORDED, say=lambda line: None)
    return model.eval(), tokenizer


def read_model(source: str | Path, say: Callable[[str], None]) -> Found:
    """Detect what a source is and read it."""
    path = Path(source)
    if isinstance(source, str) and source in GPT2_SIZES:
        if path.exists():
            say(f"{source}: means OpenAI's model; for the folder here, write ./{source}")
        return read_huggingface(source)
    if path.is_file():
        return read_file(path)
    if path.is_dir():
        return read_folder(path)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(source)):
        raise UserError(f"{source}: no such folder or file")
    try:
        return read_huggingface(str(source))
    except UserError as error:
        raise UserError(
            f"no folder or file {source} here; as a name on the hub: {error}"
        ) from error


def read_folder(folder: Path) -> Found:
    """Read our run or checkpoint, a Hugging Face folder, or one of nanoGPT or build-nanogpt."""
    if (folder / "state.json").exists() or (folder / "checkpoints").is_dir():
        return read_ours(folder)
    if any((folder / name).exists() for name in WEIGHTS):
        return read_huggingface(str(folder) if folder.is_absolute() else f"./{folder}")
    if path := newest_file(folder):
        return read_others(path)
    raise UserError(f"{folder}: no model here (looked for {', '.join(LOOKED_FOR)})")


def read_file(path: Path) -> Found:
    """Read a file of nanoGPT or build-nanogpt, or the folder that a weights file belongs to."""
    if path.name in (*WEIGHTS, "state.json", "config.json"):
        return read_folder(path.parent)
    return read_others(path)


def read_ours(source: Path) -> Found:
    """Read the newest complete checkpoint of a run, or `source` itself if it is a checkpoint."""
    folder, saved = newest_checkpoint(source)
    try:
        config = checked_shape(dict(saved["model_config"]), f"{folder}/state.json")
        description = dict(saved["tokenizer"])
        tokenizer = tokenizer_from(description)
        kind = saved.get("train_config", {}).get("model", "gpt2")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/state.json: damaged ({error})") from error
    if kind not in MODELS:
        raise UserError(f"{folder}: model {kind!r}; this library has {', '.join(MODELS)}")
    files = TensorFiles(folder, "model", saved)
    state = tied(without_contents(files.shapes), lambda name: files.rows(name).float())
    if tokenizer.vocab_size != config["vocab_size"]:
        sizes = f"{tokenizer.vocab_size} tokens; the model has {config['vocab_size']}"
        raise UserError(f"{folder}/state.json: the tokenizer has {sizes}")
    words = "GPT-2's tokenizer" if tokenizer.eot else f"{tokenizer.vocab_size} characters"
    return Found(config, state, description, f"our checkpoint {folder.name}, {words}", MODELS[kind])


def tied(shapes: dict[str, Tensor], read: Callable[[str], Tensor]) -> LazyTensors:
    """A state dict in which lm_head is wte, as they may be saved once."""
    if "transformer.wte.weight" not in shapes or "lm_head.weight" in shapes:
        return LazyTensors(shapes, read)
    again = {"lm_head.weight": "transformer.wte.weight"}
    shapes["lm_head.weight"] = shapes["transformer.wte.weight"]
    return LazyTensors(shapes, lambda name: read(again.get(name, name)))


def read_huggingface(source: str) -> Found:
    """Read a Hugging Face checkpoint: a folder, or a name on the hub or in NANOGPT_MIRROR."""
    config, tensors = read_config(source), read_weights(source)
    there, shapes = {}, {}  # by our names: the file's name, the shape
    for name, tensor in tensors.items():
        for own, shape in from_huggingface({name: tensor.to("meta")}).items():
            there[own], shapes[own] = name, shape
    check_sizes(config, shapes, source)

    def read(own: str) -> Tensor:  # from_huggingface makes copies: one tensor at a time
        return from_huggingface({there[own]: tensors[there[own]]})[own]

    description, words = read_tokenizer(source, config["vocab_size"])
    return Found(config, tied(shapes, read), description, f"Hugging Face checkpoint, {words}")


def read_others(path: Path) -> Found:
    """Read a checkpoint file of nanoGPT or build-nanogpt; characters come from characters.json."""
    config, tensors, origin = read_foreign(path)
    if (path.parent / "characters.json").exists():
        description, words = read_alphabet(path.parent, config["vocab_size"])
    else:
        description, words = by_rows(config["vocab_size"])
    if description is None:
        words += ' (put its sorted characters as one "string" into characters.json next to it)'
    state = LazyTensors({n: t.to("meta") for n, t in tensors.items()}, tensors.__getitem__)
    return Found(config, state, description, f"{path.name} of {origin}, {words}")
