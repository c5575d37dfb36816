"""Checkpoints: a run can be killed at any moment and resumes bit for bit."""

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from conftest import ROOT, subprocess
from nanogpt_lib import checkpoint
from nanogpt_lib.checkpoint import (
    load_checkpoint,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from nanogpt_lib.choices import OPTIMIZERS
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.load import load_model
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support import checkpoint_files
from nanogpt_lib.support.checkpoint_files import TensorFiles, checkpoints, prune, read_state
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, read_sealed, seal

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
    """Change a state.json and update its SHA-256 to match."""
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
    load_optimizer(resumed, again, folder, state)
    later.load_state_dict(state["loader"])
    train(resumed, again, later, 5)
    assert same(resumed, whole[0])
    theirs, ours = optimizer_tensors(*whole[:2]), optimizer_tensors(resumed, again)
    assert theirs.keys() == ours.keys() and "transformer.wte.weight.exp_avg" in ours
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


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
            load_optimizer(resumed, again, folder, state)
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


def test_the_tied_matrix_is_saved_once_and_stays_tied(tmp_path):
    run_with(tmp_path, 1)
    loaded, _, folder = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    parameters = sum(p.numel() for p in loaded.parameters())
    assert (folder / "model.safetensors").stat().st_size < 4 * parameters + 4000


# --- complete or absent -------------------------------------------------------------------------


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
    flip(path)
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
    state = read_state(folder)
    for changes in ({"n_embd": 16}, {"n_layer": 1}):
        with pytest.raises(UserError, match="does not fit the model"):
            load_optimizer(*tiny(**changes), folder, state)


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
    with pytest.raises(UserError, match="older ones are intact"):
        run_with(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step_000001", "step_000002"]


# --- a run that resumes from an older checkpoint ------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def test_what_was_just_saved_stays_though_folders_of_later_steps_are_there(tmp_path, capsys):
    run_with(tmp_path, 30, 40)
    cut(tmp_path / "checkpoints/step_000040/model.safetensors")
    assert newest_checkpoint(tmp_path)[0].name == "step_000030"  # so the run goes on from 30
    run_with(tmp_path, 35, keep=1)
    assert names(tmp_path) == ["step_000035"]
    assert newest_checkpoint(tmp_path)[1]["step"] == 35
    run_with(tmp_path / "minimal", 2)
    run_with(tmp_path / "minimal", 1, keep=1)
    assert names(tmp_path / "minimal") == ["step_000001"]
    assert (
        "step_000002: written before the run resumed from an older checkpoint"
        in capsys.readouterr().err
    )


def test_a_later_checkpoint_of_before_the_run_went_back_is_set_aside_and_never_resumed(tmp_path):
    run_with(tmp_path, 30, 40)
    run_with(tmp_path, 35, keep=0)
    folder = tmp_path / "checkpoints"
    assert names(tmp_path) == ["step_000030", "step_000035"]
    assert read_state(folder / "step_000040.set-aside")["step"] == 40  # nothing of it is lost
    run_with(tmp_path, 40, keep=2, val_losses={30: 9.0, 40: 1.0})
    assert names(tmp_path) == ["step_000035", "step_000040"]


def test_only_complete_checkpoints_count_among_those_to_keep(tmp_path):
    run_with(tmp_path, 10, 20, 30)
    for step in (20, 30):
        cut(tmp_path / f"checkpoints/step_{step:06d}/optimizer.safetensors")
    run_with(tmp_path, 40, keep=2, val_losses={20: 1.0, 40: 2.0})
    assert names(tmp_path)[0] == "step_000010" and names(tmp_path)[-1] == "step_000040"
    run_with(tmp_path, 50, keep=2, val_losses={20: 1.0})  # a damaged one is not the best either
    assert names(tmp_path) == ["step_000040", "step_000050"]
    prune(tmp_path, saved=60, keep=1, val_losses={})  # not there: nothing is newer than 50
    assert names(tmp_path) == ["step_000050"]
    prune(tmp_path / "nothing here", saved=1, keep=1, val_losses={})


class Killed(BaseException):
    """Instead of kill -9."""


class Disk:
    """Executes the file operations of checkpoint_files until it is killed at the n-th one."""

    def __init__(self, patch, killed_at):
        self.left = killed_at
        for place, name in (
            (checkpoint_files.os, "replace"),
            (checkpoint_files.os, "fsync"),
            (checkpoint_files.shutil, "rmtree"),
            (checkpoint_files, "save_rows"),
            (checkpoint, "write_json"),
        ):
            patch.setattr(place, name, self.counted(getattr(place, name), name))

    def counted(self, work, name):
        def maybe(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                if name == "rmtree" and os.path.isdir(args[0]):  # half-way through
                    for file in sorted(os.listdir(args[0]))[:1]:
                        os.unlink(os.path.join(args[0], file))
                raise Killed
            return work(*args, **kwargs)

        return maybe


saves = st.tuples(st.just("save"), st.integers(1, 9), st.just(None))
kills = st.tuples(st.just("kill"), st.integers(1, 9), st.integers(1, 14))
damages = st.tuples(
    st.sampled_from([cut, flip, os.unlink]),
    st.integers(0, 2),
    st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json"]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keep=st.integers(0, 2), history=st.lists(saves | saves | kills | damages, max_size=9))
def test_after_any_history_of_saves_damages_and_kills_the_newest_whole_one_is_there(keep, history):
    """What is resumed is what the run itself saved last and was not damaged since."""
    model, optimizer = tiny()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
        step, whole = 0, set()  # where the run stands; what is whole and of its timeline
        for kind, number, detail in history:
            before = set(whole)
            if callable(kind):  # a disk fails, the run is started again
                folders = checkpoints(out)
                if number < len(folders) and (folders[-1 - number] / detail).exists():
                    kind(folders[-1 - number] / detail)
                    whole.discard(int(folders[-1 - number].name[5:]))
            else:
                with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
                    Disk(patch, detail or 0)
                    save_checkpoint(out, step + number, model, optimizer, STATE, keep=keep)
                    whole.add(step + number)
                    step += number
            there = {int(name[5:]) for name in names(out)}
            try:
                found = newest_checkpoint(out)[1]["step"]
            except UserError:
                found = 0
            if kind == "kill" and found > step:  # killed after its rename
                whole.add(found)
            assert found == max(whole & there, default=0)
            assert found >= max(before & whole, default=0) or callable(kind)
            if kind == "save":
                assert found == step
            whole, step = {s for s in whole & there if s <= found}, found


# --- files of all kinds -------------------------------------------------------------------------


def test_a_checkpoint_that_names_its_optimizer_state_by_numbers_is_read(tmp_path):
    """Format 1, of the first versions: `3.exp_avg` belongs to the optimizer's parameter 3."""
    model, optimizer = tiny()
    idx = torch.zeros(1, 4, dtype=torch.long)
    model(idx, idx)[1].backward()
    optimizer.step()
    expected = optimizer_tensors(model, optimizer)
    folder = save_checkpoint(tmp_path, 1, model, optimizer, STATE)
    state = optimizer.state_dict()["state"]
    old = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
    path = folder / "optimizer.safetensors"
    save_file(old, path)
    files = read_sealed(folder / "state.json")["files"]
    files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    forge(folder / "state.json", files=files, format=1)
    loaded, state, folder = load_checkpoint(tmp_path)
    again = make_optimizer(loaded, learning_rate=1e-2)
    load_optimizer(loaded, again, folder, state)
    found = optimizer_tensors(loaded, again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_optimizer_with_other_groups_gets_its_state_by_name(tmp_path):
    model, optimizer = tiny()
    idx = torch.zeros(1, 4, dtype=torch.long)
    model(idx, idx)[1].backward()
    optimizer.step()
    folder = save_checkpoint(tmp_path, 1, model, optimizer, STATE)
    backwards = torch.optim.AdamW(list(model.parameters())[::-1], lr=1e-2)
    load_optimizer(model, backwards, folder, read_state(folder))
    for p in model.parameters():
        assert torch.equal(backwards.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])


@pytest.mark.parametrize("cuts", [[3], [0, 3, 3], [1, 2, 7, 8]])
def test_tensors_cut_by_rows_into_any_number_of_files_are_read_whole_or_in_part(tmp_path, cuts):
    whole = {"a": torch.randn(8, 3), "b": torch.randn(8), "step": torch.tensor(5.0)}
    files = {}
    for rank, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 8], strict=True)):
        part = {n: t[start:stop].contiguous() for n, t in whole.items() if t.dim() and start < stop}
        name = f"model_rank_{rank:04d}-of-{len(cuts) + 1:04d}.safetensors"
        save_file(part | ({"step": whole["step"]} if rank == 0 else {}), tmp_path / name)
        files[name] = {}
    read = TensorFiles(tmp_path, "model", {"files": files})
    found = read.everything()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    for start in range(8):
        for stop in range(start + 1, 9):
            assert torch.equal(read.rows("a", start, stop), whole["a"][start:stop])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="not a complete safetensors file"):
        TensorFiles(tmp_path, "model", {"files": files})
    with pytest.raises(UserError, match="names no file for the optimizer"):
        TensorFiles(tmp_path, "optimizer", {"files": files})


# --- refusals -----------------------------------------------------------------------------------


def test_a_missing_or_empty_run_says_what_was_looked_for(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no intact checkpoint here .looked for checkpoints/"):
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
    with pytest.raises(UserError, match="weights and state.json do not match"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 3}, "format 3; this library reads 1 and 2"),
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
    with pytest.raises(UserError, match="state.json do not match") as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
