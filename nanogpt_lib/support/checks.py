"""Checks made by all processes together: one line each, and none waits for one that has failed."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import torch.distributed as dist

from nanogpt_lib.support.errors import UserError, describe_os_error
from nanogpt_lib.support.processes import World, lost_a_process, wait_for_all

COLOURS = {"ok": "32", "look": "33", "STOP": "31"}  # green, yellow, red


class Note(str):
    """The line of a check that found something to look at, but nothing to stop for."""


def in_words(error: Exception) -> str:
    """An exception in one line; one that is nobody's mistake but ours also leaves a traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


class Checks:
    """Runs checks and prints a line for each: ok, look (worth a look) or STOP.

    A check is a job that every rank does. What it returns, or the exception it raises, is exchanged
    before anybody goes on. A job marked `together` contains collectives itself: a rank that fails
    there ends at once, which ends the others too, instead of leaving them waiting.
    """

    def __init__(self, world: World):
        self.world, self.stopped = world, []
        self.live = world.is_main and sys.stdout.isatty()
        self.coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def __call__(
        self,
        name: str,
        job: Callable[[], object],
        line: Callable[[list], str] = lambda answers: answers[0],
        together: bool = False,
    ) -> list | None:
        """Do `job` on every rank; return all ranks' answers, or None if the check failed.

        `line` makes the text from them, the same on every rank; it may raise UserError, too.
        """
        if self.live:
            print(f"…     {name:<12}", end="\r", flush=True)
        answers = self.exchange(name, job, together)
        problems = {r: answer.args[0] for r, answer in answers.items() if failed(answer)}
        text = "; ".join(same_ranks(problems, self.world.size))
        if not problems:
            try:
                text = line([*answers.values()])
            except UserError as error:
                problems, text = {0: ""}, str(error)
        if self.world.is_main:
            grade = "STOP" if problems else "look" if isinstance(text, Note) else "ok"
            self.say(grade, name, text)
        if problems:
            self.stopped.append(name)
        return None if problems else [*answers.values()]

    def exchange(self, name: str, job: Callable, together: bool) -> dict[int, object]:
        """Every rank's answer; for a job that failed, a UserError."""
        try:
            mine = job()
        except Exception as error:
            if lost_a_process(error) and not isinstance(error, UserError):
                raise  # another rank has said why
            mine = UserError(in_words(error))
            if together and self.world.size > 1:
                self.say("STOP", name, f"rank {self.world.rank}: {mine}")
                raise SystemExit(1) from error
        answers = [mine] * self.world.size
        if self.world.size > 1:
            dist.all_gather_object(answers, mine)
        return dict(enumerate(answers))

    def say(self, grade: str, name: str, text: str) -> None:
        """Print one line, its first word in colour on a terminal."""
        start, end = (f"\033[{COLOURS[grade]}m", "\033[0m") if self.coloured else ("", "")
        text = " ".join(text.split())
        print(f"{start}{grade:<5}{end} {name:<12} {text}", flush=True)

    def verdict(self, what: str) -> int:
        """Print whether `what` may start; return the exit status, the same on every rank."""
        if self.world.is_main:
            if self.stopped:
                print(f"do not start {what} yet: {', '.join(self.stopped)}", flush=True)
            else:
                print(f"ready: the same command without --preflight starts {what}", flush=True)
        wait_for_all(self.world)  # whoever exits first with status 1 ends the others
        return 1 if self.stopped else 0


def failed(answer: object) -> bool:
    """Whether a rank's answer is the error that its job raised."""
    return isinstance(answer, UserError)


def same_ranks(texts: dict[int, str], size: int) -> Iterator[str]:
    """Texts by rank; equal ones are joined, and ranks are named unless all say the same."""
    for text in dict.fromkeys(texts.values()):
        ranks = [str(rank) for rank, other in texts.items() if other == text]
        everybody = len(ranks) == size
        yield text if everybody else f"rank {', '.join(ranks)}: {text}"


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Collect what is printed in this block instead of printing it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said
