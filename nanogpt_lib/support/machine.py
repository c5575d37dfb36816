"""Describe the machine that a recorded measurement was made on."""

import contextlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from nanogpt_lib.support.places import ROOT
from nanogpt_lib.support.processor import cpu_class


def output_of(*command: str) -> str | None:
    """The first line of a program's output; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else None


def describe_machine(name: str) -> dict:
    """Device, CPU class, cores, threads, versions, driver, commit and date, for a measurement.

    `cores` are those that this process may use.
    """
    usable = getattr(os, "sched_getaffinity", None)
    machine = {
        "device": name,
        "cpu_class": cpu_class(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver}
    versions["python"] = platform.python_version()
    date = datetime.now(UTC).date().isoformat()
    return {**machine, **versions, "commit": commit, "date": date}


def name_of(device: torch.device) -> str:
    """The name of the GPU or the CPU, as far as it can be found."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()
