"""A sharded model's first weights: those of the plain model of the same seed, tensor by tensor.

The model is built on the meta device while every write to a parameter is recorded: which operation,
and the state of the random number generator before it. Its numbers are drawn and thrown away, so
that the next write sees the same state as in a plain model. Each tensor can then be made on its own
by repeating its writes. Every rank does so for all tensors and keeps its rows; nothing is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.processes import World
from nanogpt_lib.support.sharding import copy_rows, give_memory, shard_fsdp, without_weights

LEAVES_ALONE = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
OVERWRITES = {"normal_", "uniform_", "zero_", "fill_"}  # earlier contents do not matter


@dataclass
class Write:
    """An in-place operation on a tensor or on a part of it."""

    operation: Callable
    place: tuple  # size, stride and offset of the part
    arguments: tuple
    options: dict
    random_state: Tensor  # before it

    def repeat(self, whole: Tensor) -> None:
        """Do it again, to a tensor of its own."""
        torch.set_rng_state(self.random_state)
        self.operation(whole.as_strided(*self.place), *self.arguments, **self.options)


@dataclass
class Recipe:
    """How a parameter got its value: created by torch.empty or from `first`, then written to."""

    first: Tensor | None = None
    writes: list[Write] = field(default_factory=list)

    def add(self, write: Write, size: int) -> None:
        """Note a write; it makes earlier ones superfluous if it replaces all `size` numbers."""
        name = write.operation.overloadpacket.__name__
        if name in OVERWRITES and write.place[0].numel() == size:
            self.first = None
            self.writes.clear()
        self.writes.append(write)

    def make(self, like: Tensor) -> Tensor:
        """The value, in main memory."""
        blank = torch.empty(like.shape, dtype=like.dtype)
        whole = blank if self.first is None else self.first.clone()
        for write in self.writes:
            write.repeat(whole)
        return whole


class Recording(TorchDispatchMode):
    """Inside this mode, with `without_weights`, writes to parameters are recorded."""

    def __init__(self):
        super().__init__()
        self.recipes: dict[int, Recipe] = {}  # by storage
        self.blank = 0  # storage of the latest tensor, if torch.empty made it: it has no contents

    def __enter__(self):
        self.skipped, nn.init.trunc_normal_ = nn.init.trunc_normal_, refuse_to_record
        return super().__enter__()

    def __exit__(self, *exception):
        nn.init.trunc_normal_ = self.skipped
        return super().__exit__(*exception)

    def note(self, parameter: Tensor, taken: Tensor) -> None:
        """A parameter that has contents (torch.ones) keeps them."""
        blank = key_of(parameter) == self.blank
        self.recipes[key_of(taken)] = Recipe(None if blank else parameter.detach())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Called for every operation."""
        kwargs, target = kwargs or {}, args[0] if args else None
        writes = func._schema.is_mutable and torch.is_tensor(target) and target.is_meta
        if not writes:
            result = func(*args, **kwargs)
            if func is torch.ops.aten.empty.memory_format:
                self.blank = key_of(result)
            elif func not in LEAVES_ALONE:
                self.blank = 0
            return result
        if any(torch.is_tensor(value) and value.is_meta for value in (*args[1:], *kwargs.values())):
            refuse_to_record()
        place = (target.size(), target.stride(), target.storage_offset())
        write = Write(func, place, args[1:], kwargs, torch.get_rng_state())
        size = target.untyped_storage().nbytes() // target.element_size()
        self.recipes.setdefault(key_of(target), Recipe()).add(write, size)
        if torch.Tag.nondeterministic_seeded in func.tags:
            func(torch.empty_strided(*place[:2], dtype=target.dtype), *args[1:], **kwargs)
        return target


def refuse_to_record(*_, **__) -> NoReturn:
    """What reads another parameter, and trunc_normal_, which does nothing on the meta device."""
    raise UserError("--parallel fsdp: this model's initialisation needs whole tensors; take ddp")


def key_of(tensor: Tensor) -> int:
    """The same for all tensors that share memory; also on the meta device, which has none."""
    return tensor.untyped_storage()._cdata


def sharded_model_of_seed(
    build: Callable[[], nn.Module], seed: int, world: World, device: torch.device
) -> nn.Module:
    """A sharded model with the weights of the plain model that `build` makes from this seed.

    No rank ever holds the whole model: one whole tensor at a time, besides its own share.
    """
    torch.manual_seed(seed)
    with Recording() as recording, without_weights(recording.note):
        model = build()
    state = torch.get_rng_state()
    recipes = {n: recording.recipes[key_of(p)] for n, p in model.named_parameters()}
    shard_fsdp(model, model.transformer.h, world, device)
    give_memory(model, device)
    for name, share in model.named_parameters():
        whole = recipes.pop(name).make(share)
        copy_rows(share, lambda start, stop, whole=whole: whole[start:stop])
    torch.set_rng_state(state)
    return model
