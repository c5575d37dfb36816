"""Fast sampling on an NVIDIA GPU: a cache of fixed size, and each step replayed as a CUDA graph.

A decoding step of GPT-2 124M is some 200 small kernels; started one by one from Python, they take
several times longer than the GPU needs. A CUDA graph records them once and replays them with one
call. It replays the same kernels on the same addresses, so nothing may depend on the length of the
text: keys and values are in tensors of full length, written at a position that is itself in GPU
memory, and a mask hides what is not yet written. Without a graph the same step is a plain call.

Shapes: B rows generated together, T tokens fed at once, S tokens attended to, H heads, D head size.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.context import Context
from nanogpt_lib.model import GPT
from nanogpt_lib.sampling import context_start, draw, next_token_logits, next_token_probabilities
from nanogpt_lib.support.packed import Swaps, fast_inference

REACH = 256  # S is a multiple of this, so that short texts do not attend to block_size tokens


class FixedLayerCache:
    """Keys and values of one block, (B, H, block_size, D), written at `position`; never moves."""

    def __init__(self, block_size: int, position: Tensor):
        self.block_size, self.position = block_size, position
        self.reach = 0  # S, how many of them `append` returns; 0: only the new ones
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values (B, H, T, D) of T new tokens; return those to attend to."""
        B, H, T, D = k.shape
        if self.k is None:  # zeros: what the mask hides is multiplied by 0, and must be finite
            self.k = k.new_zeros(B, H, self.block_size, D)
            self.v = v.new_zeros(B, H, self.block_size, D)
        if not self.reach:
            self.k[:, :, :T] = k
            self.v[:, :, :T] = v
            return k, v
        self.k.index_copy_(2, self.position, k)
        self.v.index_copy_(2, self.position, v)
        return self.k[:, :, : self.reach], self.v[:, :, : self.reach]


def draw_unchecked(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The token that `sampling.draw` chooses on a GPU, (B, V) → (B, 1), but the CPU never waits.

    torch.multinomial divides the probabilities by exponential random numbers and takes the largest,
    after it has waited for a check that they are finite. Waiting is impossible inside a graph.
    """
    noise = torch.empty_like(probs).exponential_(1.0, generator=generator)
    return (probs / noise).argmax(dim=-1, keepdim=True)


class Decoder:
    """Feeds tokens to a model one position after another, in tensors that never move.

    `choose` turns logits (B, V) and a generator into tokens (B, 1).
    """

    def __init__(
        self,
        model: GPT,
        choose: Callable[[Tensor, torch.Generator | None], Tensor],
        generator: torch.Generator | None = None,
        graphs: bool = True,
    ):
        self.model, self.choose, self.generator = model, choose, generator
        self.device = model.lm_head.weight.device
        self.graphs = graphs and self.device.type == "cuda"
        self.recorded: dict[int, torch.cuda.CUDAGraph] = {}  # by reach
        self.transformer: Callable = model.transformer  # or a compiled one
        self.length = 0  # tokens in the cache

    def start(self, idx: Tensor) -> Tensor:
        """Read the prompts idx (B, T) into the cache, from position 0 on; return the next tokens.

        The first call fixes the number of rows.
        """
        config = self.model.config
        if not self.length:
            self.token = idx.new_zeros(idx.size(0), 1)
            self.position = torch.zeros(1, dtype=torch.long, device=self.device)
            self.columns = torch.arange(config.block_size, device=self.device)
            new = lambda: FixedLayerCache(config.block_size, self.position)  # noqa: E731
            self.cache = [new() for _ in range(config.n_layer)]
        self.length = idx.size(1)
        self.set_reach(0)
        context = Context(self.columns[: self.length], cache=self.cache)
        logits = next_token_logits(self.model, self.model.transformer(idx, context)[:, -1])
        self.position.fill_(self.length)
        self.token.copy_(self.choose(logits, self.generator))
        return self.token

    def set_reach(self, reach: int) -> None:
        """How many positions the next step attends to; 0 while a prompt is read."""
        for layer in self.cache:
            layer.reach = reach

    def compute(self) -> None:
        """One step: feed `token` at `position`, then replace it by the next token."""
        reach = self.cache[0].reach
        visible = (self.columns[:reach] <= self.position)[None, None, None]  # (1, 1, 1, S)
        context = Context(self.position, visible, self.cache)
        logits = next_token_logits(self.model, self.transformer(self.token, context)[:, -1])
        self.token.copy_(self.choose(logits, self.generator))
        self.position.add_(1)

    def step(self) -> Tensor:
        """Generate one more token per row, (B, 1); the tensor is overwritten by the next step."""
        block_size = self.model.config.block_size
        reach = min(block_size, -(-(self.length + 1) // REACH) * REACH)
        self.set_reach(reach)
        if self.graphs and reach not in self.recorded:
            self.record(reach)
        if self.graphs:
            self.recorded[reach].replay()
        else:
            self.compute()
        self.length += 1
        return self.token

    def record(self, reach: int) -> None:
        """Record the step as a graph; if that is impossible, say so and go on without graphs."""
        token = self.token.clone()
        try:
            self.warm_up(token)
            graph = torch.cuda.CUDAGraph()
            if self.generator is not None:  # the default one is known to every graph
                graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph):
                self.compute()
            self.recorded[reach] = graph
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0][:120]
            print(f"no CUDA graph, starting every kernel from Python ({reason})", file=sys.stderr)
            self.graphs = False
        self.rewind(token)

    def warm_up(self, token: Tensor) -> None:
        """Run the step three times, so that libraries allocate before it is recorded.

        It draws from a generator of its own, which leaves the texts as they would be.
        """
        own, self.generator = self.generator, torch.Generator(self.device).manual_seed(0)
        try:
            with self.on_another_stream():
                for _ in range(3):
                    self.rewind(token)
                    self.compute()
        finally:
            self.generator = own
        self.rewind(token)

    @contextlib.contextmanager
    def on_another_stream(self) -> Iterator[None]:
        """A CUDA stream other than the current one, as PyTorch asks for before recording."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            yield
        current.wait_stream(side)

    def rewind(self, token: Tensor) -> None:
        """Make `token` the one to feed next, at the end of the cache."""
        self.token.copy_(token)
        self.position.fill_(self.length)


def graph_decoder(
    model: GPT,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    graphs: bool = True,
) -> Decoder:
    """A Decoder with the options of `sampling.stream`; without `graphs` every step is a call."""
    pick = draw if model.lm_head.weight.device.type == "cpu" else draw_unchecked

    def choose(logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return pick(next_token_probabilities(logits, temperature, top_k, top_p), generator)

    return Decoder(model, choose, generator, graphs)


@torch.inference_mode()
def graph_stream(
    model: GPT, idx: Tensor, max_new_tokens: int, *, eot: int | None = None, **options
) -> Iterator[Tensor]:
    """`sampling.stream`, with every step replayed as a CUDA graph; `options` as graph_decoder's.

    Same arguments, same tokens, except for rounding (attention adds up in another order). On other
    devices the step is a plain call. Autocast must be off: it would cast every weight in every
    step (see `cast_weights`).
    """
    block_size = model.config.block_size
    decoder, start = graph_decoder(model, **options), 0
    finished = torch.zeros(idx.size(0), 1, dtype=torch.bool, device=idx.device)
    for number in range(max_new_tokens):
        moved = context_start(idx.size(1), block_size)
        token = decoder.start(idx[:, moved:]) if moved != start or not number else decoder.step()
        start = moved
        if eot is not None:
            token.copy_(torch.where(finished, eot, token))
            finished |= token == eot
        token = token.clone()
        idx = torch.cat([idx, token], dim=1)
        yield token
        if eot is not None and finished.all():
            return


class CastLinear(nn.Module):
    """Replaces one nn.Linear for inference: its weight is cast once, as autocast does each time."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = linear.bias
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out), in the weight's dtype."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


@contextlib.contextmanager
def cast_weights(model: GPT, dtype: torch.dtype) -> Iterator[GPT]:
    """Inside the block, the products in the blocks run in `dtype`, with weights cast beforehand.

    What autocast computes, without autocast. The head stays in float32, as in next_token_logits.
    """
    swaps = Swaps()
    try:
        if dtype != torch.float32:
            for parent in list(model.transformer.modules()):
                for name, child in list(parent.named_children()):
                    if type(child) is nn.Linear:
                        swaps.swap(parent, name, CastLinear(child, dtype))
        yield model
    finally:
        swaps.undo()


def fast_sampling(
    model: GPT, device: torch.device, dtype: torch.dtype, rows: int, weights: str = "float32"
):
    """The context in which to generate `rows` texts: cast weights on CUDA, else fast_inference."""
    if device.type == "cuda":
        return cast_weights(model, dtype)
    return fast_inference(model, device, dtype, rows, weights)
