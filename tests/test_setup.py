"""The set-up files say the same thing in every place."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from readme import PAGES, README

from conftest import ROOT
from nanogpt_lib.support.threads import SPINS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_in_the_readme_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).exists(), link


def test_the_readme_lists_every_preset_and_chapter():
    from nanogpt_lib.presets import PRESETS

    for preset in PRESETS:
        assert f"`{preset}`" in README, preset
    for chapter in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{chapter.name}" in README


def make_would_run(*words: str) -> str:
    """The commands of a target, not run."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True
    )
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
    words = ["make", "-n", "-B", "--no-print-directory", "environment"]
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
        done = subprocess.run(
            ["make", "--no-print-directory", "gpu-status"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0 and "no NVIDIA GPU" in done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("status", [0, 3])
def test_the_silent_installation_shows_that_it_goes_on(tmp_path, status):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv").mkdir()
    installer = f"sh -c 'sleep 1; exit {status}'"
    words = ["make", "--no-print-directory", "environment", "BEAT=0.2", f"INSTALL={installer}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("installing: ") >= 2, done.stderr
    assert (done.returncode == 0) == (status == 0)
    assert (tmp_path / ".venv/installed").exists() == (status == 0)


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_a_lab_started_by_make_has_threads_that_sleep_soon(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    extra = 'look:\n\t@echo "spin $$GOMP_SPINCOUNT"\n'
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text() + extra)
    free = {n: v for n, v in os.environ.items() if n not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    chosen = {"": "1000", "GOMP_SPINCOUNT=7": "7", "OMP_WAIT_POLICY=ACTIVE": ""}
    for choice, seen in chosen.items():
        env = {**free, **dict([choice.split("=")] if choice else [])}
        words = ["make", "--no-print-directory", "look"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.stdout == f"spin {seen}\n"
    assert f'GOMP_SPINCOUNT: "{SPINS}"' in (ROOT / "environment.yml").read_text()
