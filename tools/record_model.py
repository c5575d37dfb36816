"""Keep a trained model in the repository: its best checkpoint in bfloat16, its log, its samples.

    python nanogpt_lib/train.py recorded              an hour or two on two CPU cores
    python tools/record_model.py runs/recorded        → notebooks/recorded/model

Chapters, exercises and the web page examine this one model, so once committed it must not change.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanogpt_lib.checkpoint import newest_checkpoint
from nanogpt_lib.load import RECORDED, load_model
from nanogpt_lib.logbook import series
from nanogpt_lib.support.checkpoint_files import checkpoints
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, seal, write_atomically, write_json
from nanogpt_lib.support.places import find_data
from nanogpt_lib.support.run_log import read_log


def best_step(run: Path) -> tuple[int, float]:
    """Step and loss of the checkpoint with the lowest validation loss."""
    losses = dict(zip(*series(read_log(run / "log.jsonl"), "val_loss"), strict=True))
    steps = [int(folder.name.removeprefix("step_")) for folder in checkpoints(run)]
    rated = [step for step in steps if step in losses]
    if not rated:
        raise UserError(f"{run}: no checkpoint with a validation loss")
    return min((losses[step], step) for step in rated)[::-1]


def main() -> None:
    """Read the run, write the model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run of the preset recorded")
    parser.add_argument("--out", type=Path, default=RECORDED)
    args = parser.parse_args()
    if (args.out / "state.json").exists():
        raise UserError(f"{args.out}: a model is already recorded here and must not change")
    step, loss = best_step(args.run)
    folder, state = newest_checkpoint(args.run / "checkpoints" / f"step_{step:06d}")
    model, tokenizer = load_model(folder, say=lambda line: None)
    weights = {name: w.bfloat16() for name, w in model.state_dict().items()}
    del weights["lm_head.weight"]  # lm_head is wte
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "model.safetensors"
    save_file(weights, file)
    file.chmod(0o644)
    records = [
        r for r in read_log(args.run / "log.jsonl") if r["step"] % 20 == 0 or "val_loss" in r
    ]
    lines = "".join(json.dumps(r) + "\n" for r in records)
    write_atomically(args.out / "log.jsonl", lines.encode("utf-8"))
    samples = (args.run / "samples.txt").read_text(encoding="utf-8")
    shown = re.search(
        rf"=== step {step}\n(.*?)(?=^=== step |\Z)", samples, re.DOTALL | re.MULTILINE
    )
    write_atomically(args.out / "samples.txt", (shown[1] if shown else samples).encode("utf-8"))
    about = {
        "command": "python data/pydocs.py && python nanogpt_lib/train.py recorded",
        "text": read_meta(find_data(state["train_config"]["data"]))["source"],
        "step": step,
        "val_loss": round(loss, 4),
        "weights": "bfloat16, rounded once after training",
        "torch": torch.__version__,
    }
    write_json(args.out / "about.json", about)
    kept = {k: state[k] for k in ("format", "model_config", "train_config", "tokenizer")}
    files = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}}
    write_json(args.out / "state.json", seal({**kept, "step": step, "files": files}))
    print(
        f"step {step}, validation loss {loss:.4f}, {file.stat().st_size / 1e6:.1f} MB, {args.out}"
    )


if __name__ == "__main__":
    run_program("record_model.py", main)
