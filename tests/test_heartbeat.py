"""What heartbeat.py promises: a rank that hangs is named, in one line, and all end."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from nanogpt_lib.support import heartbeat
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.heartbeat import Heartbeat, writing
from nanogpt_lib.support.processes import longest_silence

# Rank 1 hangs in its 50th step: the process is stopped, or one thread of it waits for ever.
PROGRAM = """
import os, signal, sys, time
import torch, torch.distributed as dist
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.support.processes import process_group, read_world

class Stream:
    def __len__(self):
        time.sleep(1000)

world, way = read_world(), sys.argv[1]
model = torch.nn.Linear(1, 1)
model.config = type("Config", (), {"block_size": 8})
with process_group(world, torch.device("cpu")):
    for step in range(10**9):
        dist.all_reduce(torch.ones(1000))
        if step == 50 and world.rank == 1:
            print(os.getpid(), flush=True)
            if way == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            validation_loss(model, Stream(), tokens=8, batch_size=1)
"""


def hang(way: str, folder: Path, **limits) -> tuple[int, str]:
    """Three gloo ranks, one of which hangs; the exit status and what was said on stderr."""
    path = folder / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **limits}
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    said = []
    with subprocess.Popen([*command, str(path), way], **how) as agent:
        pid = int(agent.stdout.readline())
        for line in agent.stderr:
            said.append(line)
            if "program.py: " in line and "rank 1" in line:  # torchrun would wait half a minute
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return agent.returncode, "".join(said)


@pytest.mark.skipif(os.name == "nt", reason="no SIGSTOP")
def test_a_stopped_rank_is_named_in_one_line_and_all_end(tmp_path):
    status, said = hang("stopped", tmp_path, NANOGPT_SILENCE_SECONDS="2")
    named = re.findall(r"^program\.py: .*hangs.*$", said, re.M)
    assert status == 1 and len(named) == 1, said
    assert "program.py: rank 1 hangs: not a sign of it for 2 s; it was at " in named[0]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_rank_that_lives_but_does_not_come_is_named_with_its_line(tmp_path, monkeypatch):
    status, said = hang("waiting", tmp_path, NANOGPT_WAIT_MINUTES="0.05")
    named = re.findall(r"^program\.py: no progress.*$", said, re.M)
    assert status == 1 and len(named) == 1, said
    assert "for 3 s: the others wait while rank 1 is at evaluation.py:" in named[0]
    assert named[0].endswith("(validation_loss)")


class Store(dict):
    """A store in this process, in place of the rendezvous's."""

    def clone(self):
        return self

    def set_timeout(self, timeout):
        pass

    def set(self, key, value):
        self[key] = value.encode()

    def multi_get(self, keys):
        return [self[key] for key in keys]


@pytest.fixture
def three(monkeypatch):
    """Three ranks' heartbeats on one store; a function that lets time pass while some tell."""
    clock, begun, store = [0.0], [0], Store()
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat, "collectives_begun", lambda: begun[0])
    ranks = [Heartbeat(store, rank, 3, silence=60, wait=600) for rank in range(3)]

    def pass_seconds(seconds, *telling, **at):
        clock[0] += seconds
        for rank in telling:
            begun[0] = at.get(f"rank{rank}", 7)
            ranks[rank].tell()
        ranks[0].listen()
        return ranks[0].verdict()

    return ranks, pass_seconds


def test_a_silent_rank_hangs_only_after_its_time(three):
    _, pass_seconds = three
    assert pass_seconds(0, 0, 1, 2) == ""
    assert pass_seconds(50, 0, 1) == ""
    assert pass_seconds(11, 0, 1).startswith("rank 2 hangs: not a sign of it for 61 s; it was at ")


def test_a_rank_that_is_done_may_be_silent_and_one_that_failed_is_reported(three):
    ranks, pass_seconds = three
    pass_seconds(0, 0, 1, 2)
    ranks[2].finish("done")
    assert pass_seconds(1, 0, 1) == pass_seconds(10**4, 0, 1) == ""
    ranks[1].finish("failed")
    assert pass_seconds(1, 0) == ""  # it has a few seconds to find out by itself
    assert pass_seconds(11, 0) == "rank 1 has ended; see its message"


def test_a_checkpoint_that_grows_is_progress_however_slowly(three, tmp_path):
    _, pass_seconds = three
    late = dict(rank0=9, rank1=9, rank2=8)
    assert pass_seconds(0, 0, 1, 2, **late) == ""
    with writing(tmp_path):
        for size in range(1, 30):  # 29 · 500 seconds, at one byte each
            (tmp_path / "model.safetensors").write_bytes(b"x" * size)
            assert pass_seconds(500, 0, 1, 2, **late) == ""
    message = pass_seconds(601, 0, 1, 2, **late)  # its folder is no longer looked at: size 0
    assert message == "" and "the others wait while rank 2" in pass_seconds(601, 0, 1, 2, **late)


def test_ranks_that_all_work_without_a_collective_are_left_alone(three):
    _, pass_seconds = three
    assert pass_seconds(0, 0, 1, 2) == pass_seconds(10**5, 0, 1, 2) == ""


def test_how_long_a_rank_may_be_silent_can_be_set(monkeypatch):
    assert longest_silence() == 120
    monkeypatch.setenv("NANOGPT_SILENCE_SECONDS", "2.5")
    assert longest_silence() == 2.5
    for wrong in ("", "0", "nan", "1m", "-5"):
        monkeypatch.setenv("NANOGPT_SILENCE_SECONDS", wrong)
        with pytest.raises(UserError, match="must be a number of seconds above 0"):
            longest_silence()
