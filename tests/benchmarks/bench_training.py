"""nanoGPT's README example for a laptop, its own train.py and ours, one after the other.

    python tests/benchmarks/bench_training.py NANOGPT     (first: python data/shakespeare.py)

4 layers, 4 heads, 128 channels, context 64, Tiny Shakespeare's characters. Wall time is that of
the whole process; the loss is that of the last weights on all of the validation split. With its
recipe, ours evaluates as many tokens as nanoGPT does: 20 batches of each of two splits.
"""

import argparse
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import write_record

from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.processor import cpu_multiplies_bfloat16

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "shakespeare"
SIZE = dict(n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12)
THEIRS = dict(
    **SIZE, device="cpu", compile=False, eval_iters=20, max_iters=2000, lr_decay_iters=2000,
    dropout=0.0, always_save_checkpoint=True,
)  # fmt: skip
# in float32 PyTorch's attention is the faster one on a CPU, in bfloat16 ours by hand
ATTENTION = "manual" if cpu_multiplies_bfloat16() else "sdpa"
SAME = (
    f"--attention {ATTENTION} --eval-tokens 30720 --max-steps 2000 --optimizer adamw "
    "--learning-rate 1e-3 --beta1 0.9 --beta2 0.99 --weight-decay 0.1 --warmup-steps 100 "
    "--save-every 0 --sample-every 0"
)
OWN = f"--attention {ATTENTION} --max-steps 500 --eval-every 0 --save-every 0 --sample-every 0"


def timed(command: list, cwd: Path) -> float:
    """Wall seconds of a process that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench_training.py: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def loss_of(model: GPT) -> float:
    """Nats per character over the whole validation split, in float32."""
    stream = TokenStream(DATA, "val")
    return validation_loss(model.eval(), stream, tokens=len(stream), batch_size=64, device="cpu")


def nanogpt(checkout: Path, work: Path) -> tuple[float, float]:
    """Seconds and loss of nanoGPT's own train.py, on our ids of the same characters."""
    shutil.copytree(checkout, work / "nanoGPT", ignore=shutil.ignore_patterns(".git", "assets"))
    folder = work / "nanoGPT" / "data" / "shakespeare_char"
    for split in ("train", "val"):
        stream = TokenStream(DATA, split)
        np.asarray(stream.read(0, len(stream)), dtype=np.uint16).tofile(folder / f"{split}.bin")
    vocab_size = read_meta(DATA)["vocab_size"]
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
    flags = [f"--{name}={value}" for name, value in THEIRS.items()]
    script = ["train.py", "config/train_shakespeare_char.py", *flags]
    seconds = timed([sys.executable, *script], work / "nanoGPT")
    path = work / "nanoGPT" / "out-shakespeare-char" / "ckpt.pt"
    state = torch.load(path, weights_only=True)["model"]
    sizes = {key: value for key, value in SIZE.items() if key != "batch_size"}
    model = GPT(GPTConfig(vocab_size=vocab_size, bias=False, **sizes))
    load_weights(model, state)
    return seconds, loss_of(model)


def ours(flags: str, work: Path) -> tuple[float, float]:
    """Seconds and loss of train.py shakespeare-char with these flags."""
    out = work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    program = [sys.executable, ROOT / "nanogpt_lib" / "train.py", "shakespeare-char"]
    seconds = timed([*program, "--data", DATA, "--out", out, *flags.split()], ROOT)
    return seconds, loss_of(load_model(str(out))[0])


def main() -> None:
    """Run all, print the table; --json keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    args = parser.parse_args()
    runs = {
        "nanoGPT, 2000 steps": lambda work: nanogpt(args.checkout, work),
        "ours, its recipe": lambda work: ours(SAME, work),
        "ours, float32": lambda work: ours(SAME + " --dtype float32 --attention sdpa", work),
        "ours, own recipe, 500": lambda work: ours(OWN, work),
    }
    rows: list[dict] = []
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, run in runs.items():
        with tempfile.TemporaryDirectory() as work:
            seconds, loss = run(Path(work))
        rows.append({"run": name, "seconds": round(seconds, 1), "loss": round(loss, 4)})
        ratio = rows[0]["seconds"] / seconds
        print(f"{name:<24}{seconds:8.1f} s{loss:9.4f} nats{ratio:7.2f} times", flush=True)
    if args.json:
        write_record(args.json, rows)


if __name__ == "__main__":
    main()
