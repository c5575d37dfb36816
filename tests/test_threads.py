"""What support/threads.py promises."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from nanogpt_lib.support.threads import wait_briefly

LOOK = """
import os, runpy, sys

class Look:  # says what holds when torch is about to be imported
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("GOMP_SPINCOUNT", os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Look())
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["train", "sample", "score", "bench"])
def test_every_program_says_how_its_threads_wait_before_torch_is_loaded(program):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    path = ROOT / "nanogpt_lib" / f"{program}.py"
    command = [sys.executable, "-c", LOOK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GOMP_SPINCOUNT 1000\n") and "usage: " in done.stdout


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_has_chosen_stays(own):
    environment = dict(own)
    wait_briefly(environment)
    assert environment == own
