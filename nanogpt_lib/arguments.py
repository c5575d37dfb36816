"""Settings from the command line, from the named preset, and from the run that is resumed."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nanogpt_lib.choices import REGISTRIES, SCHEDULES
from nanogpt_lib.config import OF_A_START, OPTIONS, PATHS, PRESETS, TrainConfig, check_config, flag
from nanogpt_lib.pretrained import GPT2_SIZES
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import read_sealed
from nanogpt_lib.support.places import ROOT, find_data

PLAIN = {name: f.default for name, f in OPTIONS.items()}
ABOUT = f"""
Train a GPT. A preset is a set of values for these settings; its name comes first. Presets:
{", ".join(PRESETS)}. Without any argument the preset is quickstart. With flags but no preset, what
no flag sets has the plain default, which is GPT-2's (124M): see below, or train.py PRESET --help
for the values of a preset. With --resume what no flag and no named preset sets stays as it was in
the run, and what cannot change is refused. --max-steps 10, --max_steps 10 and --max-steps=10 are
the same.
"""


def choices_of(name: str) -> tuple[str, ...] | None:
    """The values a setting can have, if they are few."""
    choices = OPTIONS[name].metadata["choices"]
    return tuple(REGISTRIES[choices]) if isinstance(choices, str) else choices


def build_parser(preset: str | None) -> OneLineParser:
    """The parser of train.py; its help shows the values of a preset, else the plain defaults."""
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
    """Read `[PRESET] [--setting value …]`; what the user should know of it goes to `say`.

    Raises UserError for values that cannot work, SystemExit for a line that cannot be read.
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
            "no preset named: settings without a flag are GPT-2's (124M), see --help; "
            f"the run is in {config.out}"
        )
    if config.warmup_steps >= config.max_steps and not config.eval_only:
        top = SCHEDULES[config.schedule](config.max_steps - 1, config)
        say(
            f"--max-steps {config.max_steps} ends inside the warm-up of {config.warmup_steps} "
            f"steps: the learning rate reaches {top:.2g} of {config.learning_rate:g}; "
            "--warmup-steps sets it"
        )
    return config


def found_path(path: str, kept: bool = False) -> str:
    """The absolute path of what a relative one means, here or as a run has kept it.

    What is not there, a name on the hub for one, stays as it is.
    """
    if path in ("scratch", *GPT2_SIZES):  # whatever folder has such a name
        return path
    found = ROOT / path if kept and (ROOT / path).exists() else find_data(path)
    return str(found.absolute()) if found.exists() else path


def settings_files(out: Path) -> list[Path]:
    """The files that hold a run's settings: config.json, and copies in its checkpoints."""
    copies = sorted(out.glob("checkpoints/step_*/state.json"), reverse=True)
    return [path for path in (out / "config.json", *copies) if path.exists()]


def saved_settings(out: Path) -> dict:
    """The settings of a run to be resumed, from the first file that is whole; else a UserError.

    What an older run does not know has the plain default, never that of a preset.
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
                raise UserError(f"{path}: this version knows no setting {name!r}")
            choices = choices_of(name)
            if type(value) is not OPTIONS[name].type or (choices and value not in choices):
                raise UserError(f"{path}: this version cannot use {flag(name)} {value!r}")
        saved |= {name: found_path(saved[name], kept=True) for name in PATHS if name in saved}
        return {n: v for n, v in {**PLAIN, **saved}.items() if n not in ("out", *OF_A_START)}
    raise UserError(
        str(damaged or f"{out}: no run to resume here (no config.json); --out names it")
    )


def modern(saved: dict) -> dict:
    """Settings as they are named today. Until --optimizer came, a rate above 0 switched Muon on."""
    if "muon_learning_rate" in saved and "optimizer" not in saved:
        if saved["muon_learning_rate"]:
            return {**saved, "optimizer": "muon"}
        return {name: value for name, value in saved.items() if name != "muon_learning_rate"}
    return saved
