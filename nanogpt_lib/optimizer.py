"""AdamW with decay on matrices only, and the warm-up + cosine schedule of the learning rate.

Exported from notebooks/06_hyperparameters.ipynb; edit the notebook, not this file.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor
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


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices (decayed), and biases and norms (not decayed).

    A matrix mixes many inputs, and decay keeps it from leaning on one; a bias or a gain has nothing
    to spread. A tied matrix appears once.
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
    muon_learning_rate: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> AdamW:
    """AdamW with GPT-3's betas and epsilon (GPT-3 paper, appendix B).

    Fused: one kernel updates all tensors instead of several per tensor (CUDA, MPS and CPU have it).
    With muon_learning_rate > 0 the blocks' matrices go to `Muon`, whose products run in `dtype`.
    """
    how = dict(lr=learning_rate, betas=betas, eps=1e-8, fused=True)
    groups = decay_groups(model, weight_decay)
    if not muon_learning_rate:
        return AdamW(groups, **how)
    blocks = [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2]
    others = [p for p in groups[0]["params"] if all(p is not q for q in blocks)]
    factor = muon_learning_rate / learning_rate
    matrices = {**groups[0], "params": blocks, "muon": True, "lr_factor": factor}
    return Muon([matrices, {**groups[0], "params": others}, groups[1]], dtype=dtype, **how)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate of this step, times the group's own factor if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


ORTHOGONAL = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: lifts small singular values fast


def orthogonalise(G: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Replace every singular value of the matrices (…, A, B) by about one (0.7 to 1.2).

    Newton–Schulz: X ← a X + (b XXᵀ + c (XXᵀ)²) X acts on singular values alone, and needs nothing
    but products, in `dtype`.
    """
    a, b, c = ORTHOGONAL
    tall = G.size(-2) > G.size(-1)
    X = (G.mT if tall else G).to(dtype)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above one
    for _ in range(steps):
        S = X @ X.mT
        X = a * X + (b * S + c * S @ S) @ X
    return (X.mT if tall else X).to(G.dtype)


class Muon(AdamW):
    """AdamW, except for groups marked `muon`: their matrices step equally far in every direction.

    That is, along their orthogonalised momentum (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).
    """

    def __init__(self, groups: list[dict], dtype: torch.dtype = torch.float32, **how):
        super().__init__(groups, **how)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One update; a step in which fp16's scaler found an infinity changes nothing."""
        if getattr(self, "found_inf", None):  # AdamW would begin a state for the matrices
            return None
        for group in self.param_groups:
            if group.get("muon"):
                self.step_matrices(group)
        return super().step(closure)

    def step_matrices(self, group: dict) -> None:
        """Update the matrices of a group, those of one shape together."""
        shapes: dict[torch.Size, list] = {}
        for p in group["params"]:
            if p.grad is not None:
                shapes.setdefault(p.shape, []).append(p)
        lr, beta = group["lr"], group["betas"][0]
        for (rows, columns), params in shapes.items():
            ahead = []  # Nesterov: the momentum as it will be after one more such gradient
            for p in params:
                state = self.state[p]
                if not state:  # AdamW expects a count of steps wherever there is a state
                    state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(p)
                state["step"] += 1
                momentum = state["momentum"].lerp_(p.grad, 1 - beta)
                ahead.append(p.grad.lerp(momentum, beta))
                p.grad = None  # AdamW passes over it
            updates = orthogonalise(torch.stack(ahead), self.dtype)
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)
