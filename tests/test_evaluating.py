"""What support/evaluating.py promises."""

import pytest
import torch.nn as nn

from nanogpt_lib.support.evaluating import evaluating


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def mixed() -> nn.Module:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    return model


def test_every_module_evaluates_inside_and_is_as_before_afterwards():
    for model in (mixed(), mixed().eval(), mixed().train()):
        before = modes(model)
        with evaluating(model) as same:
            assert same is model and not any(modes(model))
            with evaluating(model):
                pass
            assert not any(modes(model))
        assert modes(model) == before


def test_an_exception_restores_the_modes_too():
    model = mixed()
    before = modes(model)
    with pytest.raises(ValueError, match="inside"), evaluating(model):
        raise ValueError("inside")
    assert modes(model) == before
