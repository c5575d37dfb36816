"""The set-up files say the same thing in every place."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

INSTALLED = ("course", "dev", "site")  # by make and conda; the other extras are for who wants them


def name_of(requirement: str) -> str:
    return re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")


def test_environment_yml_installs_what_pyproject_names():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, steps = environment["dependencies"]
    assert pip == "pip" and python.startswith("python=3.")
    assert python.removeprefix("python=") >= PROJECT["requires-python"].removeprefix(">=")
    assert steps["pip"] == ["-c constraints.txt", f"-e .[{','.join(INSTALLED)}]"]


def test_every_dependency_is_pinned_in_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-") for name in pins}
    wanted = list(PROJECT["dependencies"])
    for extra in INSTALLED:
        wanted += PROJECT["optional-dependencies"][extra]
    assert {name_of(r) for r in wanted} <= pinned
    assert pins["torch"] == "2.13.0"


def test_make_and_readme_name_the_same_commands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("train", "test", "lab", "export", "bench"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert "make train" in README and "make test" in README
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_links_in_the_readme_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_readme_lists_every_preset_and_chapter():
    from nanogpt_lib.presets import PRESETS

    for preset in PRESETS:
        assert f"`{preset}`" in README, preset
    for chapter in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{chapter.name}" in README


def make_would_run(*words: str) -> str:
    """The commands of a target, not run."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_clean_keeps_runs_and_datasets_unless_asked():
    assert "runs" not in make_would_run("clean") and "data" not in make_would_run("clean")
    assert "runs data/*/" in make_would_run("clean", "ALL=1")


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_train_needs_no_torchrun_and_make_lab_starts_for_root_too():
    """torchrun waits for minutes where the host name does not resolve."""
    assert "torchrun" not in make_would_run("train")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    assert ("--allow-root" in make_would_run("lab")) == root


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_environment_takes_uv_where_it_is_and_else_pip_with_the_same_lock(tmp_path):
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    words = ["make", "-n", "-B", "environment"]
    paths = [p for p in os.environ["PATH"].split(os.pathsep) if not os.path.exists(f"{p}/uv")]
    for first, installer in (("", ".venv/bin/python -m pip install"), (tmp_path, "uv pip install")):
        path = os.pathsep.join([str(first)] * bool(first) + paths)
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        (line,) = [line for line in done.stdout.splitlines() if "constraints.txt" in line]
        assert line.startswith(installer), line
        assert re.search(r'-c constraints.txt -e "\.\[[\w,]+\]"$', line)


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_ddp_and_gpu_status_say_what_they_do():
    line = make_would_run("ddp", "NGPUS=8", "PRESET=gpt2-124m", "ARGS=--preflight")
    assert "torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m" in line
    assert line.rstrip().endswith("--preflight")
    if not shutil.which("nvidia-smi"):
        done = subprocess.run(["make", "gpu-status"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "no NVIDIA GPU" in done.stdout
