"""nanogpt_lib/checkpoint.py: a run can be killed at any moment, and nothing can tell."""

import json
import os
import pickle
import shutil
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn as nn

from conftest import ROOT, subprocess
from nanogpt_lib import checkpoint
from nanogpt_lib.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_model,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    read_state,
    save_checkpoint,
)
from nanogpt_lib.choices import OPTIMIZERS
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, read_sealed, seal
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

STATE = {"tokenizer": {"name": "char", "characters": "abcdefghij"}}
CONFIG = dict(block_size=16, vocab_size=10, n_layer=2, n_head=2, n_embd=8)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**CONFIG, **changes}))
    return model, make_optimizer(model, learning_rate=1e-2)


def train(model, optimizer, loader, steps):
    for _ in range(steps):
        model(*loader.next_batch())[1].backward()
        optimizer.step()
        optimizer.zero_grad()


def run_with(out, *steps, **how):
    """Save the same tiny model as several steps."""
    model, optimizer = tiny()
    for step in steps:
        save_checkpoint(out, step, model, optimizer, STATE, **how)
    return model


def forge(path, **changes):
    """Change a state.json as someone would who can also compute its seal."""
    path.write_text(json.dumps(seal({**read_sealed(path), **changes})))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def names(out):
    return [p.name for p in checkpoints(out)]


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(name, tiny_data, tmp_path):
    stream = TokenStream(tiny_data, "train")

    def optimizer_of(model):
        return OPTIMIZERS[name](model, TrainConfig(learning_rate=1e-2), torch.float32)

    def start():
        model, _ = tiny(vocab_size=stream.vocab_size)
        return model, optimizer_of(model), TokenLoader(stream, 4, 16)

    whole = start()
    train(*whole, 12)
    model, optimizer, loader = start()
    train(model, optimizer, loader, 7)
    save_checkpoint(tmp_path, 7, model, optimizer, {"loader": loader.state_dict()})
    resumed, state, folder = load_checkpoint(tmp_path)
    assert state["step"] == 7 and same(resumed, model)
    again, later = optimizer_of(resumed), TokenLoader(stream, 4, 16)
    load_optimizer(folder, again)
    later.load_state_dict(state["loader"])
    train(resumed, again, later, 5)
    assert same(resumed, whole[0])
    for key, tensor in optimizer_tensors(whole[1]).items():
        assert torch.equal(tensor, optimizer_tensors(again)[key])


def test_without_optimizer_or_loader_it_would_be_another_run(tiny_data, tmp_path):
    stream = TokenStream(tiny_data, "train")
    for forget in ("optimizer", "loader"):
        model, optimizer = tiny(vocab_size=stream.vocab_size)
        loader = TokenLoader(stream, 4, 16)
        train(model, optimizer, loader, 7)
        save_checkpoint(tmp_path / forget, 7, model, optimizer, {"loader": loader.state_dict()})
        train(model, optimizer, loader, 3)
        resumed, state, folder = load_checkpoint(tmp_path / forget)
        again, later = make_optimizer(resumed, learning_rate=1e-2), TokenLoader(stream, 4, 16)
        if forget != "optimizer":
            load_optimizer(folder, again)
        if forget != "loader":
            later.load_state_dict(state["loader"])
        train(resumed, again, later, 3)
        assert not same(resumed, model)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for out in ("one", "two"):
        run_with(tmp_path / out, 5)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        paths = [tmp_path / out / "checkpoints/step_000005" / file for out in ("one", "two")]
        assert file_sha256(paths[0]) == file_sha256(paths[1])


def test_names_in_a_checkpoint_carry_no_wrapper(tmp_path):
    model, optimizer = tiny()
    for step, wrapper in enumerate((model, torch.compile(model), nn.DataParallel(model)), 1):
        save_checkpoint(tmp_path, step, wrapper, optimizer, STATE)
        loaded, _, folder = load_checkpoint(tmp_path)
        assert folder.name == f"step_{step:06d}" and same(loaded, model)
    digests = {file_sha256(p / "model.safetensors") for p in checkpoints(tmp_path)}
    assert len(digests) == 1


def test_the_tied_matrix_is_saved_once_and_stays_tied(tmp_path):
    run_with(tmp_path, 1)
    loaded, _, folder = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    parameters = sum(p.numel() for p in loaded.parameters())
    assert (folder / "model.safetensors").stat().st_size < 4 * parameters + 4000


# --- whole or not there -------------------------------------------------------------------------


def test_killed_while_saving_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from test_checkpoint import STATE, save_checkpoint, tiny
model, optimizer = tiny(n_embd=128, n_layer=4)
for step in range(int(sys.argv[1]), 10**6):
    save_checkpoint({str(tmp_path)!r}, step, model, optimizer, STATE, keep=2)
"""
    rng, last = np.random.default_rng(0), 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(last + 1)], cwd=ROOT)
        while process.poll() is None and f"step_{last + 2:06d}" not in names(tmp_path):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        folder, state = newest_checkpoint(tmp_path)
        assert folder == checkpoints(tmp_path)[-1]  # not a fall-back: the newest one is whole
        assert state["step"] == int(folder.name[5:]) >= last + 2
        load_checkpoint(tmp_path)
        last = state["step"]


def test_cut_short_at_any_byte_the_older_one_is_taken(tmp_path, capsys):
    run_with(tmp_path, 1, 2)
    newest = checkpoints(tmp_path)[-1]
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        last = len(content) - 2 if path.suffix == ".json" else len(content) - 1
        for length in sorted({0, 1, 7, 8, 9, *np.linspace(0, last, 40).astype(int)}):
            path.write_bytes(content[:length])
            assert newest_checkpoint(tmp_path)[0].name == "step_000001"
        path.unlink()
        assert newest_checkpoint(tmp_path)[0].name == "step_000001"
        path.write_bytes(content)
        assert newest_checkpoint(tmp_path)[0].name == "step_000002"
    said = capsys.readouterr().err.strip().split("\n")
    assert all(line.startswith("skipping a checkpoint: ") for line in said)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_one_flipped_bit_is_found(tmp_path, file):
    run_with(tmp_path, 1, 2)
    path = checkpoints(tmp_path)[-1] / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: damaged"):
        read_state(path.parent)
    assert newest_checkpoint(tmp_path)[0].name == "step_000001"


def test_a_number_changed_in_the_state_is_found(tmp_path):
    run_with(tmp_path, 1)
    path = checkpoints(tmp_path)[0] / "state.json"
    before = path.read_text()
    assert '"n_layer": 2' in before and read_state(path.parent)["step"] == 1
    path.write_text(before.replace('"n_layer": 2', '"n_layer": 3'))
    with pytest.raises(UserError, match="state.json: damaged"):
        read_state(path.parent)


def test_an_optimizer_of_other_parameters_is_one_line(tmp_path):
    model, optimizer = tiny()
    idx = torch.zeros(1, 4, dtype=torch.long)
    model(idx, idx)[1].backward()
    optimizer.step()
    folder = save_checkpoint(tmp_path, 1, model, optimizer, STATE)
    for changes in ({"n_embd": 16}, {"n_layer": 1}):
        with pytest.raises(UserError, match="optimizer.safetensors: does not fit the model"):
            load_optimizer(folder, tiny(**changes)[1])


def test_a_half_written_folder_is_no_checkpoint_and_goes_with_the_next_save(tmp_path):
    run_with(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step_000001", folder / "step_000002.tmp")
    (folder / "step_notes").mkdir()
    assert names(tmp_path) == ["step_000001"]
    run_with(tmp_path, 3)
    assert names(tmp_path) == ["step_000001", "step_000003"]
    assert not (folder / "step_000002.tmp").exists() and (folder / "step_notes").exists()


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_saved_again(tmp_path):
    run_with(tmp_path, 1, 2)
    (checkpoints(tmp_path)[-1] / "model.safetensors").write_bytes(b"")
    run_with(tmp_path, 2)
    assert newest_checkpoint(tmp_path)[0].name == "step_000002"


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path):
    run_with(tmp_path, 8, 999_999, 1_000_000, keep=2)
    assert names(tmp_path) == ["step_999999", "step_1000000"]
    assert newest_checkpoint(tmp_path)[1]["step"] == 1_000_000
    run_with(tmp_path / "all", 1, 2, 3, keep=0)
    assert len(names(tmp_path / "all")) == 3


def test_the_best_is_kept_however_old(tmp_path):
    run_with(tmp_path, 1, 2, 3, 4, 5, keep=1, val_losses={1: 3.0, 2: 2.0, 4: 2.5, 6: 1.0})
    assert names(tmp_path) == ["step_000002", "step_000005"]
    run_with(tmp_path, 6, 7, keep=1, val_losses={2: 2.0, 6: 1.0})
    assert names(tmp_path) == ["step_000006", "step_000007"]
    assert load_model(str(tmp_path / "checkpoints/step_000006"))[1].vocab_size == 10


def test_older_ones_go_only_after_the_new_one_is_whole(tmp_path, monkeypatch):
    run_with(tmp_path, 1, 2, keep=2)
    monkeypatch.setattr(checkpoint, "write_json", lambda *a: (_ for _ in ()).throw(OSError(28, "")))
    with pytest.raises(UserError, match="the older ones are whole"):
        run_with(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step_000001", "step_000002"]


# --- what is refused ----------------------------------------------------------------------------


def test_a_missing_or_empty_run_says_what_was_looked_for(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no whole checkpoint here .looked for checkpoints/"):
            newest_checkpoint(source)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_loading_never_unpickles(tmp_path):
    run_with(tmp_path, 1)
    folder = checkpoints(tmp_path)[0]
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]
    path = folder / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    files = read_sealed(folder / "state.json")["files"]
    files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    forge(folder / "state.json", files=files)
    with pytest.raises(UserError, match="weights and state.json do not fit together"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 2}, "format 2, this library reads 1"),
        ({"files": None}, "damaged"),
        ({"files": {"model.safetensors": 3}}, "damaged"),
    ],
)
def test_a_foreign_state_is_refused(tmp_path, change, message):
    run_with(tmp_path, 1)
    path = checkpoints(tmp_path)[0] / "state.json"
    forge(path, **change)
    with pytest.raises(UserError, match=message):
        read_state(path.parent)
    path.write_bytes(b"\xff\xfe not text")
    with pytest.raises(UserError, match="state.json: damaged"):
        read_state(path.parent)


@pytest.mark.parametrize("change", [{"n_layer": 3}, {"n_embd": 4}, {"surprise": 1}])
def test_weights_that_do_not_fit_the_state_are_one_line(tmp_path, change):
    run_with(tmp_path, 1)
    path = checkpoints(tmp_path)[0] / "state.json"
    forge(path, model_config=read_sealed(path)["model_config"] | change)
    with pytest.raises(UserError, match="do not fit together") as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


# --- load_model ---------------------------------------------------------------------------------


def test_load_model_takes_a_run_one_checkpoint_and_a_hugging_face_folder(tmp_path):
    from nanogpt_lib.huggingface import save_huggingface

    model = run_with(tmp_path / "run", 1, 2)
    for source in (tmp_path / "run", checkpoints(tmp_path / "run")[0]):
        loaded, tokenizer = load_model(str(source))
        assert same(loaded, model) and isinstance(tokenizer, CharTokenizer)
    save_huggingface(tmp_path / "hf", vars(model.config), model.state_dict())
    loaded, tokenizer = load_model(str(tmp_path / "hf"))
    assert same(loaded, model) and tokenizer is None  # not GPT-2's
    model, _ = tiny(vocab_size=50257)
    save_huggingface(tmp_path / "hf2", vars(model.config), model.state_dict())
    loaded, tokenizer = load_model(str(tmp_path / "hf2"))
    assert same(loaded, model) and isinstance(tokenizer, GPT2Tokenizer)


def test_load_model_crops_and_pads_and_the_logits_stay(tmp_path):
    model = run_with(tmp_path, 1).eval()
    loaded, _ = load_model(str(tmp_path), block_size=8, dropout=0.1, vocab_multiple=64)
    assert loaded.config.block_size == 8 and loaded.config.padded_vocab_size == 64
    assert loaded.config.dropout == 0.1
    idx = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(idx)[0], model(idx)[0], atol=1e-6)
    with pytest.raises(UserError, match="block_size 17 is over the model's 16"):
        load_model(str(tmp_path), block_size=17)
