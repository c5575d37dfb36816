"""Where this repository lies, whatever the working directory, and how a child process is run.

A notebook may be started from anywhere: Jupyter takes the notebook's folder, an editor perhaps the
workspace. So a chapter says `ROOT / "data/pydocs"`, never "../data/pydocs". A program's relative
path is looked for below the working directory, then below ROOT, where the recipes write.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds nanogpt_lib, notebooks and data
DATA = ROOT / "data"  # the recipes, and what they make


def run_python(*arguments, **options) -> str:
    """Run `python ARGUMENTS…` as a child process, as a terminal would; return what it printed.

    `options` are those of subprocess.run. Raises RuntimeError that shows the child's own last lines
    when it fails: a CalledProcessError would hide the reason.
    """
    command = [sys.executable, *map(str, arguments)]
    capture = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    done = subprocess.run(command, **{**capture, **options})
    if done.returncode:
        words = (done.stdout or "").splitlines()[-5:] + (done.stderr or "").splitlines()[-20:]
        raise RuntimeError(
            f"{' '.join(command)}\nended with status {done.returncode}:\n" + "\n".join(words)
        )
    return done.stdout


def dataset(name: str) -> Path:
    """The folder data/NAME of this repository, made by its recipe if it is not there yet."""
    folder = DATA / name
    if not (folder / "meta.json").is_file():
        run_python(DATA / f"{name}.py", "--out", folder)
    return folder


def find_data(path: str | Path) -> Path:
    """Where a dataset given as a relative path lies: below the working directory or below ROOT.

    What is in neither place, or absolute, is returned as it is, so that an error names what was
    given.
    """
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path
