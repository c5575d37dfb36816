"""How the threads of one process wait for each other; to be set before torch is imported."""

import os

SPINS = "1000"


def wait_briefly(environment=os.environ) -> None:
    """Let idle threads sleep soon, unless the user has chosen how they wait.

    GNU OpenMP's threads spin, by default for milliseconds, until the slowest one is done. If
    another program is busy, the slowest one may not be running, and the spinning ones keep it off
    the CPU: a training step of 35 ms then took 2,000 ms, and with this setting 300 ms. On an idle
    machine it costs 4 % (sleeping at once, OMP_WAIT_POLICY=PASSIVE, costs 20 %). GNU OpenMP reads
    the variable when torch loads it; other OpenMP libraries ignore it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPINS
