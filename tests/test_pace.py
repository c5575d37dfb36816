"""What --minutes promises: a run takes that long on any machine, and resumes exactly."""

import json
import math
import shutil

import pytest

from conftest import TINY, log_of, program
from nanogpt_lib import pace, train
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.config import INTERVALS, TIMED_STEPS, TrainConfig
from nanogpt_lib.presets import EXPECTED, PRESETS
from nanogpt_lib.support.errors import UserError

FREE = [*TINY, "--warmup-steps", "10"]
at = FREE.index("--max-steps")
del FREE[at : at + 2]  # --minutes sets it


class Clock:
    """A clock that only updates move: the first ones are slow, the others take `step` seconds."""

    def __init__(self, step: float):
        self.step, self.now, self.updates = step, 0.0, 0

    def perf_counter(self) -> float:
        """As time.perf_counter."""
        return self.now

    def around(self, update):
        """`update`, which now takes time."""

        def timed(*args):
            self.updates += 1
            self.now += self.step * (20 if self.updates <= pace.UNTIMED - 1 else 1)
            return update(*args)

        return timed


@pytest.fixture
def timed_run(tiny_data, tmp_path, monkeypatch, capsys):
    """A function that trains under a fake clock: (clock, config.json, what was printed)."""

    def run(step: float, *flags: str):
        clock = Clock(step)
        monkeypatch.setattr(train, "time", clock)
        monkeypatch.setattr(train, "update", clock.around(UPDATE))
        out = tmp_path / "run"
        assert train.main([*FREE, "--data", str(tiny_data), "--out", str(out), *flags]) == 0
        return clock, json.loads((out / "config.json").read_text()), capsys.readouterr().out

    return run


UPDATE = train.update
PER_MINUTE = 60 / 0.8  # steps of 0.8 s, to keep the runs short


@pytest.mark.parametrize("speed", [0.25, 1, 20])
def test_a_run_takes_its_minutes_from_a_quarter_to_twenty_times_this_speed(speed):
    for minutes in (0.5, 2.0, 10.0):
        seconds = 0.27 / speed
        config = TrainConfig(**{**PRESETS["quickstart"], "minutes": minutes})
        pace.set_length(config, TIMED_STEPS, elapsed=12 * seconds, seconds=seconds)
        trained = (config.max_steps - TIMED_STEPS + 12) * seconds
        assert abs(trained - 60 * minutes) < 0.01 * 60 * minutes
        every = config.eval_every  # the preset's share, however long the run is
        assert 3 * every < config.max_steps <= 4 * every < config.max_steps + 5


def test_a_run_is_timed_then_has_a_length_like_any_other(timed_run):
    clock, saved, said = timed_run(0.8, "--minutes", "1")
    assert abs(clock.now - 60) < 0.15 * 60
    assert saved["max_steps"] == clock.updates < PER_MINUTE  # the slow first steps count, too
    assert saved["minutes"] == 1.0 and saved["step_seconds"] == pytest.approx(0.8)
    assert "10 steps are timed" in said
    assert f"{clock.updates} steps of 800 ms: 60 seconds of training" in said


def test_intervals_keep_their_share_unless_a_flag_sets_them(timed_run):
    _, saved, _ = timed_run(0.8, "--minutes", "0.5", "--hellaswag-every", "0")
    assert (saved["eval_every"], saved["save_every"]) == (3, 2)  # flags of TINY
    config = TrainConfig(**PRESETS["quickstart"], flags=frozenset({"log_every"}))
    pace.set_length(config, 10, 0.0, 60 * config.minutes / (4 * 440 - 10))
    assert config.max_steps == 4 * 440
    for name in INTERVALS:
        times = 1 if name == "log_every" else 4
        assert getattr(config, name) == times * PRESETS["quickstart"].get(name, 0)


def test_the_rate_of_the_timed_steps_does_not_depend_on_the_length():
    for schedule in train.SCHEDULES.values():
        for warmup in (TIMED_STEPS, 20):
            rates = [
                [
                    schedule(step, TrainConfig(warmup_steps=warmup, max_steps=n))
                    for step in range(10)
                ]
                for n in (11, 100, 19073)
            ]
            assert rates[0] == rates[1] == rates[2]


def test_a_resumed_run_keeps_its_length_whatever_the_clock_says(tiny_data, tmp_path):
    out, again = tmp_path / "a", tmp_path / "b"
    flags = [*FREE, "--data", tiny_data, "--minutes", "0.01", "--step-seconds", "0.03"]
    done = program("train.py", *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["max_steps"] == 20
    shutil.copytree(out, again)
    for folder in (again / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > 12:
            shutil.rmtree(folder)
    done = program("train.py", "--resume", "--out", again)
    assert done.returncode == 0, done.stderr
    assert "are timed" not in done.stdout and "resumed from" in done.stdout
    assert log_of(out) == log_of(again)


def saved_run(tmp_path, **changes):
    """A folder with the settings of a quickstart whose length has been set."""
    from nanogpt_lib.config import as_dict
    from nanogpt_lib.support.files import seal

    config = TrainConfig(**PRESETS["quickstart"])
    pace.set_length(config, 10, 1.0, 0.1)
    for name, value in changes.items():
        setattr(config, name, value)
    (tmp_path / "config.json").write_text(json.dumps(seal(as_dict(config))))
    return ["--resume", "--out", str(tmp_path)]


def test_naming_the_preset_again_changes_nothing_that_the_clock_has_set(tmp_path):
    resume, said = saved_run(tmp_path), []
    config = parse_config(["quickstart", *resume], say=said.append)
    assert config.max_steps == 1200 and config.step_seconds == 0.1 and config.eval_every == 300
    assert not any("max-steps" in line or "every" in line for line in said)


def test_other_minutes_are_timed_anew_and_steps_rule(tmp_path):
    resume = saved_run(tmp_path)
    config = parse_config([*resume, "--minutes", "10"])
    assert (config.minutes, config.step_seconds) == (10.0, 0.0)
    config = parse_config([*resume, "--max-steps", "1500"])
    assert (config.minutes, config.max_steps) == (0.0, 1500)
    config = parse_config(["quickstart", "--max-steps", "7"])
    assert (config.minutes, config.max_steps, config.step_seconds) == (0.0, 7, 0.0)
    assert parse_config(["gpt2-124m"]).minutes == 0.0  # off elsewhere


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--minutes 2 --max-steps 9", "--minutes and --max-steps both set the run's length"),
        ("--minutes 2 --warmup-steps 9", "must be warm-up: --warmup-steps 10 or more"),
        ("--minutes -1", "--minutes must be from 0"),
        ("--minutes nan", "--minutes must be from 0"),
        ("--step-seconds 1", "--step-seconds has an effect only with --minutes greater than 0"),
    ],
)
def test_contradictory_flags_are_refused_in_one_line(flags, words):
    with pytest.raises(UserError) as error:
        parse_config(flags.split())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_minutes_that_have_passed_are_refused(tiny_data, tmp_path):
    out = tmp_path / "run"
    flags = [*FREE, "--data", tiny_data, "--minutes", "0.01", "--step-seconds", "0.06"]
    assert program("train.py", *flags, "--out", out).returncode == 0
    done = program("train.py", "--resume", "--out", out, "--minutes", "1e-5")
    assert done.returncode == 1 and "has trained for" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_slowest_rank_sets_one_length_for_all(tiny_data, tmp_path):
    out = tmp_path / "run"
    flags = [*FREE, "--data", tiny_data, "--minutes", "0.02", "--out", out]
    done = program("train.py", *flags, ranks=2)
    assert done.returncode == 0, done.stderr  # ranks that disagree would wait for each other
    saved = json.loads((out / "config.json").read_text())
    assert log_of(out)[-1]["step"] == saved["max_steps"] and saved["step_seconds"] > 0


def test_the_expected_loss_lies_between_the_measured_ones():
    measured = EXPECTED["quickstart"]
    losses = [loss for _, loss in measured]
    assert losses == sorted(losses, reverse=True)
    (n, high), (m, low) = measured[:2]
    config = TrainConfig(**PRESETS["quickstart"], preset="quickstart")
    config.max_steps = round(math.sqrt(n * m))
    word, about, loss = pace.expected_loss(config).split()
    assert (word, about) == ("of", "about")
    assert float(loss) == pytest.approx((high + low) / 2, abs=0.01)
    config.max_steps = n // 2
    assert pace.expected_loss(config) == f"above {high:.2f}"
    config.max_steps = 2 * measured[-1][0]
    assert pace.expected_loss(config) == f"below {losses[-1]:.2f}"
    config.flags = frozenset({"learning_rate"})
    assert pace.expected_loss(config) is None
    assert pace.expected_loss(TrainConfig()) is None


def test_the_plan_is_said_in_words():
    config = TrainConfig(**PRESETS["quickstart"], preset="quickstart")
    pace.set_length(config, 10, 1.0, 0.28)
    text = pace.describe(config, tokens=1_000_000)
    assert text.startswith("435 steps of 280 ms: 2 minutes of training")
    assert "a validation loss of about 1." in text and "read 0.9 times" in text
    assert [pace.in_words(s) for s in (30, 90, 120)] == ["30 seconds", "1.5 minutes", "2 minutes"]
