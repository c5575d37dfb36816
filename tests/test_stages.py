"""The library after each chapter: it imports on its own and, from chapter 04, it learns."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import export  # noqa: E402

IMPORTS = """
import importlib, sys
from pathlib import Path
import nanogpt_lib
from nanogpt_lib import *

here = Path.cwd().resolve()
for path in sorted((here / "nanogpt_lib").rglob("*.py")):
    importlib.import_module(".".join(path.relative_to(here).with_suffix("").parts))
for name in nanogpt_lib.__all__:
    assert getattr(nanogpt_lib, name).__name__ == name
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "nanogpt_lib":
        assert Path(module.__file__).resolve().is_relative_to(here), f"{name} is not this stage's"
print(" ".join(nanogpt_lib.__all__))
"""
# the loop of chapter 04, which every later library must run unchanged
LOOP = """
import torch
from nanogpt_lib import GPT, GPTConfig, TokenLoader

torch.manual_seed(1)
tokens = [i * i % 23 for i in range(2000)]
loader = TokenLoader(tokens, 8, 16)
model = GPT(GPTConfig(block_size=16, vocab_size=23, n_layer=2, n_head=2, n_embd=32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(40):
    x, y = loader.next_batch()
    logits, loss = model(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
"""


def in_stage(folder: Path, script: str) -> str:
    """The output of a script in a separate process that imports the library in `folder`."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A function: chapter number → the folder with the library as of that chapter."""
    folder = tmp_path_factory.mktemp("stages")

    def written(upto: int) -> Path:
        if not (folder / str(upto)).exists():
            export.write_stage(ROOT, upto, folder / str(upto))
        return folder / str(upto)

    return written


@pytest.mark.parametrize("upto", range(1, 11))
def test_after_every_chapter_the_library_imports_alone_and_from_04_on_it_learns(upto, stage):
    learns = upto >= 4
    *losses, names = in_stage(stage(upto), (LOOP if learns else "") + IMPORTS).splitlines()
    # what a chapter teaches is offered from that chapter on, and nothing before
    since = {"GPT": 2, "GPT2Tokenizer": 3, "generate": 3, "TokenLoader": 4, "TokenStream": 8}
    assert {name: name in names.split() for name in since} == {
        name: upto >= chapter for name, chapter in since.items()
    }
    assert "UserError" in names and "train" not in names
    if learns:
        assert 2.9 < float(losses[0]) < 3.4 and len(losses) == 40  # ln 23 = 3.14: it knows nothing
        assert float(losses[-1]) < 0.7 * float(losses[0])


def test_the_library_after_the_last_chapter_is_the_committed_one(stage):
    """What the notebooks export grows into the finished library; it has no programs."""
    folder = stage(10) / "nanogpt_lib"
    for path in folder.rglob("*.py"):
        name = path.relative_to(folder)
        if str(name) != "__init__.py":
            assert path.read_bytes() == (ROOT / "nanogpt_lib" / name).read_bytes(), name
    assert not (folder / "train.py").exists() and (folder / "model.py").exists()
