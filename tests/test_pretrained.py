"""What nanogpt_lib.pretrained promises: GPT-2 checkpoints read safely, ours readable by others."""

import json
from pathlib import Path

import pytest
import torch

from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.pretrained import TRANSPOSED, crop_block_size, load_pretrained
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import read_tensors

TOKENS = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))


def odd_model(**changes) -> GPT:
    """A small GPT in which no bias is 0 and no norm is 1, so that no mistake can hide."""
    torch.manual_seed(0)
    shape = dict(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(float("ln_" in name and name.endswith("weight")), 0.3)
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    """An odd model as a Hugging Face folder."""
    model = odd_model()
    save_huggingface(tmp_path / "gpt", vars(model.config), model.state_dict())
    return tmp_path / "gpt"


@pytest.fixture(scope="module")
def reference():
    """The same odd weights in the module of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = dict(n_positions=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16)
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


# ---- equals a reference


@pytest.mark.parametrize("form", ["safetensors", "parts", "pickle", "bare names, float16, masks"])
def test_every_file_form_gives_the_tensors_of_transformers(reference, tmp_path, form):
    expected = reference.state_dict()
    reference.save_pretrained(tmp_path, max_shard_size="10KB" if form == "parts" else "1GB")
    if form == "parts":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    elif form != "safetensors":
        (tmp_path / "model.safetensors").unlink()
        tensors = dict(expected)
        if form != "pickle":  # as OpenAI's first upload: GPT2Model's names, and the mask buffers
            tensors = {k.removeprefix("transformer."): v.half() for k, v in tensors.items()}
            tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
            expected = {k: v.half().float() for k, v in expected.items()}
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    config, state = load_pretrained(str(tmp_path))
    assert config == dict(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16)
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor.t() if name.endswith(TRANSPOSED) else tensor), name
    assert state["lm_head.weight"] is state["transformer.wte.weight"]


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"vocab_multiple": 64}])
def test_a_saved_model_gives_the_same_logits_in_transformers(tmp_path, changes):
    from transformers import AutoModelForCausalLM

    model = odd_model(**changes)
    save_huggingface(tmp_path, vars(model.config), model.state_dict())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    back = GPT.from_pretrained(str(tmp_path)).eval()
    assert len(theirs.transformer.wte.weight) == 61  # padding removed
    with torch.no_grad():
        logits = model(TOKENS)[0]
        torch.testing.assert_close(theirs(TOKENS).logits, logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(back(TOKENS)[0], logits, atol=1e-5, rtol=0)


def test_a_shorter_context_gives_the_same_logits(folder):
    with torch.no_grad():
        whole = GPT.from_pretrained(str(folder)).eval()(TOKENS[:, :8])[0]
        cropped = GPT.from_pretrained(str(folder), block_size=8).eval()(TOKENS[:, :8])[0]
    assert torch.equal(whole, cropped)
    config, state = load_pretrained(str(folder))
    with pytest.raises(UserError, match="block_size 17 exceeds the model's 16"):
        crop_block_size(config, state, 17)


# ---- repeats bit for bit


def test_saving_and_reading_repeat_bit_for_bit(folder, tmp_path):
    config, state = load_pretrained(str(folder))
    save_huggingface(tmp_path / "again", config, state)
    for file in ("model.safetensors", "config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


# ---- bad input


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_refused_and_never_runs(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    proof = tmp_path / "executed"
    torch.save({"wte.weight": Payload(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="refused"):
        load_pretrained(str(folder))
    assert not proof.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the trap does work
    assert proof.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cut_file_is_named_and_not_half_read(folder, name):
    path = folder / name
    if name.endswith(".bin"):
        torch.save(read_tensors(folder / "model.safetensors"), path)
        (folder / "model.safetensors").unlink()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{name}: not a complete checkpoint"):
        load_pretrained(str(folder))


def test_a_file_of_something_else_is_refused(tmp_path):
    for content in ({"step": 3}, [torch.ones(2)]):
        torch.save(content, tmp_path / "x.bin")
        with pytest.raises(UserError, match="something other than named tensors"):
            read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'gpt2'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"vocab_size": 62}, "wte does not have the shape"),
        ({"n_positions": 17}, "wpe does not have the shape"),
        ({"n_layer": 3}, "the weights have 2 blocks, its config states 3"),
        ({"n_head": 3}, "n_embd 16 is not divisible by n_head 3"),
        ({"n_inner": 32}, "n_inner is 32"),
    ],
)
def test_a_model_we_do_not_compute_is_refused(folder, change, message):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(UserError, match=message):
        load_pretrained(str(folder))


def test_missing_and_broken_pieces_are_named(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../outside"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="part ../outside of the checkpoint is missing"):
        load_pretrained(str(folder))
    for damaged in ("{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{}"):
        (folder / "model.safetensors.index.json").write_text(damaged)
        with pytest.raises(UserError, match=r"index.json: damaged, not a checkpoint index"):
            load_pretrained(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"no weights here \(looked for model.safetensors, "):
        load_pretrained(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_pretrained(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        load_pretrained(str(folder))


def test_a_tensor_that_is_no_matrix_is_refused(folder):
    tensors = read_tensors(folder / "model.safetensors")
    tensors["transformer.h.0.attn.c_attn.weight"] = torch.zeros(2, 3, 4)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"h.0.attn.c_attn.weight has more than 2 dim"):
        load_pretrained(str(folder))


def test_a_pointer_of_git_lfs_is_called_one(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
    (folder / "model.safetensors").write_text(text)
    with pytest.raises(UserError, match=r"model.safetensors: a Git LFS pointer"):
        load_pretrained(str(folder))
