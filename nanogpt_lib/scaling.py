"""Scaling: what a model of a shape costs, how its loss falls with size and text, and muP.

Exported from notebooks/12_scaling.ipynb; edit the notebook, not this file.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

from nanogpt_lib.device import flops_per_token
from nanogpt_lib.model import GPT, count_parameters
from nanogpt_lib.support.memory import training_bytes


class Sizes(NamedTuple):
    """What a GPT of a shape costs; sizes in bytes."""

    parameters: int
    flops: int  # to train on one token
    step: int  # memory of a training step on one row, bfloat16, AdamW
    checkpoint: int  # weights and AdamW's averages, float32
    cache: int  # keys and values of one token, 16 bits each


def sizes_of(model: nn.Module) -> Sizes:
    """The costs of a model; one on the meta device will do, which has shapes and no memory."""
    config, parameters = model.config, count_parameters(model)
    return Sizes(
        parameters=parameters,
        flops=flops_per_token(model),
        step=training_bytes(model, rows=1, dtype=torch.bfloat16),
        checkpoint=4 * 3 * parameters,
        cache=2 * config.n_layer * config.n_embd * 2,
    )


def vertex(sizes, losses) -> tuple[float, float]:
    """The lowest point (N, loss) of the parabola through losses over ln N.

    Raises ValueError if the parabola opens downwards: the sizes miss the valley.
    """
    a, b, c = np.polyfit(np.log(sizes), losses, 2)
    if a <= 0:
        raise ValueError("no valley: the losses do not curve upwards")
    return math.exp(-b / (2 * a)), float(c - b * b / (4 * a))


def power_law(x, y) -> tuple[float, float]:
    """k and a of y = k·xᵃ, by least squares over the logarithms."""
    a, log_k = np.polyfit(np.log(x), np.log(y), 1)
    return math.exp(log_k), float(a)


class LossLaw(NamedTuple):
    """L(N, D) = E + A/N^alpha + B/D^beta, in nats (Hoffmann et al. 2022, equation 2)."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, N, D):
        """The loss of a model with N weights after D tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best_size(self, C):
        """The N with the lowest loss for C = 6·N·D operations."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return (ratio * (C / 6) ** self.beta) ** (1 / (self.alpha + self.beta))


# where the search begins: ln E, ln A, alpha, ln B, beta
STARTS = [(e, 4.0, p, 4.0, q) for e in (-1.0, 0.0) for p in (0.3, 0.6) for q in (0.3, 0.6)]


def fit_loss_law(N, D, losses, starts=STARTS, delta: float = 1e-2) -> LossLaw:
    """The law with the least Huber loss (of width delta) of ln L, from the best of several starts.

    Fitted are ln E, ln A, alpha, ln B and beta, so that E, A and B stay positive.
    """
    N, D, losses = (torch.tensor(np.asarray(v, float)).log() for v in (N, D, losses))
    best, least = None, math.inf
    for start in starts:
        p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([p], max_iter=500, line_search_fn="strong_wolfe")

        def error(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            terms = (p[0].expand_as(N), p[1] - p[2] * N, p[3] - p[4] * D)
            value = nn.functional.huber_loss(
                torch.stack(terms).logsumexp(0), losses, delta=delta, reduction="sum"
            )
            value = value / delta**2  # of the order of 1, as the search's tolerances expect
            value.backward()
            return value

        optimizer.step(error)
        if (value := error().item()) < least:
            least, best = value, p.detach().tolist()
    return LossLaw(math.exp(best[0]), math.exp(best[1]), best[2], math.exp(best[3]), best[4])


def make_mup(model: GPT, m: float) -> list[dict]:
    """Turn a fresh GPT, m times as wide as the base, into muP; parameter groups for AdamW.

    The number of channels in a head must be that of the base (Yang et al. 2022, table 8).
    """
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    with torch.no_grad():
        for p in matrices:
            p /= math.sqrt(m)
    model.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0] / m,))
    taken = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [{"params": matrices, "lr_factor": 1 / m}, {"params": rest}]
