"""The files of a checkpoint: written beside and renamed, verified, read by rows, pruned.

A checkpoint's tensors lie in NAME.safetensors or, if each process holds a share (FSDP), in one file
per process: NAME_rank_0003-of-0008.safetensors has rank 3's rows of every tensor. The rows of all
files, in order of rank, are the whole tensor, so any number of processes can read them.
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
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, flush_names, read_sealed
from nanogpt_lib.support.processes import World, on_every_rank, refuse
from nanogpt_lib.support.sharding import copy_rows, own_rows

FORMATS = (1, 2)  # 1: the optimizer's state by the parameter's number, 2: by its name


# --- which there are ----------------------------------------------------------------------------


def checkpoints(out: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; half-written ones (.tmp) are not listed."""
    found = (Path(out) / "checkpoints").glob("step_*")
    return sorted((p for p in found if p.name[5:].isdecimal()), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name[5:])


def shared_checkpoints(out: str | Path, world: World) -> list[Path]:
    """`checkpoints` as rank 0 sees them; every rank calls.

    Raises UserError if another rank sees other ones: then `out` is not one folder for all.
    """
    names = on_every_rank(lambda: [folder.name for folder in checkpoints(out)], world)[0]
    found = [Path(out) / "checkpoints" / name for name in names]

    def contents() -> list[bytes]:
        states = [folder / "state.json" for folder in found]
        return [path.read_bytes() if path.exists() else b"" for path in states]

    seen = on_every_rank(contents, world)
    if any(other != seen[0] for other in seen):
        refuse(f"{out}: other checkpoints on other nodes; it must be a shared folder", world)
    return found


# --- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_beside(final: Path, writers: World) -> Iterator[Path]:
    """Yield a new folder beside `final` to write into; it gets that name if the block ends well.

    All `writers` call. Raises UserError if the disk is full or the like; nothing is left then.
    """
    temporary, old = (final.with_name(final.name + end) for end in (".tmp", ".old.tmp"))

    def begin() -> None:
        if writers.is_main:
            for stale in final.parent.glob("step_*.tmp"):  # what a kill left
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir(parents=True)

    try:
        on_every_rank(begin, writers)
        yield temporary
        if writers.is_main:
            flush_names(temporary)
            with contextlib.suppress(FileNotFoundError):  # there is one only if it is damaged
                os.replace(final, old)
            os.replace(temporary, final)
            flush_names(final.parent)
            shutil.rmtree(old, ignore_errors=True)
    except (UserError, OSError) as error:
        if writers.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final}: cannot be saved ({error}); the older ones are whole") from error


def write_tensors(
    folder: Path, contents: dict[str, dict[str, Tensor]], writers: World
) -> dict[str, dict]:
    """Write the tensors of each name into its file or, if they are sharded, its files.

    All `writers` call. Returns {file: size and SHA-256}, of all of them.
    """

    def write_own() -> dict[str, dict]:
        files = {}
        for name, tensors in contents.items():
            part = f"_rank_{writers.rank:04d}-of-{writers.size:04d}" if writers.size > 1 else ""
            path = folder / f"{name}{part}.safetensors"
            own = {key: own_rows(tensor, writers) for key, tensor in tensors.items()}
            try:
                save_file({key: t for key, t in own.items() if t is not None}, path)
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

    Several processes share the work of verifying; all call. Raises UserError, on all of them, if
    any finds something missing, cut short or damaged.
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
    """`read_state` without a word to the others: this rank verifies each W-th file."""
    path = folder / "state.json"
    try:
        state = read_sealed(path)
        if state["format"] not in FORMATS:
            raise UserError(f"{path}: format {state['format']}, this library reads 1 and 2")
        for number, (name, expected) in enumerate(sorted(state["files"].items())):
            file = folder / Path(name).name
            if not file.exists() or file.stat().st_size != expected["bytes"]:
                raise UserError(f"{file}: missing or cut short")
            if number % world.size == world.rank and file_sha256(file) != expected["sha256"]:
                raise UserError(f"{file}: damaged (its SHA-256 is not the recorded one)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged") from error
    return state


class TensorFiles:
    """The tensors of one name in a checkpoint, in one file or one per process; read when asked.

    Raises UserError if the files are no safetensors or do not fit together.
    """

    def __init__(self, folder: Path, name: str, state: dict):
        part = re.compile(rf"{name}(_rank_\d+-of-\d+)?\.safetensors")
        self.paths = [folder / file for file in sorted(state["files"]) if part.fullmatch(file)]
        self.place = f"{folder}: {name}"
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pieces: dict[str, list[tuple[Path, int]]] = {}  # where the rows are, and how many
        for path in self.paths:
            with self.opened(path) as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    shape = tuple(file.get_slice(key).get_shape())
                    if (known := self.shapes.get(key, (0, *shape[1:])))[1:] != shape[1:]:
                        raise UserError(f"{path}: {key} does not continue the files before it")
                    self.pieces.setdefault(key, []).append((path, shape[0] if shape else 1))
                    self.shapes[key] = (known[0] + shape[0], *shape[1:]) if shape else ()
        if not self.paths:
            raise UserError(f"{folder}: state.json names no file for the {name}")

    @contextlib.contextmanager
    def opened(self, path: Path):
        """A file, open for a moment."""
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: no whole safetensors file ({error})") from error

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop of a tensor; without them all of it."""
        if not self.shapes[key]:  # a number, in one of the files
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
        """A tensor that belongs to a parameter, cut and placed as that one is; or a single number.

        Raises UserError if it has another shape.
        """
        if self.shapes[key] == ():
            return self.rows(key)
        if self.shapes[key] != tuple(parameter.shape):
            raise UserError(f"{self.place}: {key} does not fit the model (other shapes)")
        tensor = torch.empty_like(parameter, requires_grad=False)
        copy_rows(tensor, lambda start, stop: self.rows(key, start, stop))
        return tensor

    def everything(self) -> dict[str, Tensor]:
        """All tensors, whole."""
        return {key: self.rows(key) for key in self.shapes}

    def copy_into(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors, plain or sharded, each with those of its rows that it holds.

        Raises UserError if the names or the shapes are others.
        """
        if odd := sorted(tensors.keys() ^ self.shapes.keys()):
            raise UserError(f"{self.place}: not the tensors of this model, first {odd[0]}")
        for key, tensor in tensors.items():
            if tuple(tensor.shape) != self.shapes[key]:
                shapes = f"{self.shapes[key]}, the model needs {tuple(tensor.shape)}"
                raise UserError(f"{self.place}: {key} has shape {shapes}")
            copy_rows(tensor, lambda start, stop, key=key: self.rows(key, start, stop))


# --- what stays ---------------------------------------------------------------------------------


def discard(folder: Path) -> None:
    """Remove a checkpoint, if it is there; killed half-way, none is left under its name."""
    doomed = folder.with_name(folder.name + ".old.tmp")
    with contextlib.suppress(OSError):
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Has this checkpoint all its files, none of them cut short?

    That is told by sizes: to hash them again would take minutes for a large model, at every save.
    """
    try:
        files = read_sealed(folder / "state.json")["files"]
        return all((folder / n).stat().st_size == files[n]["bytes"] for n in files)
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def prune(out: str | Path, saved: int, keep: int, val_losses: dict[int, float]) -> None:
    """Keep the newest `keep` complete checkpoints (0: all) and that of the lowest validation loss.

    An incomplete one does not count, and goes when it is older than those that stay.

    The one just saved, of step `saved`, is the newest. One of a later step comes from before the
    run went back (it was damaged, and an older one resumed): the run's log no longer knows it, so
    it is set aside under another name, not counted, and never resumed. `val_losses` holds step →
    loss; a checkpoint of a step that is not in it is never the best.
    """
    folders = checkpoints(out)
    for folder in folders:
        if step_of(folder) > saved:
            set_aside(folder)
    folders = [folder for folder in folders if step_of(folder) <= saved]
    whole = [folder for folder in folders if step_of(folder) == saved or is_complete(folder)]
    if not whole:
        return
    rated = [folder for folder in whole if step_of(folder) in val_losses]
    best = min(rated, key=lambda folder: val_losses[step_of(folder)], default=None)
    for folder in folders:
        if keep and folder != best and step_of(folder) < step_of(whole[-keep:][0]):
            discard(folder)


def set_aside(folder: Path) -> None:
    """Rename a checkpoint so that no run takes it for one of its own."""
    aside = folder.with_name(folder.name + ".set-aside")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(folder, aside)
        print(
            f"{folder}: from before the run went back to an older checkpoint; now {aside.name}",
            file=sys.stderr,
        )
