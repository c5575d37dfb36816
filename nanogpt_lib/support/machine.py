"""Describe the machine that a recorded measurement was made on."""

import contextlib
import platform
import re
import subprocess
from pathlib import Path

import torch

from nanogpt_lib.support.places import ROOT


def output_of(*command: str) -> str | None:
    """The first line of a program's output; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else None


def describe_machine(name: str) -> dict:
    """Device, threads, versions, driver and commit, to be recorded with a measurement."""
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver}
    return {"device": name, "threads": torch.get_num_threads(), **versions, "commit": commit}


def name_of(device: torch.device) -> str:
    """The name of the GPU or the CPU, as far as it can be found."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()
