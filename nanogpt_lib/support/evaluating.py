"""Evaluation mode for the length of a `with` block."""

import contextlib
from collections.abc import Iterator

import torch.nn as nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode, then restore each module's own mode.

    It is restored after an exception too, and modules may have been in different modes. If the
    model is sharded (lock_step.py), every rank must enter the block, and waits at its end.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
        for module, _ in modes:
            if hasattr(module, "wait_for_others"):
                module.wait_for_others()
    finally:
        for module, training in modes:
            module.training = training


def join_evaluation(model: nn.Module) -> None:
    """Take part in an evaluation in which this rank has no work of its own."""
    with evaluating(model):
        pass
