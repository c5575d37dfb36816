"""Where this repository is, whatever the working directory, and how to run a child process.

A notebook may be started from anywhere: Jupyter uses the notebook's folder, an editor perhaps the
workspace. So a chapter uses `ROOT / "data/pydocs"`, never "../data/pydocs". A relative path given
to a program is looked up in the working directory, then in ROOT, where the recipes write.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds nanogpt_lib, notebooks and data
DATA = ROOT / "data"  # the recipes and their datasets


def run_python(*arguments, **options) -> str:
    """Run `python ARGUMENTS…` as a child process and return its stdout.

    `options` are those of subprocess.run. If it fails, raises RuntimeError with the child's last
    lines; a CalledProcessError would hide the reason.
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
    """The folder data/NAME of this repository; its recipe is run if it does not exist yet."""
    folder = DATA / name
    if not (folder / "meta.json").is_file():
        run_python(DATA / f"{name}.py", "--out", folder)
    return folder


def find_data(path: str | Path) -> Path:
    """Resolve a dataset's relative path in the working directory, else in ROOT.

    A path that is absolute, or exists in neither, is returned unchanged, so that errors name what
    the user gave.
    """
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path
