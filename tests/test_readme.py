"""README is a contract: its commands exist, its snippets run, its numbers are recomputed.

Checks that take minutes are in tests/campaigns/claims.py (make claims).
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import torch
from readme import README, blocks, commands, other, programs

from conftest import ROOT
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.choices import MODELS, model_config
from nanogpt_lib.config import TIMED_STEPS, TrainConfig
from nanogpt_lib.model import count_parameters
from nanogpt_lib.pace import in_words
from nanogpt_lib.presets import PRESETS

# Calls each program with one unknown flag: it must accept everything else on the line.
PARSE = """
import io, json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
answers = {}
for line in json.load(sys.stdin):
    sys.argv, said = [*line, "--no-such-flag"], io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            runpy.run_path(line[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code
    answers[" ".join(line)] = [status, said.getvalue()]
print(json.dumps(answers))
"""
PLACES = {"…": "3", "[PRESET]": "quickstart", "FILE…": "FILE"}  # what a line leaves open


@pytest.fixture(scope="module")
def answers() -> dict:
    """What each program answers to its line of README plus an unknown flag."""
    lines = [[PLACES.get(word, word) for word in line] for line in programs().values()]
    lines = [line for line in lines if "[--setting" not in line]
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/benchmarks")]),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_flag_of_a_command_is_known_to_its_program(answers):
    assert len(answers) >= 20
    for line, (status, said) in answers.items():
        assert status == 2, f"{line}: {said}"
        assert re.search(
            r"unrecognized arguments: --no-such-flag( \(see --help\))?\n|datatrove", said
        ), f"{line}: {said}"


def test_every_command_is_proved_somewhere():
    known = set(programs())
    for command in commands():
        words = shlex.split(command)
        if command in known or other(command):
            continue
        if words[0] == "make":
            make = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True)
            assert make.returncode == 0, command
        elif words[0] == "pytest":
            paths = [
                w for w in words[1:] if not w.startswith("-") and w != "my_gpt.py"
            ]  # a learner's
            assert all((ROOT / path).exists() for path in paths), command
        elif words[0] in ("pip", "python") and "install" in words:
            for extra in re.findall(r"\[(\w+(?:,\w+)*)\]", command):
                assert set(extra.split(",")) <= extras(), command
        elif words[0] == "nbdiff":
            assert "nbdime" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        elif words[0] == "torchrun":
            assert launcher_knows(words[1:]), command
        else:
            raise AssertionError(f"nothing proves README's command: {command}")


def extras() -> set[str]:
    """What can be installed beside the library."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def launcher_knows(words: list[str]) -> bool:
    """Whether torchrun takes these flags of its own."""
    from torch.distributed.run import get_args_parser

    script = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words))
    own = [word.replace('"$SLURM_NNODES"', "2") for word in words[:script]]
    return bool(get_args_parser().parse_args([*own, "script.py"]).training_script)


def test_torchrun_takes_the_flags_of_every_line():
    lines = [shlex.split(c) for c in programs() if c.startswith("torchrun")]
    assert len(lines) >= 4
    assert all(launcher_knows(line[1:]) for line in lines)


def test_the_snippets_run_one_after_the_other(tiny_run, tmp_path):
    """In a folder where the runs that they name are small ones."""
    snippets = blocks("python")
    assert len(snippets) >= 2
    (tmp_path / "runs").mkdir()
    for name in set(re.findall(r'"runs/([\w-]+)"', "\n".join(snippets))):
        (tmp_path / "runs" / name).symlink_to(tiny_run, target_is_directory=True)
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"
    assert (tmp_path / "my-gpt2/model.safetensors").exists()


def test_chapter_07_points_to_the_slurm_script():
    cells = json.loads((ROOT / "notebooks/07_ddp.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    link = re.search(r"Under Slurm.*?\]\(\.\./(\S+?)\)", text)[1]
    assert "#SBATCH" in (ROOT / link).read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="Slurm is for Linux")
def test_the_slurm_script_starts_what_torchrun_and_train_know(tmp_path):
    """The script exactly as in README, with stand-ins for srun, scontrol and torchrun."""
    (script,) = blocks("bash")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_ins = {
        "srun": 'exec "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
        ".venv/bin/torchrun": 'printf "%s\\n" "$@" > asked.txt',
    }
    for name, line in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SUBMIT_DIR": str(tmp_path), "JOB_NODELIST": "node[1-2]", "NNODES": "2", "JOB_ID": "7"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-eu", "-c", script], env=env, check=True)
    asked = (tmp_path / "asked.txt").read_text(encoding="utf-8").split("\n")[:-1]
    script = asked.index("nanogpt_lib/train.py")
    assert launcher_knows(asked[: script + 1]) and "--rdzv-endpoint=node1:29500" in asked
    config = parse_config(asked[script + 1 :])
    assert config.auto_resume and config.out == "runs/gpt2-124m"


def model_of(preset: str):
    """The model of a preset, without memory; with the vocabulary of its data."""
    config = TrainConfig(**PRESETS[preset])
    sizes = {"data/pydocs": 96, "data/tasks": 100, "data/shakespeare": 65, "data/dolly": 50260}
    vocab_size = sizes.get(config.data, 50257)
    with torch.device("meta"):
        return MODELS[config.model](model_config(config, vocab_size))


def bytes_of(preset: str) -> int:
    """Weights, gradients and the optimizer's averages in float32: Muon keeps one, AdamW two."""
    model = model_of(preset)
    muon = TrainConfig(**PRESETS[preset]).optimizer == "muon"
    blocks = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return 16 * count_parameters(model) - 4 * blocks * muon


def test_the_table_of_presets_is_what_the_presets_are():
    rows = re.findall(
        r"^\| `([\w-]+)` \|[^|]*\| ([\d.,]+)M \| ([\d.,]+)([MB]) \| ([\d.]+) GB", README, re.M
    )
    assert {row[0] for row in rows} == set(PRESETS)
    for preset, parameters, tokens, unit, memory in rows:
        config = TrainConfig(**PRESETS[preset])
        assert parameters == f"{count_parameters(model_of(preset)) / 1e6:,.1f}", preset
        total = config.max_steps * config.total_batch_size
        assert tokens == f"{total / {'M': 1e6, 'B': 1e9}[unit]:,.1f}", preset
        digits = len(memory.split(".")[1])
        assert memory == f"{bytes_of(preset) / 1e9:.{digits}f}", preset


def test_the_first_lines_of_the_first_run_are_what_it_prints():
    shown = next(block for block in blocks() if "parameters" in block)
    config = TrainConfig(**PRESETS["quickstart"])
    assert f"{count_parameters(model_of('quickstart')):,} parameters" in shown
    assert f"{config.total_batch_size:,} tokens per step = {config.batch_size} rows" in shown
    assert f"{in_words(60 * config.minutes)} of training: {TIMED_STEPS} steps are timed" in shown
    steps = re.search(r"^([\d,]+) steps of (\d+) ms: 2 minutes of training", shown, re.M)
    length = int(steps[1].replace(",", ""))
    assert 0.85 < length * int(steps[2]) / 120_000 < 1.15
    assert f"step {length:5d} | validation loss" in shown


def test_what_a_test_measures_is_what_readme_says_of_it():
    """The equality with the lecture's script, as the suite has it recorded and asserts it."""
    assert "`python tests/benchmarks/equal_lecture.py BUILD_NANOGPT`" in README
    claimed = re.search(r"differ by at most ([\d.e-]+) \|.*equal_lecture", README)
    assert float(claimed[1]) <= 1e-5  # what test_equal_lecture.py asserts
