"""Lock a run directory for one run, and stop cleanly on a signal."""

import errno
import os
import platform
import signal
import time
from pathlib import Path

from nanogpt_lib.support.errors import UserError


def lock_byte(handle: int) -> None:
    """Lock one byte of an open file, far past its text; raises OSError if it is already locked."""
    if os.name == "nt":
        import msvcrt

        os.lseek(handle, 2**30, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2**30)


def lock_run(out: Path):
    """Lock a run directory until the returned file is closed or this process ends in any way.

    Raises UserError that names the process holding the lock. On a file system without locks (some
    network ones) the directory is used unlocked.
    """
    try:
        file = open(out / "lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    try:
        lock_byte(file.fileno())
    except OSError as error:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            file.close()
            raise UserError(f"{out}: in use by {holder}; stop that one first") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file


def claim(out: str | Path, resume: bool):
    """Create the run directory and lock it (see `lock_run`).

    Raises UserError, and touches nothing, if it holds a run and `resume` is false.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be created ({error.strerror})") from error
    if not resume and ((out / "log.jsonl").exists() or any(out.glob("checkpoints/step_*"))):
        raise UserError(f"{out}: holds a run; add --resume to continue it, or choose another --out")
    return lock_run(out)


def requests_to_end() -> list[signal.Signals]:
    """The signals that ask a run to stop, as far as this system has them.

    SIGHUP: the terminal or ssh connection is gone (ignored under nohup). SIGUSR1: Slurm's warning
    some time before it kills the job. SIGBREAK: Ctrl-Break on Windows.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [n for n in found if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


class Stopper:
    """Inside its `with` block, a signal to stop is recorded in `signal` instead of killing.

    A second SIGINT (Ctrl-C) or SIGTERM exits at once with the customary status. One that arrives
    within `passed_on` seconds of the first counts as the same request (Slurm and torchrun both
    signal every process), and warning signals such as SIGHUP or SIGUSR1 do not count.
    """

    def __init__(self, passed_on: float = 5.0):
        self.signal, self.passed_on = 0, passed_on
        self.asked: float | None = None  # when SIGINT or SIGTERM first arrived

    def note(self, number: int, frame) -> None:
        """Record the first signal; exit if SIGINT or SIGTERM is repeated later."""
        self.signal = self.signal or int(number)
        if number not in (signal.SIGINT, signal.SIGTERM):
            return
        now = time.monotonic()
        if self.asked is not None and now - self.asked > self.passed_on:
            os._exit(128 + number)
        self.asked = now if self.asked is None else self.asked

    def __enter__(self):
        self.before = {n: signal.signal(n, self.note) for n in requests_to_end()}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
