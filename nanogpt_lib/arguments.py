"""Combine settings from the command line, the named preset, and the run being resumed."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nanogpt_lib.choices import REGISTRIES, SCHEDULES
from nanogpt_lib.config import (
    OF_A_START,
    OPTIONS,
    PACED,
    PATHS,
    TrainConfig,
    check_config,
    flag,
)
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.pretrained import GPT2_SIZES
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import read_sealed
from nanogpt_lib.support.places import ROOT, find_data

PLAIN = {name: f.default for name, f in OPTIONS.items()}
ABOUT = f"""
Train a GPT. A preset is a set of values for these settings; its name comes first. Presets:
{", ".join(PRESETS)}. Without any arguments the preset is quickstart. With flags but no preset, all
other settings have their plain defaults, which are GPT-2's (124M): see below, or train.py PRESET
--help for the values of a preset. With --resume, settings given neither by a flag nor by a named
preset keep the run's values, and a change that is impossible is refused. --max-steps 10,
--max_steps 10 and --max-steps=10 are equivalent.
"""


def choices_of(name: str) -> tuple[str, ...] | None:
    """The values a setting may have, or None if they are not listed."""
    choices = OPTIONS[name].metadata["choices"]
    return tuple(REGISTRIES[choices]) if isinstance(choices, str) else choices


def build_parser(preset: str | None) -> OneLineParser:
    """The parser of train.py; its help shows a preset's values, or else the plain defaults."""
    parser = OneLineParser(
        prog="train.py", usage="train.py [PRESET] [--setting value …]", description=ABOUT
    )
    for name, f in OPTIONS.items():
        value, whose = f.default, "default"
        if name in PRESETS.get(preset, {}):
            value, whose = PRESETS[preset][name], preset
        kind = {"type": f.type, "choices": choices_of(name)}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
            value = "on" if value else "off"
        need = f.metadata["need"]
        text = f.metadata["help"] + (f"; only with {need.words}" if need else "")
        text = f"{text} ({whose}: {value!r})" if value == "\n" else f"{text} ({whose}: {value})"
        spellings = dict.fromkeys((flag(name), f"--{name}"))
        parser.add_argument(
            *spellings, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **kind
        )
    return parser


def parse_config(
    argv: list[str] | None = None, say: Callable[[str], None] = lambda text: None
) -> TrainConfig:
    """Parse `[PRESET] [--setting value …]`; notes for the user are passed to `say`.

    Raises UserError for invalid values, SystemExit for a command line that cannot be parsed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    named = argv.pop(0) if argv and not argv[0].startswith("-") else None
    preset = named if named or argv else "quickstart"
    parser = build_parser(preset)
    if preset and preset not in PRESETS:
        parser.error(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    flags = vars(parser.parse_args(argv))
    asked = {**PRESETS.get(preset, {}), **flags}
    asked |= {name: found_path(asked[name]) for name in PATHS if name in asked}
    now = {**PLAIN, **{name: found_path(PLAIN[name]) for name in PATHS}, **asked}
    resume = now["resume"] or (now["auto_resume"] and bool(settings_files(Path(now["out"]))))
    saved = saved_settings(Path(now["out"])) if resume else {}
    asked = at_its_own_pace(asked, saved, flags)
    values = {**now, **saved, **asked, "resume": resume}
    config = TrainConfig(**values, preset=preset, flags=frozenset(flags))
    check_config(config)
    if resume:
        changed = [n for n in asked if n in saved and asked[n] != saved[n]]
        if changed:
            words = (f"{flag(n)} {asked[n]!r} (was {saved[n]!r})" for n in changed)
            say(f"changed since the run was saved: {', '.join(words)}")
    elif preset is None and not config.eval_only:
        say(
            "no preset given: settings without a flag are GPT-2's (124M), see --help; "
            f"the run is in {config.out}"
        )
    if config.warmup_steps >= config.max_steps and not (config.eval_only or config.minutes):
        top = SCHEDULES[config.schedule](config.max_steps - 1, config)
        say(
            f"--max-steps {config.max_steps} ends inside the warm-up of {config.warmup_steps} "
            f"steps: the learning rate reaches {top:.2g} of {config.learning_rate:g}; "
            "consider a smaller --warmup-steps"
        )
    return config


def at_its_own_pace(asked: dict, saved: dict, flags: dict) -> dict:
    """`asked` as --minutes changes it: the length of a run has one source.

    --max-steps rules over a preset's minutes. What minutes has set in a run to resume stays unless
    a flag changes it; other minutes are timed anew.
    """
    if "max_steps" in flags and "minutes" not in flags:
        return {**asked, "minutes": 0.0}
    minutes = asked.get("minutes", saved.get("minutes", 0.0))
    if minutes and minutes == saved.get("minutes"):
        asked = {name: v for name, v in asked.items() if name in flags or name not in PACED}
    if "minutes" in flags:
        asked = {"step_seconds": 0.0, **asked}
    return asked


def found_path(path: str, kept: bool = False) -> str:
    """Make a relative path absolute; `kept`: it was saved by a run, so try ROOT first.

    A path that does not exist, such as a name on the hub, is returned unchanged.
    """
    if path in ("scratch", *GPT2_SIZES):  # even if a folder has that name
        return path
    found = ROOT / path if kept and (ROOT / path).exists() else find_data(path)
    return str(found.absolute()) if found.exists() else path


def settings_files(out: Path) -> list[Path]:
    """The files that hold a run's settings: config.json, and copies in its checkpoints."""
    copies = sorted(out.glob("checkpoints/step_*/state.json"), reverse=True)
    return [path for path in (out / "config.json", *copies) if path.exists()]


def saved_settings(out: Path) -> dict:
    """The settings of a run to resume, from the first undamaged file; raises UserError without one.

    Settings unknown to an older run have the plain default, never a preset's value.
    """
    damaged = None
    for path in settings_files(out):
        try:
            saved = read_sealed(path)
        except (UserError, OSError) as error:
            damaged = damaged or error
            continue
        saved = modern(saved.get("train_config", saved))
        for name, value in saved.items():
            if name not in OPTIONS:
                raise UserError(f"{path}: this version has no setting {name!r}")
            choices = choices_of(name)
            if type(value) is not OPTIONS[name].type or (choices and value not in choices):
                raise UserError(f"{path}: this version cannot use {flag(name)} {value!r}")
        saved |= {name: found_path(saved[name], kept=True) for name in PATHS if name in saved}
        return {n: v for n, v in {**PLAIN, **saved}.items() if n not in ("out", *OF_A_START)}
    raise UserError(
        str(damaged or f"{out}: no run to resume here (no config.json); name it with --out")
    )


def modern(saved: dict) -> dict:
    """Convert old versions' settings, in which a muon_learning_rate above 0 switched Muon on."""
    if "muon_learning_rate" in saved and "optimizer" not in saved:
        if saved["muon_learning_rate"]:
            return {**saved, "optimizer": "muon"}
        return {name: value for name, value in saved.items() if name != "muon_learning_rate"}
    return saved
