"""Make the dataset pydocs: the documentation that ships with Python, so nothing is downloaded.

    python data/pydocs.py                     characters  → data/pydocs
    python data/pydocs.py --tokenizer gpt2    GPT-2 BPE   → data/pydocs_gpt2
    python data/pydocs.py --verify            is data/pydocs still undamaged?

The text is the language reference as `help()` shows it (pydoc topics) and the docstrings of the
standard library, read from its source files. It differs a little between Python versions.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import ast
import platform
import random
import sysconfig
from pathlib import Path

from nanogpt_lib.recipes.text import text_recipe
from nanogpt_lib.support.cli import run_recipe
from nanogpt_lib.support.errors import UserError

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "dist-packages"}


def topics() -> list[str]:
    """The language reference, one text per topic."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def docstrings() -> list[str]:
    """Every docstring of the standard library of at least 40 characters."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        if SKIPPED & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # deliberately invalid files
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= 40:
                    found.append(text)
    return found


def collect() -> str:
    """All distinct texts, shuffled with a fixed seed, ASCII only, separated by blank lines."""
    texts = list(dict.fromkeys(text.strip() for text in topics() + docstrings()))
    random.Random(1337).shuffle(texts)
    text = "\n\n\n".join(texts)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    text = "".join(c for c in text if c == "\n" or " " <= c <= "~")
    if len(text) < 500_000:
        raise UserError("this Python ships almost no documentation (a stripped-down build?)")
    return text


def main() -> None:
    """Make the dataset, or check it."""
    source = f"pydoc topics and standard library docstrings of Python {platform.python_version()}"
    text_recipe("pydocs", __doc__, source, collect)


if __name__ == "__main__":
    run_recipe("pydocs.py", main)
