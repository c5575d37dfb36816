"""Evaluate a sharded model layer by layer: no rank ever holds more than two of its blocks.

Gathering a block is a collective, so all ranks run in lock step: before each forward pass they tell
each other who has work. A rank without any waits at the end of `evaluating` and serves the others:
it gathers with them and computes on a single token.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn as nn

from nanogpt_lib.support.sharding import without_weights


class LockStep:
    """Gathers the weights of a sharded model for a plain one, as the plain one needs them.

    Both have their blocks in transformer.h. What is outside the blocks (wte, which is lm_head, wpe
    and ln_f) is gathered once, in `begin`; of the blocks, the current one and the next.
    """

    def __init__(self, plain: nn.Module, sharded: nn.Module, device: torch.device):
        self.plain, self.sharded = plain, sharded
        self.blocks = list(sharded.transformer.h)
        self.flag = torch.zeros(1, device=device)
        self.handle = None  # of the block that is being gathered
        self.serving = False
        plain.wait_for_others = self.serve  # for `evaluating`
        plain.transformer.register_forward_pre_hook(self.announce)
        for number, block in enumerate(plain.transformer.h):
            empty = own_parameters(block)
            block.register_forward_pre_hook(lambda *_, n=number: self.gather(n))
            block.register_forward_hook(lambda *_, n=number, e=empty: self.release(n, e))

    def begin(self) -> None:
        """Gather what is outside the blocks, and lend it to the plain model."""
        self.sharded.unshard()
        outside = own_parameters(self.sharded, without=self.sharded.transformer.h)
        lend(self.plain, outside)

    def end(self) -> None:
        """Free what `begin` has gathered."""
        self.sharded.reshard()

    def anyone_works(self, this_rank: bool) -> bool:
        """Tell the others whether this rank has work; return whether any has."""
        self.flag.fill_(float(this_rank))
        dist.all_reduce(self.flag, op=dist.ReduceOp.MAX)
        return bool(self.flag.item())

    def announce(self, *_) -> None:
        """Before a forward pass: this rank has work."""
        if not self.serving:
            with outside_inference_mode():
                self.anyone_works(True)

    def serve(self) -> None:
        """Take part in the others' forward passes until none has work left."""
        self.serving = True
        token = torch.zeros(1, 1, dtype=torch.long, device=self.flag.device)
        with outside_inference_mode():
            while self.anyone_works(False):
                self.plain.transformer(token)
        self.serving = False

    def gather(self, number: int) -> None:
        """Before a block runs: gather it, and begin with the next one."""
        with outside_inference_mode():
            if self.handle is None:
                self.handle = self.blocks[number].unshard(async_op=True)
            self.handle.wait()
            later = self.blocks[number + 1 : number + 2]
            self.handle = later[0].unshard(async_op=True) if later else None
            lend(self.plain.transformer.h[number], own_parameters(self.blocks[number]))

    def release(self, number: int, empty: dict[str, nn.Parameter]) -> None:
        """After a block has run: free its weights."""
        with outside_inference_mode():
            lend(self.plain.transformer.h[number], empty)
            self.blocks[number].reshard()


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """FSDP keeps its buffers for training, where tensors made in inference mode are refused."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def own_parameters(module: nn.Module, without: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """A module's parameters under all their names, except those of the module `without`."""
    left_out = set(map(id, without.parameters())) if without is not None else set()
    named = module.named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if id(p) not in left_out}


def lend(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Let a module use the memory of these parameters under the same names."""
    lent: dict[int, nn.Parameter] = {}
    for name, p in parameters.items():
        # autocast would keep a copy of every weight that requires a gradient
        own = lent.setdefault(id(p), nn.Parameter(p.detach(), requires_grad=False))
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, own)


@contextlib.contextmanager
def layer_by_layer(model: nn.Module, kind: Callable, device: torch.device) -> Iterator[nn.Module]:
    """The model itself or, if it is sharded, a plain model that gathers its weights as it runs.

    `kind` makes a plain model from a config. Every rank must enter and leave this block, and inside
    it every `evaluating` block, but may do any amount of work in them, or none.
    """
    if not hasattr(model, "unshard"):
        yield model
        return
    with without_weights():
        plain = kind(model.config)
    steps = LockStep(plain, model, device)
    steps.begin()
    yield plain
    steps.end()
