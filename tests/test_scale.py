"""One run at three scales: one process, two nodes with sharded weights, four processes.

Each stage resumes what the previous one saved, with real torchruns. Together they cover world sizes
1, 2 and 4, two agents joined by a c10d rendezvous, both values of --parallel, and resuming between
all of them.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from conftest import ROOT, TINY, log_of, program
from nanogpt_lib import train
from nanogpt_lib.checkpoint import save_checkpoint, weights_of
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.checkpoint_files import TensorFiles, checkpoints, read_state
from nanogpt_lib.tokenizer import GPT2Tokenizer

SETTINGS = "--max-steps 6 --save-every 2 --hellaswag-every 4 --sample-every 2 --sample-prompt Hello"


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """Settings for all stages: GPT-2 tokens; five validation windows and items, for two ranks."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = GPT2Tokenizer()
    ids = np.array(tokenizer.encode("The quick brown fox jumps over the lazy dog, twice. " * 300))
    meta = {"name": "fox", "source": "test", "tokenizer": tokenizer.describe(), "vocab_size": 50257}
    write_splits(folder / "fox", meta, ids[:-400], ids[-400:])
    items = (ROOT / "data/hellaswag_own.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    (folder / "items.jsonl").write_text("\n".join(items), encoding="utf-8")
    where = ["--data", str(folder / "fox"), "--hellaswag-data", str(folder / "items.jsonl")]
    return [*TINY, *SETTINGS.split(), *where, "--eval-tokens", "160"]


def torchrun(nodes: int, ranks: int, *args) -> list[str]:
    """Train under one torchrun per node, all on this machine; what each printed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}"]
    command += [f"--nproc-per-node={ranks}", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    command += [f"--rdzv-endpoint=127.0.0.1:{port}", str(ROOT / "nanogpt_lib/train.py")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if os.name == "nt":
        env["USE_LIBUV"] = "0"
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    agents = [subprocess.Popen([*command, *map(str, args)], **how)]
    try:
        # on one machine both agents believe to be HOST: the first must hold the store's port
        deadline = time.monotonic() + 60
        while nodes > 1 and time.monotonic() < deadline and agents[0].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        agents += [subprocess.Popen([*command, *map(str, args)], **how) for _ in range(nodes - 1)]
        said = [agent.communicate(timeout=120) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * nodes, said
    return [stdout for stdout, _ in said]


def as_it_was(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as it was when it had saved that step."""
    shutil.copytree(run, copy)
    for folder in checkpoints(copy):
        if folder.name > f"step_{step:06d}":
            shutil.rmtree(folder)
    return copy


@pytest.fixture(scope="module")
def legs(flags, tmp_path_factory) -> dict[str, Path]:
    """one: steps 1 to 6. nodes: 3 to 6 of it, sharded. four: 5 and 6 of that, not sharded.

    shards: steps 1 to 6 of a new run on four sharded ranks. again: 5 and 6 of it, resumed.
    """
    folder, said = tmp_path_factory.mktemp("runs"), {}
    assert train.main([*flags, "--out", str(folder / "one")]) == 0
    out = as_it_was(folder / "one", 2, folder / "nodes")
    said["nodes"] = torchrun(2, 1, "--resume", "--out", out, "--parallel", "fsdp")
    out = as_it_was(out, 4, folder / "four")
    said["four"] = torchrun(1, 4, "--resume", "--out", out, "--parallel", "ddp", "--batch-size", 2)
    sharded = ["--parallel", "fsdp", "--batch-size", 2]
    said["shards"] = torchrun(1, 4, *flags, "--out", folder / "shards", *sharded)
    out = as_it_was(folder / "shards", 4, folder / "again")
    said["again"] = torchrun(1, 4, "--resume", "--out", out)
    for name, outputs in said.items():
        (folder / name / "stdout.txt").write_text("".join(outputs), encoding="utf-8")
    return {name: folder / name for name in ("one", *said)}


def test_two_nodes_joined_by_rendezvous_resume_one_process_and_shard_its_weights(legs):
    said = (legs["nodes"] / "stdout.txt").read_text(encoding="utf-8")
    assert "256 tokens per step = 4 rows × 32 × 2 processes (fsdp) × 1 micro-step" in said
    assert "step_000002 at step 2" in said
    assert said.count("everything is in") == 1  # one voice on two nodes


def test_four_processes_resume_what_two_sharded_ones_saved(legs):
    said = (legs["four"] / "stdout.txt").read_text(encoding="utf-8")
    assert "256 tokens per step = 2 rows × 32 × 4 processes (ddp) × 1 micro-step" in said
    assert "step_000004 at step 4" in said


@pytest.mark.parametrize("leg", ["nodes", "four", "shards"])
@pytest.mark.parametrize("kind", ["train_loss", "grad_norm", "lr", "val_loss", "hellaswag"])
def test_losses_norms_and_scores_do_not_depend_on_the_world(legs, leg, kind):
    one, other = (
        {r["step"]: r[kind] for r in log_of(legs[name]) if kind in r} for name in ("one", leg)
    )
    assert one.keys() == other.keys() and 6 in one
    assert other == pytest.approx(one, abs=1e-4)
    assert kind != "val_loss" or one[6] < one[0] - 0.01  # and it learns


@pytest.mark.parametrize("leg", ["nodes", "four", "shards"])
def test_checkpoints_are_the_same_files_whoever_wrote_them(legs, leg):
    theirs, ours = checkpoints(legs["one"])[-1], checkpoints(legs[leg])[-1]
    assert theirs.name == ours.name == "step_000006"
    for file in ("model", "optimizer"):
        a, b = (TensorFiles(at, file, read_state(at)).everything() for at in (theirs, ours))
        assert a.keys() == b.keys()
        assert all(a[name].dtype == b[name].dtype for name in a)
        assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-4, file


def test_sharded_processes_save_their_shares_and_anyone_reads_them(legs):
    folder = checkpoints(legs["nodes"])[-1]
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    parts = [f"{n}_rank_000{r}-of-0002.safetensors" for n in ("model", "optimizer") for r in (0, 1)]
    assert sorted(files) == [*parts, "state.json"]
    whole = (checkpoints(legs["four"])[-1] / "model.safetensors").stat().st_size
    assert 0.45 * whole < files[parts[0]] < 0.55 * whole  # so no process gathered everything
    model, tokenizer = load_model(legs["nodes"], say=lambda line: None)
    assert tokenizer.vocab_size == 50257
    state = TensorFiles(folder, "model", read_state(folder)).everything()
    assert all(torch.equal(p, state[name]) for name, p in model.named_parameters())
    done = program("train.py", "--eval-only", "--resume", "--out", legs["nodes"])
    last = [r["val_loss"] for r in log_of(legs["nodes"]) if "val_loss" in r][-1]
    assert f"validation loss {last:.4f}" in done.stdout, done.stderr


def test_a_sharded_run_resumed_by_as_many_ranks_is_the_same_bit_for_bit(legs):
    (one, again), files = (checkpoints(legs[name])[-1] for name in ("shards", "again")), []
    for path in sorted(one.glob("*.safetensors")):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
        files.append(path.name)
    assert len(files) == 8 and log_of(legs["shards"]) == log_of(legs["again"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorchs_distributed_checkpoint_reads_the_shards_without_a_pickle(legs, tmp_path):
    """And what it has read can be saved as a plain checkpoint: the same as of four plain ranks."""
    folder, options = checkpoints(legs["nodes"])[-1], dict(no_dist=True)
    whole = {
        name: TensorFiles(folder, name, read_state(folder)).everything()
        for name in ("model", "optimizer")
    }
    read = {n: torch.full_like(t, -1) for part in whole.values() for n, t in part.items()}
    dcp.load(read, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), **options)
    assert all(torch.equal(read[n], t) for part in whole.values() for n, t in part.items())
    assert not list(folder.glob("*.metadata")) and not list(folder.glob(".metadata"))
    model = GPT(GPTConfig(**read_state(folder)["model_config"]))
    dcp.load(weights_of(model), storage_reader=dcp.HuggingFaceStorageReader(str(folder)), **options)
    optimizer = make_optimizer(model, learning_rate=0.0)
    plain = save_checkpoint(tmp_path, 6, model, optimizer, {})
    copy = TensorFiles(plain, "model", read_state(plain)).everything()
    assert all(torch.equal(copy[n], t) for n, t in whole["model"].items())


def test_two_nodes_without_a_shared_folder_are_refused_in_one_line(legs, tmp_path):
    """Each node would resume from a checkpoint of its own, and the ranks would drift apart."""
    script = tmp_path / "two_disks.py"
    script.write_text(
        "import os, sys\n"
        "from nanogpt_lib import train\n"
        "from nanogpt_lib.support.cli import run_program\n"
        "out = sys.argv[1] + '/node' + os.environ['RANK']\n"
        "run_program('train.py', lambda: train.main(['--resume', '--out', out]))\n",
        encoding="utf-8",
    )
    as_it_was(legs["one"], 6, tmp_path / "node0")
    as_it_was(legs["one"], 4, tmp_path / "node1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if os.name == "nt":
        env["USE_LIBUV"] = "0"
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=100, env=env
    )
    words = "node0: the nodes see different checkpoints; it must be a shared folder"
    assert done.returncode == 1 and done.stderr.count(words) == 1, done.stderr
    assert "Error" not in done.stderr.split(words)[0]
    assert [r["step"] for r in log_of(tmp_path / "node0")] == [
        r["step"] for r in log_of(legs["one"])
    ]  # nothing was overwritten


@pytest.mark.parametrize("leg", ["nodes", "four", "shards"])
def test_samples_are_the_same_text_in_every_world(legs, leg):
    texts = [(legs[name] / "samples.txt").read_text(encoding="utf-8") for name in ("one", leg)]
    assert texts[0] == texts[1] and texts[0].count("=== step") == 3


def test_a_single_process_has_nothing_to_shard_and_says_so(flags, tmp_path, capsys):
    short = [*flags, "--max-steps", "1", "--save-every", "0"]
    assert train.main([*short, "--parallel", "fsdp", "--out", str(tmp_path / "run")]) == 0
    assert "1 process, nothing to shard" in capsys.readouterr().out
