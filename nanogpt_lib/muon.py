"""Muon: updates with nearly equal singular values, for weight matrices.

The momentum is orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
which is expensive: by Newton–Schulz iterations, or on a CPU for a quarter of the time by one
iteration of Halley's. With Muon, train.py updates the matrices inside the blocks, and with AdamW
all other parameters (choices.py).
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: raise small singular values fast
SMALLEST = 0.01  # singular values from this share of the largest on end near one (Halley)


def newton_schulz(G: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices (…, A, B) close to one; keep the singular vectors.

    Newton–Schulz: X ← aX + (bXXᵀ + c(XXᵀ)²)X acts only on the singular values and needs only
    products, computed in `dtype`. In float32, five steps bring every singular value σ with
    σ/‖G‖ ≥ 0.002 (Frobenius norm, plus 1e-7) to between 0.68 and 1.20. Smaller ones are multiplied
    by at most a⁵ ≈ 485 and stay small.
    """
    a, b, c = QUINTIC
    tall = G.size(-2) > G.size(-1)
    X = (G.mT if tall else G).to(dtype)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above one
    for _ in range(steps):
        S = X @ X.mT
        X = a * X + (b * S + c * S @ S) @ X
    return (X.mT if tall else X).to(G.dtype)


@functools.cache
def halley_weights(smallest: float) -> tuple[float, float, float, float]:
    """a, b, c, and the least value on [smallest, 1] of f(σ) = σ (a + bσ²) / (1 + cσ²).

    The weights that make this least value as large as possible, with f(1) = 1 the largest
    (Nakatsukasa, Bai and Gygi 2010, "Optimizing Halley's iteration for computing the matrix polar
    decomposition").
    """
    square = smallest**2
    d = (4 * (1 - square) / square**2) ** (1 / 3)
    root = math.sqrt(1 + d)
    a = root + math.sqrt(8 - 4 * d + 8 * (2 - square) / (square * root)) / 2
    b = (a - 1) ** 2 / 4
    c = a + b - 1
    return a, b, c, smallest * (a + b * square) / (1 + c * square)


def halley(G: Tensor, dtype: torch.dtype = torch.float32, smallest: float = SMALLEST) -> Tensor:
    """Like newton_schulz, by one rational iteration on the small Gram matrix S = GGᵀ (or GᵀG).

    X ← X (a + bS)(1 + cS)⁻¹ = X (b/c + (a − b/c)(1 + cS)⁻¹) takes one inverse, by Cholesky's
    decomposition, and two products as large as G. S is first divided by its norm, so that with
    n = (Σσ⁴)^¼ ≥ σ_max every σ ≥ 0.01 n ends between 0.67 and 1.33; smaller ones are multiplied by
    at most 73/n. S is float32 (rounded to bfloat16 it may no longer be positive); the last product
    is computed in `dtype`.
    """
    a, b, c, least = halley_weights(smallest)
    tall = G.size(-2) > G.size(-1)
    X, S = G.to(dtype), (G.mT @ G if tall else G @ G.mT).float()
    norm = S.norm(dim=(-2, -1), keepdim=True) + 1e-30  # n²
    S *= c / norm
    S.diagonal(dim1=-2, dim2=-1).add_(1)  # its eigenvalues are from 1 to 1 + c
    factor, _ = torch.linalg.cholesky_ex(S)
    centre = 2 / (1 + least)  # from [least, 1] to around one
    R = torch.cholesky_inverse(factor) * (centre * (a - b / c))
    R.diagonal(dim1=-2, dim2=-1).add_(centre * b / c)
    R = (R * norm.rsqrt()).to(dtype)
    return (X @ R if tall else R @ X).to(G.dtype)


METHODS: dict[str, Callable] = {"newton-schulz": newton_schulz, "halley": halley}


class Muon(torch.optim.Optimizer):
    """Update matrices along their orthogonalised Nesterov momentum, with decoupled weight decay.

    The singular values of an update are about lr · √max(1, rows/columns). `method` names one of
    METHODS; its products run in `dtype`. Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        method: str = "newton-schulz",
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype, self.orthogonalise = dtype, METHODS[method]
        for group in self.param_groups:
            if shapes := [tuple(p.shape) for p in group["params"] if p.dim() != 2]:
                raise ValueError(f"Muon updates only matrices; a parameter has shape {shapes[0]}")

    @torch.no_grad()
    def step(self, closure=None):
        """Evaluate the closure if there is one, update the weights, return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self.update(params, group)
        return loss

    def update(self, params: list[Tensor], group: dict) -> None:
        """Update matrices of the same shape together, with batched products."""
        lr, beta = group["lr"], group["momentum"]
        rows, columns = params[0].shape
        # Nesterov: the momentum after one more step with the same gradient
        ahead = params[0].grad.new_empty(len(params), rows, columns)
        for p, place in zip(params, ahead, strict=True):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            momentum = state["momentum"].lerp_(p.grad, 1 - beta)
            torch.lerp(p.grad, momentum, beta, out=place)
        updates = self.orthogonalise(ahead, self.dtype)
        for p, update in zip(params, updates, strict=True):
            if group["weight_decay"]:
                p.mul_(1 - lr * group["weight_decay"])
            p.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state; drop the step count that checkpoints of earlier versions contain."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.pop("step", None)
