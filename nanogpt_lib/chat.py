"""Talk to a model that was fine-tuned on conversations.

    python nanogpt_lib/chat.py --checkpoint runs/finetune-tasks
    python nanogpt_lib/chat.py --checkpoint runs/my-chat --temperature 0.7 --top-k 50
    python nanogpt_lib/chat.py --checkpoint runs/finetune-tasks --ask "What is 12 plus 30?"

Type a question and Enter. It sees the whole conversation, or as much of it as fits. /new begins
another one; an empty line, /quit or Ctrl-D ends the program. Questions may be piped in, one a line.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import argparse
import codecs
import sys
from argparse import Namespace
from collections.abc import Iterator

import torch

from nanogpt_lib.answering import reply
from nanogpt_lib.conversations import roles_of
from nanogpt_lib.device import choose_dtype, detect_device
from nanogpt_lib.graphs import fast_sampling
from nanogpt_lib.load import load_model, say_on_stderr
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError


def arguments(argv: list[str] | None) -> Namespace:
    """Parse and check the command line."""
    parser = OneLineParser(prog="chat.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run, or one of its checkpoints")
    add("--ask", metavar="TEXT", help="answer this one question and exit")
    add("--max-new-tokens", type=int, default=0, help="of an answer (0: a quarter of the context)")
    add("--temperature", type=float, default=0.0, help="0: always the most likely token (default)")
    add("--top-k", type=int, default=50, help="sample from the k most likely tokens (0: all)")
    add("--seed", type=int, default=42)
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    if not args.temperature >= 0 or args.top_k < 0 or args.max_new_tokens < 0:
        raise UserError("--temperature, --top-k and --max-new-tokens must be at least 0")
    return args


def questions(args: Namespace) -> Iterator[str]:
    """What the user asks: --ask, or lines of the terminal (with a prompt) or of a pipe."""
    if args.ask is not None:
        yield args.ask
        return
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line in ("", "/quit"):
            return
        yield line


def main(argv: list[str] | None = None) -> None:
    """Load the model, then answer question after question."""
    args = arguments(argv)
    device = detect_device(args.device)
    model, tokenizer = load_model(args.checkpoint)
    if tokenizer is None:
        raise UserError(f"{args.checkpoint}: no tokenizer")
    roles_of(tokenizer)  # refuses a model that has seen no conversations
    model.to(device).eval()
    longest = args.max_new_tokens or model.config.block_size // 4
    if longest >= model.config.block_size:
        raise UserError(f"--max-new-tokens must be less than {model.config.block_size}")
    generator = torch.Generator(device).manual_seed(args.seed)
    options = dict(temperature=args.temperature, top_k=args.top_k or None, generator=generator)
    messages: list[dict] = []
    with fast_sampling(model, device, choose_dtype(device, "auto"), rows=1):
        for question in questions(args):
            if question == "/new":
                messages = []
                continue
            asked = [*messages, {"role": "user", "content": question}]
            utf8, answer = codecs.getincrementaldecoder("utf-8")(errors="replace"), []
            try:
                for token in reply(model, tokenizer, asked, longest, **options):
                    answer.append(token)
                    print(utf8.decode(tokenizer.decode_bytes([token])), end="", flush=True)
            except UserError as error:  # this question cannot be asked; the next one may
                if args.ask is not None:
                    raise
                say_on_stderr(f"chat.py: {error}")
                continue
            print(utf8.decode(b"", final=True), flush=True)
            messages = [*asked, {"role": "assistant", "content": tokenizer.decode(answer)}]


if __name__ == "__main__":
    run_program("chat.py", main)
