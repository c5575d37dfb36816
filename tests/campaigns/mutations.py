"""Would the tests notice? Make forty small mistakes, one at a time, in a copy of the repository.

    python tests/campaigns/mutations.py [--only WORD] [--jobs 1]

Each mistake is a plausible one: a sign, an index, a missing line. It is caught if a test of that
part fails. Exit status 1 if fewer than 38 are caught, or if a line to be changed no longer exists.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[2]
MODEL, SAMPLING, LOADER, OPTIMIZER = "test_model test_sampling test_loader test_optimizer".split()
SCORING = "test_hellaswag test_score test_evaluation"
SAVING = "test_checkpoint test_lost"
MUTATIONS = [  # file, the original, the mistake, tests
    ("model", "/ math.sqrt(q.size(-1))  # (B, H, T, S)", "  # (B, H, T, S)", MODEL),
    (
        "model",
        ".tril(diagonal=S - T)\n    weights",
        ".tril(diagonal=S - T + 1)\n    weights",
        MODEL,
    ),
    ("model", "x = x + self.mlp(self.ln_2(x))", "x = self.mlp(self.ln_2(x))", MODEL),
    ("model", "x = x + self.attn(self.ln_1(x), context)", "x = x + self.attn(x, context)", MODEL),
    ("model", 'nn.GELU(approximate="tanh")', "nn.GELU()", MODEL),
    ("model", "return self.ln_f(x)", "return x", MODEL),
    ("model", "self.transformer.wte.weight = self.lm_head.weight", "pass", MODEL),
    ("model", "0.02 / math.sqrt(2 * n_layer)", "0.02 / math.sqrt(n_layer)", MODEL),
    ("model", ")[..., : self.config.vocab_size]", ")", MODEL),
    (
        "model",
        "if visible is None and T > 1:",
        "if visible is None and T > 2:",
        f"{MODEL} {SAMPLING}",
    ),
    ("context", "start = cache[0].length", "start = 0", SAMPLING),
    (
        "context",
        "self.k[:, :, self.length : end] = k",
        "self.k[:, :, self.length : end] = v",
        SAMPLING,
    ),
    ("sampling", "logits < kth", "logits <= kth", SAMPLING),
    ("sampling", "before >= p", "before > p + 0.1", SAMPLING),
    ("sampling", "logits = logits / temperature", "logits = logits * temperature", SAMPLING),
    ("sampling", "right=True)", "right=False)", SAMPLING),
    ("sampling", "torch.where(finished, eot, token)", "torch.where(finished, 0, token)", SAMPLING),
    ("sampling", "enabled=False):\n        logits", "enabled=True):\n        logits", SAMPLING),
    ("loader", "windows[:, 1:].contiguous()", "windows[:, :-1].contiguous()", LOADER),
    ("loader", "[self.rank * B : (self.rank + 1) * B]", "[self.rank : self.rank + B]", LOADER),
    ("loader", "default_rng([seed, epoch])", "default_rng([seed])", LOADER),
    ("loader", "end = tokens - block_size", "end = tokens - block_size - 1", LOADER),
    ("loader", "self.go_to(self.epoch + 1, 0)", "self.go_to(self.epoch, 0)", LOADER),
    ("optimizer", "max_lr * (step + 1) / warmup_steps", "max_lr * step / warmup_steps", OPTIMIZER),
    (
        "optimizer",
        'p.dim() < 2], "weight_decay": 0.0',
        'p.dim() < 2], "weight_decay": weight_decay',
        OPTIMIZER,
    ),
    ("optimizer", "math.cos(math.pi * progress)", "math.cos(progress)", OPTIMIZER),
    ("muon", "max(1, rows / columns)", "max(1, columns / rows)", OPTIMIZER),
    ("muon", "lerp_(p.grad, 1 - beta)", "lerp_(p.grad, beta)", OPTIMIZER),
    ("distributed", "and not sync:", "and sync:", "test_distributed"),
    ("distributed", "dist.all_reduce(total)", "pass", "test_distributed"),
    ("train", "loss / run.micro_steps", "loss", "test_train"),
    (
        "shards",
        "(int(self.ends[number - 1]) if number",
        "(int(self.ends[0]) if number",
        "test_shards",
    ),
    (
        "shards",
        "row[0], row[1:] = eot, ids",
        "row[-1], row[:-1] = eot, ids",
        "test_shards test_recipes",
    ),
    (
        "shards",
        "number, offset, done = number + 1, 0,",
        "number, offset, done = number + 1, offset,",
        "test_shards",
    ),
    ("hellaswag", "sums / sizes]).argmin", "sums / lengths]).argmin", SCORING),
    ("hellaswag", "mask[r, len(row) - 1 - len(ending)", "mask[r, len(row) - len(ending)", SCORING),
    ("scoring", "(key == 0) | (key == query)", "(key == 0) | (key <= query)", SCORING),
    (
        "scoring",
        "range(len(trunk), len(row) - 1)",
        "range(first, first + len(row) - 1 - len(trunk))",
        SCORING,
    ),
    ("evaluation", "total += loss.item() * y.numel()", "total += loss.item()", SCORING),
    ("checkpoint", "prune(out, step, keep", "prune(out, step, 1", SAVING),
    ("checkpoint", "numbers |= {str(index)", "numbers = {str(index)", SAVING),
    (
        "support/checkpoint_files",
        "os.replace(temporary, final)",
        "shutil.copytree(temporary, final)",
        SAVING,
    ),
    (
        "support/checkpoint_files",
        "        raise UserError(problem)\n    return answers",
        "        pass\n    return answers",
        SAVING,
    ),
    ("support/guard", "self.signal = self.signal or int(number)", "pass", SAVING),
]


def copy_repository(target: Path) -> None:
    """The tracked files, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).exists() and not name.endswith(".ipynb"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def try_mutation(mutation: tuple, copies: Queue) -> tuple[str, float]:
    """Make one mistake in a copy, run the tests of that part, undo it."""
    file, old, new, tests = mutation
    copy = copies.get()
    try:
        path = copy / f"nanogpt_lib/{file}.py"
        source, begun = path.read_text(encoding="utf-8"), time.monotonic()
        if source.count(old) != 1:
            return f"STALE: found {source.count(old)} times", 0.0
        path.write_text(source.replace(old, new), encoding="utf-8")
        names = [
            f"tests/{name}.py" for name in tests.split() if (copy / f"tests/{name}.py").exists()
        ]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *names]
        env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
        path.write_text(source, encoding="utf-8")
        if done.returncode > 1:  # nothing was tested
            return f"BROKEN: pytest ended with {done.returncode}", time.monotonic() - begun
        failed = [line for line in done.stdout.split("\n") if line.startswith(("FAILED", "ERROR"))]
        word = failed[0].split(" ")[1] if failed else "SURVIVED"
        return word, time.monotonic() - begun
    finally:
        copies.put(copy)


def main() -> int:
    """Try all of them; print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only files with this word in their names")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    args = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation[0]]
    copies: Queue[Path] = Queue()
    caught = stale = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        for number in range(args.jobs):
            copies.put(Path(folder) / str(number))
            copy_repository(Path(folder) / str(number))
        results = pool.map(lambda mutation: try_mutation(mutation, copies), chosen)
        for (file, old, *_), (word, seconds) in zip(chosen, results, strict=True):
            stale += word.startswith(("STALE", "BROKEN"))
            caught += not word.startswith(("STALE", "BROKEN", "SURVIVED"))
            print(f"{file:<12}{old.splitlines()[0][:44]:<46}{seconds:4.0f} s  {word}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return int(stale > 0 or caught < 0.95 * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
