"""Four processes that stay, for chapter 07: hand them a function, get one answer from each.

    ranks = Ranks(folder)          two torchruns with two processes each, as on two machines
    ranks.everywhere(f)            [f(world) of rank 0, …, f(world) of rank 3]

The source of the functions is sent, so they must come from a notebook cell or a file, and find in
`NAMES` (below) and among each other all that they use.
"""

import inspect
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

NAMES = """
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from nanogpt_lib.distributed import *
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.support.processes import wait_for_all
from nanogpt_lib.support.sharding import full_tensor, shard_fsdp
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]  # what the command torchrun runs


def environment() -> dict[str, str]:
    """Environment of a child: one thread per process, since all share the cores."""
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "win32":
        own["USE_LIBUV"] = "0"  # PyTorch for Windows is built without it
    return own


def torchrun(script: str | Path, processes: int = 2, *arguments) -> str:
    """Run a script under torchrun, return what it prints; raises RuntimeError if it fails."""
    command = [*TORCHRUN, "--standalone", f"--nproc_per_node={processes}", script, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment())
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


class Ranks:
    """Four processes in two groups of two, joined by PyTorch's c10d rendezvous."""

    def __init__(self, folder: str | Path):
        self.folder, self.sent = Path(tempfile.mkdtemp(dir=folder)), 0
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        command = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=2", "--rdzv-backend=c10d"]
        command += [f"--rdzv-endpoint=localhost:{port}", "--local-addr=localhost"]
        command += ["-m", "nanogpt_course.ranks", str(self.folder)]
        self.nodes = []
        for i in range(2):
            with open(self.folder / f"node{i}.txt", "w") as output:
                streams = {"stdout": output, "stderr": output}
                self.nodes.append(subprocess.Popen(command, env=environment(), **streams))

    def send(self, *functions) -> int:
        """Hand the source of functions to every rank, the last one to be run; return its number."""
        source = "\n\n".join([NAMES, *map(inspect.getsource, functions)])
        (self.folder / "new").write_text(f"{source}\n\nrun = {functions[-1].__name__}\n")
        (self.folder / "new").replace(self.folder / f"task{self.sent}.py")
        self.sent += 1
        return self.sent - 1

    def everywhere(self, *functions) -> list:
        """Run the last function, f(world), on all four; their answers in order of rank.

        Functions that it calls go before it. Raises RuntimeError with a rank's traceback if one
        fails; then all four have ended.
        """
        n = self.send(*functions)
        files = [self.folder / f"answer{n}_{rank}" for rank in range(4)]
        while not all(file.exists() for file in files):
            time.sleep(0.01)
            ended = any(node.poll() is not None for node in self.nodes)
            for failed in self.folder.glob(f"failed{n}_*"):
                raise RuntimeError(failed.read_text(encoding="utf-8"))
            if ended:
                raise RuntimeError("a node has ended")
        return [torch.load(file) for file in files]

    def output(self) -> str:
        """What the two torchruns have printed so far."""
        return "\n".join((self.folder / f"node{i}.txt").read_text() for i in range(2))


def serve(folder: Path) -> None:
    """Wait for tasks in the folder and run each; end when the folder is gone."""
    from nanogpt_lib.support.processes import process_group, read_world

    world = read_world()
    with process_group(world, torch.device("cpu")):
        for n in itertools.count():
            task, answer = folder / f"task{n}.py", folder / f"answer{n}_{world.rank}"
            begun = time.time()
            while not task.exists():
                time.sleep(0.01)
                if not folder.exists() or time.time() - begun > 900:
                    return
            names: dict = {}
            try:
                exec(task.read_text(), names)
                torch.save(names["run"](world), folder / f"part{world.rank}")
            except Exception:
                told = folder / f"told{world.rank}"
                told.write_text(traceback.format_exc(), encoding="utf-8")
                told.replace(folder / f"failed{n}_{world.rank}")
                raise
            (folder / f"part{world.rank}").replace(answer)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
