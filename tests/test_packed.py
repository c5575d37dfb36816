"""What support/packed.py promises: the same numbers faster, or the plain path; no leftovers."""

import types

import pytest
import torch
import torch.nn as nn
from torch.nn import functional as F

from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support import weight_formats
from nanogpt_lib.support.packed import PackedLinear, fast_inference, name_of, packed_weights
from nanogpt_lib.support.weight_formats import LOSSY, works

CPU = torch.device("cpu")
FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
pytestmark = [pytest.mark.processor, pytest.mark.usefixtures("fresh_trials")]


def tiny(**changes) -> GPT:
    torch.manual_seed(1)
    shape = dict(block_size=64, vocab_size=50, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**{**shape, **changes})).eval()
    with torch.no_grad():  # weights of a trained model: the MLP moves the result
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def tokens(rows: int = 2, length: int = 64):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(2))


def layout(model: nn.Module) -> list:
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("rows", [1, 5])
def test_packed_products_equal_plain_ones_and_leave_with_their_context(dtype, tolerance, rows):
    torch.manual_seed(0)
    layers, x = nn.Sequential(nn.Linear(33, 17)), torch.randn(rows, 33)
    with torch.inference_mode():
        plain = layers(x)
        with fast_inference(layers, CPU, dtype, rows):
            assert (type(layers[0]) is PackedLinear) == works(name_of(dtype))
            inside = [layers(x) for _ in range(2)]
        assert inside[0].dtype == dtype and torch.equal(*inside)
        assert torch.allclose(inside[0].float(), plain, atol=tolerance)
        assert type(layers[0]) is nn.Linear and torch.equal(layers(x), plain)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("rows", [1, 128])
def test_a_model_predicts_the_same_and_looks_the_same_inside_and_after(dtype, tolerance, rows):
    model, idx = tiny(), tokens()
    state, before = model.state_dict(), layout(model)
    with torch.inference_mode():
        exact = model(idx)[0].log_softmax(-1)
        with fast_inference(model, CPU, dtype, rows):
            logits = model(idx)[0].float().log_softmax(-1)
            assert model.lm_head.weight is model.transformer.wte.weight  # still tied
            assert list(model.state_dict()) == list(state)
    assert (logits - exact).abs().mean() < tolerance
    assert layout(model) == before


def test_each_weight_is_packed_once_per_format_and_autocast_off_means_its_own():
    layers, x = nn.Sequential(nn.Linear(33, 17, bias=False)), torch.randn(2, 33)
    with torch.inference_mode(), packed_weights(layers, rows=2):
        with torch.autocast("cpu", torch.bfloat16):
            assert layers(x).dtype == layers(x).dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=False):
                assert layers(x).dtype == torch.float32
        assert set(layers[0].packed) == {name for name in ("float32", "bfloat16") if works(name)}


def test_sampling_packs_for_one_row_and_a_prompt_leaves_nothing_behind():
    layers, x = nn.Sequential(nn.Linear(33, 17)), torch.randn(4, 33)
    with torch.inference_mode(), packed_weights(layers, rows=1):
        prompt, formats = layers(x), set(layers[0].packed)
        one = layers(x[:1])
        packed = set(layers[0].packed)
    if works("columns"):
        assert (formats, packed) == (set(), {"columns"})
    assert torch.allclose(one, prompt[:1], atol=1e-5)


@pytest.mark.parametrize("weights", LOSSY)
def test_rounded_weights_are_used_only_where_they_are_asked_for(weights):
    model, idx = tiny(), tokens(1, 1)
    with torch.inference_mode():
        exact = model(idx)[0]
        with fast_inference(model, CPU, torch.float32, 1):
            assert torch.allclose(model(idx)[0], exact, atol=1e-5)
        with fast_inference(model, CPU, torch.float32, 1, weights):
            rough = model(idx)[0]
            formats = {tuple(layer.packed) for layer in model.modules() if hasattr(layer, "packed")}
        assert torch.equal(model(idx)[0], exact)
    if works(weights):
        assert formats == {(weights,)}
        assert 1e-7 < (rough - exact).abs().max() < 0.02 * exact.abs().max()
    else:
        assert torch.allclose(rough, exact, atol=1e-5)


def test_with_int8_weights_a_prompt_is_read_exactly():
    model, idx = tiny(), tokens(1, 20)
    with torch.inference_mode():
        exact = model(idx)[0]
        with fast_inference(model, CPU, torch.float32, 1, "int8"):
            assert torch.equal(model(idx)[0], exact)


def test_weights_that_exist_for_a_moment_are_multiplied_plainly():
    """Their addresses are reused: the first design mistook one weight for another."""
    torch.manual_seed(0)
    layers, x = nn.Sequential(nn.Linear(33, 33)), torch.randn(2, 33)
    with torch.inference_mode(), fast_inference(layers, CPU, torch.float32, 2):
        for _ in range(20):
            weight = torch.randn(33, 33)
            assert torch.allclose(F.linear(x, weight), x @ weight.T, atol=1e-5)
            fleeting = nn.Sequential(nn.Linear(33, 33))
            with packed_weights(fleeting, 2):
                got = fleeting(x)
            assert torch.allclose(got, fleeting(x), atol=1e-5)


def squared_relu(x):
    return F.relu(x).square()


class Squared(nn.Module):
    def forward(self, x):
        return squared_relu(x)


def other_forward(mlp, x):
    """An MLP that leaves its `gelu` unused, as someone who tries another activation would."""
    return mlp.c_proj(squared_relu(mlp.c_fc(x)))


@pytest.mark.parametrize("kind", ["module", "forward", "exact GELU", "tanh GELU"])
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_whatever_the_activation_the_loss_is_the_models_own(kind, dtype, tolerance, monkeypatch):
    model, idx = tiny(), tokens()
    for block in model.transformer.h:
        if kind == "module":
            block.mlp.gelu = Squared()
        elif kind == "exact GELU":
            block.mlp.gelu = nn.GELU()
        elif kind == "forward":
            monkeypatch.setattr(
                block.mlp, "forward", lambda x, mlp=block.mlp: other_forward(mlp, x)
            )
    with torch.inference_mode():
        exact = model(idx, idx)[1].item()
        with fast_inference(model, CPU, dtype, rows=128):
            fused = [block.mlp.c_fc.gelu for block in model.transformer.h if works(name_of(dtype))]
            assert model(idx, idx)[1].item() == pytest.approx(exact, abs=tolerance)
    assert fused == [kind == "tanh GELU"] * len(fused)


def test_a_gelu_in_its_product_equals_the_two_apart():
    torch.manual_seed(0)
    layers, x = (
        nn.Sequential(nn.Linear(33, 17), nn.GELU("tanh"), nn.GELU("tanh")),
        torch.randn(5, 33),
    )
    with torch.inference_mode():
        plain = layers(x)
        with packed_weights(layers.eval(), rows=128):
            assert torch.allclose(layers(x), plain, atol=1e-5)
            assert type(layers[2]) is nn.GELU  # another GELU is not passed over


def test_nested_use_and_exceptions_put_every_layer_back():
    model, idx = tiny(), tokens()
    before = layout(model)
    with torch.inference_mode(), packed_weights(model, 128):
        inside = layout(model)
        with packed_weights(model, 1):
            assert layout(model) == inside
            nested = model(idx)[0]
        assert layout(model) == inside and torch.equal(model(idx)[0], nested)
    assert layout(model) == before
    with pytest.raises(ValueError, match="inside"), packed_weights(model, 128):
        raise ValueError("inside")
    assert layout(model) == before


def test_a_layer_with_two_parents_is_one_layer_inside_too():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    with packed_weights(model, 1):
        assert model[0][0] is model[1][0] and type(model[0][0]) is PackedLinear
    assert model[0][0] is model[1][0] is shared


def test_training_inside_is_as_outside():
    losses, idx = {}, tokens()
    for where in ("outside", "inside"):
        model, losses[where] = tiny().train(), []
        optimizer = make_optimizer(model, learning_rate=1e-2)
        with packed_weights(model, 128) if where == "inside" else torch.enable_grad():
            for _ in range(3):
                with torch.inference_mode():  # packs, and must pack anew after the update
                    losses[where].append(model(idx, idx)[1].item())
                model(idx, idx)[1].backward()
                optimizer.step()
                optimizer.zero_grad()
    assert losses["inside"] == pytest.approx(losses["outside"], abs=1e-4)
    assert losses["inside"][2] < losses["inside"][0] - 0.01


# --- where weights cannot be packed ---------------------------------------------------------------


def without(monkeypatch, missing: str) -> None:
    """A PyTorch in which one private operator is missing, or fails as with AVX2 only."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    operators = {name: getattr(torch.ops.mkldnn, name) for name in names if name != missing}
    if missing == "refuses":

        def refuse(weight, rows):
            raise RuntimeError("bf16 path needs the cpu support avx512bw\nand more lines")

        operators["_reorder_linear_weight"] = refuse
    if missing == "wrong":
        operators["_linear_pointwise"] = lambda x, w, b, *how: torch.zeros(len(x), 16)
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace(**operators))


@pytest.mark.parametrize(
    "missing", ["_reorder_linear_weight", "_linear_pointwise", "both", "refuses", "wrong"]
)
def test_a_missing_or_refusing_operator_means_the_plain_path_said_once(
    missing, monkeypatch, capsys
):
    without(monkeypatch, missing)
    if missing == "both":
        monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    monkeypatch.setattr(weight_formats, "cpu_is_x86", lambda: True)
    monkeypatch.setattr(weight_formats, "cpu_multiplies_bfloat16", lambda: True)
    model, idx = tiny(), tokens()
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            cast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
            with cast:
                plain = model(idx)[0]
            for _ in range(2):
                with fast_inference(model, CPU, dtype, 128):
                    assert torch.equal(model(idx)[0], plain)
                with cast, packed_weights(model, 128):  # asked for in spite of it
                    assert torch.allclose(model(idx)[0], plain, atol=1e-2)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line[:28] for line in lines] == [
        "no packed weights in float32",
        "no packed weights in bfloat1",
    ]


@pytest.mark.parametrize("reason", ["no bfloat16", "no x86", "no oneDNN"])
def test_where_packing_was_never_to_be_expected_nothing_is_said(reason, monkeypatch, capsys):
    if reason == "no bfloat16":
        monkeypatch.setattr(weight_formats, "cpu_multiplies_bfloat16", lambda: False)
    elif reason == "no x86":
        monkeypatch.setattr(weight_formats, "cpu_is_x86", lambda: False)
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layers = nn.Sequential(nn.Linear(8, 8))
    with torch.inference_mode(), fast_inference(layers, CPU, torch.bfloat16, 1):
        assert type(layers[0]) is nn.Linear and torch.is_autocast_enabled("cpu")
    assert capsys.readouterr() == ("", "")


def test_formats_no_one_packs_are_computed_plainly():
    layers, x = nn.Sequential(nn.Linear(8, 8)).double(), torch.randn(2, 8).double()
    with torch.inference_mode(), packed_weights(layers, 1):
        assert torch.equal(layers(x), F.linear(x, layers[0].weight, layers[0].bias))
