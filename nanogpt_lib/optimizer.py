"""AdamW with decay on matrices only, and the warm-up + cosine schedule of the learning rate.

Exported from notebooks/06_hyperparameters.ipynb; edit the notebook, not this file.
"""

import math

import torch
import torch.nn as nn
from torch.optim import AdamW


def learning_rate_at(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of update number `step` (0 is the first).

    Linear from max_lr / warmup_steps to max_lr, then half a cosine down to min_lr at max_steps.
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    if step >= max_steps:
        return min_lr
    progress = (step - warmup_steps) / (max_steps - warmup_steps)  # 0 → 1
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (max_lr - min_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr`, times the group's lr_factor if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices (decayed), and biases and norms (not decayed).

    Decay keeps a matrix, which mixes many inputs, from relying on a few of them; a bias or a gain
    mixes nothing. A tied matrix appears once.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> AdamW:
    """AdamW with GPT-3's betas and epsilon (GPT-3 paper, appendix B).

    Fused: one kernel updates all tensors instead of several per tensor (CUDA, MPS and CPU have it).
    """
    groups = decay_groups(model, weight_decay)
    return AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)
