"""Several processes as one run: rank and device of each, joining the process group, leaving it."""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.heartbeat import Heartbeat, within

# Rank 0 writes, flushes and hashes a checkpoint while the others wait in a collective: 19 GB on a
# slow network disk may exceed the backends' default timeouts (NCCL 10 minutes, gloo 30). So these
# are put out of the way (a day), and heartbeat.py ends a run in which a rank hangs.
LONGEST_WAIT_MINUTES = 60
LONGEST_SILENCE_SECONDS = 120
COLLECTIVE_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """This process's `rank`, its `local_rank` on this machine, and the world size `size`."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Rank 0 prints, logs and saves."""
        return self.rank == 0


def read_world() -> World:
    """Read torchrun's environment variables; without them this is the only process.

    Raises UserError if some are missing or not numbers, as when they are set by hand or left over
    in a shell.
    """
    if "RANK" not in os.environ:
        return World()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise UserError(f"RANK is set but not {', '.join(missing)}: start with torchrun")
    told = {name: os.environ[name] for name in names if name != "MASTER_ADDR"}
    for name, value in told.items():
        if not (value.isascii() and value.isdecimal()):
            raise UserError(
                f"{name}={value!r} in the environment is not a number: start with torchrun, "
                "or unset RANK"
            )
    rank, local_rank, size = (int(told[name]) for name in names[:3])
    if rank >= size:
        raise UserError(
            f"RANK={rank} in the environment, but WORLD_SIZE={size}: start with torchrun"
        )
    return World(rank, local_rank, size)


def own_device(device: torch.device, world: World) -> torch.device:
    """One GPU per process: cuda becomes cuda:local_rank. Other devices are returned unchanged.

    Raises UserError if this machine has fewer GPUs than processes.
    """
    if device.type != "cuda" or device.index is not None:
        return device
    if world.local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"--nproc_per_node exceeds the {count} GPU(s) of this machine")
    own = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(own)
    return own


def longest_wait(minutes: float = LONGEST_WAIT_MINUTES) -> timedelta:
    """How long processes wait without any progress: so many minutes, or NANOGPT_WAIT_MINUTES.

    A checkpoint that is being written is progress, however slowly it grows.
    """
    return timedelta(minutes=number_set("NANOGPT_WAIT_MINUTES", minutes, "minutes"))


def longest_silence() -> float:
    """Seconds after which a silent process counts as hanging: 120, or NANOGPT_SILENCE_SECONDS."""
    return number_set("NANOGPT_SILENCE_SECONDS", LONGEST_SILENCE_SECONDS, "seconds")


def number_set(name: str, default: float, unit: str) -> float:
    """A positive number from the environment; raises UserError if it is none."""
    told = os.environ.get(name, str(default))
    with contextlib.suppress(ValueError):
        if 0 < float(told) < 10**6:
            return float(told)
    raise UserError(f"{name}={told!r} must be a number of {unit} above 0")


def stay_on_loopback(world: World) -> None:
    """Let gloo use the loopback interface if all processes are on this machine.

    By default it resolves this machine's host name, which may fail.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world.size):
        names = {name for _, name in socket.if_nameindex()}
        for name in {"lo", "lo0"} & names:  # Linux, macOS
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextlib.contextmanager
def process_group(
    world: World, device: torch.device, wait_minutes: float = LONGEST_WAIT_MINUTES
) -> Iterator[None]:
    """Join the process group for the length of a `with` block.

    With more than one process, an exception ends this process; see `end_process`. If one hangs, the
    others say which and end; see `Heartbeat`.
    """
    if world.size == 1:
        yield
        return
    # gloo works on every system and on the CPU; NCCL is for NVIDIA GPUs, on Linux
    nccl = device.type == "cuda" and dist.is_nccl_available()
    stay_on_loopback(world)
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it restarts the workers: without a prefix per restart, new
    # workers would read dead workers' addresses and hang
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    wait = longest_wait(wait_minutes).total_seconds()
    heartbeat = Heartbeat(store, rank, size, longest_silence(), wait)
    dist.init_process_group(
        "nccl" if nccl else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if nccl else None,
    )
    heartbeat.start()
    try:
        yield
    except BaseException as error:
        end_process(error, world, heartbeat)
    heartbeat.finish("done")
    dist.destroy_process_group()


def end_process(error: BaseException, world: World, heartbeat: Heartbeat) -> None:
    """Print what was wrong, abort the group and exit, so that the other ranks stop waiting too.

    An orderly exit would wait for collectives in flight, which may wait for a rank that waits for
    this one. For the same reason the message is printed first.
    """
    name, status = Path(sys.argv[0]).name, 1
    if isinstance(error, KeyboardInterrupt):
        message, status = "", 130
    elif isinstance(error, SystemExit) and not isinstance(error.code, str):
        message, status = "", error.code or 0
    elif isinstance(error, SystemExit | UserError):
        message = f"{name}: {error}\n"
    elif lost_a_process(error):
        message = f"{name}: rank {world.rank}: another process has ended; see its message\n"
    else:
        message = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        sys.stdout.flush()
        sys.stderr.write(message)
        sys.stderr.flush()
    heartbeat.finish("failed")
    if dist.get_backend() == "nccl":  # else the other ranks' kernels wait; gloo notices by itself
        within(5.0, dist.group.WORLD.abort)
    os._exit(status)


def lost_a_process(error: BaseException) -> bool:
    """Whether this is what a collective raises when another process has ended."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("onnection closed by peer", "gloo", "Gloo"))
    )


def wait_for_all(world: World) -> None:
    """Block until every process has reached this point."""
    if world.size > 1:
        dist.barrier()


def on_every_rank(job: Callable[[], object], world: World) -> list:
    """Run `job` on every rank; return all results in rank order.

    If it raises UserError or OSError on any rank, it fails on all: rank 0 raises UserError and the
    others exit, so that none waits for one that has given up.
    """
    if world.size == 1:
        return [job()]
    try:
        mine = (job(), "")
    except (UserError, OSError) as error:
        mine = (None, str(error) or type(error).__name__)
    answers: list = [None] * world.size
    dist.all_gather_object(answers, mine)
    for rank, (_, problem) in enumerate(answers):
        if problem:
            refuse(problem if rank == 0 else f"rank {rank}: {problem}", world)
    return [result for result, _ in answers]


def refuse(message: str, world: World) -> NoReturn:
    """Stop because of something every rank has found: rank 0 raises UserError, the others exit."""
    if not world.is_main:
        sys.exit(1)
    raise UserError(message)
