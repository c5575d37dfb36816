"""Registries of what is chosen by name (--model, --optimizer, --schedule …), built from settings.

To add one, write it in a module of its own and add it to the registry.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
import torch.nn as nn

from nanogpt_lib.config import TrainConfig
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.modern import ModernGPT
from nanogpt_lib.muon import METHODS, Muon
from nanogpt_lib.optimizer import learning_rate_at, make_optimizer

# --- models -------------------------------------------------------------------------------------

MODELS: dict[str, type[nn.Module]] = {"gpt2": GPT, "modern": ModernGPT}

# SHAPE: the settings that saved weights fix; dropout and the attention kernel may still change
FREE = ("vocab_size", "dropout", "attention")
SHAPE = tuple(f.name for f in fields(GPTConfig) if f.name not in FREE)


def model_config(config: TrainConfig, vocab_size: int) -> GPTConfig:
    """The GPTConfig of the model described by the settings."""
    names = [f.name for f in fields(GPTConfig) if f.name != "vocab_size"]
    return GPTConfig(vocab_size=vocab_size, **{name: getattr(config, name) for name in names})


# --- optimizers ---------------------------------------------------------------------------------


class Optimizers:
    """Several optimizers over different parameters, used as one.

    In param_groups and state_dict the parameters are numbered consecutively over all parts, as in a
    single optimizer. A GradScaler skips `step` if any gradient is infinite, so no part updates.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        """The groups of all parts, in order: the very same dicts, so changes reach the parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable | None = None):
        """Evaluate the closure once if there is one, step each part, return the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """State and groups in the form of torch.optim.Optimizer.state_dict."""
        state, groups, first = {}, [], 0
        for part in self.parts:
            own = part.state_dict()
            state |= {first + index: entry for index, entry in own["state"].items()}
            for group in own["param_groups"]:
                groups.append({**group, "params": [first + index for index in group["params"]]})
            first += parameter_count(part)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore `state_dict()`; raises ValueError if the groups do not match."""
        groups, first = list(state_dict["param_groups"]), 0
        if len(groups) != len(self.param_groups):
            raise ValueError(f"{len(groups)} parameter groups, not {len(self.param_groups)}")
        for part in self.parts:
            count = parameter_count(part)
            own = [groups.pop(0) for _ in part.param_groups]
            own = [{**group, "params": [i - first for i in group["params"]]} for group in own]
            mine = {i - first: e for i, e in state_dict["state"].items() if 0 <= i - first < count}
            part.load_state_dict({"state": mine, "param_groups": own})
            first += count


def parameter_count(optimizer: torch.optim.Optimizer) -> int:
    """The number of tensors an optimizer updates."""
    return sum(len(group["params"]) for group in optimizer.param_groups)


def adamw(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> torch.optim.Optimizer:
    """AdamW for all parameters, with decay on matrices only."""
    return make_optimizer(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
    )


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices inside the blocks, without embeddings and output head."""
    return [p for p in model.transformer.h.parameters() if p.requires_grad and p.dim() == 2]


def muon_and_adamw(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> Optimizers:
    """Muon for the matrices inside the blocks, its products in `dtype`; AdamW for the rest."""
    matrices = block_matrices(model)
    taken = set(map(id, matrices))
    group = {"params": matrices, "lr_factor": config.muon_learning_rate / config.learning_rate}
    muon = Muon(
        [group],
        lr=config.muon_learning_rate,
        momentum=config.beta1,
        weight_decay=config.weight_decay,
        # float16 has too short a range for the products
        dtype=torch.float32 if dtype == torch.float16 else dtype,
        method=config.muon_method,
    )
    rest = adamw(model, config, dtype)
    for group in rest.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    return Optimizers(muon, rest)


OPTIMIZERS: dict[str, Callable] = {"adamw": adamw, "muon": muon_and_adamw}

ONE_AVERAGE = (Muon,)  # optimizers that keep one float32 number per parameter; others keep two


def state_bytes(optimizer: torch.optim.Optimizer | Optimizers) -> int:
    """The size of an optimizer's state after its first step, in bytes."""
    numbers = 0
    for part in getattr(optimizer, "parts", [optimizer]):
        count = sum(p.numel() for group in part.param_groups for p in group["params"])
        numbers += count * (1 if isinstance(part, ONE_AVERAGE) else 2)
    return 4 * numbers


# --- schedules ----------------------------------------------------------------------------------

DECAY = 0.5  # the share of a run in which wsd lowers the rate


def cosine(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to min_lr at max_steps."""
    return learning_rate_at(
        step,
        max_lr=config.learning_rate,
        min_lr=config.min_lr,
        warmup_steps=config.warmup_steps,
        max_steps=config.max_steps,
    )


def wsd(step: int, config: TrainConfig) -> float:
    """Warm-up, then constant, then linear decay to min_lr (Hu et al. 2024, MiniCPM: WSD).

    The decay takes the last DECAY of the run.
    """
    warmup, last = config.warmup_steps, config.max_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    start = max(warmup, round((1 - DECAY) * last))
    done = min(1.0, max(0.0, (step - start) / max(1, last - start)))
    return config.learning_rate + done * (config.min_lr - config.learning_rate)


SCHEDULES: dict[str, Callable[[int, TrainConfig], float]] = {"cosine": cosine, "wsd": wsd}

REGISTRIES = {
    "MODELS": MODELS,
    "OPTIMIZERS": OPTIMIZERS,
    "SCHEDULES": SCHEDULES,
    "METHODS": METHODS,
}
