"""Every command of notebooks/runbook.md, on this CPU: `make rehearse`.

The page is the only source: its ```bash blocks are executed line by line, from top to bottom, in a
copy of this repository in a temporary folder. `SMALL` lists what is changed in a line; `STEPS` what
happens between two lines: the machine is "taken away" (every process killed) and the run continued,
it is stopped by Ctrl-C and continued. A second, undisturbed run must then have the same losses and
weights, bit for bit. Tokens and model come from a server on the loopback address that speaks the
hub's protocol; they are this Python's documentation.

    python tests/campaigns/rehearse.py [--keep DIR]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from loopback_hub import serve

from nanogpt_lib.support.run_log import read_log

PAGE = ROOT / "notebooks/runbook.md"
SMALL = [  # in a line of the page → here
    (
        "train.py gpt2-124m",
        "train.py gpt2-124m --n-layer 2 --n-head 2 --n-embd 32 --block-size 64 --batch-size 4 "
        "--total-batch-size 512 --max-steps 120 --warmup-steps 5 --eval-every 40 "
        "--eval-tokens 2048 --hellaswag-every 120 --sample-every 60 --sample-tokens 8 "
        "--save-every 5 --device cpu",
    ),
    ("--nproc_per_node=8", "--nproc_per_node=2 --local-addr=127.0.0.1"),
    ("--follow", "--follow --every 2"),
    ("--num-samples 4", "--num-samples 1 --max-new-tokens 20"),
]
OF_SPEED = ("tokens per second fell", "lags: its part")  # symptoms of a busy machine, not of a run


def page_lines() -> list[str]:
    """The commands of the page, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def small(line: str) -> str:
    """A line of the page with the changes of SMALL."""
    for old, new in SMALL:
        line = line.replace(old, new)
    return line


# ---- the steps


class Rehearsal:
    """A copy of the repository, and what is said and done in it."""

    def __init__(self, work: Path, url: str):
        self.work, self.begun = work, time.monotonic()
        self.env = {
            **os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "NANOGPT_MIRROR": str(work / "no-mirror"), "OMP_NUM_THREADS": "1",
            "TMUX_TMPDIR": str(work), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.env.pop("TMUX", None)
        self.log = work / "runs/gpt2-124m/log.jsonl"

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        print(f"{time.monotonic() - self.begun:5.0f} s  {text}", flush=True)

    def run(self, line: str, statuses: tuple[int, ...] = (0,)) -> str:
        """Execute a line of the page; return what it printed."""
        self.say(f"$ {line}")
        done = subprocess.run(
            ["bash", "-c", small(line)], cwd=self.work, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=400,
        )  # fmt: skip
        if done.returncode not in statuses:
            raise SystemExit(f"{done.stdout[-3000:]}\nended with status {done.returncode}: {line}")
        return done.stdout

    def processes(self) -> list:
        """torchrun and the processes of the run."""
        import psutil  # comes with ipykernel

        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if any("train.py" in w for w in words) and process.cwd() == str(self.work):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def steps(self) -> int:
        """The newest step in the log."""
        records = read_log(self.log) if self.log.exists() else []
        return records[-1]["step"] if records else 0

    def wait(self, what: str, until) -> None:
        """Wait until something is true; give up after three minutes."""
        last = time.monotonic() + 180
        while not until():
            if time.monotonic() > last:
                end = (self.work / "gpt2-124m.txt").read_text(encoding="utf-8")[-3000:]
                raise SystemExit(f"{end}\nwaited three minutes: {what}")
            time.sleep(0.2)
        self.say(f"  {what}")

    def ended(self) -> bool:
        """Whether no process of the run is left."""
        return not self.processes()

    def kill(self) -> None:
        """The machine is taken away: kill -9 for every process at once."""
        for process in self.processes():
            process.kill()
        self.wait("every process killed", self.ended)


def same_runs(one: Path, two: Path) -> int:
    """Raise unless two runs have the same losses and weights; return how many records."""
    clocks = {"tokens_per_sec", "mfu", "seconds", "slowest_rank", "slowest_ratio"}
    logs = [
        [{k: v for k, v in r.items() if k not in clocks} for r in read_log(run / "log.jsonl")]
        for run in (one, two)
    ]
    assert logs[0] == logs[1], "the losses differ"
    newest = [max((run / "checkpoints").iterdir()) for run in (one, two)]
    weights = [sorted(folder.glob("*.safetensors")) for folder in newest]
    assert weights[0] and [p.name for p in weights[0]] == [p.name for p in weights[1]]
    for a, b in zip(*weights, strict=True):
        assert a.read_bytes() == b.read_bytes(), f"{a} and {b} differ"
    return len(logs[0])


def rehearse(stage: Rehearsal) -> None:
    """The page from top to bottom."""
    lines = page_lines()
    launch = next(line for line in lines if line.startswith("tmux new-session"))
    for line in lines:
        if line == launch:
            stage.run(line)
            stage.wait("step 12 is in the log", lambda: stage.steps() >= 12)
            stage.kill()
            stage.run(line)
            stage.wait("it goes on", lambda: stage.steps() >= 16)
        elif "--follow" in line:
            stage.say(f"$ {line}    (in the background)")
            watching = subprocess.Popen(
                ["bash", "-c", small(line)], cwd=stage.work, env=stage.env, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        elif line.startswith("tmux send-keys"):
            stage.wait("step 28 is in the log", lambda: stage.steps() >= 28)
            stage.run(line)
            stage.wait("it has ended", stage.ended)
            said = (stage.work / "gpt2-124m.txt").read_text(encoding="utf-8")
            assert "stopped after step" in said, said[-2000:]
            stage.run(launch)
            stage.wait("it has made its last step", lambda: stage.steps() >= 120)
            stage.wait("it has ended", stage.ended)
            healthy(watching.communicate(timeout=60)[0])
            assert (stage.work / "run.html").stat().st_size > 2000
        elif "doctor.py" in line:
            healthy(stage.run(line, (0, 1)))
        else:
            check(line, stage.run(line))
    inner = re.search(r'"(.*?) 2>&1', launch)[1] + " --out runs/undisturbed"
    stage.run(inner)
    records = same_runs(stage.log.parent, stage.work / "runs/undisturbed")
    stage.say(f"killed, stopped and continued = undisturbed: {records} records and the weights")


def healthy(said: str) -> None:
    """The doctor's words hold no symptom, but for the speed of this machine."""
    found = [line for line in said.splitlines() if line.startswith("symptom: ")]
    bad = [line for line in found if not any(words in line for words in OF_SPEED)]
    assert not bad, bad


def check(line: str, said: str) -> None:
    """What a line must have said, for those that print a result."""
    expected = {
        "--pretokenized": "tokens in",
        "--verify": "undamaged",
        "score.py": "acc_token",
        "huggingface.py": "the model card",
        "--check ": "OK",
        "--preflight": "ready: ",
    }
    for word, words in expected.items():
        assert word not in line or words in said, f"{line} does not say {words!r}:\n{said}"


def newer(one: Path, other: Path) -> bool:
    """Whether `one` was written later."""
    return one.stat().st_mtime >= other.stat().st_mtime


def main() -> None:
    """Copy the repository, start the hub, rehearse."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, help="work here and keep it")
    args = parser.parse_args()
    if missing := [name for name in ("bash", "make", "tmux", "git") if not shutil.which(name)]:
        raise SystemExit(f"rehearse.py: install {', '.join(missing)} first")
    installed = ROOT / ".venv/installed"
    made_from = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    if not all(installed.exists() and newer(installed, path) for path in made_from):
        raise SystemExit("rehearse.py: run make environment first")
    work = (args.keep or Path(tempfile.mkdtemp(prefix="rehearsal-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    (work / ".venv").symlink_to(ROOT / ".venv")
    server = serve()
    stage = Rehearsal(work, f"http://127.0.0.1:{server.server_port}")
    try:
        rehearse(stage)
    finally:
        for process in stage.processes():
            process.kill()
        subprocess.run(["tmux", "kill-server"], env=stage.env, capture_output=True)
        server.shutdown()
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    stage.say("every command of the runbook works here")


if __name__ == "__main__":
    main()
