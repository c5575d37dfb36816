"""How gpu.py runs its parts: processes with time limits, the file they fill, the card's clocks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

from gpu_base import Plan, reason

from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.places import ROOT

PROGRAM = Path(__file__).with_name("gpu.py")
AT_ONCE = {"full": 1, "quick": 5, "rehearsal": 1}  # parts; several disturb each other's timing
UNTIMED = ("compile", "losses", "parallel")  # so these run together first, also in a full run


class Part(NamedTuple):
    """A part of the run: what it does, the seconds a full run needs at least, and its limit."""

    function: Callable
    need: float
    limit: float


def part_file(plan: Plan, name: str) -> Path:
    """The file of a part's results."""
    return Path(plan.folder) / (name.replace(":", "_").replace(" ", "_") + ".json")


def results_of(plan: Plan, name: str) -> dict:
    """What a part's process has written so far."""
    path = part_file(plan, name)
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def start_child(folder: str, names: list[str], path: Path, **options) -> subprocess.Popen:
    """Start gpu.py for some parts; it waits for the plan at `path`, and prints into a log."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(Path(folder, "cache"))
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
    env |= {"TRITON_CACHE_DIR": str(Path(cache, "triton")), **options.pop("env", {})}
    command = [sys.executable, str(PROGRAM), "--part", ",".join(names), "--plan", str(path)]
    with open(Path(folder, names[0].split(":")[0] + ".log"), "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT, **options)


def start_job(plan: Plan, name: str) -> subprocess.Popen:
    """Start a part as a job of this one: in the same process group, so as to be killed with it."""
    path = part_file(plan, "plan of " + name)
    write_json(path, asdict(plan))
    few = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}  # several compile at once
    return start_child(plan.folder, [name], path, env=few)


def wait_for_plan(path: Path) -> Plan:
    """The plan, as soon as it is written: a child is started ahead, and has imported PyTorch."""
    parent = os.getppid()
    while not path.exists():
        if os.getppid() != parent:
            sys.exit("gpu.py: the run has ended")
        sleep(0.02)
    return Plan(**json.loads(path.read_text("utf-8")))


def missing_from(result: dict) -> list[str]:
    """Why entries of a result could not be measured, one line each."""
    entries = list(result.items())
    rows = [row for value in result.values() if isinstance(value, list) for row in value]
    entries += [("", row) for row in rows]
    return [f"{n}: {v['missing']}" for n, v in entries if isinstance(v, dict) and "missing" in v]


class Record:
    """The file that the run writes, and the log beside it."""

    def __init__(self, out: Path, about: dict):
        self.out, self.log = out, out.with_suffix(".log")
        self.values = {"format": 1, "about": about, "clocks": {}, "parts": {}}
        self.log.write_text("")
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_json(self.out, self.values)

    def add(self, name: str, status: str, seconds: float, note: str, result: dict) -> None:
        """Add a part, say how it ended, and write the file."""
        entry = {"status": status, "seconds": seconds, "note": note, "result": result}
        self.values["parts"][name] = entry
        head = f"{name}: {status}, {seconds:.1f} s {note}"
        print(head, *missing_from(result), sep="\n    ", flush=True)
        self.write()

    def collect(self, plan: Plan, name: str, note: str, seconds: float) -> None:
        """Add a part from the file that its process wrote."""
        found = results_of(plan, name)
        status, seconds = found.pop("status", "stopped"), found.pop("seconds", seconds)
        note = found.pop("note", note if status == "stopped" else "")
        self.add(name, status, seconds, note, found)

    def take_log(self, plan: Plan, name: str) -> None:
        """Append what a part printed to the log."""
        path = Path(plan.folder, name + ".log")
        if path.exists():
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(path.read_text("utf-8", errors="replace"))


class Child:
    """A process for some parts: started, then told to go, and ended when its time is over."""

    def __init__(self, folder: str, names: list[str]):
        self.names, self.started, self.seconds = names, 0.0, 0.0
        self.path = Path(folder, f"plan of {names[0]}.json")
        self.process = start_child(folder, names, self.path, start_new_session=True)

    def go(self, plan: Plan, seconds: float) -> None:
        """Let it begin; it has this many seconds, of which it should leave some."""
        self.started, self.seconds = monotonic(), seconds
        deadline = self.started + seconds - min(8.0, 0.1 * seconds)
        write_json(self.path, asdict(replace(plan, deadline=deadline)))

    def kill(self) -> None:
        """End it with all it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self) -> str | None:
        """How it ended, "" if well; None while it runs. Ends it, with all it started, if late."""
        if self.process.poll() is None:
            if monotonic() - self.started < self.seconds:
                return None
            self.kill()
            return f"stopped after {self.seconds:.0f} s"
        code = self.process.returncode
        return f"ended with status {code}" if code else ""


def allowed(plan: Plan, group: list[Part], later: list[Part], left: float) -> tuple[float, str]:
    """Seconds that the next parts may take, and why they are skipped if that is too little."""
    if plan.mode != "full":
        return min(left, 600.0 if plan.mode == "rehearsal" else 75.0), "" if left > 5 else "no time"
    need, limit = sum(part.need for part in group), sum(part.limit for part in group)
    limit = min(limit, left - sum(part.need for part in later))
    limit = max(limit, min(need, left))  # a late start must not skip what still fits
    note = f"needs about {need} s, {max(0, left):.0f} s are left"
    return limit, note if left < need else ""


def room(plan: Plan, running: list[Child], names: list[str]) -> bool:
    """Whether these parts may start beside those that run."""
    untimed = all(name in UNTIMED for child in running for name in child.names)
    together = plan.mode == "full" and untimed and names[0] in UNTIMED
    return together or len(running) < AT_ONCE[plan.mode]


def run_all(plan: Plan, record: Record, parts: dict[str, Part], budget: float) -> None:
    """Run all parts, each as soon as there is room, and collect their results."""
    together = plan.mode == "rehearsal"  # one process: importing PyTorch is most of the work
    waiting = [list(parts)] if together else [[name] for name in parts]
    begun, running, ahead = monotonic(), [], {}
    while waiting or running:
        while waiting and room(plan, running, waiting[0]):
            group, *waiting = waiting
            child = ahead.pop(group[0], None) or Child(plan.folder, group)
            if waiting:  # the next one may import PyTorch meanwhile
                ahead[waiting[0][0]] = Child(plan.folder, waiting[0])
            left = budget - (monotonic() - begun)
            later = [parts[name] for names in waiting for name in names]
            seconds, note = allowed(plan, [parts[name] for name in group], later, left)
            if note:
                child.kill()
                for name in group:
                    record.add(name, "skipped", 0.0, note, {})
                continue
            print(f"{', '.join(group)}: at most {seconds:.0f} of {left:.0f} s", flush=True)
            done = record.values["parts"].items()
            plan.earlier = {name: part["result"] for name, part in done}
            child.go(plan, seconds)
            running.append(child)
        sleep(0.05)
        for child in list(running):
            if (how := child.ended()) is not None:
                running.remove(child)
                for name in child.names:
                    record.take_log(plan, name)
                    record.collect(plan, name, how, round(monotonic() - child.started, 1))


def number(word: str) -> float | None:
    """A number that nvidia-smi printed; None for [N/A]."""
    try:
        return float(word)
    except ValueError:
        return None


class Clocks:
    """Reads the card's clock, temperature and power every two seconds while the parts run."""

    FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "memory.used")

    def __init__(self, file: Path):
        self.file = file
        query = ["nvidia-smi", f"--query-gpu={','.join(self.FIELDS)}", "-i", "0", "-l", "2"]
        try:
            with open(file, "w") as out:
                command = [*query, "--format=csv,noheader,nounits"]
                self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        except OSError:
            self.process = None

    def close(self) -> dict:
        """Stop; the first and the last reading, and smallest and largest of all."""
        if self.process is None:
            return {"missing": "no nvidia-smi"}
        self.process.terminate()
        self.process.wait()
        try:
            lines = self.file.read_text().strip().splitlines()
            rows = [[number(word) for word in line.split(",")] for line in lines]
            columns = {f: [row[i] for row in rows] for i, f in enumerate(self.FIELDS)}
            ends = {"before": rows[0], "after": rows[-1]}
        except (ValueError, IndexError) as error:
            return {"missing": reason(error)}
        known = {f: [x for x in v if x is not None] or [0] for f, v in columns.items()}
        spread = {f: {"min": min(v), "max": max(v)} for f, v in known.items()}
        return {k: dict(zip(self.FIELDS, row, strict=True)) for k, row in ends.items()} | spread
