"""Evaluation mode for the length of a `with` block."""

import contextlib
from collections.abc import Iterator

import torch.nn as nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode, then restore each module's own mode.

    It is restored after an exception too, and modules may have been in different modes.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
