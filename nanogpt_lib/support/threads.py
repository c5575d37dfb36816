"""How the threads of one process wait for each other; to be set before torch is imported."""

import os

SPINS = "1000"


def wait_briefly(environment=os.environ) -> None:
    """Let idle threads sleep soon, unless the user has chosen how they wait.

    GNU OpenMP's threads spin, by default for milliseconds, until the slowest one is done. If
    another program is busy, the slowest one may not be running, and the spinning ones keep it off
    the CPU. A step of a small GPT on two cores in bfloat16 takes 63 ms when they spin long, 66 with
    this setting, and 94 when they sleep at once (OMP_WAIT_POLICY=PASSIVE); beside a program that
    keeps one core busy 290 to 360, 147, and 117. tests/benchmarks/bench_step.py repeats that.
    GNU OpenMP reads the variable when torch loads it; other OpenMP libraries ignore it. So a
    notebook has to inherit it: `make lab` and the conda environment set it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPINS
