"""Name the rank that hangs: each tells the others every few seconds where it is.

A collective only says that somebody has not come. Here every process has a thread that writes into
the store of the rendezvous how many collectives it has begun, what it has written of a checkpoint,
and at which line it is; and reads the same of the others. A rank hangs if its thread is silent (the
process is stopped, or its machine is gone), or if no rank makes progress any more: then it is the
one that has begun the fewest collectives.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

LIBRARY = str(Path(__file__).resolve().parents[1])
GRACE = 10.0  # seconds that a rank has to find out by itself that another one has failed

written: list[Path] = []  # the folder of the checkpoint that this process is writing


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """As long as this folder grows in the block, this process makes progress, however slowly."""
    written.append(folder)
    try:
        yield
    finally:
        written.remove(folder)


def bytes_written() -> int:
    """The size of the files in the folder that is being written; 0 if there is none."""
    size = 0
    for folder in written:
        with contextlib.suppress(OSError):
            size += sum(entry.stat().st_size for entry in os.scandir(folder))
    return size


def place_of_main_thread() -> str:
    """The innermost line of this library that the main thread is at: `loader.py:88 (read)`."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame and not in_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "a place outside the library"
    name, where = Path(frame.f_code.co_filename).name, frame.f_code.co_name
    return f"{name}:{frame.f_lineno} ({where})"


def in_library(file: str) -> bool:
    """Whether a source file is ours, this one and that of the process group excepted."""
    return file.startswith(LIBRARY) and not file.endswith(("heartbeat.py", "processes.py"))


def collectives_begun() -> int:
    """How many collectives this process has begun; 0 if PyTorch does not tell."""
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        return dist.group.WORLD._get_sequence_number_for_group()
    return 0


@dataclass
class Beat:
    """What a rank tells about itself."""

    number: int = 0
    begun: int = 0  # collectives
    size: int = 0  # bytes of the checkpoint that it writes
    place: str = "its start"
    end: str = ""  # "done" or "failed"


class Heartbeat(threading.Thread):
    """Tells the others about this rank, and ends this process if one of them hangs.

    `silence` is how many seconds a rank may say nothing, `wait` how many all of them together may
    make no progress. Create it on every rank before joining the process group, then `start` it.
    """

    def __init__(self, store, rank: int, size: int, silence: float, wait: float):
        super().__init__(name="heartbeat", daemon=True)
        self.store = store.clone()  # a store is for one thread at a time
        self.rank, self.silence, self.wait = rank, silence, wait
        self.pause = min(5.0, silence / 4, wait / 4)
        self.keys = [f"beat {other}" for other in range(size)]
        self.over = threading.Event()
        self.own = Beat()
        self.beats = [Beat() for _ in range(size)]
        self.heard = [time.monotonic()] * size  # when each beat last changed
        self.progress = time.monotonic()  # when anyone last got further
        self.tell()

    def tell(self, end: str = "") -> None:
        """Write this rank's beat into the store."""
        place = place_of_main_thread()
        self.own = Beat(self.own.number + 1, collectives_begun(), bytes_written(), place, end)
        self.store.set(self.keys[self.rank], json.dumps(asdict(self.own)))

    def listen(self) -> None:
        """Read the beats of all ranks."""
        now = time.monotonic()
        for rank, text in enumerate(self.store.multi_get(self.keys)):
            before, beat = self.beats[rank], Beat(**json.loads(text))
            if beat.number != before.number:
                self.heard[rank] = now
            if (beat.begun, beat.size) != (before.begun, before.size):
                self.progress = now
            self.beats[rank] = beat

    def verdict(self) -> str:
        """What is wrong, in one line; empty if nothing is."""
        now = time.monotonic()
        for rank, beat in enumerate(self.beats):
            quiet = now - self.heard[rank]
            if beat.end == "failed" and quiet > GRACE:
                return f"rank {rank} has ended; see its message"
            if not beat.end and rank != self.rank and quiet > self.silence:
                what = f"rank {rank} hangs: not a sign of it for {quiet:.0f} s"
                return f"{what}; it was at {beat.place}"
        begun = [beat.begun for beat in self.beats]
        if now - self.progress <= self.wait or min(begun) == max(begun):  # then nobody waits
            return ""
        late = [rank for rank in range(len(begun)) if begun[rank] == min(begun)]
        places = ", ".join(f"rank {rank} is at {self.beats[rank].place}" for rank in late[:3])
        return f"no progress for {self.wait:.0f} s: the others wait while {places}"

    def exchange(self) -> None:
        """Tell and listen."""
        self.tell()
        self.listen()

    def run(self) -> None:
        """Tell and listen until it is over, or until a rank hangs."""
        last = self.progress = time.monotonic()  # joining the group may have taken long
        self.heard = [last] * len(self.heard)
        while not self.over.wait(self.pause):
            answer = within(self.silence, self.exchange)
            if answer == "failed":  # the store has gone, and so will the other ranks
                return
            before, last = last, time.monotonic()
            if answer == "late" and last - before <= self.pause + self.silence + 1:
                host = os.environ.get("MASTER_ADDR", "its machine")
                self.give_up(f"rank 0 hangs: no answer from {host} for {self.silence:.0f} s")
            elif last - before > self.pause + self.silence / 2:  # this process was stopped itself
                self.heard, self.progress = [last] * len(self.heard), last
            elif (message := self.verdict()) and self.speaks():
                self.give_up(message)

    def speaks(self) -> bool:
        """Whether this rank is the one that says it on this machine; the others just end."""
        if self.store.add(f"told on {platform.node()}", 1) > 1:
            os._exit(1)
        return True

    def give_up(self, message: str) -> None:
        """Say what is wrong; end this process."""
        if self.over.is_set():
            return
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
        sys.stderr.flush()
        os._exit(1)

    def finish(self, end: str) -> None:
        """This rank ends: it is `done`, or has `failed`."""
        self.over.set()
        within(GRACE / 2, lambda: self.tell(end))


def within(seconds: float, job: Callable[[], object]) -> str:
    """Do what may never return: it is "done", has "failed", or is "late" after so many seconds."""
    end = ["late"]

    def attempt() -> None:
        try:
            job()
            end[0] = "done"
        except Exception:
            end[0] = "failed"

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return end[0]
