"""Score a model on HellaSwag.

    python nanogpt_lib/score.py --checkpoint runs/gpt2-124m
    python nanogpt_lib/score.py --checkpoint runs/gpt2-124m --json runs/gpt2-124m/hellaswag.json
    python nanogpt_lib/score.py --checkpoint gpt2 --limit 1000 --dtype float32

Make the items first: python data/hellaswag.py. It prints three scores, because published ones
differ in how they compare endings of different length.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import argparse
import sys
import time
from pathlib import Path

from nanogpt_lib.device import choose_dtype, detect_device
from nanogpt_lib.hellaswag import describe_items, read_items
from nanogpt_lib.load import load_model
from nanogpt_lib.model_card import standard_error
from nanogpt_lib.scoring import require_gpt2_tokens, score_items
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.memory import keep_freed_memory

MEANING = {
    "acc_sum": "total loss of the ending (lm-eval: acc)",
    "acc_token": "mean per token (the lecture's acc_norm)",
    "acc_byte": "mean per byte (lm-eval: acc_norm)",
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="score.py", description="Score a model on HellaSwag.")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run, one checkpoint, a Hugging Face folder, a name on the hub (gpt2 … gpt2-xl), or "
        "a file or folder of nanoGPT or build-nanogpt; with GPT-2's tokenizer",
    )
    parser.add_argument(
        "--data",
        default="data/hellaswag/val.jsonl",
        help="items as JSON lines, in the working directory or this repository (%(default)s)",
    )
    parser.add_argument("--limit", type=int, help="only the first N items")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="dtype of the matrix products; use float32 for published scores (%(default)s)",
    )
    parser.add_argument("--batch", type=int, help="tokens per batch (1,024 on a CPU, else 16,384)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the scores here, for the model card"
    )
    args = parser.parse_args(argv)
    for name in ("limit", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Score a checkpoint from the command line."""
    args = parse_arguments(argv)
    device = detect_device(args.device)
    dtype = choose_dtype(device, args.dtype)
    if device.type == "cpu":
        keep_freed_memory()
    model, tokenizer = load_model(args.checkpoint)
    require_gpt2_tokens(tokenizer, args.checkpoint)
    items = read_items(args.data, tokenizer, args.limit)
    options = {"device": device, "dtype": dtype, "budget": args.batch}
    begun = time.perf_counter()
    scores = score_items(model.to(device), items, progress=sys.stderr.isatty(), **options)
    seconds = time.perf_counter() - begun
    speed = f"{seconds:.1f} s, {len(items) / seconds:.1f} items/s"
    print(f"{describe_items(items)}, {args.data}, {str(dtype).split('.')[1]}, {speed}")
    for name, meaning in MEANING.items():
        error = standard_error(scores[name], len(items))
        print(f"{name:9} {scores[name]:.4f} ± {error:.4f}   {meaning}")
    if args.json:
        about = {"items": len(items), "own": sum(item.own for item in items)}
        kept = {name: scores[name] for name in MEANING} | about | {"dtype": str(dtype)[6:]}
        write_json(args.json, kept)


if __name__ == "__main__":
    run_program("score.py", main)
