"""The other recipes: published tokens, nanoGPT's splits, many machines."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_recipes as shared

from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import read_meta, verify_shards

DATA, recipe, send, server = shared.DATA, shared.recipe, shared.send, shared.server
REPO, COMMIT = "kjj0/fineweb10B-gpt2", "889765ea1f903759787add96995d81171b632d0c"
IDS = np.random.default_rng(0).integers(0, 50257, 4000).astype(np.uint16)
TAKE = ("fineweb.py", "--dataset", "fineweb", "--pretokenized", "--out")


def llmc(tokens):
    header = np.zeros(256, dtype=np.int32)
    header[:3] = 20240520, 1, len(tokens)
    return header.tobytes() + tokens.tobytes()


def shards():
    """Files as published: one for validation, three for training."""
    train = {f"fineweb_train_{i:06d}.bin": llmc(IDS[i * 900 : i * 900 + 900]) for i in (1, 2, 3)}
    return {"fineweb_val_000000.bin": llmc(IDS[:500])} | train


def hub(web, stored, sent=None):
    """Make a loopback server the hub; `sent(name, body, handler, number)` may alter a file."""

    def answer(handler, number):
        path = handler.path.replace("%2F", "/").split("?")[0]
        if path.startswith(f"/api/datasets/{REPO}/tree/{COMMIT}"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(body),
                    "oid": "0" * 40,
                    "lfs": {
                        "oid": hashlib.sha256(body).hexdigest(),
                        "size": len(body),
                        "pointerSize": 134,
                    },
                }
                for name, body in {**stored, "README.md": b"read me"}.items()
            ]
            return send(handler, json.dumps(tree).encode(), Content_Type="application/json")
        name = path.removeprefix(f"/datasets/{REPO}/resolve/{COMMIT}/")
        body = stored[name]
        tags = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Repo_Commit": COMMIT}
        if handler.command == "GET" and sent:
            body, short = sent(name, body, sum(p == handler.path for _, p, _ in web.asked))
            start = int((handler.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
            part = body[start:short]
            return send(handler, part, 206 if start else 200, len(body) - start, **tags)
        return send(handler, body, **tags)

    web.answer = answer
    return {"HF_ENDPOINT": web.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def train_tokens(out):
    stream = TokenStream(out, "train")
    return stream.read(0, len(stream))


def test_published_tokens_are_taken_as_they_are_and_verified(server, tmp_path):
    done = recipe(*TAKE, tmp_path, **hub(server, shards()))
    assert "fineweb_train_000003.bin: 900 tokens" in done.stdout
    assert np.array_equal(train_tokens(tmp_path), IDS[900:3600])
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.pop("meta.json") and left == shards()  # not a byte converted, nothing else kept
    meta = read_meta(tmp_path)
    assert (meta["name"], meta["vocab_size"]) == ("fineweb-10BT", 50257) and COMMIT in meta[
        "source"
    ]
    assert "3,200 tokens" in recipe("fineweb.py", "--verify", "--out", tmp_path).stdout
    again = recipe(*TAKE, tmp_path, **hub(server, shards()))
    assert "already there" in again.stdout


def test_only_the_first_files_are_taken_and_no_other_dataset_written_over_them(server, tmp_path):
    env = hub(server, shards())
    recipe(*TAKE, tmp_path, "--files", 2, **env)
    assert np.array_equal(train_tokens(tmp_path), IDS[900:2700])
    other = recipe(*TAKE, tmp_path, check=False, **env)
    assert other.returncode == 1 and "choose another --out" in other.stderr


def test_a_lie_of_the_right_length_is_caught_and_asked_again(server, tmp_path):
    def sent(name, body, number):
        first = name.endswith("2.bin") and number <= 2  # HEAD and the first GET
        return (body[:-2] + b"\0\0" if first else body), None

    recipe(*TAKE, tmp_path, **hub(server, shards(), sent))
    assert np.array_equal(train_tokens(tmp_path), IDS[900:3600])
    asked = [path for method, path, _ in server.asked if method == "GET" and "000002" in path]
    assert len(asked) == 2


def test_a_file_that_is_damaged_at_its_origin_is_not_kept(server, tmp_path):
    stored = shards()
    stored["fineweb_train_000002.bin"] = stored["fineweb_train_000002.bin"][:-2]
    done = recipe(*TAKE, tmp_path, check=False, **hub(server, stored))
    assert done.returncode == 1 and "room for 899 tokens, not 900" in done.stderr
    assert not (tmp_path / "meta.json").exists()
    assert not (tmp_path / "fineweb_train_000002.bin").exists()
    refused = recipe("fineweb.py", "--verify", "--out", tmp_path, check=False)
    assert "not a finished dataset" in refused.stderr  # no run trains on half of it
    recipe(*TAKE, tmp_path, check=False, **hub(server, stored))
    fetched = [path for method, path, _ in server.asked if method == "GET" and "val" in path]
    assert len(fetched) == 1  # what was whole is not downloaded twice


def test_an_id_beyond_the_vocabulary_is_named_at_the_download(server, tmp_path):
    stored, odd = shards(), IDS[:700].copy()
    odd[123] = 50257
    stored["fineweb_train_000001.bin"] = llmc(odd)
    done = recipe(*TAKE, tmp_path, check=False, **hub(server, stored))
    assert "train_000001.bin: token 50257 at offset 123" in done.stderr


def test_pretokenized_goes_only_with_what_is_published(tmp_path):
    for wrong in (["--sample", "350BT"], ["--local", tmp_path]):
        done = recipe("fineweb.py", "--pretokenized", *wrong, check=False)
        assert done.returncode == 2 and "--pretokenized is available only" in done.stderr


# --- nanoGPT's splits ---------------------------------------------------------------------------


def test_openwebtext_holds_out_what_nanogpts_split_draws(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    import openwebtext

    from nanogpt_lib.recipes.sources import Source

    hub = Source("hub", [("a.parquet", 24_000_000_000)], lambda name: None, remote=True)
    rows = openwebtext.held_out(hub)
    assert len(rows) == 4007  # and nanoGPT's train split has the other 8,009,762
    # what datasets 5.2 draws for 8,013,769 rows, test_size=0.0005, seed=2357, shuffle=True
    assert hashlib.sha256(str(sorted(rows)).encode()).hexdigest()[:16] == "c68c93bc3473883e"


@pytest.mark.skipif(
    not (Path(os.environ.get("NANOGPT_MIRROR", "-")) / "shakespeare/input.txt").exists(),
    reason="NANOGPT_MIRROR has no Tiny Shakespeare",
)
@pytest.mark.parametrize(
    "kind, sizes", [("char", (1_003_854, 111_540)), ("gpt2", (301_966, 36_059))]
)
def test_shakespeare_has_nanogpts_token_counts(tmp_path, kind, sizes):
    mirror = os.environ["NANOGPT_MIRROR"]
    recipe("shakespeare.py", "--tokenizer", kind, "--out", tmp_path, NANOGPT_MIRROR=mirror)
    assert tuple(len(TokenStream(tmp_path, split)) for split in ("train", "val")) == sizes


# --- verification, names, many machines ---------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("some parquet"), np.random.default_rng(2)
    for number in range(3):
        texts = [" ".join(rng.choice(["a", "cat", "sat", "down"], 60)) for _ in range(80)]
        shared.write_parquet(folder / f"{number:03d}.parquet", texts + (shared.ODD * (number == 1)))
    return folder


def test_a_local_folder_names_itself_and_verify_finds_a_flipped_bit(parquet, tmp_path):
    recipe("fineweb.py", "--local", parquet, "--out", tmp_path, "--shard-tokens", 3000)
    assert read_meta(tmp_path)["name"] == parquet.name  # not FineWeb-Edu
    assert "every shard undamaged" in recipe("fineweb.py", "--verify", "--out", tmp_path).stdout
    path = tmp_path / "train_000000.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    done = recipe("fineweb.py", "--verify", "--out", tmp_path, check=False)
    assert done.returncode == 1 and "train_000000.npy: damaged" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_datatrove_gives_the_bytes_of_one_machine(parquet, tmp_path, workers):
    pytest.importorskip("datatrove")
    where = ["--local", parquet, "--shard-tokens", 3000, "--out"]
    recipe("fineweb.py", *where, tmp_path / "one")
    recipe("fineweb_datatrove.py", *where, tmp_path / "many", "--workers", workers)
    assert shared.files(tmp_path / "many") == shared.files(tmp_path / "one")
    assert verify_shards(tmp_path / "many") > 3000


@pytest.mark.skipif(os.name == "nt", reason="Slurm runs on Linux")
def test_datatrove_on_slurm_submits_an_array_and_then_one_task(parquet, tmp_path):
    pytest.importorskip("datatrove")
    said = f"echo Submitted batch job $(wc -l < {tmp_path}/calls)"
    fakes = {"sbatch": f'echo "$@" >> {tmp_path}/calls; {said}', "scontrol": "echo here"}
    for name, does in fakes.items():  # there is no cluster: they record their arguments
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    where = ["--local", parquet, "--shard-tokens", 3000, "--out"]
    recipe("fineweb_datatrove.py", *where, tmp_path / "out", "--slurm", "cpu", PATH=path)
    scripts = list(tmp_path.glob("out_logs/*/launch_script.slurm"))
    text = {script.parent.name: script.read_text() for script in scripts}
    assert "--array=0-2" in text["tokenize"] and "--array=0-0" in text["cut"]
    assert "--partition=cpu" in text["cut"]
    assert any("dependency=afterok:" in call for call in (tmp_path / "calls").read_text().split())
    # run by hand what the scripts would run, in the order in which Slurm would
    recipe("fineweb.py", *where, tmp_path / "one")
    for step, tasks in (("tokenize", 3), ("cut", 1)):
        for task in range(tasks):
            environment = dict(
                SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="here", SLURM_JOB_ID="1"
            )
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(DATA.parent), os.environ.get("PYTHONPATH", "")]
            )
            command = [sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline"]
            pickled = tmp_path / f"out_logs/{step}/executor.pik"
            env = {**os.environ, **environment, "PATH": path}
            subprocess.run([*command, pickled], check=True, capture_output=True, env=env)
    assert shared.files(tmp_path / "out") == shared.files(tmp_path / "one")
