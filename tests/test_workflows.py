""".github/workflows: well-formed, and they run what this repository has. Not yet run anywhere."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from conftest import ROOT

FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KEYS = {"name", "on", "permissions", "concurrency", "jobs", "env", "defaults"}
STEP = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory"}
STEP |= {"timeout-minutes", "continue-on-error"}


def read(path) -> dict:
    """A workflow; YAML reads the key `on` as true."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in workflow.items()}


def steps_of(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_is_well_formed(path):
    workflow = read(path)
    assert set(workflow) <= KEYS and {"name", "on", "jobs", "permissions"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert job["runs-on"] and 0 < job["timeout-minutes"] <= 120
    for step in steps_of(workflow):
        assert set(step) <= STEP and ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"]), step
    text = path.read_text(encoding="utf-8")
    assert text.count("${{") == len(re.findall(r"\$\{\{ [\w.'=!&| -]+ \}\}", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_what_a_workflow_runs_is_here(path):
    for line in (step["run"] for step in steps_of(read(path)) if "run" in step):
        subprocess.run(["bash", "-n", "-c", line], check=True)
        for target in re.findall(r"\bmake ([\w-]+)", line):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
        for extras in re.findall(r"-e [\"']?\.\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_suite_runs_on_three_systems_with_every_python_that_is_promised():
    matrix = read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    commands = [
        step.get("run", "") for step in steps_of(read(ROOT / ".github/workflows/tests.yml"))
    ]
    assert "python -m pytest -n 2" in commands
    assert "python -m pytest -n 2 --nbmake notebooks" in commands
