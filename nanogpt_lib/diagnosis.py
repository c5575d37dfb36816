"""What is abnormal in a run's log: one rule for each symptom.

A rule takes a History and returns a Symptom or None. Thresholds are rules of thumb, chosen so that
published runs and our own recorded ones have no symptom. All need only the log; with the vocabulary
size, runs from random weights are examined further, and runs near GPT-2 124M on FineWeb are
compared with llm.c's.
"""

import math
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from nanogpt_lib.logbook import series, smooth
from nanogpt_lib.published import band, why_not_comparable


@dataclass(frozen=True)
class Symptom:
    """One finding: where it shows in the curves, what is wrong, and what to do."""

    kind: str
    step: int
    text: str
    advice: str = ""
    past: bool = False  # the run has recovered: worth knowing, nothing to do

    def line(self) -> str:
        """What a report says of it."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{'note' if self.past else 'symptom'}: {self.text}{advice}"


@dataclass
class History:
    """A log as columns, and what is known of the run. `trend` follows the losses, averaged."""

    records: list[dict]
    vocab_size: int | None = None  # None: unknown, or not trained from random weights
    settings: dict = field(default_factory=dict)

    def __post_init__(self):
        training = [r for r in self.records if "train_loss" in r]
        self.steps = [r["step"] for r in training]
        self.losses = [math.nan if r["train_loss"] is None else r["train_loss"] for r in training]
        known, last = [], math.nan
        for loss in self.losses:
            last = loss if math.isfinite(loss) else last
            known.append(last)
        self.trend = smooth(known)
        self.guess = math.log(self.vocab_size) if self.vocab_size else None
        self.every = self.steps[1] - self.steps[0] if len(self.steps) > 1 else 1

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one column of the log, without records that have no number there."""
        steps, values = series(self.records, name)
        return np.array(steps), np.array(values, dtype=float)

    def noise(self, end: int) -> float:
        """Standard deviation of the losses around their trend in up to 200 records before `end`."""
        begin, end = max(1, end - 200), max(1, end)
        beside = np.array(self.losses[begin:end]) - np.array(self.trend[begin - 1 : end - 1])
        beside = beside[np.isfinite(beside)]
        return 1.4826 * float(np.median(np.abs(beside))) if len(beside) else 0.0

    def after(self, trend: int) -> float:
        """The trend some records after index `trend`: what the loss became."""
        return self.trend[min(trend + 40, len(self.trend) - 1)]


def first_loss(h: History) -> Symptom | None:
    """A model with random weights knows nothing: its loss is the logarithm of the vocabulary."""
    if not h.guess or h.steps[0] != 1 or not abs(h.losses[0] - h.guess) > 0.5:
        return None
    return Symptom(
        "first loss",
        1,
        f"first loss {h.losses[0]:.2f}; a random model has ln(vocabulary) = {h.guess:.2f}",
        "look at the initialisation, at targets shifted by one, at the vocabulary size",
    )


def stuck(h: History) -> Symptom | None:
    """A model that has learned only token frequencies stays at about 0.7 of the first loss."""
    half, end = len(h.trend) // 2, h.trend[-1]
    if not h.guess or len(h.trend) * h.every < 500 or len(h.trend) < 25:
        return None
    fall = h.trend[half] - end
    if 0.6 * h.guess < end < 1.2 * h.guess and fall < 0.1:
        text = f"the loss stays at {end:.2f} from step {h.steps[half]} on: "
        return Symptom(
            "stuck",
            h.steps[half],
            text + "little more than token frequencies was learned",
            "stop; compare targets with inputs; try a tenth of the learning rate, and ten times",
        )
    lost = h.losses[0] - end  # a healthy run loses 1 to 10 % of this in its second half
    if len(h.trend) * h.every >= 1000 and end > 0.3 * h.guess and -0.3 < fall < 0.003 * lost:
        return Symptom(
            "plateau",
            h.steps[half],
            f"the loss has not fallen since step {h.steps[half]}: {end:.2f}",
            "stop; look at learning rate and gradient norm from there on",
        )
    return None


def not_finite(h: History) -> Symptom | None:
    """NaN or infinity: the update was skipped, if the run goes on."""
    bad = [i for i, loss in enumerate(h.losses) if not math.isfinite(loss)]
    if not bad:
        return None
    more = f" and {len(bad) - 1} more times" if len(bad) > 1 else ""
    return Symptom(
        "not finite",
        h.steps[bad[0]],
        f"step {h.steps[bad[0]]}: the loss jumps to nan{more}",
        "resume from before it with a lower learning rate; in float16, try bfloat16",
        past=len(bad) <= 3 and len(h.losses) - bad[-1] > 100,
    )


def spikes(h: History) -> Symptom | None:
    """A loss far above its trend: by 1 nat, or by ten times the usual noise once that is known."""
    found, limit = [], 1.0
    for i in range(21, len(h.losses)):
        if i >= 300 and i % 100 == 0:
            limit = max(0.3, 10 * h.noise(i))
        if h.losses[i] > h.trend[i - 1] + limit and not (found and i - found[-1] < 100):
            found.append(i)
    if not found:
        return None
    first, last = found[0], found[-1]
    back = len(h.losses) - last > 40 and h.after(last) < h.trend[last - 1] + limit / 2
    more = f", {len(found)} jumps so far" if len(found) > 1 else ""
    advice = "a lower learning rate or a longer warm-up; look at the data of that step"
    past = back and len(found) <= 3
    return Symptom(
        "spike",
        h.steps[first],
        f"step {h.steps[first]}: the loss jumps to {h.losses[first]:.2f}{more}",
        f"it came back to {h.after(last):.2f}" if past else advice,
        past,
    )


def rising(h: History) -> Symptom | None:
    """The trend ends far above its lowest point: the run diverges, fast or slowly."""
    if len(h.trend) < 50:
        return None
    low = int(np.argmin(h.trend))
    rise = h.trend[-1] - h.trend[low]
    if not rise > max(0.3, 5 * h.noise(low)) or len(h.trend) - low < 20:
        return None
    return Symptom(
        "rising",
        h.steps[low],
        f"the loss rises: {h.trend[low]:.2f} at step {h.steps[low]}, {h.trend[-1]:.2f} now",
        "stop; resume from before that step with a lower learning rate",
    )


def gradients(h: History) -> Symptom | None:
    """A gradient norm that is practically zero, or far above what it used to be."""
    steps, norms = h.column("grad_norm")
    if len(norms) < 20:
        return None
    now = float(np.median(norms[-20:]))
    if now < 1e-5:
        small = np.flatnonzero(norms >= 1e-5)
        since = steps[small[-1] + 1] if len(small) else steps[0]
        text = f"dead gradients: their norm is {now:.1g} since step {since}"
        return Symptom("dead gradients", int(since), text, "stop: the weights no longer change")
    if len(norms) < 200:
        return None
    usual = float(np.median(norms[20:]))
    if now > 10 * usual:
        text = f"the gradient norm is {now:.3g}; it was {usual:.3g}"
        return Symptom("gradients", int(steps[-20]), text, "the loss may follow; lower the rate")
    return None


def steps_missing(h: History) -> Symptom | None:
    """Every step is logged once, or every tenth; anything else is a broken log."""
    if len(h.steps) < 2:
        return None
    gaps = [b - a for a, b in zip(h.steps, h.steps[1:], strict=False)]
    usual = median(gaps)
    odd = [i for i, gap in enumerate(gaps) if gap != usual]
    if not odd:
        return None
    text = f"steps missing or repeated: {len(h.steps)} records up to step {h.steps[-1]}"
    return Symptom("steps", h.steps[odd[0]], text, "two runs may write into one folder")


def overfitting(h: History) -> Symptom | None:
    """Validation loss far above training loss at the same step."""
    at, validation = h.column("val_loss")
    if len(validation) < 2:
        return None
    then = dict(zip(h.steps, h.trend, strict=True)).get(int(at[-1]), h.trend[-1])
    if not (gap := validation[-1] - then) > 0.3:
        return None
    text = f"validation loss is {gap:.2f} above training loss: overfitting"
    return Symptom("overfitting", int(at[-1]), text, "fewer epochs, more data, dropout")


def slower(h: History) -> Symptom | None:
    """The last tenth of the steps is much slower than the first half."""
    steps, rates = h.column("tokens_per_sec")
    unit = "tokens per second"
    if not len(rates):
        steps, milliseconds = h.column("ms")
        rates, unit = 1000 / np.maximum(milliseconds, 1e-9), "steps per second"
    if len(rates) < 20:
        return None
    early, late = rates[: len(rates) // 2], rates[-(len(rates) // 10) :]
    if not np.median(late) < 0.7 * np.median(early):
        return None
    digits = 0 if unit.startswith("tokens") else 2
    text = f"{unit} fell from {np.median(early):,.{digits}f} to {np.median(late):,.{digits}f}"
    advice = "look at nvidia-smi (heat, power, another process) and at the disk of the data"
    return Symptom("slower", int(steps[-len(late)]), text, advice)


def lagging(h: History) -> Symptom | None:
    """One rank is nearly always the last to be ready, and the others wait for it."""
    steps, ranks = h.column("slowest_rank")
    _, times = h.column("slowest_ratio")
    if min(len(ranks), len(times)) < 20:
        return None
    recent = ranks[-50:].astype(int)
    rank = int(np.bincount(recent).argmax())
    ratio, share = float(np.median(times[-50:])), float(np.mean(recent == rank))
    if share < 0.9 or ratio < 1.2:
        return None
    text = f"rank {rank} lags: its part of a step takes {ratio:.2f} times as long as the others'"
    advice = "look at its GPU (nvidia-smi: heat, power, another process) and its node"
    return Symptom("lagging", int(steps[-len(recent)]), text, advice)


def repeated(h: History) -> Symptom | None:
    """Losses whose ups and downs repeat: the same batches come again in the same order."""
    losses = np.nan_to_num(np.array(h.losses[-4096:]))
    changes = np.diff(losses[20:])  # without the trend
    if (size := len(changes)) < 200:
        return None
    limit = 5 * float(np.median(np.abs(changes)))
    if limit < 0.01:  # hardly any noise, as no batches of text have
        return None
    changes = np.clip(changes, -limit, limit)  # one jump shall not hide the rest
    changes = changes - changes.mean()
    spectrum = np.fft.rfft(changes, 2 * size)
    sums = np.fft.irfft(np.abs(spectrum) ** 2)[: size // 2]
    same = sums / np.maximum(sums[0] * (1 - np.arange(size // 2) / size), 1e-30)
    period = int(same[3:].argmax()) + 3
    if same[period] < 0.6 or same[1] > 0.3:  # changes of a smooth curve resemble the next ones
        return None
    text = f"data repeated: the losses recur every {period * h.every} steps"
    advice = "more data, or --shuffle; ranks or restarts that read the same shard do this, too"
    return Symptom("repeated", h.steps[-size], text + f" (correlation {same[period]:.2f})", advice)


def above_band(h: History) -> Symptom | None:
    """A run like llm.c's whose loss is too high for its tokens, or too low to be true."""
    if why_not_comparable(h.settings, h.vocab_size):
        return None
    batch = h.settings["total_batch_size"]
    at, values = h.column("val_loss")
    curves = [("validation", int(at[-1]), values[-1])] if len(at) else []
    if len(h.steps) >= 5:  # averaged around the middle one of five, without the trend's delay
        curves.append(("training", h.steps[-3], float(np.mean(h.losses[-5:]))))
    for name, step, loss in curves:
        if not (normal := band(step * batch)):
            continue
        text = f"{name} loss {loss:.2f} at step {step}; llm.c's run had {normal[0]:.2f}"
        if loss > normal[1]:
            return Symptom("too high", step, f"{text}, up to {normal[1]:.2f} is normal", "stop")
        if loss < normal[0] / 2:
            advice = "look for targets in the inputs, or validation text in the training text"
            return Symptom("too low", step, f"{text}: too good to be true", advice)
    return None


RULES = (
    first_loss, stuck, not_finite, spikes, rising, gradients, steps_missing, overfitting, slower,
    lagging, repeated, above_band,
)  # fmt: skip


def diagnose(
    records: list[dict], vocab_size: int | None = None, settings: dict | None = None
) -> list[Symptom]:
    """All symptoms in a log, as the rules find them; empty for a healthy run.

    vocab_size is given for models trained from random weights; `settings` are the run's.
    """
    history = History(records, vocab_size, settings or {})
    if not history.losses:
        return [Symptom("empty", 0, "no training step yet")]
    return [symptom for rule in RULES if (symptom := rule(history))]
