"""Generate text from a model.

python nanogpt_lib/sample.py --checkpoint runs/quickstart --prompt "The "
python nanogpt_lib/sample.py --checkpoint gpt2 --prompt "Hello, I'm a language model,"
python nanogpt_lib/sample.py --checkpoint gpt2-xl --prompt FILE:prompt.txt --num-samples 1
python nanogpt_lib/sample.py --checkpoint gpt2 --num-samples 1 --weights int8    (faster on a CPU)
python nanogpt_lib/sample.py --checkpoint my/nanoGPT/out --prompt "<|endoftext|>"
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import codecs
from argparse import Namespace
from collections.abc import Iterator

import torch
from torch import Tensor

from nanogpt_lib.device import choose_dtype, detect_device
from nanogpt_lib.graphs import fast_sampling, graph_stream
from nanogpt_lib.load import load_model, say_on_stderr
from nanogpt_lib.prompts import prompt_tokens, read_prompt
from nanogpt_lib.sampling import stream
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.weight_formats import works
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

COST = {  # measured by tests/benchmarks/cost_of_weights.py on small trained models
    "float16": "where measured, perplexity moved by less than 0.001 %",
    "int8": "where measured, perplexity rose by at most 0.003 %, and some greedy texts changed",
}
ROUNDED = "round float32 weights to float16 or int8, which is faster (%(default)s: as they are)"


def arguments(argv: list[str] | None) -> Namespace:
    """Parse and check the command line."""
    parser = OneLineParser(prog="sample.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help="a run, one checkpoint, a Hugging Face folder, a name on the hub (gpt2 … gpt2-xl), or "
        "a file or folder of nanoGPT or build-nanogpt (ckpt.pt, model_NNNNN.pt)",
    )
    add(
        "--prompt",
        default="",
        help="text to continue, or FILE:path; special tokens such as <|endoftext|> are recognised; "
        "empty: generate without a prompt",
    )
    add("--num-samples", type=int, default=4)
    add("--max-new-tokens", type=int, default=100)
    add("--top-k", type=int, default=50, help="sample from the k most likely tokens (0: all)")
    add("--top-p", type=float, default=1.0, help="sample from the most likely tokens, up to mass p")
    add("--temperature", type=float, default=1.0, help="0: always the most likely token")
    add("--seed", type=int, default=42)
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    dtypes = "auto (the fastest here), float32, bfloat16 or float16"
    add("--dtype", default="auto", help=dtypes)
    add("--weights", default="float32", choices=["float32", *COST], help="on a CPU: " + ROUNDED)
    args = parser.parse_args(argv)
    if args.num_samples < 1 or args.max_new_tokens < 1:
        raise UserError("--num-samples and --max-new-tokens must be at least 1")
    if not args.temperature >= 0 or args.top_k < 0 or not 0 < args.top_p <= 1:
        raise UserError("--temperature and --top-k must be at least 0, --top-p in (0, 1]")
    return args


def show(
    columns: Iterator[Tensor],
    samples: int,
    tokenizer: GPT2Tokenizer | CharTokenizer,
    prompt: str,
) -> None:
    """Print the samples from columns (samples, 1) of new tokens: the first as it is generated."""
    rows: list[list[int]] = [[] for _ in range(samples)]
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may split a character
    print(f"--- sample 1\n{prompt}", end="", flush=True)
    for column in columns:
        for row, token in zip(rows, column[:, 0].tolist(), strict=True):
            row.append(token)
        if tokenizer.eot not in rows[0]:
            print(utf8.decode(tokenizer.decode_bytes(rows[0][-1:])), end="", flush=True)
    print(utf8.decode(b"", final=True))
    for number, row in enumerate(rows[1:], 2):
        end = row.index(tokenizer.eot) if tokenizer.eot in row else len(row)
        print(f"--- sample {number}\n{prompt}{tokenizer.decode(row[:end])}")


def choose_precision(args: Namespace, device: torch.device) -> torch.dtype:
    """The dtype of the products; says what rounded weights cost. Raises UserError for conflicts."""
    if args.weights == "float32":
        return choose_dtype(device, args.dtype)
    if device.type != "cpu":
        raise UserError(f"--weights {args.weights}: only on a CPU (--device cpu)")
    if args.dtype not in ("auto", "float32"):
        raise UserError(f"--weights {args.weights} computes in float32; leave out --dtype")
    if works(args.weights):
        cost = f"{COST[args.weights]} (see tests/benchmarks/README.md)"
        say_on_stderr(f"weights rounded to {args.weights}: {cost}")
    return torch.float32


def main(argv: list[str] | None = None) -> None:
    """Generate all samples in one batch."""
    args = arguments(argv)
    device = detect_device(args.device)
    dtype = choose_precision(args, device)
    text = read_prompt(args.prompt)
    model, tokenizer = load_model(args.checkpoint)
    if tokenizer is None:
        raise UserError(
            f"{args.checkpoint}: no tokenizer; put GPT-2's vocab.json and merges.txt next to the "
            'weights, or characters.json with its sorted characters as one "string"'
        )
    prompt = prompt_tokens(tokenizer, text, model.config.block_size, say_on_stderr)
    model.to(device).eval()
    generate = graph_stream if device.type == "cuda" else stream
    columns = generate(
        model,
        torch.tensor([prompt] * args.num_samples, device=device),
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k or None,
        top_p=args.top_p if args.top_p < 1 else None,
        eot=tokenizer.eot,
        generator=torch.Generator(device).manual_seed(args.seed),
    )
    nothing = not text and tokenizer.eot is not None  # do not print <|endoftext|> itself
    with fast_sampling(model, device, dtype, rows=args.num_samples, weights=args.weights):
        show(columns, args.num_samples, tokenizer, "" if nothing else tokenizer.decode(prompt))


if __name__ == "__main__":
    run_program("sample.py", main)
