"""Kill small runs at random moments, and compare their results with those of undisturbed runs.

    python tests/campaigns/torture.py --kills 100 --seed 0
    python tests/campaigns/torture.py --kills 20 --only fsdp

Single processes are killed and started again with the same command; under torchrun one of two
ranks, plain or sharded, is killed and --max-restarts does the rest. For POSIX: it uses ps to list
processes.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests, for conftest
from conftest import ROOT, log_of, write_tiny_data
from nanogpt_lib.checkpoint import newest_checkpoint
from nanogpt_lib.support.checkpoint_files import checkpoints

STEPS, SAVE_EVERY = 20, 2
# a checkpoint of 10 MB takes longer to write than a step does: many kills fall into a write
FLAGS = (
    "--n-layer 4 --n-head 4 --n-embd 128 --block-size 32 --batch-size 4 --total-batch-size 256 "
    f"--max-steps {STEPS} --warmup-steps 2 --eval-every 4 --eval-tokens 960 --dropout 0.1 "
    f"--save-every {SAVE_EVERY} --keep-checkpoints 2 --sample-every 4 --sample-tokens 8 "
    "--device cpu --dtype float32 --log-every 1 --auto-resume"
).split()
# who is killed, in how many of a hundred kills
WAYS = {
    "one": ("the process", 40),
    "ddp": ("one rank of two", 30),
    "fsdp": ("one of two shards", 30),
}
MOMENTS = ("before the first step", "in a step", "in a checkpoint write", "after the last step")


@dataclass
class Count:
    """What a campaign counts."""

    kills: Counter = field(default_factory=Counter)  # by (who, moment)
    repeated: list[int] = field(default_factory=list)  # steps that a kill made necessary again
    recovery: list[float] = field(default_factory=list)  # seconds from a kill to the next step
    runs: int = 0


@dataclass
class Ordeal:
    """One run that is killed again and again."""

    data: Path
    out: Path
    ranks: int
    rng: np.random.Generator
    count: Count
    sharded: bool = False
    process: subprocess.Popen | None = None
    made: int = 0  # steps made before this start
    killed_at: float | None = None

    def start(self, *more: str, restarts: int = 1000) -> None:
        """Start or continue the run by the same command; its output is appended to OUT.txt."""
        launch = [sys.executable]
        if self.ranks > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
            launch += [f"--nproc_per_node={self.ranks}"]
        line = [*launch, ROOT / "nanogpt_lib/train.py", *FLAGS, "--data", self.data]
        line += ["--parallel", "fsdp"] * self.sharded
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(f"{self.out}.txt", "ab") as said:
            line = [*map(str, line), "--out", str(self.out), *more]
            self.process = subprocess.Popen(line, stdout=said, stderr=said, env=env)

    def workers(self) -> list[int]:
        """The processes that train."""
        if self.ranks == 1:
            return [self.process.pid]
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
        pairs = [map(int, line.split()) for line in table.stdout.splitlines()]
        return sorted(child for child, parent in pairs if parent == self.process.pid)

    def said(self) -> str:
        """Everything it has printed, over all restarts."""
        return Path(f"{self.out}.txt").read_text(encoding="utf-8", errors="replace")

    def steps_made(self) -> int:
        """Steps over all restarts, repeated ones included."""
        return self.said().count(" | loss ")

    def logged(self) -> int:
        """The newest step in the log."""
        log = self.out / "log.jsonl"
        steps = re.findall(r'"step": (\d+), "train_loss"', log.read_text() if log.exists() else "")
        return int(steps[-1]) if steps else 0

    def expect(self, fine: bool, what: str) -> None:
        """A campaign ends at its first failure."""
        if not fine:
            self.process.kill()
            raise AssertionError(f"{self.out}: {what}\n{self.said()[-3000:]}")

    def wait_until(self, condition) -> bool:
        """False if the run ended first."""
        end = time.monotonic() + 300
        while self.process.poll() is None:
            if condition():
                return True
            self.expect(time.monotonic() < end, "hangs")
            time.sleep(0.001)
        return False

    def wait_for(self, moment: str) -> bool:
        """Wait for a moment; False if the run ended first."""
        folder, steps = self.out / "checkpoints", int(self.rng.integers(1, 4))
        if moment == "before the first step":  # importing torch takes most of this time
            end = time.monotonic() + self.rng.uniform(0, 4)
            return self.wait_until(lambda: time.monotonic() > end)
        if moment == "in a checkpoint write":
            return self.wait_until(lambda: any(folder.glob("step_*.tmp")))
        if moment == "after the last step":
            return self.wait_until(lambda: (folder / f"step_{STEPS:06d}").exists())
        if self.wait_until(lambda: self.steps_made() > self.made) and self.killed_at:
            self.count.recovery.append(time.monotonic() - self.killed_at)
        return self.wait_until(lambda: self.steps_made() >= self.made + steps)

    def kill(self, moment: str) -> bool:
        """Kill -9 one of the processes at a moment and check what is left; False: it had ended."""
        self.made = self.steps_made()
        if not self.wait_until(lambda: len(self.workers()) == self.ranks):
            return False
        workers = self.workers()
        if not self.wait_for(moment):
            return False
        time.sleep(self.rng.uniform(0, 0.05))
        try:
            os.kill(int(self.rng.choice(workers)), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed_at = time.monotonic()
        if self.ranks == 1:
            self.process.wait()
        elif not self.wait_until(lambda: not set(workers) & set(self.workers())):
            return False  # its work was done: torchrun does not begin again
        who = "fsdp" if self.sharded else "ddp" if self.ranks > 1 else "one"
        self.count.kills[WAYS[who][0], self.where()] += 1
        self.check_left()
        if self.ranks == 1:
            self.start()
        return True

    def where(self) -> str:
        """What the killed process was doing, from what it left."""
        if any((self.out / "checkpoints").glob("step_*.tmp")):
            return "in a checkpoint write"
        if self.logged() == STEPS:
            return "after the last step"
        return "in a step" if self.steps_made() > self.made else "before the first step"

    def check_left(self) -> None:
        """The newest checkpoint is intact, and at most save_every steps must be repeated."""
        found, lost = checkpoints(self.out), self.logged()
        if found:
            folder, state = newest_checkpoint(self.out)
            self.expect(folder == found[-1], "the newest checkpoint is not whole")
            lost -= state["step"]
        self.expect(0 <= lost <= SAVE_EVERY, f"{lost} steps to make again")
        self.count.repeated.append(lost)

    def suffer(self, moments: list[str]) -> None:
        """Run to the end, killed at each of the moments on the way."""
        self.start()
        for moment in moments:
            if not self.kill(moment):
                break
        try:
            status = self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            status = "no end"
        self.expect(status == 0, f"ended with {status}")
        self.count.runs += 1

    def compare(self, undisturbed: Path) -> None:
        """Bit for bit the same weights, optimizer, log and samples."""
        last = f"checkpoints/step_{STEPS:06d}"
        names = [f"{last}/{path.name}" for path in (undisturbed / last).glob("*.safetensors")]
        self.expect(len(names) == 2 * (self.ranks if self.sharded else 1), f"{len(names)} files")
        for name in [*names, "samples.txt"]:
            ours, theirs = (folder / name for folder in (self.out, undisturbed))
            self.expect(ours.read_bytes() == theirs.read_bytes(), f"another {name}")
        self.expect(log_of(self.out) == log_of(undisturbed), "another log")


def campaign(
    work: Path, kills: int, ranks: int, seed: int, count: Count, sharded: bool = False
) -> None:
    """Runs of `ranks` processes, until `kills` kills have been made."""
    rng, data = np.random.default_rng([seed, ranks + 10 * sharded]), work / "data"
    if not data.exists():
        write_tiny_data(data)
    way = f"{ranks}{'_sharded' * sharded}"
    undisturbed = Ordeal(data, work / f"undisturbed{way}", ranks, rng, Count(), sharded)
    undisturbed.suffer([])
    target = sum(count.kills.values()) + kills
    while (left := target - sum(count.kills.values())) > 0:
        ordeal = Ordeal(data, work / f"run{way}_{count.runs}", ranks, rng, count, sharded)
        moments = [*rng.permutation(MOMENTS[:3] * 2), MOMENTS[3]]  # the last one at its end
        ordeal.suffer(moments[-min(left, len(moments)) :])
        ordeal.compare(undisturbed.out)
        print(f"{sum(count.kills.values())} kills, {count.runs} runs, all equal", flush=True)


def main() -> None:
    """The whole campaign: single processes, then two ranks under torchrun, plain and sharded."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=WAYS, help="all kills in runs of this kind")
    args = parser.parse_args()
    count, begun = Count(), time.monotonic()
    shares = {way: -(-args.kills * WAYS[way][1] // 100) for way in WAYS}
    with tempfile.TemporaryDirectory() as work:
        for way, kills in ({args.only: args.kills} if args.only else shares).items():
            ranks = 1 if way == "one" else 2
            campaign(Path(work), kills, ranks, args.seed, count, way == "fsdp")
    for (who, moment), number in sorted(count.kills.items()):
        print(f"{number:4d} kills of {who}, {moment}")
    print(f"{count.runs} runs, every one equal to the undisturbed one, bit for bit")
    most = max(count.repeated, default=0)
    print(f"steps made again per kill: at most {most} (save_every {SAVE_EVERY})")
    if count.recovery:  # the only kill of a campaign may have come after the last step
        print(f"from a kill to the next step: median {median(count.recovery):.1f} s")
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
