"""Muon: updates with nearly equal singular values, for weight matrices.

The momentum is orthogonalised by five Newton–Schulz iterations (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). With it, train.py updates the matrices inside the
blocks, and with AdamW all other parameters (choices.py).
"""

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: raise small singular values fast


def orthogonalise(G: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices (…, A, B) close to one; keep the singular vectors.

    Newton–Schulz: X ← aX + (bXXᵀ + c(XXᵀ)²)X acts only on the singular values and needs only
    products, computed in `dtype`. In float32, five steps bring every singular value σ with
    σ/‖G‖ ≥ 0.002 (Frobenius norm) to between 0.68 and 1.20. Smaller ones are multiplied by at most
    a⁵ ≈ 485 and stay small.
    """
    a, b, c = QUINTIC
    tall = G.size(-2) > G.size(-1)
    X = (G.mT if tall else G).to(dtype)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above one
    for _ in range(steps):
        S = X @ X.mT
        X = a * X + (b * S + c * S @ S) @ X
    return (X.mT if tall else X).to(G.dtype)


class Muon(torch.optim.Optimizer):
    """Update matrices along their orthogonalised Nesterov momentum, with decoupled weight decay.

    The singular values of an update are about lr · √max(1, rows/columns). The products run in
    `dtype`. Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype
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
        ahead = []  # Nesterov: the momentum after one more step with the same gradient
        for p in params:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            momentum = state["momentum"].lerp_(p.grad, 1 - beta)
            ahead.append(p.grad.lerp(momentum, beta))
        rows, columns = params[0].shape
        updates = orthogonalise(torch.stack(ahead), self.dtype)
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state; drop the step count that checkpoints of earlier versions contain."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.pop("step", None)
