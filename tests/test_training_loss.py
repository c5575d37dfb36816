"""The form of a model that train.py compiles on a GPU: the loss of the model itself."""

import pytest
import torch

from nanogpt_lib.config import TrainConfig
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.training_loss import TrainingLoss, compile_for_training, training_form


def small(**changes) -> GPT:
    """A model of a few thousand weights, 50 tokens."""
    torch.manual_seed(0)
    shape = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50)
    return GPT(GPTConfig(**shape | changes))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of random tokens, shorter than the block."""
    torch.manual_seed(1)
    return torch.randint(50, (4, 12)), torch.randint(50, (4, 12))


def loss_and_gradients(model: torch.nn.Module, gpt: GPT) -> tuple[float, list[torch.Tensor]]:
    """The loss of `batch`, and every parameter's gradient."""
    gpt.zero_grad(set_to_none=True)
    _, loss = model(*batch())
    loss.backward()
    return loss.item(), [p.grad.clone() for p in gpt.parameters()]


@pytest.mark.parametrize("changes", [dict(), dict(vocab_multiple=64), dict(bias=False)])
def test_loss_and_gradients_are_the_models_own(changes):
    gpt = small(**changes)
    expected, wanted = loss_and_gradients(gpt, gpt)
    loss, found = loss_and_gradients(TrainingLoss(gpt), gpt)
    assert loss == pytest.approx(expected, abs=1e-6)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_rows_of_padding_never_move():
    gpt = small(vocab_multiple=64)
    with torch.no_grad():
        gpt.lm_head.weight[50:] = 9.0  # would dominate the softmax if they were not hidden
    loss, _ = loss_and_gradients(TrainingLoss(gpt), gpt)
    assert loss < 6 and not gpt.lm_head.weight.grad[50:].any()


def test_a_rounded_residual_stream_changes_the_loss_a_little():
    gpt = small()
    exact, _ = loss_and_gradients(TrainingLoss(gpt), gpt)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = loss_and_gradients(TrainingLoss(gpt, torch.bfloat16), gpt)
    assert 0 < abs(rounded - exact) < 0.01


def test_only_the_loss_comes_out_and_the_parameters_are_shared():
    gpt = small()
    form = TrainingLoss(gpt)
    assert form(*batch())[0] is None
    assert {id(p) for p in form.parameters()} == {id(p) for p in gpt.parameters()}


def test_train_takes_it_on_a_gpu_unless_fsdp_must_see_the_model_itself():
    gpt, cuda, cpu = small(), torch.device("cuda"), torch.device("cpu")
    assert isinstance(training_form(gpt, cuda, "ddp"), TrainingLoss)
    assert training_form(gpt, cuda, "fsdp") is gpt
    assert training_form(gpt, cpu, "ddp") is gpt

    class Another(GPT):  # whose forward may be another
        pass

    other = Another(gpt.config)
    assert training_form(other, cuda, "ddp") is other


@pytest.mark.parametrize("works", [True, False])
def test_if_nothing_is_compiled_the_model_itself_is_trained(works, monkeypatch):
    def compiler(model, wanted, *rest, wrap):
        return model, "compiled" if works else "not compiled (no compiler)"

    monkeypatch.setattr("nanogpt_lib.training_loss.compile_model", compiler)
    gpt, x = small(), batch()[0]
    cuda = torch.device("cuda")
    model, done = compile_for_training(gpt, TrainConfig(), cuda, x, torch.bfloat16)
    assert isinstance(model, TrainingLoss) if works else model is gpt
    assert done.startswith("compiled" if works else "not compiled")
