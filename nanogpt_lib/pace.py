"""The pace of a run: how long it still takes and, with --minutes, how many steps it gets.

With --minutes the first steps are timed. They are warm-up, in which the learning rate does not
depend on the number of steps. Once decided, that number is a setting like any other, written to
config.json and every checkpoint: a resumed run repeats the schedule bit for bit, whatever the clock
says. What counts as training is updates; evaluations, checkpoints and samples come on top.
"""

import math
import statistics

import numpy as np

from nanogpt_lib.config import INTERVALS, TIMED_STEPS, TrainConfig
from nanogpt_lib.presets import EXPECTED
from nanogpt_lib.run import Run, write_settings
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.processes import on_every_rank

UNTIMED = 3  # of the TIMED_STEPS: they allocate memory and choose kernels

# flags that leave the expected loss as it is
HARMLESS = {"out", "minutes", "step_seconds", "seed", "auto_resume", "verify_data", "logger"}
HARMLESS |= {"device", "dtype", "keep_checkpoints", "sample_prompt", "sample_tokens", *INTERVALS}


class Pace:
    """The times of the steps since the process started."""

    def __init__(self, run: Run):
        self.run, self.seconds = run, []
        config = run.config
        spent = run.progress.elapsed / 60
        run.undecided = config.length_is_open
        if run.undecided and spent >= config.minutes:
            done = f"this run has trained for {spent:.1f} minutes already"
            raise UserError(f"--minutes {config.minutes:g}: {done}")
        if run.undecided and config.step_seconds:
            self.decide(config.step_seconds)
        elif run.undecided:
            run.say(
                f"{in_words(60 * config.minutes)} of training: {TIMED_STEPS} steps are timed, then "
                "the number of steps is set"
            )

    def add(self, seconds: float) -> None:
        """Count a step; after enough of them, set the number of steps."""
        self.seconds.append(seconds)
        if self.run.undecided and len(self.seconds) == TIMED_STEPS:
            self.decide(statistics.median(self.seconds[UNTIMED:]))

    def decide(self, seconds: float) -> None:
        """Set what --minutes leaves open from the time of a step on the slowest rank."""
        run, world, config = self.run, self.run.world, self.run.config
        each = on_every_rank(lambda: (seconds, run.progress.elapsed), world)
        elapsed = each[0][1]  # all ranks go by the first one's clock
        set_length(config, run.step, elapsed, max(own for own, _ in each))
        run.undecided = False
        if run.log:
            write_settings(run)
        run.say(describe(config, len(run.loader.tokens)))

    def seconds_left(self) -> float:
        """How long the remaining steps will take."""
        run = self.run
        if run.undecided:
            return 60 * run.config.minutes - run.progress.elapsed
        return statistics.fmean(self.seconds) * (run.config.max_steps - run.step)


def set_length(config: TrainConfig, step: int, elapsed: float, seconds: float) -> None:
    """Set max_steps so that a run at `step` after `elapsed` seconds ends after config.minutes.

    Intervals that no flag has set keep their share of the run.
    """
    steps = step + max(1, round((60 * config.minutes - elapsed) / seconds))
    for name in INTERVALS:
        every = getattr(config, name)
        if every and name not in config.flags:
            # rounded up, or the last one would come a step or two before the end
            setattr(config, name, -(-every * steps // config.max_steps))
    config.max_steps, config.step_seconds = steps, seconds


def describe(config: TrainConfig, tokens: int) -> str:
    """What a run of this length on so many training tokens will take and, if known, reach."""
    steps, pace = config.max_steps, config.step_seconds
    text = f"{steps:,} steps of {1e3 * pace:.0f} ms: {in_words(60 * config.minutes)} of training"
    text += ", evaluations and samples come on top"
    passes = steps * config.total_batch_size / tokens
    if loss := expected_loss(config):
        text += (
            f"\nexpect a validation loss {loss} nats per token at the end (measured with this "
            f"preset); the text is read {passes:.1f} times"
        )
    return text


def expected_loss(config: TrainConfig) -> str | None:
    """The final validation loss, as measured for a preset at this number of steps; None if unknown.

    Between two measured lengths it follows a straight line over the logarithm of the steps; beyond
    the last one it is only known to be lower, before the first to be higher.
    """
    measured = EXPECTED.get(config.preset)
    if not measured or config.flags - HARMLESS:
        return None
    (steps, losses), n = zip(*measured, strict=True), config.max_steps
    loss = np.interp(math.log(n), [math.log(m) for m in steps], losses)
    word = "above" if n < 0.9 * steps[0] else "below" if n > 1.1 * steps[-1] else "of about"
    return f"{word} {loss:.2f}"


def in_words(seconds: float) -> str:
    """A time for people to read: 45 seconds, 2 minutes."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f}".removesuffix(".0") + " minutes"
