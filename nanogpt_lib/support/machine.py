"""What a recorded figure must say of the machine it was measured on."""

import contextlib
import platform
import re
import subprocess
from pathlib import Path

import torch

from nanogpt_lib.support.places import ROOT


def output_of(*command: str) -> str | None:
    """What a program says on its first line; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else None


def describe_machine(name: str) -> dict:
    """Card, driver, versions and commit: what a recorded figure must say of itself."""
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver}
    return {"device": name, "threads": torch.get_num_threads(), **versions, "commit": commit}


def name_of(device: torch.device) -> str:
    """The card's or the processor's name, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()
