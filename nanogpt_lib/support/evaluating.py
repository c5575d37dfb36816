"""A model in evaluation mode for a while."""

import contextlib
from collections.abc import Iterator

import torch.nn as nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switch dropout and the like off inside; afterwards every module is in the mode it was in.

    Also after an exception, and where some modules were in training mode and others were not.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
