"""Measurements that several cells share: steps timed in turn, and the memory a call holds."""

import statistics
from collections.abc import Callable, Mapping

import torch


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def interleaved(
    functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each function, `rounds` times in turn; one unmeasured round comes first.

    What else the machine does then falls on all of them alike.
    """
    from nanogpt_lib.device import median_seconds

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            once = median_seconds(function, device, repeats=1, warmup=0)
            if number:
                seconds[name].append(once)
    return seconds


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory a call holds at one time on the CPU, beyond what was there before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peak_megabytes(function: Callable[[], object]) -> float:
    """`peak_bytes` in MB."""
    return peak_bytes(function) / 1e6
