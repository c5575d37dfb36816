"""Do we train as the lecture's script does? Run both from equal weights and compare every loss.

    git clone https://github.com/karpathy/build-nanogpt
    python tests/benchmarks/equal_lecture.py build-nanogpt            20 losses, equal to 1e-5
    python tests/benchmarks/equal_lecture.py build-nanogpt --width 768 --layers 12 --heads 12 \\
        --block 1024 --rows 8 --micro-steps 1 --steps 100 --dtype bfloat16 --tolerance 0.01
                                                                      124M on a GPU
    python tests/benchmarks/equal_lecture.py build-nanogpt --characters --width 32 --layers 2 \\
        --record tests/fixtures/lecture                               what the test suite compares

Theirs: train_gpt2.py unchanged, from the first line to the last, in a separate process. Only its
constants (sizes, steps, dtype), each asserted to exist, are replaced, and the HellaSwag download by
one made-up item. Ours: nanogpt_lib/train.py from the same initial weights, without shuffling, and
with a vocabulary of 50304, because their softmax covers the padding too. Every setting that the
lecture fixes is on our command line, so that our defaults cannot affect the comparison.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.files import write_json
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

VOCAB = 50304  # rows of their wte
LATIN_1 = "".join(map(chr, range(256)))  # the alphabet of --characters

# Runs in a process of its own, in a folder with source.py: their script, constants replaced.
THEIRS = """
import json, sys, types
import tiktoken, torch
from safetensors.torch import save_file
from nanogpt_lib.tokenizer import tokenizer_from

hellaswag = types.ModuleType("hellaswag")  # theirs downloads when it is asked for items
hellaswag.iterate_examples = lambda split: [None]
item = torch.arange(32).view(4, 8), torch.ones(4, 8, dtype=torch.long)
hellaswag.render_example = lambda example: (None, *item, 0)
sys.modules["hellaswag"] = hellaswag
tiktoken.get_encoding = lambda name: tokenizer_from(json.loads(sys.argv[1]))  # no network
LOOP = "\\nfor step in range(max_steps):"
BEFORE, AFTER = open("source.py", encoding="utf-8").read().split(LOOP)
exec(compile(BEFORE, "train_gpt2.py", "exec"))
weights = {k: v for k, v in raw_model.state_dict().items() if k != "lm_head.weight"}
save_file(weights, "initial.safetensors")
exec(compile("\\n" * BEFORE.count("\\n") + LOOP + AFTER, "train_gpt2.py", "exec"))
"""

# Their initial weights as a checkpoint of ours, so that train.py can begin with it.
CONVERT = """
import json, sys
from safetensors.torch import load_file
from nanogpt_lib.checkpoint import save_checkpoint
from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.optimizer import make_optimizer

state = load_file("initial.safetensors")
model = GPT(GPTConfig(**json.loads(sys.argv[1])))
load_weights(model, {**state, "lm_head.weight": state["transformer.wte.weight"]})
optimizer = make_optimizer(model, learning_rate=1.0)
save_checkpoint("initial", 0, model, optimizer, {"tokenizer": json.loads(sys.argv[2])})
"""


def python(folder: Path, *args: str) -> str:
    """Run this Python in a folder with our library on its path; return what it printed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-W", "ignore", "-c", code + args[0], *args[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def tokenizer_of(args: argparse.Namespace) -> CharTokenizer | GPT2Tokenizer:
    """GPT-2's tokens or, small enough to be recorded, 256 characters.

    The lecture's loss covers the padding of its vocabulary, so here those 47 rows are tokens too.
    """
    if args.characters:
        return CharTokenizer(LATIN_1)
    return GPT2Tokenizer(added=[f"<|padding {i}|>" for i in range(VOCAB - 50257)])


def vocabulary_of(args: argparse.Namespace) -> int:
    """Rows of wte on both sides."""
    return len(LATIN_1) if args.characters else VOCAB


def cut_data(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Tokens of Python's manual, training and validation.

    Length: whole batches and one token, so that both loaders start over at the same place.
    """
    text = "\n".join(topics.values()).encode("latin-1", "replace").decode("latin-1")
    batch = args.rows * args.block
    most = args.steps * 2 // 3 * batch + 1
    tokens = np.array(tokenizer_of(args).encode(text[: 20 * (most + batch)]), dtype=np.uint16)
    return {"train": tokens[: min((len(tokens) - batch - 1) // batch * batch + 1, most)],
            "val": tokens[-batch - 1 :]}  # fmt: skip


def write_data(folder: Path, args: argparse.Namespace, splits: dict[str, np.ndarray]) -> None:
    """The same tokens twice: a dataset of ours and their folder of shards."""
    meta = {"name": "manual", "source": "pydoc topics", "vocab_size": vocabulary_of(args)}
    write_splits(folder / "data", {**meta, "tokenizer": tokenizer_of(args).describe()}, **splits)
    (folder / "edu_fineweb10B").mkdir()
    for split, tokens in splits.items():
        np.save(folder / f"edu_fineweb10B/{split}_0.npy", tokens)


def shape_of(args: argparse.Namespace) -> dict:
    """The model's settings, named as both sides name them."""
    names = dict(block_size=args.block, n_layer=args.layers, n_head=args.heads, n_embd=args.width)
    return {"vocab_size": vocabulary_of(args), **names}


def adapt(source: str, args: argparse.Namespace) -> str:
    """Their source with our constants; refuses a script in which one is not where we expect it."""
    shape = ", ".join(f"{name}={value}" for name, value in shape_of(args).items())
    tokens = args.rows * args.block * args.micro_steps
    for old, new, count in (
        ("total_batch_size = 524288", f"total_batch_size = {tokens}", 1),
        ("\nB = 64 ", f"\nB = {args.rows} ", 1),
        ("\nT = 1024 ", f"\nT = {args.block} ", 1),
        ("GPT(GPTConfig(vocab_size=50304))", f"GPT(GPTConfig({shape}))", 1),
        ("warmup_steps = 715", f"warmup_steps = {args.steps // 4}", 1),
        ("max_steps = 19073", f"max_steps = {args.steps}", 1),
        ("dtype=torch.bfloat16", f"dtype=torch.{args.dtype}", 4),
    ):
        if source.count(old) != count:
            sys.exit(f"train_gpt2.py: {old!r} occurs {source.count(old)} times, expected {count}")
        source = source.replace(old, new)
    return source


def run_theirs(checkout: Path, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Their steps: loss, lr, norm; leaves initial.safetensors in the folder."""
    source = (checkout / "train_gpt2.py").read_text(encoding="utf-8")
    (folder / "source.py").write_text(adapt(source, args), encoding="utf-8")
    printed = python(folder, THEIRS, json.dumps(tokenizer_of(args).describe()))
    found = re.findall(r"step +\d+ \| loss: (\S+) \| lr (\S+) \| norm: (\S+)", printed)
    return [dict(zip(("loss", "lr", "norm"), map(float, line), strict=True)) for line in found]


def run_ours(folder: Path, args: argparse.Namespace, *flags: str) -> list[dict]:
    """Our steps, by train.py; `flags` can change a setting that must break the equality."""
    if not (folder / "initial").exists():
        tokenizer = json.dumps(tokenizer_of(args).describe())
        python(folder, CONVERT, json.dumps(shape_of(args)), tokenizer)
    out = f"run{len(list(folder.glob('run*')))}"
    settings = {
        "data": "data", "out": out, "init-from": "initial", "device": args.device,
        "dtype": args.dtype, "compile": "off", "vocab-multiple": 1, "attention": "sdpa",
        "optimizer": "adamw", "schedule": "cosine", "weight-decay": 0.1, "beta1": 0.9,
        "beta2": 0.95, "grad-clip": 1.0, "dropout": 0.0,
        "batch-size": args.rows, "block-size": args.block, "n-layer": args.layers,
        "n-head": args.heads, "n-embd": args.width, "max-steps": args.steps,
        "total-batch-size": args.rows * args.block * args.micro_steps,
        "warmup-steps": args.steps // 4, "learning-rate": 6e-4, "min-lr": 6e-5,
        "eval-every": 0, "save-every": 0, "sample-every": 0, "sample-tokens": 1,
        "eval-tokens": args.rows * args.block,
    }  # fmt: skip
    line = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    code = "from nanogpt_lib.train import main\nsys.exit(main(sys.argv[1:]))"
    python(folder, code, *line, "--bias", "--no-shuffle", *flags)
    log = (folder / out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, log) if "train_loss" in row]
    return [{"loss": r["train_loss"], "lr": r["lr"], "norm": r["grad_norm"]} for r in rows]


def record(args: argparse.Namespace, folder: Path, splits: dict, theirs: list[dict]) -> None:
    """Keep what the test suite needs to repeat our half of the comparison without a checkout."""
    args.record.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "initial.safetensors", args.record / "initial.safetensors")
    np.savez_compressed(args.record / "tokens.npz", **splits)
    names = ("steps", "rows", "block", "layers", "heads", "width", "micro_steps", "characters")
    about = {name: getattr(args, name) for name in names}
    write_json(args.record / "steps.json", {"settings": about, "theirs": theirs})


def worst(ours: list[dict], theirs: list[dict], name: str) -> float:
    """The largest difference of a column over all steps."""
    return max(abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True))


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults take about half a minute on a laptop."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="folder of build-nanogpt")
    parser.add_argument("--steps", type=int, default=20)
    sizes = dict(rows=4, block=32, layers=3, heads=4, width=64, micro_steps=2)
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto", help="of ours; theirs takes CUDA if it can")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference (nats)")
    parser.add_argument("--characters", action="store_true", help="256 characters as vocabulary")
    parser.add_argument("--record", type=Path, help="keep weights, tokens and their steps here")
    parser.add_argument("--json", type=Path, help="also write both curves to this file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run both, print the curves side by side; exit status 1 if they differ."""
    args = read_arguments(argv)
    if not (args.checkout / "train_gpt2.py").exists():
        sys.exit(f"{args.checkout}: no train_gpt2.py here; clone karpathy/build-nanogpt")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        splits = cut_data(args)
        write_data(folder, args, splits)
        theirs = run_theirs(args.checkout, folder, args)
        ours = run_ours(folder, args)
        if args.record:
            record(args, folder, splits, theirs)
    print(f"{'step':>4}{'theirs':>12}{'ours':>12}{'difference':>12}")
    for step, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        difference = b["loss"] - a["loss"]
        print(f"{step:4}{a['loss']:12.6f}{b['loss']:12.6f}{difference:12.1e}")
    found = {name: worst(ours, theirs, name) for name in ("loss", "lr", "norm")}
    print("largest difference:", ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    if args.json:
        about = {"shape": shape_of(args), "dtype": args.dtype, "rows": args.rows}
        about["torch"] = version("torch")
        write_json(args.json, {**about, "theirs": theirs, "ours": ours, "worst": found})
    return int(not found["loss"] <= args.tolerance)


if __name__ == "__main__":
    sys.exit(main())
