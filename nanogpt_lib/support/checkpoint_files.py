"""The files of a checkpoint: writing them atomically, verifying, reading by rows, pruning.

A checkpoint's tensors are in NAME.safetensors or, if each process holds a share (FSDP), in one file
per process: NAME_rank_0003-of-0008.safetensors has rank 3's rows of every tensor. Concatenated in
rank order they give the full tensor, so any number of processes can read them; so can PyTorch's
torch.distributed.checkpoint, with its HuggingFaceStorageReader.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, flush_names, read_sealed
from nanogpt_lib.support.heartbeat import writing
from nanogpt_lib.support.processes import World, on_every_rank, refuse
from nanogpt_lib.support.sharding import copy_rows, save_rows

FORMATS = (1, 2)  # optimizer state is keyed by parameter number in 1, by parameter name in 2


# --- listing ------------------------------------------------------------------------------------


def checkpoints(out: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; half-written ones (.tmp) are not listed."""
    found = Path(out, "checkpoints").glob("step_*")
    return sorted((p for p in found if p.name[5:].isdecimal()), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name[5:])


def shared_checkpoints(out: str | Path, world: World) -> list[Path]:
    """`checkpoints` as rank 0 sees them; every rank must call this.

    Raises UserError if another rank sees different ones: then `out` is not a shared folder.
    """
    names = on_every_rank(lambda: [folder.name for folder in checkpoints(out)], world)[0]
    found = [Path(out) / "checkpoints" / name for name in names]

    def contents() -> list[bytes]:
        states = [folder / "state.json" for folder in found]
        return [path.read_bytes() if path.exists() else b"" for path in states]

    seen = on_every_rank(contents, world)
    if any(other != seen[0] for other in seen):
        refuse(f"{out}: the nodes see different checkpoints; it must be a shared folder", world)
    return found


# --- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_beside(final: Path, writers: World) -> Iterator[Path]:
    """Yield a temporary folder next to `final`, and rename it to `final` if the block succeeds.

    All `writers` must call this. Raises UserError and cleans up if writing fails (a full disk).
    """
    temporary, old = (final.with_name(final.name + end) for end in (".tmp", ".old.tmp"))

    def begin() -> None:
        if writers.is_main:
            for stale in final.parent.glob("step_*.tmp"):  # left by a killed run
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir(parents=True)

    try:
        on_every_rank(begin, writers)
        with writing(temporary):
            yield temporary
        if writers.is_main:
            flush_names(temporary)
            with contextlib.suppress(FileNotFoundError):  # exists only if it is damaged
                os.replace(final, old)
            os.replace(temporary, final)
            flush_names(final.parent)
            shutil.rmtree(old, ignore_errors=True)
    except (UserError, OSError) as error:
        if writers.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final}: cannot be saved ({error}); older ones are intact") from error


def write_tensors(
    folder: Path, contents: dict[str, dict[str, Tensor]], writers: World
) -> dict[str, dict]:
    """Write each name's tensors into its file or, if they are sharded, one file per writer.

    All `writers` must call this. Returns {file: size and SHA-256} for all files.
    """

    def write_own() -> dict[str, dict]:
        files = {}
        for name, tensors in contents.items():
            part = f"_rank_{writers.rank:04d}-of-{writers.size:04d}" if writers.size > 1 else ""
            path = folder / f"{name}{part}.safetensors"
            try:
                save_rows(path, tensors, writers)
            except SafetensorError as error:
                raise OSError(str(error)) from error
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        return files

    return {
        name: line for files in on_every_rank(write_own, writers) for name, line in files.items()
    }


# --- reading ------------------------------------------------------------------------------------


def read_state(folder: Path, world: World = World()) -> dict:  # noqa: B008 (frozen)
    """Read state.json of one checkpoint and verify the other files against it.

    Processes share the work; all must call this. Raises UserError on all of them if any finds a
    file missing, truncated or damaged.
    """

    def read_own() -> tuple[dict | None, str]:
        try:
            return read_verified(folder, world), ""
        except UserError as error:
            return None, str(error)

    answers = on_every_rank(read_own, world)
    if problem := next((problem for _, problem in answers if problem), ""):
        raise UserError(problem)
    return answers[world.rank][0]


def read_verified(folder: Path, world: World) -> dict:
    """`read_state` without communication: this rank verifies every W-th file, W = world size."""
    path = folder / "state.json"
    try:
        state = read_sealed(path)
        if state["format"] not in FORMATS:
            raise UserError(f"{path}: format {state['format']}; this library reads 1 and 2")
        for number, (name, expected) in enumerate(sorted(state["files"].items())):
            file = folder / Path(name).name
            if not file.exists() or file.stat().st_size != expected["bytes"]:
                raise UserError(f"{file}: missing or truncated")
            if number % world.size == world.rank and file_sha256(file) != expected["sha256"]:
                raise UserError(f"{file}: damaged (its SHA-256 differs from the recorded one)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged") from error
    return state


class TensorFiles:
    """One name's tensors in a checkpoint, in one file or one per process; read on demand.

    Raises UserError if the files are not valid safetensors or do not fit together.
    """

    def __init__(self, folder: Path, name: str, state: dict):
        part = re.compile(rf"{name}(_rank_\d+-of-\d+)?\.safetensors")
        self.paths = [folder / file for file in sorted(state["files"]) if part.fullmatch(file)]
        self.place = f"{folder}: {name}"
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pieces: dict[str, list[tuple[Path, int]]] = {}  # file and number of rows
        for path in self.paths:
            with self.opened(path) as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    shape = tuple(file.get_slice(key).get_shape())
                    if (known := self.shapes.get(key, (0, *shape[1:])))[1:] != shape[1:]:
                        raise UserError(f"{path}: {key} does not match the preceding files")
                    self.pieces.setdefault(key, []).append((path, shape[0] if shape else 1))
                    self.shapes[key] = (known[0] + shape[0], *shape[1:]) if shape else ()
        if not self.paths:
            raise UserError(f"{folder}: state.json names no file for the {name}")

    @contextlib.contextmanager
    def opened(self, path: Path):
        """Open a file; turn its errors into UserError."""
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete safetensors file ({error})") from error

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop of a tensor, by default all of them."""
        if not self.shapes[key]:  # a scalar, in one of the files
            with self.opened(self.pieces[key][0][0]) as file:
                return file.get_tensor(key)
        stop, found, first = self.shapes[key][0] if stop is None else stop, [], 0
        for path, count in self.pieces[key]:
            low, high = max(start, first) - first, min(stop, first + count) - first
            if low < high:
                with self.opened(path) as file:
                    found.append(file.get_slice(key)[low:high])
            first += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def like(self, parameter: Tensor, key: str) -> Tensor:
        """Read a tensor that belongs to `parameter`, with its sharding and device; or a scalar.

        Raises UserError if the shapes differ.
        """
        if self.shapes[key] == ():
            return self.rows(key)
        if self.shapes[key] != tuple(parameter.shape):
            raise UserError(f"{self.place}: {key} does not fit the model (shapes differ)")
        tensor = torch.empty_like(parameter, requires_grad=False)
        copy_rows(tensor, lambda start, stop: self.rows(key, start, stop))
        return tensor

    def everything(self) -> dict[str, Tensor]:
        """All tensors, unsharded."""
        return {key: self.rows(key) for key in self.shapes}

    def copy_into(self, tensors: dict[str, Tensor]) -> None:
        """Copy into tensors, plain or sharded; a sharded one gets the rows this rank holds.

        Raises UserError if names or shapes differ.
        """
        if odd := sorted(tensors.keys() ^ self.shapes.keys()):
            raise UserError(f"{self.place}: not the tensors of this model, starting with {odd[0]}")
        for key, tensor in tensors.items():
            if tuple(tensor.shape) != self.shapes[key]:
                shapes = f"{self.shapes[key]}; the model needs {tuple(tensor.shape)}"
                raise UserError(f"{self.place}: {key} has shape {shapes}")
            copy_rows(tensor, lambda start, stop, key=key: self.rows(key, start, stop))


# --- pruning ------------------------------------------------------------------------------------


def discard(folder: Path) -> None:
    """Remove a checkpoint if it exists; a kill midway leaves nothing under its name."""
    doomed = folder.with_name(folder.name + ".old.tmp")
    with contextlib.suppress(OSError):
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Whether this checkpoint has all its files, none of them truncated.

    Only sizes are compared: hashing a large model again would add minutes to every save.
    """
    try:
        files = read_sealed(folder / "state.json")["files"]
        return all((folder / n).stat().st_size == files[n]["bytes"] for n in files)
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def prune(out: str | Path, saved: int, keep: int, val_losses: dict[int, float]) -> None:
    """Keep the newest `keep` complete checkpoints (0: all) and the one with the best loss.

    An incomplete one does not count, and is removed once it is older than those that are kept.

    The one just saved, at step `saved`, is the newest. If one has a later step, it was damaged and
    the run resumed from an older one: the log no longer covers it, so it is renamed, not counted
    and never resumed. `val_losses` maps step → validation loss; a checkpoint whose step is not in
    it is never the best.
    """
    folders = checkpoints(out)
    for folder in folders:
        if step_of(folder) > saved:
            set_aside(folder)
    folders = [folder for folder in folders if step_of(folder) <= saved]
    whole = [folder for folder in folders if step_of(folder) == saved or is_complete(folder)]
    if not whole:
        return
    rated = [f for f in whole if step_of(f) in val_losses]
    best = min(rated, key=lambda f: val_losses[step_of(f)], default=None)
    for folder in folders:
        if keep and folder != best and step_of(folder) < step_of(whole[-keep:][0]):
            discard(folder)


def set_aside(folder: Path) -> None:
    """Rename a checkpoint so that no run resumes from it."""
    aside = folder.with_name(folder.name + ".set-aside")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(folder, aside)
        print(
            f"{folder}: written before the run resumed from an older checkpoint; "
            f"renamed to {aside.name}",
            file=sys.stderr,
        )
