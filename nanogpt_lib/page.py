"""Your GPT in one HTML file: model, tokenizer and program; open it in a browser, no server needed.

python nanogpt_lib/page.py --checkpoint runs/quickstart --out my-gpt.html
python nanogpt_lib/page.py --checkpoint runs/shakespeare --out bard.html --prompt "ROMEO:"
python nanogpt_lib/page.py --checkpoint runs/finetune-tasks --out answers.html    a chat

The program in the page is nanogpt_lib/web/*.js; model.js mirrors model.py function by function.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

from argparse import Namespace
from pathlib import Path

from nanogpt_lib import webpage
from nanogpt_lib.answering import recent
from nanogpt_lib.load import load_model, say_on_stderr
from nanogpt_lib.model import GPT, count_parameters
from nanogpt_lib.prompts import prompt_tokens
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import in_units, make_folder, write_atomically
from nanogpt_lib.webpage import LARGEST_PAGE, make_page


def arguments(argv: list[str] | None) -> Namespace:
    """Parse and check the command line."""
    parser = OneLineParser(prog="page.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run or another source, as for sample.py")
    add("--out", default="my-gpt.html", help="the file to write")
    add("--prompt", help="the text or question that the page begins with")
    add("--title", default="A GPT in a page", help="its heading")
    weights = "int8, bfloat16, or auto: int8 unless that raises the loss by over 0.5 %%"
    add("--weights", default="auto", choices=("auto", "int8", "bfloat16"), help=weights)
    args = parser.parse_args(argv)
    if Path(args.out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {args.out}: must end in .html, so that a browser opens it")
    return args


def beginning(prompt: str | None, tokenizer, block_size: int) -> str:
    """The prompt, or one that fits the model; raises UserError if it cannot be read."""
    if webpage.answers(tokenizer):
        prompt = "What is 12 plus 30?" if prompt is None else prompt
        recent(tokenizer, [{"role": "user", "content": prompt}], block_size - block_size // 4)
    else:
        prompt = "The " if prompt is None else prompt
        prompt_tokens(tokenizer, prompt, block_size, say_on_stderr)
    return prompt


def check(model: GPT, tokenizer, source: str) -> None:
    """Raise UserError for a model that the page cannot run."""
    if type(model) is not GPT:
        raise UserError(f"{source}: the page runs GPT-2's architecture only, not this model")
    if tokenizer is None:
        raise UserError(f"{source}: no tokenizer, so a page could show no text")
    if (n := count_parameters(model)) > LARGEST_PAGE:
        raise UserError(
            f"{source}: {n:,} parameters; a page is for at most {LARGEST_PAGE:,}, since a browser "
            "takes minutes for a sentence with more; use sample.py"
        )


def main(argv: list[str] | None = None) -> None:
    """Load the model, round it, write the page."""
    args = arguments(argv)
    model, tokenizer = load_model(args.checkpoint)
    check(model, tokenizer, args.checkpoint)
    prompt = beginning(args.prompt, tokenizer, model.config.block_size)
    page, _, line = make_page(model, tokenizer, prompt=prompt, title=args.title, dtype=args.weights)
    out = Path(args.out)
    make_folder(out.parent)
    data = page.encode("utf-8")
    write_atomically(out, data)
    print(line)
    print(f"{out}: {in_units(len(data))}; open it in a browser, it needs no server and no network")


if __name__ == "__main__":
    run_program("page.py", main)
