"""Make the dataset shakespeare: Tiny Shakespeare, the 1.1 million characters of the lecture.

    python data/shakespeare.py                     characters  → data/shakespeare
    python data/shakespeare.py --tokenizer gpt2    GPT-2 BPE   → data/shakespeare_gpt2
    python data/shakespeare.py --verify            is data/shakespeare still undamaged?

NANOGPT_MIRROR (a folder or URL) is tried first, for shakespeare/input.txt.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from nanogpt_lib.recipes.text import text_recipe
from nanogpt_lib.support.cli import run_recipe
from nanogpt_lib.support.download import obtain
from nanogpt_lib.support.places import DATA

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def collect() -> str:
    """The whole text."""
    path = DATA / "downloads" / "shakespeare.txt"
    print("Tiny Shakespeare:", obtain("shakespeare/input.txt", URL, path, SHA256))
    return path.read_text(encoding="utf-8")


def main() -> None:
    """Make the dataset, or check it."""
    source = "Tiny Shakespeare, as distributed with char-rnn"
    text_recipe("shakespeare", __doc__, source, collect)


if __name__ == "__main__":
    run_recipe("shakespeare.py", main)
