"""What load_model promises: a model from anywhere with the right tokenizer or none, or one line.

The inputs are made as other programs write them: transformers, nanoGPT, build-nanogpt.
"""

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import program
from nanogpt_lib import load, score
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import load_model, recorded_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.pretrained import GPT2_SIZES, to_huggingface
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import OPENAI, huggingface_config
from nanogpt_lib.support.tokenizer_files import gpt2_files
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, same_tokenizer

OLD = Path(__file__).parent / "fixtures" / "run_935a9ba"
CHARS = CharTokenizer("abcdefghijklmnopqrstuvwxyz .\n")
SHAPE = dict(block_size=16, n_layer=2, n_head=2, n_embd=16)


def small(vocab_size: int = CHARS.vocab_size, **changes) -> GPT:
    """A GPT whose biases and norms are uneven, so that none can be forgotten."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=vocab_size, **{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(float("ln_" in name and name.endswith("weight")), 0.2)
    return model


GPT2_LIKE = small(50257)
IDX = torch.tensor([[5, 1, 4, 1, 5, 9, 2, 6]])


@torch.no_grad()
def logits(model: GPT) -> torch.Tensor:
    return model.eval()(IDX)[0]


def same_model(loaded: GPT, model: GPT) -> bool:
    """Equal weights, though one may pad its vocabulary with rows that the other lacks; so equal
    logits, but for rounding: some processors add up a matrix of another height in another order."""
    theirs, rows = model.state_dict(), loaded.config.vocab_size
    equal = all(
        torch.equal(tensor[:rows], theirs[name][:rows])
        if name in ("lm_head.weight", "transformer.wte.weight")
        else torch.equal(tensor, theirs[name])
        for name, tensor in loaded.state_dict().items()
    )
    close = torch.allclose(logits(loaded), logits(model)[..., :rows], rtol=1e-5, atol=1e-5)
    return equal and close and theirs.keys() == loaded.state_dict().keys()


def heard(source, **changes) -> tuple[GPT, object, str]:
    """load_model, and the one line it says."""
    lines: list[str] = []
    model, tokenizer = load_model(source, say=lines.append, **changes)
    assert len(lines) == 1 and "\n" not in lines[0], lines
    assert lines[0].startswith(f"{source}: ")
    return model, tokenizer, lines[0]


def refusal(source, **changes) -> str:
    """The one line with which load_model refuses."""
    with pytest.raises(UserError) as caught:
        load_model(source, say=lambda line: None, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Hugging Face folders


def write_folder(folder: Path, model: GPT, form="model.safetensors", rename=str, legacy=False):
    """A Hugging Face folder without tokenizer, its weights in one of the forms in use."""
    folder.mkdir(parents=True, exist_ok=True)
    config = vars(model.config)
    (folder / "config.json").write_text(json.dumps(huggingface_config(config)))
    tensors = {rename(k): v for k, v in to_huggingface(config, model.state_dict()).items()}
    if not form.endswith(".index.json"):
        write_part(folder / form, tensors, legacy)
        return folder
    names, where = sorted(tensors), {}
    stem, suffix = ("model", "safetensors") if "safetensors" in form else ("pytorch_model", "bin")
    for n in (1, 2):
        file = f"{stem}-{n:05d}-of-00002.{suffix}"
        part = names[n - 1 :: 2]
        write_part(folder / file, {k: tensors[k] for k in part}, legacy)
        where |= dict.fromkeys(part, file)
    (folder / form).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def write_part(path: Path, tensors: dict, legacy: bool) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)


FORMS = [
    ("model.safetensors", False),
    ("model.safetensors.index.json", False),
    ("pytorch_model.bin", False),
    ("pytorch_model.bin", True),
    ("pytorch_model.bin.index.json", False),
    ("pytorch_model.bin.index.json", True),
]


@pytest.mark.parametrize(("form", "legacy"), FORMS)
def test_a_hugging_face_folder_of_any_layout_is_read(tmp_path, form, legacy):
    folder = write_folder(tmp_path / "hf", GPT2_LIKE, form, legacy=legacy)
    for source in (str(folder), folder, str(folder / form)):
        model, tokenizer, line = heard(source)
        assert torch.equal(logits(model), logits(GPT2_LIKE))
        assert same_tokenizer(tokenizer, GPT2Tokenizer())
        assert "Hugging Face" in line and "50,257 rows, so assumed to be GPT-2's" in line


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", ""]
)
@pytest.mark.parametrize("inner", ["transformer.", ""])
def test_names_of_compiled_and_wrapped_models_are_stripped(tmp_path, prefix, inner):
    def rename(name):
        return prefix + inner + name.removeprefix("transformer.")

    folder = write_folder(tmp_path, GPT2_LIKE, rename=rename)
    assert torch.equal(logits(heard(folder)[0]), logits(GPT2_LIKE))


def test_a_folder_in_the_working_directory_never_hides_openais_model(tmp_path, monkeypatch):
    assert set(OPENAI) == set(GPT2_SIZES)
    write_folder(tmp_path / "here/gpt2", small(50257, n_layer=1))
    write_folder(tmp_path / "mirror/gpt2", GPT2_LIKE)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("NANOGPT_MIRROR", str(tmp_path / "mirror"))
    lines: list[str] = []
    model, _ = load_model("gpt2", say=lines.append)
    assert model.config.n_layer == 2
    assert lines[0] == "gpt2: means OpenAI's model; for the folder here, write ./gpt2"
    assert GPT.from_pretrained("gpt2").config.n_layer == 2
    for local in ("./gpt2", Path("gpt2"), str(Path("gpt2").resolve())):
        assert heard(local)[0].config.n_layer == 1
    monkeypatch.delenv("NANOGPT_MIRROR")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))


def test_a_mirror_is_asked_by_both_names_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOGPT_MIRROR", str(tmp_path))
    write_folder(tmp_path / "openai-community/gpt2-medium", GPT2_LIKE)
    write_folder(tmp_path / "someone/theirs", GPT2_LIKE)
    for name in ("gpt2-medium", "someone/theirs"):
        assert torch.equal(logits(heard(name)[0]), logits(GPT2_LIKE))


# ---- tokenizers, by content


def write_bpe(folder: Path, **changed: str) -> None:
    for name, text in {**gpt2_files(), **changed}.items():
        (folder / name).write_text(text, encoding="utf-8")


def reversed_vocab() -> str:
    """As many tokens as GPT-2 has, with different ids: as for a GPT-2 in another language."""
    vocab = json.loads(gpt2_files()["vocab.json"])
    words = list(vocab)
    return json.dumps({w: i for i, w in enumerate([*words[:-1][::-1], words[-1]])})


def fast_file(**changes) -> str:
    """GPT-2's tokenizer.json as transformers 5 writes it."""
    files = gpt2_files()
    merges = [line.split(" ") for line in files["merges.txt"].splitlines()[1:]]
    model = {"type": "BPE", "vocab": json.loads(files["vocab.json"]), "merges": merges}
    eot = {"id": 50256, "content": "<|endoftext|>", "special": True}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    whole = {"added_tokens": [eot], "normalizer": None, "pre_tokenizer": cut, "model": model}
    return json.dumps({**whole, **changes})


def test_gpt2s_tokenizer_is_recognised_in_each_of_its_forms(tmp_path):
    folder = write_folder(tmp_path, GPT2_LIKE)
    write_bpe(folder)
    assert heard(folder)[2].endswith("Hugging Face checkpoint, GPT-2's tokenizer")
    merges = (folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n")
    (folder / "merges.txt").write_bytes(merges)  # line ends of Windows are no other merges
    assert same_tokenizer(heard(folder)[1], GPT2Tokenizer())
    (folder / "tokenizer.json").write_text(fast_file())
    assert same_tokenizer(heard(folder)[1], GPT2Tokenizer())
    (folder / "vocab.json").unlink(), (folder / "merges.txt").unlink()
    assert heard(folder)[2].endswith("Hugging Face checkpoint, GPT-2's tokenizer")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.json", lambda: reversed_vocab()),
        ("vocab.json", lambda: "[]"),
        ("vocab.json", lambda: '{"a": "b"}'),
        ("merges.txt", lambda: gpt2_files()["merges.txt"].replace("Ġ t\n", "", 1)),
        ("tokenizer.json", lambda: fast_file(normalizer={"type": "Lowercase"})),
        ("tokenizer.json", lambda: fast_file(pre_tokenizer={"type": "Whitespace"})),
        ("tokenizer.json", lambda: fast_file(model={"type": "Unigram", "vocab": []})),
        ("tokenizer.json", lambda: '{"model": 3}'),
        ("tokenizer_config.json", lambda: '{"add_prefix_space": true}'),
    ],
)
def test_another_tokenizer_of_as_many_tokens_is_refused_and_its_file_named(tmp_path, file, content):
    folder = write_folder(tmp_path, GPT2_LIKE)
    write_bpe(folder, **{file: content()})
    assert refusal(folder).startswith(f"{folder / file}: ")


@pytest.mark.parametrize("file", ["spiece.model", "vocab.txt", "vocab.json", "merges.txt"])
def test_files_that_are_not_enough_are_not_ignored(tmp_path, file):
    folder = write_folder(tmp_path, GPT2_LIKE)
    (folder / file).write_bytes(b"something")
    assert refusal(folder).startswith(f"{folder / file}: not GPT-2's tokenizer")


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_token_added_behind_gpt2s_has_its_name(tmp_path, where):
    model = small(50258)
    folder = write_folder(tmp_path, model)
    pad = {"content": "<|pad|>", "special": True}
    eot = {"id": 50256, "content": "<|endoftext|>"}
    content = {
        "added_tokens.json": json.dumps({"<|pad|>": 50257}),
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": {"50257": pad}}),
        "tokenizer.json": fast_file(added_tokens=[eot, {"id": 50257, **pad}]),
    }
    write_bpe(folder, **{where: content[where]})
    loaded, tokenizer, line = heard(folder)
    assert same_model(loaded, model) and loaded.config.vocab_size == 50258
    assert tokenizer.decode([15496, 50257]) == "Hello<|pad|>" and "<|pad|>" in line
    save_huggingface(tmp_path / "again", vars(loaded.config), loaded.state_dict(), tokenizer)
    assert same_tokenizer(heard(tmp_path / "again")[1], tokenizer)


def test_others_read_an_added_token_in_what_we_write(tmp_path):
    from transformers import AutoTokenizer

    model, tokenizer = small(50258), GPT2Tokenizer(["<|pad|>"])
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("Hello<|pad|>") == [15496, 50257] and theirs.eos_token_id == 50256


def test_rows_without_a_token_are_padding_and_a_token_without_a_row_is_said(tmp_path):
    model = small(50264)
    folder = write_folder(tmp_path, model)
    write_bpe(folder, **{"added_tokens.json": '{"<|pad|>": 50257}'})
    loaded, tokenizer, _ = heard(folder)
    assert loaded.config.vocab_size == tokenizer.vocab_size == 50258
    assert same_model(loaded, model)
    folder = write_folder(tmp_path / "fewer", GPT2_LIKE)
    write_bpe(folder, **{"added_tokens.json": '{"<|pad|>": 50257}'})
    _, tokenizer, line = heard(folder)
    assert same_tokenizer(tokenizer, GPT2Tokenizer()) and "without <|pad|>: " in line
    write_bpe(folder, **{"added_tokens.json": '{"<|pad|>": 50300}'})
    assert "not numbered from 50257" in refusal(folder)


@pytest.mark.parametrize("rows", [50257, 61])
def test_a_score_with_a_tokenizer_that_is_not_gpt2s_is_never_printed(tmp_path, capsys, rows):
    folder = write_folder(tmp_path, small(rows))
    if rows == 50257:  # else no file says what the tokens mean
        write_bpe(folder, **{"vocab.json": reversed_vocab()})
    with pytest.raises(UserError, match="tokenizer"):
        score.main(["--checkpoint", str(folder), "--device", "cpu"])
    assert capsys.readouterr().out == ""


def test_our_own_export_of_characters_is_read_back(tmp_path):
    model = small()
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), CHARS)
    loaded, tokenizer, line = heard(tmp_path)
    assert same_model(loaded, model) and same_tokenizer(tokenizer, CHARS)
    assert line.endswith(f"{CHARS.vocab_size} characters")


def test_our_characters_are_read_back_after_transformers_saved_them_again(tmp_path):
    from transformers import AutoTokenizer

    model = small()
    save_huggingface(tmp_path / "a", vars(model.config), model.state_dict(), CHARS)
    write_folder(tmp_path / "b", model)
    AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert same_tokenizer(heard(tmp_path / "b")[1], CHARS)


def test_a_tokenizer_of_another_size_or_order_is_refused(tmp_path):
    model = small()
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), CHARS)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = whole["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert "neither GPT-2's tokenizer nor characters" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "characters.json").write_text('"abc"')
    assert refusal(tmp_path).endswith(f"3 characters, but wte has {CHARS.vocab_size} rows")


def test_without_tokenizer_files_nothing_but_gpt2s_rows_is_guessed(tmp_path):
    _, tokenizer, line = heard(write_folder(tmp_path / "a", small(61)))
    assert tokenizer is None and "the meaning of its 61 tokens is unknown" in line
    loaded, tokenizer, line = heard(write_folder(tmp_path / "b", small(50304)))
    assert same_tokenizer(tokenizer, GPT2Tokenizer()) and loaded.config.vocab_size == 50257
    assert "assumed to be GPT-2's tokenizer" in line


# ---- runs of ours


def test_a_run_of_commit_935a9ba_loads_and_computes_what_it_did():
    for source in (OLD / "run", OLD / "run/checkpoints/step_000002"):
        model, tokenizer, line = heard(source)
        expected = json.loads((OLD / "expected.json").read_text())
        assert tokenizer.encode(expected["prompt"]) == expected["tokens"]
        with torch.no_grad():
            ours = model.eval()(torch.tensor([expected["tokens"]]))[0][0, -1]
        torch.testing.assert_close(ours, torch.tensor(expected["logits"]), atol=1e-5, rtol=0)
        assert "our checkpoint step_000002" in line


def bfloat16_checkpoint(folder: Path) -> Path:
    """A checkpoint as the recorded model is kept: bfloat16, no optimizer."""
    from nanogpt_lib.support.files import file_sha256, seal

    source = OLD / "run/checkpoints/step_000002"
    folder.mkdir(parents=True)
    tensors = load_file(source / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / "model.safetensors")
    state = json.loads((source / "state.json").read_text())
    path = folder / "model.safetensors"
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}}
    kept = {k: v for k, v in state.items() if k != "sha256"}
    (folder / "state.json").write_text(json.dumps(seal({**kept, "files": files})))
    return folder


def test_a_checkpoint_in_bfloat16_without_optimizer_is_read_as_float32(tmp_path, monkeypatch):
    folder = bfloat16_checkpoint(tmp_path / "model")
    model, tokenizer, _ = heard(folder)
    exact, _, _ = heard(OLD / "run")
    idx = torch.tensor([tokenizer.encode("The quick")])
    with torch.no_grad():
        torch.testing.assert_close(model(idx)[0], exact(idx)[0], atol=0.02, rtol=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    monkeypatch.setattr(load, "RECORDED", folder)
    recorded, _ = recorded_model()
    assert torch.equal(recorded(idx)[0], model(idx)[0])
    monkeypatch.setattr(load, "RECORDED", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere: missing; restore it with git"):
        recorded_model()


def test_changes_crop_pad_and_keep_the_logits(tmp_path):
    for source in (OLD / "run", write_folder(tmp_path, small(61))):
        whole, _, _ = heard(source)
        changed, _, _ = heard(
            source, block_size=8, dropout=0.1, vocab_multiple=64, attention="manual"
        )
        config = changed.config
        assert (config.block_size, config.dropout, config.attention) == (8, 0.1, "manual")
        assert config.padded_vocab_size == 64
        torch.testing.assert_close(logits(changed), logits(whole), atol=1e-5, rtol=0)
        assert "block_size 17 exceeds the model's 16" in refusal(source, block_size=17)


# ---- nanoGPT and build-nanogpt


@dataclass
class TheirConfig:
    """build-nanogpt's GPTConfig, which its checkpoints pickle."""

    block_size: int = 16
    vocab_size: int = 50304
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 16


TheirConfig.__qualname__ = TheirConfig.__name__ = "GPTConfig"


def nanogpt_file(path: Path, model: GPT, prefix="_orig_mod.", **more) -> Path:
    """ckpt.pt as nanoGPT's train.py writes it: Linear weights, lm_head as well, the optimizer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ("n_layer", "n_head", "n_embd", "block_size", "bias", "dropout")
    shape = {key: getattr(model.config, key) for key in keys}
    shape["vocab_size"] = model.config.padded_vocab_size
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0)}},
        "param_groups": [{"betas": (0.9, 0.95)}],
    }
    best = {"iter_num": 100, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "x"}}
    torch.save({"model": state, "optimizer": optimizer, "model_args": shape, **best, **more}, path)
    return path


def lecture_file(path: Path, model: GPT, monkeypatch) -> Path:
    """model_NNNNN.pt as build-nanogpt writes it: its config is an object of the script's class."""
    import __main__

    path.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(TheirConfig, "__module__", "__main__")
    monkeypatch.setattr(__main__, "GPTConfig", TheirConfig, raising=False)
    config = TheirConfig(vocab_size=model.config.padded_vocab_size)
    state = dict(model.state_dict())
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()  # the mask buffer
    torch.save({"model": state, "config": config, "step": 5, "val_loss": 10.9}, path)
    monkeypatch.undo()
    return path


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_checkpoint_is_imported_from_the_file_or_its_folder(tmp_path, bias):
    model = small(50257, bias=bias, vocab_multiple=64)
    path = nanogpt_file(tmp_path / "out/ckpt.pt", model)
    for source in (path, path.parent, str(path)):
        loaded, tokenizer, line = heard(source)
        assert same_model(loaded, model) and loaded.config.bias is bias
        assert loaded.config.vocab_size == 50257 and same_tokenizer(tokenizer, GPT2Tokenizer())
        assert "ckpt.pt of nanoGPT" in line


def test_nanogpts_characters_come_from_characters_json_and_no_pickle_is_opened(tmp_path):
    model = small(bias=False)
    path = nanogpt_file(tmp_path / "ckpt.pt", model)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {}}))
    _, tokenizer, line = heard(path)
    assert tokenizer is None and "characters.json" in line
    (tmp_path / "characters.json").write_text(json.dumps(CHARS.characters))
    loaded, tokenizer, _ = heard(path)
    assert same_model(loaded, model) and same_tokenizer(tokenizer, CHARS)


def test_the_lectures_newest_checkpoint_is_imported_without_its_class(tmp_path, monkeypatch):
    model = small(50257, vocab_multiple=64)
    lecture_file(
        tmp_path / "log/model_00100.pt", small(50257, vocab_multiple=64, n_layer=2), monkeypatch
    )
    path = lecture_file(tmp_path / "log/model_19072.pt", model, monkeypatch)
    for source in (path, tmp_path / "log"):
        loaded, tokenizer, line = heard(source)
        assert same_model(loaded, model) and loaded.config.bias
        assert same_tokenizer(tokenizer, GPT2Tokenizer())
        assert "model_19072.pt of build-nanogpt" in line


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path, function=Path.touch):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (self.path,)


@pytest.mark.parametrize("function", [Path.touch, os.mkdir])
def test_nothing_in_a_foreign_checkpoint_is_ever_run(tmp_path, function):
    proof = tmp_path / "executed"
    model = small(50257, vocab_multiple=64)
    path = nanogpt_file(tmp_path / "ckpt.pt", model, more=Bomb(proof, function), seed=np.float64(3))
    try:
        loaded, _, _ = heard(path)
        assert same_model(loaded, model)  # it became an empty holder
    except UserError as error:
        assert "refused" in str(error)  # modules such as posix are refused outright
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the trap does work
    assert proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"step": 3}, "not a checkpoint of nanoGPT or build-nanogpt"),
        ([1, 2], "not a checkpoint of nanoGPT or build-nanogpt"),
        ({"model": {}}, "neither nanoGPT's model_args nor build-nanogpt's config"),
        ({"model": {"a": 1}, "model_args": {}}, "something other than named tensors"),
        ({"model": {}, "model_args": {"n_layer": "2"}}, "block_size is None"),
        ({"model": {}, "model_args": {**SHAPE, "vocab_size": 9}}, "wte does not have the shape"),
        ({"model": {}, "model_args": {**SHAPE, "vocab_size": 9, "n_head": 3}}, "not divisible"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    assert message in refusal(tmp_path / "x.pt")


def test_an_untied_foreign_model_is_refused(tmp_path):
    model = small(50257)
    path = nanogpt_file(tmp_path / "ckpt.pt", model, prefix="")
    content = torch.load(path, weights_only=True)
    content["model"]["lm_head.weight"] = content["model"]["lm_head.weight"] + 1
    torch.save(content, path)
    assert "lm_head and wte differ" in refusal(path)


# ---- training from a loaded model


def log_values(out: Path, name: str) -> dict[int, float]:
    """Step → value of one series in a run's log."""
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_run_of_commit_935a9ba_resumes_as_it_would_have_gone_on(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    done = program("train.py", "--resume", "--out", "run", cwd=tmp_path / "old")
    assert done.returncode == 0, done.stderr
    for name in ("train_loss", "val_loss"):
        ours, theirs = (log_values(at / "run", name) for at in (tmp_path / "old", OLD))
        assert ours.keys() == theirs.keys() and max(ours) == 4
        assert all(abs(ours[step] - theirs[step]) < 1e-4 for step in ours)


TRAIN = (
    "--batch-size 2 --total-batch-size 32 --max-steps 2 --warmup-steps 1 --eval-every 0 "
    "--eval-tokens 32 --save-every 0 --sample-every 0 --sample-tokens 4 --device cpu "
    "--dtype float32 --compile off --block-size 16"
).split()


def dataset(folder: Path, tokenizer) -> Path:
    """A few hundred tokens of this tokenizer."""
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 600)
    meta = {"name": "x", "source": "random", "tokenizer": tokenizer.describe()}
    write_splits(folder, {**meta, "vocab_size": tokenizer.vocab_size}, ids[:500], ids[500:])
    return folder


def test_training_starts_from_a_checkpoint_of_nanogpt(tmp_path):
    model = small(bias=False)
    path = nanogpt_file(tmp_path / "ckpt.pt", model)
    data = dataset(tmp_path / "data", CHARS)
    flags = [*TRAIN, "--init-from", path, "--data", data, "--out", tmp_path / "run"]
    refused = program("train.py", *flags, "--sample-prompt", "a")
    assert refused.returncode == 1 and "tokenizer" in refused.stderr.splitlines()[-1]
    (tmp_path / "characters.json").write_text(json.dumps(CHARS.characters))
    done = program("train.py", *flags, "--sample-prompt", "a", "--learning-rate", "1e-12",
                   "--min-lr", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    trained, tokenizer, _ = heard(tmp_path / "run")
    assert same_tokenizer(tokenizer, CHARS)
    torch.testing.assert_close(logits(trained), logits(model), atol=1e-4, rtol=0)


def test_training_on_data_of_another_alphabet_of_the_same_size_is_refused(tmp_path):
    model = small()
    save_huggingface(tmp_path / "hf", vars(model.config), model.state_dict(), CHARS)
    other = CharTokenizer(CHARS.characters.replace("z", "ß"))
    data = dataset(tmp_path / "data", other)
    done = program("train.py", *TRAIN, "--init-from", tmp_path / "hf", "--data", data,
                   "--out", tmp_path / "run", "--sample-prompt", "a")  # fmt: skip
    assert done.returncode == 1 and "the tokenizers differ" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "run").glob("checkpoints/*"))


# ---- bad input gives one line


def test_what_is_not_there_is_named_and_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in ("no/such/run", "./gpt2", "/no/such", "a b"):
        assert refusal(path) == f"{path}: no such folder or file"
    assert "no folder or file runs/nothing here; as a name on the hub" in refusal("runs/nothing")
    (tmp_path / "runs").mkdir()
    line = refusal("runs")
    assert line.startswith("runs: no model here (looked for state.json, checkpoints/step_*, model.")
    assert "ckpt.pt" in line
    (tmp_path / "notes.txt").write_text("hello")
    assert refusal("notes.txt").startswith("notes.txt: ")


@pytest.mark.parametrize("sizes", [{"n_layer": 10**9}, {"n_positions": 10**9}, {"n_embd": 10**9}])
def test_sizes_that_the_weights_do_not_have_are_refused_before_a_model_is_built(tmp_path, sizes):
    folder = write_folder(tmp_path, GPT2_LIKE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    assert "config states" in refusal(folder)


@pytest.mark.parametrize("value", ["12", 0, -1, 1.5, None, [2], True])
def test_a_config_that_is_no_number_is_refused(tmp_path, value):
    folder = write_folder(tmp_path, GPT2_LIKE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": value}))
    assert "n_layer is" in refusal(folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> list[Path]:
    """A file of every kind, each in its own loadable source."""
    root = tmp_path_factory.mktemp("every")
    files = [write_folder(root / "plain", small(61)) / "model.safetensors"]
    files += [write_folder(root / "bin", small(61), "pytorch_model.bin") / "pytorch_model.bin"]
    folder = write_folder(root / "legacy", small(61), "pytorch_model.bin", legacy=True)
    files += [folder / "pytorch_model.bin", folder / "config.json"]
    folder = write_folder(root / "shards", small(61), "model.safetensors.index.json")
    files += [folder / "model.safetensors.index.json", folder / "model-00001-of-00002.safetensors"]
    files += [nanogpt_file(root / "nano/ckpt.pt", small(61))]
    save_huggingface(root / "char", vars(small().config), small().state_dict(), CHARS)
    files += [root / "char/tokenizer.json"]
    shutil.copytree(OLD / "run/checkpoints/step_000002", root / "ours")
    files += [root / "ours/model.safetensors", root / "ours/state.json"]
    for path in files:
        heard(path.parent)
    return files


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_file_cut_short_is_refused_in_one_line(everything, data):
    path = data.draw(st.sampled_from(everything))
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    if path.suffix == ".json" and not whole[size:].strip():
        return  # only the last line break was cut
    path.write_bytes(whole[:size])
    try:
        refusal(path.parent)
    finally:
        path.write_bytes(whole)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_byte_changed_is_refused_in_one_line_or_harmless(everything, data):
    path = data.draw(st.sampled_from(everything))
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytes([*whole[:at], whole[at] ^ data.draw(st.integers(1, 255)), *whole[at + 1 :]])
    path.write_bytes(changed)
    try:
        load_model(path.parent, say=lambda line: None)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(bytes(whole))
