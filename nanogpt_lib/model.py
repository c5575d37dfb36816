"""The GPT-2 transformer: attention, MLP, block, and the model that stacks them.

Exported from notebooks/02_module.ipynb, 03_sampling.ipynb, 04_training.ipynb and 05_speedups.ipynb;
edit the notebooks, not this file.

Shapes: B batch, T time, C channels (n_embd), H heads, D head size = C // H, V vocabulary.
Modules are named as in GPT-2's checkpoints: wte, wpe, c_attn, c_proj, c_fc, ln_f.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.context import Context
from nanogpt_lib.pretrained import crop_block_size, load_pretrained
from nanogpt_lib.support.errors import UserError


@dataclass
class GPTConfig:
    """The shape of a GPT; the defaults are GPT-2 124M."""

    block_size: int = 1024  # longest context: rows of wpe
    vocab_size: int = 50257  # tokens that exist: 50,000 merges + 256 bytes + <|endoftext|>
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # biases in Linear and LayerNorm, as GPT-2 has
    vocab_multiple: int = 1  # rows of wte are padded up to a multiple of this (64 is fast on GPUs)
    attention: str = "sdpa"  # "sdpa": PyTorch's fused kernels; "manual": attention_by_hand below

    @property
    def padded_vocab_size(self) -> int:
        """Rows of wte: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


def attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / √D) v, causal. q: (B, H, T, D); k and v: (B, H, S, D), S ≥ T.

    Query t belongs to key S - T + t and attends to keys up to that one; or, given `visible`,
    (B, 1, T, S) booleans, to those where it is true.
    """
    T, S = q.size(-2), k.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    if visible is None:
        visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v  # (B, H, T, D)


def attention_fused(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """attention_by_hand by `scaled_dot_product_attention`, which never stores the scores."""
    T, S = q.size(-2), k.size(-2)
    if visible is None and T == S:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if visible is None and T > 1:  # a single new token sees every key in the cache
        visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)


ATTENTION = {"manual": attention_by_hand, "sdpa": attention_fused}


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each token attends to itself and to earlier tokens."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        assert config.n_embd % config.n_head == 0, "n_embd must be divisible by n_head"
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.attend = ATTENTION[config.attention]

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x: (B, T, C) → (B, T, C); without a context, the first T tokens of a sequence."""
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        # heads are a second batch dimension: (B, T, C) → (B, T, H, D) → (B, H, T, D)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        visible = None
        if context is not None:
            k, v = context.remember(k, v)  # (B, H, S, D): all tokens so far
            visible = context.visible
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, dropout, visible)  # (B, H, T, D)
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # concatenate the heads
        return F.dropout(self.c_proj(y), dropout)


class MLP(nn.Module):
    """Two linear layers, four times as wide in between; applied to each token independently."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")  # the approximation GPT-2 was trained with
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) → (B, T, 4C) → (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention, in which tokens exchange information, then an MLP on each token.

    Pre-norm: the residual stream x is only ever added to, so gradients reach every layer unscaled.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x: (B, T, C) → (B, T, C)."""
        x = x + self.attn(self.ln_1(x), context)
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """Everything below the output head: embeddings, n_layer blocks, a final norm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, idx: Tensor, context: Context | None = None) -> Tensor:
        """Token ids (B, T) → hidden states (B, T, C).

        `context` gives the tokens' positions, what they attend to and the cache; without one they
        are the first T tokens of a sequence, at most block_size.
        """
        if context is None:
            position = torch.arange(idx.size(1), device=idx.device)
            assert len(position) <= self.wpe.num_embeddings, "more tokens than block_size"
        else:
            position = context.position
        x = self.drop(self.wte(idx) + self.wpe(position))  # (B, T, C) + (T, C) or (B, T, C)
        for number, block in enumerate(self.h):
            x = block(x, None if context is None else context.layer(number))
        return self.ln_f(x)


class GPT(nn.Module):
    """A Transformer and its tied output head: token ids in, logits and loss out."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # one matrix, two jobs
        init_weights(self, config.n_layer)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, context: Context | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and, given targets (B, T), the mean cross entropy in nats."""
        # drop the padding columns: they must not enter the softmax or be sampled
        logits = self.lm_head(self.transformer(idx, context))[..., : self.config.vocab_size]
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.float().reshape(-1, logits.size(-1)), targets.reshape(-1))
        return logits, loss

    @classmethod
    def from_pretrained(cls, source: str, **changes) -> "GPT":
        """Load a GPT-2 checkpoint (hub name or folder); `changes` override its GPTConfig."""
        config, state = load_pretrained(source)
        crop_block_size(config, state, changes.pop("block_size", config["block_size"]))
        model = cls(GPTConfig(**{**config, **changes}))
        load_weights(model, state)
        return model


def load_weights(model: GPT, state: dict[str, Tensor], vocab_size: int | None = None) -> None:
    """Copy a state dict into a model; wte may be padded to another number of rows.

    `vocab_size` is the number of rows of the state's wte that are tokens (default: all), so that
    only padding is ever dropped. Raises UserError that names what does not fit.
    """
    own = model.state_dict()
    if odd := sorted(set(own) ^ set(state)):
        raise UserError(f"checkpoint and model differ in {len(odd)} tensors, e.g. {odd[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            given = state[name]
            if name in ("transformer.wte.weight", "lm_head.weight"):
                other, tokens = len(given) != len(tensor), vocab_size or len(given)
                if (other or vocab_size) and tokens != model.config.vocab_size:
                    had = f"the checkpoint has {tokens} tokens"
                    raise UserError(f"{had}, the model has {model.config.vocab_size}")
                if other:
                    given = F.pad(given[:tokens], (0, 0, 0, len(tensor) - tokens))
            if given.shape != tensor.shape:
                shapes = f"{tuple(given.shape)}, the model needs {tuple(tensor.shape)}"
                raise UserError(f"{name} has shape {shapes}")
            tensor.copy_(given)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def init_weights(model: nn.Module, n_layer: int) -> None:
    """GPT-2's initialisation: std 0.02, wpe 0.01, zero biases (openai/gpt-2, src/model.py).

    The projections that write into the residual stream are scaled by 1/√(2·n_layer), so that the
    sum of 2·n_layer of them has the variance of one, whatever the depth (GPT-2 paper, section 2.3).
    """
    residual_std = 0.02 / math.sqrt(2 * n_layer)
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.normal_(p, std=residual_std)
        elif name.endswith("wpe.weight"):
            nn.init.normal_(p, std=0.01)
        elif p.dim() == 2:
            nn.init.normal_(p, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
