"""Let a model continue a text.

python nanogpt_lib/sample.py --checkpoint runs/quickstart --prompt "The "
python nanogpt_lib/sample.py --checkpoint gpt2 --prompt "Hello, I'm a language model,"
python nanogpt_lib/sample.py --checkpoint gpt2-xl --prompt FILE:prompt.txt --num-samples 1
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import codecs
from pathlib import Path

import torch

from nanogpt_lib.device import choose_dtype, detect_device
from nanogpt_lib.load import load_model
from nanogpt_lib.sampling import stream
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.packed import fast_inference


def read_prompt(prompt: str) -> str:
    """The text itself, or the contents of the file after `FILE:`."""
    if not prompt.startswith("FILE:"):
        return prompt
    try:
        return Path(prompt.removeprefix("FILE:")).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt {prompt}: cannot be read ({error})") from error


def main(argv: list[str] | None = None) -> None:
    """Generate the samples side by side; the first one is shown while it grows."""
    parser = OneLineParser(prog="sample.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a run, one checkpoint, or gpt2 … gpt2-xl"
    )
    parser.add_argument("--prompt", default="\n", help="text to continue, or FILE:path")
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--top-k", type=int, default=50, help="draw among the k likeliest (0: all)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw among the likeliest, up to p"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--dtype", default="auto", help="auto (the fastest here), float32, bfloat16 or float16"
    )
    args = parser.parse_args(argv)
    if args.num_samples < 1 or args.max_new_tokens < 1:
        raise UserError("--num-samples and --max-new-tokens must be at least 1")
    if args.temperature < 0 or args.top_k < 0 or not 0 < args.top_p <= 1:
        raise UserError("--temperature and --top-k must not be negative, --top-p in (0, 1]")

    device = detect_device(args.device)
    dtype = choose_dtype(device, args.dtype)
    model, tokenizer = load_model(args.checkpoint)
    if tokenizer is None:
        raise UserError(f"{args.checkpoint}: its tokenizer is not GPT-2's; give the run itself")
    model.to(device).eval()
    prompt = tokenizer.encode(read_prompt(args.prompt))
    idx = torch.tensor([prompt] * args.num_samples, dtype=torch.long, device=device)
    tokens = stream(
        model,
        idx,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k or None,
        top_p=args.top_p if args.top_p < 1 else None,
        eot=tokenizer.eot,
        generator=torch.Generator(device).manual_seed(args.seed),
    )
    rows = [list(prompt) for _ in range(args.num_samples)]
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may split a character
    print(f"--- sample 1\n{tokenizer.decode(prompt)}" if prompt else "", end="", flush=True)
    with fast_inference(model, device, dtype, rows=args.num_samples):
        for column in tokens:
            ended = rows[0][-1] == tokenizer.eot and len(rows[0]) > len(prompt)
            for row, token in zip(rows, column[:, 0].tolist(), strict=True):
                row.append(token)
            if not ended and rows[0][-1] != tokenizer.eot:
                print(utf8.decode(tokenizer.decode_bytes(rows[0][-1:])), end="", flush=True)
    print(utf8.decode(b"", final=True))
    for number, row in enumerate(rows[1:], 2):
        new = row[len(prompt) :]
        end = new.index(tokenizer.eot) if tokenizer.eot in new else len(new)
        print(f"--- sample {number}\n{tokenizer.decode(prompt + new[:end])}")


if __name__ == "__main__":
    run_program("sample.py", main)
