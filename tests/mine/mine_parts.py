"""Test your own GPT, written from an empty file, with the promises of this course.

    pytest tests/mine --mine my_gpt.py

What is found in the file is tried; the rest is skipped. Each failure is a hint. These names count:

    GPTConfig, GPT(config)      config has block_size, vocab_size, n_layer, n_head, n_embd; or
    GPT(block_size=…, …)        without GPTConfig. model(idx) and model(idx, targets) return
                                logits, or (logits, loss) as in the lecture
    generate(model, idx, n, …)  idx (B, T) → (B, T + n); may take temperature and top_k
    DataLoaderLite(tokens, B, T) or TokenLoader: next_batch() → x, y, both (B, T)
    learning_rate_at(step)      or get_lr(step): the lecture's schedule (715 warm-up steps, 19,073
                                in all, 6e-4 down to 6e-5)
    make_optimizer(model)       or model.configure_optimizers(weight_decay=, learning_rate=)

Without --mine nothing here runs.
"""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SHAPE = dict(block_size=16, vocab_size=61, n_layer=3, n_head=4, n_embd=32)


@pytest.fixture(scope="session")
def mine(request) -> ModuleType:
    """The learner's file as a module."""
    path = Path(request.config.getoption("--mine"))
    if not path.is_file():
        pytest.exit(f"--mine {path}: no such file", returncode=2)
    spec = importlib.util.spec_from_file_location("mine", path)
    module = sys.modules["mine"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        pytest.exit(f"{path}: importing it failed: {type(error).__name__}: {error}", returncode=2)
    return module


def part(mine: ModuleType, *names: str):
    """The first of these names that the file defines; the test is skipped without one."""
    for name in names:
        if hasattr(mine, name):
            return getattr(mine, name)
    pytest.skip(f"no {' or '.join(names)} in the file yet")


@pytest.fixture
def build(mine):
    """A function that makes the learner's GPT in eval mode, with these changes to SHAPE."""
    GPT = part(mine, "GPT")

    def make(**changes):
        shape = SHAPE | changes
        torch.manual_seed(0)
        if hasattr(mine, "GPTConfig"):
            return GPT(mine.GPTConfig(**shape)).eval()
        if list(inspect.signature(GPT.__init__).parameters)[1:2] == ["config"]:
            pytest.fail("GPT takes a config, but the file has no GPTConfig to make one of")
        return GPT(**shape).eval()

    return make


def logits_of(model, idx):
    """The logits, whether the model returns them alone or with a loss."""
    result = model(idx)
    return result[0] if isinstance(result, tuple) else result


def loss_of(model, idx, targets):
    """The loss of model(idx, targets); the test is skipped if the model takes no targets."""
    if len(inspect.signature(model.forward).parameters) < 2:
        pytest.skip("forward takes no targets yet")
    result = model(idx, targets)
    if not isinstance(result, tuple) or len(result) < 2:
        pytest.fail("with targets, forward should return (logits, loss)")
    return result[1]


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPE["vocab_size"], shape, generator=generator)
