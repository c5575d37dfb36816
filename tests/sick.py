"""Preflights of processes of which the last one is sick; for test_preflight.py.

    torchrun --nproc_per_node=2 sick.py FOLDER NAME,NAME… FLAGS…

FOLDER has what the sicknesses need; see test_preflight.py. Each preflight begins with a line
`== NAME` and ends with `NAME: status S on rank R` from every rank.
"""

import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from nanogpt_lib import run, train, training_loss
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.preflight import flight, machine, processes, whole_run
from nanogpt_lib.preflight.sequence import preflight
from nanogpt_lib.support.processes import process_group, read_world, wait_for_all

FOLDER = Path(sys.argv[1])
CPU = torch.device("cpu")
MICRO_SECONDS, STATE_OF = processes.micro_seconds, processes.state_of
SAVE, NEXT_BATCH = run.save, TokenLoader.next_batch


def slow_autocast(*where):
    time.sleep(0.03)
    return nullcontext()


def too_large(this, *rest):
    if this.rows > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return MICRO_SECONDS(this, *rest)


def other_batch(self):
    x, y = NEXT_BATCH(self)
    return x.flip(1), y


def stuck_save(this):
    SAVE(this)
    time.sleep(1000)


def bit_flip(this):
    with torch.no_grad():
        this.raw.lm_head.weight[0, 0] *= 1 + 2**-23
    return STATE_OF(this)


def full_disk(folder):
    return SimpleNamespace(free=1000)


def bad_evaluation(this):
    raise RuntimeError("Xid 79: GPU has fallen off the bus")


ON_ALL = {  # what all ranks have wrong together
    "not averaged": [(training_loss, "wrap_ddp", lambda model, *where: model)],
    "stuck": [(whole_run, "save", stuck_save)],
}
ON_ONE = {  # what only the last one has wrong
    "other code": [(machine, "ROOT", FOLDER / "copy")],
    "slow": [(processes, "autocast", slow_autocast)],
    "small card": [(processes, "micro_seconds", too_large)],
    "little memory": [(flight, "memory_bytes", lambda device: 1_000_000)],
    "full disk": [(machine.shutil, "disk_usage", full_disk)],
    "other batches": [(TokenLoader, "next_batch", other_batch)],
    "bit flip": [(processes, "state_of", bit_flip)],
    "dies": [(train, "validation_loss", lambda *args, **kwargs: bad_evaluation(args))],
}
FLAGS = {
    "other data": ["--data", str(FOLDER / "other")],
    "cut shard": ["--data", str(FOLDER / "cut")],
}
FLAGS["other flags"] = ["--weight-decay", "0.2"]
FLAGS_OF_ALL = {"sharded": ["--parallel", "fsdp"]}
FLAGS_OF_ALL["resumed"] = ["--parallel", "fsdp", "--resume", "--out", str(FOLDER / "run")]


def main() -> None:
    """One preflight after the other, in one process group."""
    world = read_world()
    with process_group(world, CPU):
        for name in sys.argv[2].split(","):
            sick = world.rank == world.size - 1
            flags = (
                sys.argv[3:] + FLAGS_OF_ALL.get(name, []) + (FLAGS.get(name, []) if sick else [])
            )
            with ExitStack() as stack:
                for patched in ON_ALL.get(name, []) + (ON_ONE.get(name, []) if sick else []):
                    stack.enter_context(patch.object(*patched))
                print(f"== {name}\n" * world.is_main, end="", flush=True)
                loop = flight.Loop(train.update, train.evaluate_and_sample, train.speed)
                status = preflight(parse_config(flags), world, CPU, loop, [])
            print(f"{name}: status {status} on rank {world.rank}", flush=True)
            wait_for_all(world)


if __name__ == "__main__":
    main()
