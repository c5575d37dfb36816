"""A GPT of 2026: the parts that took over from GPT-2's, each of which can be left out.

Exported from notebooks/13_modern.ipynb; edit the notebook, not this file.

Same interface as model.GPT, so that training, sampling with a cache and checkpoints do not care.
With parts=() it is GPT-2 without biases.

Shapes: B batch, T time, C channels (n_embd), H heads, D head size, V vocabulary.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.context import Context
from nanogpt_lib.model import ATTENTION, GPT, GPTConfig

PARTS = (
    "rotary",  # positions turn queries and keys (Su et al. 2021, RoFormer), instead of being added
    "rms-norm",  # norms without mean, weight and bias (Zhang and Sennrich 2019)
    "qk-norm",  # queries and keys are normed, so that scores stay bounded (Henry et al. 2020)
    "relu2",  # the MLP's activation is ReLU squared (So et al. 2021, Primer)
    "zero-init",  # projections into the stream begin at zero (Yang and Hu 2021; modded-nanogpt)
    "untied",  # the head has a matrix of its own, which begins at zero
    "softcap",  # logits end between -CAP and CAP (Gemma 2, 2024)
    "values",  # tables of value vectors, mixed into those of some blocks (modded-nanogpt, 2024)
    "skip",  # the embedding is mixed into the stream before every block (modded-nanogpt, 2024)
)
CAP = 15.0
BASE = 10_000.0  # the slowest pair of channels turns by nearly 1/BASE per position


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Turn each pair of channels of x (B, H, T, D) by an angle that grows with the position.

    position: (T,) or (B, T). The dot product of a turned query and a turned key depends on the
    distance of their positions only.
    """
    half = x.size(-1) // 2
    frequency = BASE ** (-torch.arange(half, device=x.device) / half)  # 1 to nearly 1/BASE
    angle = position[..., None].float() * frequency  # (T, D/2) or (B, T, D/2)
    angle = angle.unsqueeze(-3)  # the heads share it
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def norm(x: Tensor) -> Tensor:
    """Divide each vector by its root mean square."""
    return F.rms_norm(x, (x.size(-1),))


class Norm(nn.Module):
    """`norm` as a module, where a LayerNorm could stand."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, C) → (…, C)."""
        return norm(x)


def make_norm(config: GPTConfig, parts) -> nn.Module:
    """The norm before a branch: RMS, or GPT-2's without a bias."""
    return Norm() if "rms-norm" in parts else nn.LayerNorm(config.n_embd, bias=False)


class ModernMLP(nn.Module):
    """Two linear layers with a squared ReLU between them."""

    def __init__(self, config: GPTConfig, parts):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.squared, self.dropout = "relu2" in parts, nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) → (B, T, C)."""
        x = self.c_fc(x)
        x = F.relu(x).square() if self.squared else F.gelu(x, approximate="tanh")
        return self.dropout(self.c_proj(x))


class Head(nn.Linear):
    """Hidden states → logits, softly capped."""

    cap = math.inf

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, C) → (…, rows)."""
        logits = super().forward(x)
        return logits if self.cap == math.inf else self.cap * torch.tanh(logits / self.cap)


class ModernAttention(nn.Module):
    """Causal attention with turned and normed queries and keys, and values from a table."""

    def __init__(self, config: GPTConfig, parts, table: bool):
        super().__init__()
        assert config.n_embd % (2 * config.n_head) == 0, "n_embd must be divisible by 2 · n_head"
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.n_head, self.dropout, self.parts = config.n_head, config.dropout, parts
        self.attend = ATTENTION[config.attention]
        self.mix = nn.Parameter(torch.tensor([1.0, 0.5])) if table else None  # of v and the table

    def forward(
        self, x: Tensor, position: Tensor, context: Context | None, table: Tensor | None
    ) -> Tensor:
        """x: (B, T, C) → (B, T, C); table: (B, T, C), the values of these tokens, or None."""
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        if self.mix is not None:
            v = self.mix[0] * v + self.mix[1] * table.to(v.dtype)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
        if "qk-norm" in self.parts:
            q, k = norm(q), norm(k)
        if "rotary" in self.parts:
            q, k = rotate(q, position), rotate(k, position)
        visible = None
        if context is not None:
            k, v = context.remember(k, v)
            visible = context.visible
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, dropout, visible).transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), dropout)


class ModernBlock(nn.Module):
    """Attention and MLP, each on a norm of the stream, into which the embedding is mixed."""

    def __init__(self, config: GPTConfig, parts, table: bool):
        super().__init__()
        self.ln_1, self.attn = make_norm(config, parts), ModernAttention(config, parts, table)
        self.ln_2, self.mlp = make_norm(config, parts), ModernMLP(config, parts)
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0])) if "skip" in parts else None

    def forward(
        self, x: Tensor, x0: Tensor, position: Tensor, context: Context | None, table: Tensor | None
    ) -> Tensor:
        """x, x0: (B, T, C) → (B, T, C); x0 is the embedding."""
        if self.mix is not None:
            x = self.mix[0] * x + self.mix[1] * x0
        x = x + self.attn(self.ln_1(x), position, context, table)
        return x + self.mlp(self.ln_2(x))


class ModernTransformer(nn.Module):
    """Everything below the head."""

    def __init__(self, config: GPTConfig, parts):
        super().__init__()
        self.parts, self.block_size = parts, config.block_size
        # the first and the last blocks take values from tables, two by two from the same one
        ends = min(3, config.n_layer // 2) if "values" in parts else 0
        self.table_of = {i: i for i in range(ends)}
        self.table_of |= {config.n_layer - 1 - i: i for i in range(ends)}
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if "rotary" not in parts:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.values = nn.ModuleList(
            nn.Embedding(config.padded_vocab_size, config.n_embd) for _ in range(ends)
        )
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(
            ModernBlock(config, parts, i in self.table_of) for i in range(config.n_layer)
        )
        self.ln_f = make_norm(config, parts)

    def forward(self, idx: Tensor, context: Context | None = None) -> Tensor:
        """Token ids (B, T) → hidden states (B, T, C); the context is as in model.Transformer."""
        if context is None:
            position = torch.arange(idx.size(1), device=idx.device)
            assert len(position) <= self.block_size, "more tokens than block_size"
        else:
            position = context.position
        x = self.wte(idx)
        if "rotary" not in self.parts:
            x = x + self.wpe(position)
        x = x0 = self.drop(norm(x) if "rms-norm" in self.parts else x)
        tables = [table(idx) for table in self.values]
        for number, block in enumerate(self.h):
            table = tables[self.table_of[number]] if number in self.table_of else None
            x = block(x, x0, position, None if context is None else context.layer(number), table)
        return self.ln_f(x)


class ModernGPT(nn.Module):
    """The whole model: token ids in, logits and loss out. `parts` are those it has (PARTS)."""

    def __init__(self, config: GPTConfig, parts=PARTS):
        super().__init__()
        assert set(parts) <= set(PARTS), f"unknown parts: {set(parts) - set(PARTS)}"
        self.config, self.parts = config, tuple(parts)
        self.transformer = ModernTransformer(config, self.parts)
        self.lm_head = Head(config.n_embd, config.padded_vocab_size, bias=False)
        if "softcap" in parts:
            self.lm_head.cap = CAP
        if "untied" not in parts:
            self.transformer.wte.weight = self.lm_head.weight
        init_modern(self)

    forward = GPT.forward  # logits without padding, and the loss, as there


def init_modern(model: ModernGPT) -> None:
    """Matrices: std 0.5/√in; tables: 1 where a norm follows, else 0.02; zero where "zero-init".

    Without these parts, GPT-2's: std 0.02, 0.01 for wpe, residual projections by 1/√(2·n_layer).
    """
    parts, n_layer = model.parts, model.config.n_layer
    for name, p in model.named_parameters():
        if p.dim() < 2:  # mixes and norms keep what they were made with
            continue
        std = 0.01 if name.endswith("wpe.weight") else 0.02
        if "rms-norm" in parts and "untied" in parts and name.endswith("wte.weight"):
            std = 1.0  # a norm follows, and no head shares it
        if ".h." in name and "rms-norm" in parts:
            std = 0.5 * p.size(1) ** -0.5
        if name.endswith("c_proj.weight"):
            std = 0.0 if "zero-init" in parts else std / math.sqrt(2 * n_layer)
        if name == "lm_head.weight" and "untied" in parts and "zero-init" in parts:
            std = 0.0
        nn.init.normal_(p, std=std)
