"""What the settings promise: defaults, presets, help, contradictions, resuming, any directory."""

import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import ROOT, TINY, log_of
from nanogpt_lib import arguments, run, train
from nanogpt_lib.arguments import PLAIN, build_parser, parse_config
from nanogpt_lib.checkpoint import load_checkpoint, newest_checkpoint
from nanogpt_lib.choices import OPTIMIZERS, SHAPE
from nanogpt_lib.config import OPTIONS, TrainConfig, as_dict, flag, micro_batch
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import load_model
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.checkpoint_files import checkpoints
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, read_sealed, seal, write_json
from nanogpt_lib.support.processes import World
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

# --- defaults, presets, help --------------------------------------------------------------------


def said_by(argv):
    """The settings of a command line, and the notes for the user."""
    said = []
    return parse_config(argv, say=said.append), said


def test_a_bare_command_is_quickstart():
    config, said = said_by([])
    assert config.preset == "quickstart" and said == []
    assert {n: getattr(config, n) for n in PRESETS["quickstart"] if n != "data"} == {
        n: v for n, v in PRESETS["quickstart"].items() if n != "data"
    }


def test_flags_without_a_preset_mean_gpt2s_plain_defaults_and_it_is_said_in_one_line():
    config, said = said_by(["--max-steps", "1000"])
    changed = {n for n in OPTIONS if getattr(config, n) != PLAIN[n]} - {"data", "hellaswag_data"}
    assert changed == {"max_steps"}
    assert (config.n_layer, config.n_embd, config.optimizer, config.weight_decay) == (
        12, 768, "adamw", 0.1,
    )  # fmt: skip
    assert len(said) == 1 and "no preset given" in said[0] and "runs/unnamed" in said[0]
    assert said_by(["gpt2-124m", "--max-steps", "1000"])[1] == []


def test_gpt2s_preset_is_the_plain_defaults():
    config = TrainConfig(**PRESETS["gpt2-124m"])
    assert {n for n in OPTIONS if getattr(config, n) != PLAIN[n]} == {"out", "hellaswag_every"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_trained_as_it_is(preset):
    config = parse_config([preset])
    assert {type(PRESETS[preset][n]) is OPTIONS[n].type for n in PRESETS[preset]} == {True}
    assert config.warmup_steps < config.max_steps
    assert config.out == f"runs/{preset}"


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_help_explains_every_setting_with_the_value_it_has(preset):
    text = " ".join(build_parser(preset).format_help().split())
    for name, f in OPTIONS.items():
        ours = PRESETS.get(preset, {})
        value = ours.get(name, f.default)
        value = ("on" if value else "off") if f.type is bool else value
        value = repr(value) if value == "\n" else value
        shown = f"({preset if name in ours else 'default'}: {value})"
        assert shown.replace(" ", "") in text.replace(" ", ""), name
        assert len(f.metadata["help"]) > 10
    assert "Without any arguments the preset is quickstart" in text


def test_an_unknown_preset_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["no-such-preset", "--max-steps", "3"])
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.count("\n") == 1
    assert f"unknown preset 'no-such-preset'; choose one of {', '.join(PRESETS)}" in message


def test_flags_override_the_preset_in_either_spelling():
    config = parse_config(["gpt2-350m", "--max-steps", "1000", "--min_lr=1e-4", "--no-bias"])
    assert (config.max_steps, config.min_lr, config.bias, config.n_layer) == (1000, 1e-4, False, 24)
    assert parse_config(["--dropout=0"]).dropout == 0


def test_where_data_is_missing_that_nobody_named_the_message_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(arguments, "find_data", lambda path: tmp_path / path)
    with pytest.raises(UserError, match="no such data folder.*because no preset is given"):
        train.main(["--max-steps", "1000", "--out", str(tmp_path / "run")])
    with pytest.raises(UserError) as error:
        train.main(["gpt2-124m", "--out", str(tmp_path / "run")])
    assert "no preset" not in str(error.value) and not (tmp_path / "run").exists()


# --- rows and processes -------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_plain_command_of_a_preset_starts_on_any_number_of_processes(preset, world):
    config = TrainConfig(**PRESETS[preset])
    if (preset, world) == ("shakespeare-char", 8):  # nanoGPT's 12 rows
        with pytest.raises(UserError, match=r"12 rows .* by 8 processes; start 1, 2, 3, 4, 6, 12"):
            micro_batch(config, world)
        return
    rows, micro_steps = micro_batch(config, world)
    assert rows * micro_steps * world * config.block_size == config.total_batch_size
    assert 1 <= rows <= config.batch_size


@given(
    windows=st.integers(1, 48),
    batch_size=st.integers(1, 64),
    worlds=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    shuffle=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_split_into_rows_and_processes_reads_the_same_tokens(
    tiny_data, windows, batch_size, worlds, shuffle
):
    stream = TokenStream(tiny_data, "train")

    def step_tokens(world):
        """The windows of the second step, in their order over micro-steps, ranks and rows."""
        config = TrainConfig(block_size=16, total_batch_size=16 * windows, batch_size=batch_size)
        rows, micro_steps = micro_batch(config, world)
        assert rows <= batch_size and rows * micro_steps * world == windows
        ranks = [
            TokenLoader(stream, rows, 16, rank=r, world_size=world, shuffle=shuffle)
            for r in range(world)
        ]
        steps = [[loader.next_batch()[0] for loader in ranks] for _ in range(2 * micro_steps)]
        return torch.cat([x for step in steps[micro_steps:] for x in step])

    one = step_tokens(1)
    assert one.shape == (windows, 16)
    for world in worlds:
        if windows % world:
            config = TrainConfig(block_size=16, total_batch_size=16 * windows)
            with pytest.raises(UserError, match=f"shared equally by {world} processes; start 1"):
                micro_batch(config, world)
        else:
            assert torch.equal(step_tokens(world), one)


def test_the_rows_are_the_most_that_fit_and_divide():
    def rows(batch_size, windows, world=1):
        return micro_batch(
            TrainConfig(batch_size=batch_size, block_size=8, total_batch_size=8 * windows), world
        )

    assert rows(16, 16) == (16, 1) and rows(11, 16) == (8, 2) and rows(5, 12, 2) == (3, 2)
    assert rows(2**39, 2**30) == (2**30, 1) and rows(7, 13) == (1, 13)


# --- contradictions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "finetune-shakespeare --learning-rate 1e-5",
            r"--learning-rate 1e-05 is below --min-lr 3e-05, so the rate would rise",
        ),
        ("--muon-learning-rate 0.1", "has an effect only with --optimizer muon"),
        ("gpt2-124m --muon-learning-rate 0.1", "has an effect only with --optimizer muon"),
        ("--hellaswag-data x.jsonl", "only with --hellaswag-every greater than 0"),
        ("--optimizer muon --parallel fsdp", "--parallel fsdp splits them"),
        ("--optimizer muon --muon-learning-rate 0", "--muon-learning-rate must be greater than 0"),
        ("quickstart --eval-only", "name the model with --init-from or --resume --out RUN"),
        ("--n-embd 30 --n-head 4", "not divisible by --n-head 4"),
        ("--seed 4294967296", "--seed must be less than 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(line, message):
    with pytest.raises(UserError, match=message):
        parse_config(line.split())


def test_a_lower_floor_makes_a_lower_rate_possible():
    line = "finetune-shakespeare --learning-rate 1e-5 --min-lr 1e-6".split()
    assert parse_config(line).learning_rate == 1e-5


def test_a_run_that_ends_inside_its_warmup_is_told_so():
    config, said = said_by(["gpt2-124m", "--max-steps", "100"])
    (line,) = said
    assert "--max-steps 100 ends inside the warm-up of 715 steps" in line
    assert "the learning rate reaches 8.4e-05 of 0.0006" in line
    assert said_by(["gpt2-124m", "--max-steps", "100", "--warmup-steps", "10"])[1] == []


@pytest.mark.parametrize("name, value", [("optimizer", "lion"), ("schedule", "x"), ("model", "x")])
def test_an_unknown_name_is_answered_with_the_known_ones(name, value, capsys):
    with pytest.raises(SystemExit):
        parse_config([flag(name), value])
    message = capsys.readouterr().err
    known = arguments.choices_of(name)
    assert message.count("\n") == 1 and all(repr(n) in message or n in message for n in known)


# --- saved settings, and older runs -------------------------------------------------------------


def test_config_json_records_only_what_had_an_effect(tiny_run):
    saved = read_sealed(tiny_run / "config.json")
    of_no_effect = {"muon_learning_rate", "hellaswag_data", "resume", "eval_only", "preset"}
    assert not of_no_effect & set(saved)
    assert saved.keys() < PLAIN.keys() and saved["learning_rate"] == 4e-3
    assert "muon_learning_rate" in as_dict(TrainConfig(optimizer="muon"))
    assert "hellaswag_data" in as_dict(TrainConfig(hellaswag_every=5))


OLD = {"n_layer": 4, "learning_rate": 4e-3, "min_lr": 1e-4, "n_head": 4, "n_embd": 256}


@pytest.mark.parametrize(
    "saved, expected",
    [
        ({"muon_learning_rate": 0.03}, {"optimizer": "muon", "muon_learning_rate": 0.03}),
        ({"muon_learning_rate": 0.0}, {"optimizer": "adamw", "muon_learning_rate": 0.02}),
        ({}, {"optimizer": "adamw", "weight_decay": 0.1, "block_size": 1024, "bias": True}),
    ],
)
def test_a_setting_that_an_older_run_lacks_has_the_plain_default(tmp_path, saved, expected):
    write_json(tmp_path / "config.json", seal({**OLD, **saved}))
    config = parse_config(["--resume", "--out", str(tmp_path)])
    for name in (*OLD, *expected):
        assert getattr(config, name) == {**OLD, **expected}[name]
    untouched = PLAIN.keys() - OLD.keys() - expected.keys() - {"out", "resume"}
    for name in untouched - set(arguments.PATHS):
        assert getattr(config, name) == PLAIN[name], name


@pytest.mark.parametrize(
    "saved, message",
    [
        ({"rotary": True}, "has no setting 'rotary'"),
        ({"optimizer": "lion"}, "cannot use --optimizer 'lion'"),
        ({"n_layer": "4"}, "cannot use --n-layer '4'"),
    ],
)
def test_settings_of_another_version_are_refused_in_one_line(tmp_path, saved, message):
    write_json(tmp_path / "config.json", seal({**OLD, **saved}))
    with pytest.raises(UserError, match=message) as error:
        parse_config(["--resume", "--out", str(tmp_path)])
    assert "\n" not in str(error.value)


def make_old(out):
    """Convert a run with Muon to the version before --optimizer: settings and state.

    There Muon was a kind of AdamW: it numbered the blocks' matrices, then the other matrices, then
    the vectors, and counted steps for each.
    """

    def older(settings):
        new = ("optimizer", "schedule", "model")
        old = {n: v for n, v in settings.items() if n not in new}
        return {**old, "resume": False, "auto_resume": False}

    write_json(out / "config.json", seal(older(read_sealed(out / "config.json"))))
    for folder in checkpoints(out):
        sizes = {n: p.dim() for n, p in load_checkpoint(folder)[0].named_parameters()}
        ranked = sorted(sizes, key=lambda n: (sizes[n] < 2, ".h." not in n))
        path, old = folder / "optimizer.safetensors", {}
        for name, tensor in load_file(path).items():
            parameter, _, key = name.rpartition(".")
            old[f"{ranked.index(parameter)}.{key}"] = tensor
            if key == "momentum":
                old[f"{ranked.index(parameter)}.step"] = torch.tensor(6.0)
        save_file(old, path)
        state = {**read_sealed(folder / "state.json"), "format": 1}
        state["train_config"] = older(state["train_config"])
        state["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        write_json(folder / "state.json", seal(state))


def test_a_muon_run_of_the_version_before_resumes_bit_for_bit(tiny_data, tmp_path):
    flags = [*TINY, "--optimizer", "muon", "--data", str(tiny_data)]
    whole, out = tmp_path / "whole", tmp_path / "old"
    assert train.main([*flags, "--max-steps", "8", "--out", str(whole)]) == 0
    shutil.copytree(whole, out)
    for folder in checkpoints(out)[3:]:
        shutil.rmtree(folder)
    make_old(out)
    assert "optimizer" not in (out / "config.json").read_text()
    assert train.main(["--resume", "--out", str(out)]) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [checkpoints(run)[-1] / name for run in (whole, out)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


# --- resuming with other settings ---------------------------------------------------------------


def go_on(tiny_run, out, *flags, steps="8"):
    """Copy the finished run of 6 steps, and resume it up to step 8; return the new checkpoint."""
    shutil.copytree(tiny_run, out)
    assert train.main(["--resume", "--out", str(out), "--max-steps", steps, *flags]) == 0
    folder, state = newest_checkpoint(out)
    assert state["step"] == int(steps)
    return folder, state


@pytest.fixture(scope="module")
def went_on(tiny_run, tmp_path_factory):
    """Weights of the run resumed with its own settings."""
    folder, _ = go_on(tiny_run, tmp_path_factory.mktemp("went") / "on")
    return load_file(folder / "model.safetensors")


CHANGES = {
    "dropout": "0.5", "learning_rate": "0.02", "min_lr": "0.003", "weight_decay": "0.9",
    "beta1": "0.5", "beta2": "0.5", "grad_clip": "0.01", "total_batch_size": "512",
    "warmup_steps": "0",
}  # fmt: skip
QUIET = {  # their effect is not in the weights
    "attention": "manual", "batch_size": "2", "eval_every": "1", "eval_tokens": "320",
    "save_every": "1", "keep_checkpoints": "1", "sample_every": "1", "sample_tokens": "3",
    "sample_prompt": "cat", "log_every": "1", "skip_bad_steps": "3",
}  # fmt: skip


@pytest.mark.parametrize("name", [*CHANGES, *QUIET])
def test_a_setting_given_with_resume_takes_effect(name, tiny_run, went_on, tmp_path, capsys):
    value = {**CHANGES, **QUIET}[name]
    folder, state = go_on(tiny_run, tmp_path / "run", flag(name), value)
    assert re.search(rf"^changed since .* {flag(name)} ", capsys.readouterr().out, re.M)
    weights = load_file(folder / "model.safetensors")
    moved = max((weights[n] - went_on[n]).abs().max().item() for n in weights)
    assert (moved > 1e-6) == (name in CHANGES), moved
    kind = OPTIONS[name].type
    for settings_ in (state["train_config"], read_sealed(tmp_path / "run/config.json")):
        assert settings_[name] == kind(value)
    if name in ("dropout", "attention"):
        assert state["model_config"][name] == kind(value)


def test_what_the_samples_and_evaluations_are_told_on_resume_shows(tiny_run, tmp_path):
    go_on(tiny_run, tmp_path / "run", "--sample-prompt", "cat", "--eval-every", "1")
    assert "=== step 8\ncat" in (tmp_path / "run/samples.txt").read_text(encoding="utf-8")
    evaluated = [r["step"] for r in log_of(tmp_path / "run") if "val_loss" in r]
    assert evaluated == [0, 3, 6, 7, 8]


REFUSED = {
    "n_layer": "2", "n_head": "4", "n_embd": "64", "block_size": "16", "vocab_multiple": "1",
    "optimizer": "muon", "init_from": "gpt2", "seed": "7",
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED, "bias", "shuffle"])
def test_a_setting_that_cannot_change_is_refused_on_resume(name, tiny_run, tmp_path):
    flags = [flag(name), REFUSED[name]] if name in REFUSED else [f"--no-{name}"]
    before = {p: p.read_bytes() for p in tiny_run.rglob("*.json*")}
    with pytest.raises(UserError) as error:
        train.main(["--resume", "--out", str(tiny_run), *flags])
    assert name in str(error.value).replace("-", "_") and "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in tiny_run.rglob("*.json*")} == before
    assert {*SHAPE, "optimizer", "init_from"} == {*REFUSED, "bias"} - {"seed"}


def test_a_preset_named_with_resume_counts_as_its_flags(tiny_run, tiny_data, tmp_path, capsys):
    """A different shape is refused; otherwise the preset's values take effect, with a note."""
    with pytest.raises(UserError, match="--block-size: the run to resume has 32"):
        train.main(["quickstart", "--resume", "--out", str(tiny_run), "--data", str(tiny_data)])
    out = tmp_path / "run"
    flags = ["--data", str(tiny_data), "--out", str(out), "--max-steps", "2", "--warmup-steps", "0"]
    flags += ["--eval-tokens", "960", "--sample-tokens", "3", "--n-layer", "1", "--n-embd", "32"]
    command = ["quickstart", "--dtype", "float32", *flags]
    assert train.main([*command, "--beta2", "0.5"]) == 0
    capsys.readouterr()
    assert train.main([*command, "--max-steps", "3", "--resume"]) == 0
    assert "changed since the run was saved: --max-steps 3 (was 2)\n" in capsys.readouterr().out
    assert read_sealed(out / "config.json")["beta2"] == 0.5  # no preset's, no flag: as it was


def other_alphabet(tiny_data, folder):
    """The same ids, with another alphabet of the same size."""
    meta = read_meta(tiny_data)
    size = meta["vocab_size"]
    tokenizer = CharTokenizer("".join(chr(0x4E00 + i) for i in range(size)))
    ids = [np.array(TokenStream(tiny_data, split).read(0, 3000)) for split in ("train", "val")]
    about = {"name": "other", "source": "test", "vocab_size": size}
    write_splits(folder, {**about, "tokenizer": tokenizer.describe()}, *ids)
    return str(folder)


def test_data_of_another_alphabet_of_the_same_size_is_refused(tiny_run, tiny_data, tmp_path):
    data = other_alphabet(tiny_data, tmp_path / "data")
    with pytest.raises(UserError, match="the run to resume has another tokenizer"):
        train.main(["--resume", "--out", str(tiny_run), "--data", data])
    model, tokenizer = load_model(tiny_run)
    save_huggingface(tmp_path / "hf", vars(model.config), model.state_dict(), tokenizer)
    for source in (tiny_run, tmp_path / "hf"):
        flags = [*TINY, "--data", data, "--out", str(tmp_path / "run")]
        with pytest.raises(UserError, match="the tokenizers differ"):
            train.main([*flags, "--init-from", str(source)])
        assert not (tmp_path / "run/log.jsonl").exists()


# --- starting from another model ----------------------------------------------------------------


def test_a_model_to_start_from_brings_its_shape_and_what_was_asked_takes_effect(
    tiny_run, tiny_data, tmp_path
):
    flags = "--max-steps 1 --total-batch-size 256 --warmup-steps 0 --eval-tokens 320 "
    flags += "--sample-tokens 2 --device cpu --dtype float32 --dropout 0.3 --attention manual"
    flags = ["--data", str(tiny_data), "--init-from", str(tiny_run), *flags.split()]
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 0
    saved = read_sealed(tmp_path / "run/config.json")
    model = newest_checkpoint(tmp_path / "run")[1]["model_config"]
    assert (saved["n_layer"], saved["block_size"], saved["n_embd"]) == (1, 32, 32)
    for settings_ in (saved, model):
        assert settings_["dropout"] == 0.3 and settings_["attention"] == "manual"
    assert train.main([*flags, "--block-size", "16", "--out", str(tmp_path / "short")]) == 0
    assert read_sealed(tmp_path / "short/config.json")["block_size"] == 16
    for name, value in (("n_layer", "3"), ("n_embd", "64"), ("block_size", "64")):
        with pytest.raises(UserError, match=f"{flag(name)}|{name}"):
            train.main([*flags, flag(name), value, "--out", str(tmp_path / "no")])


# --- any directory ------------------------------------------------------------------------------


def test_a_run_is_resumed_from_another_directory(tiny_data, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    shutil.copytree(tiny_data, here / "mine")
    monkeypatch.chdir(here)
    assert train.main([*TINY, "--data", "mine", "--out", "run"]) == 0
    monkeypatch.chdir(there)
    assert train.main(["--resume", "--out", str(here / "run"), "--max-steps", "7"]) == 0
    assert read_sealed(here / "run/config.json")["data"] == str(here / "mine")


def test_a_dataset_of_the_repository_is_found_from_anywhere_and_kept_without_the_machines_path(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    items = ROOT / "data/hellaswag_own.jsonl"
    line = ["--hellaswag-every", "1", "--hellaswag-data", "data/hellaswag_own.jsonl"]
    config = parse_config(line)
    assert config.hellaswag_data == str(items)
    assert as_dict(config)["hellaswag_data"] == "data/hellaswag_own.jsonl"
    (tmp_path / "data").mkdir()
    shutil.copy(items, tmp_path / "data/hellaswag_own.jsonl")
    assert parse_config(line).hellaswag_data == str(tmp_path / "data/hellaswag_own.jsonl")


def test_a_folder_called_gpt2_or_scratch_does_not_hide_what_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "scratch", "own"):
        (tmp_path / name).mkdir()
    found = [parse_config(["--init-from", n]).init_from for n in ("gpt2", "scratch", "own")]
    assert found == ["gpt2", "scratch", str(tmp_path / "own")]


# --- samples' prompt ----------------------------------------------------------------------------


@pytest.fixture
def chinese(tmp_path):
    """Characters that occur in no default prompt."""
    text = "天地玄黄宇宙洪荒。\n" * 300
    tokenizer = CharTokenizer(text)
    ids = np.array(tokenizer.encode(text))
    meta = {"name": "chinese", "source": "test", "vocab_size": tokenizer.vocab_size}
    write_splits(
        tmp_path / "zh", {**meta, "tokenizer": tokenizer.describe()}, ids[:-500], ids[-500:]
    )
    return str(tmp_path / "zh")


@pytest.mark.parametrize("preset", [[], ["quickstart", "--vocab-multiple", "64"]])
def test_a_default_prompt_that_the_alphabet_lacks_is_replaced_and_said(
    preset, chinese, tmp_path, capsys
):
    flags = [*preset, *TINY[: TINY.index("--sample-prompt")], "--data", chinese]
    assert train.main([*flags, "--max-steps", "2", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "--sample-prompt: character" in said and "samples begin with '地'" in said
    assert read_sealed(tmp_path / "run/config.json")["sample_prompt"] == "地"
    assert "=== step 2\n地" in (tmp_path / "run/samples.txt").read_text(encoding="utf-8")
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--max-steps", "3"]) == 0


def test_a_prompt_may_be_empty_or_too_long(tiny_data, tmp_path, capsys):
    for name, prompt, told in (("no", "", "no prompt"), ("long", "the cat " * 9, "72 tokens")):
        flags = [*TINY, "--data", str(tiny_data), "--max-steps", "2", "--out", str(tmp_path / name)]
        assert train.main([*flags, "--sample-prompt", prompt]) == 0
        assert told in capsys.readouterr().out


# --- --eval-only --------------------------------------------------------------------------------


def files_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_eval_only_prints_the_loss_of_a_run_or_a_model_and_writes_nothing(
    tiny_run, tiny_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    last = [r["val_loss"] for r in log_of(tiny_run) if "val_loss" in r][-1]
    before = files_of(tiny_run)
    rest = "--eval-tokens 960 --device cpu --dtype float32 --batch-size 7".split()
    for source in (["--resume", "--out"], ["--data", str(tiny_data), "--init-from"]):
        assert train.main(["--eval-only", *source, str(tiny_run), *rest]) == 0
        found = re.search(r"validation loss (\d+\.\d+)\n", capsys.readouterr().out)
        assert float(found[1]) == pytest.approx(last, abs=1e-4)
    assert files_of(tiny_run) == before and not list(tmp_path.iterdir())


def test_eval_only_scores_hellaswag_if_asked(tmp_path, capsys):
    tokenizer = GPT2Tokenizer()
    ids = np.array(tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 60))
    about = {"name": "fox", "source": "test", "vocab_size": 50257}
    write_splits(
        tmp_path / "data", {**about, "tokenizer": tokenizer.describe()}, ids[:400], ids[400:]
    )
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, n_layer=1, n_head=1, n_embd=8))
    save_huggingface(tmp_path / "hf", vars(model.config), model.state_dict(), tokenizer)
    line = ["--eval-only", "--init-from", str(tmp_path / "hf"), "--data", str(tmp_path / "data")]
    line += ["--hellaswag-every", "1", "--hellaswag-data", "data/hellaswag_own.jsonl"]
    assert train.main([*line, "--device", "cpu", "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"validation loss 10\.\d+\n", said) and "not a HellaSwag score" in said


def test_eval_only_of_a_run_without_a_checkpoint_is_refused(tiny_run, tmp_path):
    shutil.copy(tiny_run / "config.json", tmp_path)
    with pytest.raises(UserError, match="no checkpoint to evaluate"):
        train.main(["--eval-only", "--resume", "--out", str(tmp_path)])


# --- memory advice ------------------------------------------------------------------------------


def test_memory_advice_knows_the_rows_and_the_optimizer(monkeypatch):
    monkeypatch.setattr(run, "memory_bytes", lambda device: 24e9)
    device = torch.device("cpu")
    needs = {}
    for name in OPTIMIZERS:
        config = TrainConfig(optimizer=name, dtype="float32")
        advice = run.memory_advice(config, 50257, World(size=2), device)
        needs[name] = float(re.search(r"needs about ([\d.]+) GB", advice)[1])
        assert "out of memory with 64 rows" in advice
        rows = int(re.search(r"try --batch-size (\d+) ", advice)[1])
        assert micro_batch(TrainConfig(batch_size=rows), 2)[0] == rows < 64
    blocks = 12 * 12 * 768**2  # Muon keeps one number less for each of the blocks' matrices
    assert needs["adamw"] - needs["muon"] == pytest.approx(4 * blocks / 1e9, abs=0.11)
