"""The runs that chapter 11 reads: fine-tuning on tasks and on the Sonnets, each beside another way.

    python tests/benchmarks/finetuning.py --out notebooks/recorded/finetuning.jsonl
    python tests/benchmarks/finetuning.py --out mine.jsonl --only answers,adapters --steps 300
    python tests/benchmarks/finetuning.py --list

One JSON line per run: command, machine, losses by step, seconds, and for tasks the share of exact
answers by kind, the first failures, and the loss on the text that the model was first trained on.
A run whose line is there is not repeated, so after a kill the same command goes on. It first makes
the datasets pydocs, tasks and sonnets where they are missing.
"""

if __name__ == "__main__":
    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import about, append_line, read_lines
from tqdm import tqdm

from nanogpt_lib.answering import answer_loss, answers
from nanogpt_lib.conversations import ConversationLoader, roles_of
from nanogpt_lib.device import autocast, choose_dtype
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.finetuning import add_adapters, extend_vocabulary, kept_rows, merge_adapters
from nanogpt_lib.load import RECORDED, load_model
from nanogpt_lib.recipes.tasks import KINDS, some_tasks
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import ROOT
from nanogpt_lib.support.run_log import read_log
from nanogpt_lib.tokenizer import tokenizer_from

SHAPE = "--n-layer 4 --n-head 4 --n-embd 256 --no-bias"
TASKS = "finetune-tasks --data {data}/tasks --max-steps {steps}"
SONNETS = (
    "--data {data}/sonnets --block-size 256 --vocab-multiple 1 --attention manual --batch-size 8 "
    "--total-batch-size 2048 --max-steps {steps} --warmup-steps 20 --weight-decay 0 "
    "--eval-every 10 --eval-tokens 9000 --sample-every 0 --save-every 0 --log-every 20 "
    "--keep-checkpoints 1"
)
FROM = "--init-from notebooks/recorded/model"
RUNS = {  # name: flags of train.py, steps
    "answers": (TASKS, 1000),
    "every token": (TASKS + " --loss-on conversations", 1000),
    "from scratch": (TASKS + " --init-from scratch", 1000),
    "adapters": ("", 1000),  # not a run of train.py: see adapted
    "sonnets small rate": (f"{SONNETS} {FROM} --learning-rate 3e-4 --min-lr 3e-5", 400),
    "sonnets large rate": (f"{SONNETS} {FROM} --learning-rate 3e-3 --min-lr 3e-4", 400),
    "sonnets from scratch": (f"{SONNETS} {SHAPE} --learning-rate 3e-3 --min-lr 3e-4", 400),
    "five minutes": ("finetune-tasks --data {data}/tasks", 0),
}
HELD_OUT = {
    "known": {},
    "items": {"items": "held out"},
    "lengths": {"items": "held out", "lengths": "held out"},
    "wordings": {"items": "held out", "wordings": "held out"},
}
RANK = 16  # of the adapters


def make_data(data: Path) -> None:
    """Make the datasets that are missing in a folder."""
    for name, recipe in (
        ("pydocs", "data/pydocs.py"),
        ("tasks", "data/tasks.py"),
        ("sonnets", f"data/text.py notebooks/recorded/sonnets.txt --tokenizer {RECORDED}"),
    ):
        if not (data / name / "meta.json").exists():
            command = [sys.executable, *recipe.split(), "--out", str(data / name)]
            subprocess.run(command, cwd=ROOT, check=True)


def examined(model, tokenizer, count: int, data: Path) -> dict:
    """Shares of exact answers by what is held out and kind, the first failures, the old loss."""
    exact, right, failures = {}, [], []
    for name, held_out in tqdm(HELD_OUT.items(), desc="asking", leave=False):
        exact[name] = {}
        for kind in KINDS:
            tasks = some_tasks(kind, count, **held_out)
            said = answers(model, tokenizer, [task.question for task in tasks])
            wrong = [
                [*task, text] for task, text in zip(tasks, said, strict=True) if text != task.answer
            ]
            exact[name][kind] = 1 - len(wrong) / count
            failures += [[name, *entry] for entry in wrong[:4]]
            if name == "items":
                right += [[*t] for t, text in zip(tasks, said, strict=True) if text == t.answer][:1]
    result = {"exact": exact, "right": right, "failures": failures, "asked": count}
    return {**result, "old_loss": old_loss(model, data)}


def old_loss(model, data: Path) -> float:
    """The loss on the text that the recorded model was trained on, in nats per character."""
    text = TokenStream(data / "pydocs", "val")
    return round(validation_loss(model, text, tokens=65_536, batch_size=16), 4)


def trained(flags: str, out: Path) -> dict:
    """A run of train.py: its validation losses by step, and the seconds of training."""
    command = [sys.executable, "nanogpt_lib/train.py", *shlex.split(flags), "--out", str(out)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f"train.py {flags}: failed")
    log = read_log(out / "log.jsonl")
    losses = [[r["step"], round(r["val_loss"], 4)] for r in log if "val_loss" in r]
    return {"losses": losses, "seconds": round(max(r.get("seconds", 0) for r in log), 1)}


def adapted(steps: int, data: Path) -> tuple:
    """Fine-tune adapters of rank RANK and the new tokens' rows; the merged model, and a record."""
    torch.manual_seed(0)
    model, old = load_model(RECORDED, say=lambda line: None, dropout=0.0)
    tokenizer = tokenizer_from(read_meta(data / "tasks")["tokenizer"])
    rows = kept_rows(old, tokenizer)
    model = extend_vocabulary(model, rows)
    add_adapters(model, RANK)
    wte = model.transformer.wte.weight.requires_grad_(True)
    new = torch.tensor([[float(row < 0)] for row in rows])
    wte.register_hook(lambda gradient: gradient * new)  # the known tokens stay as they are
    roles, dtype = roles_of(tokenizer), choose_dtype(torch.device("cpu"), "auto")
    tokens, val = (TokenStream(data / "tasks", split) for split in ("train", "val"))
    loader = ConversationLoader(tokens, 8, 256, roles=roles)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses, spent = [], 0.0

    def evaluate(step: int) -> None:
        loss = answer_loss(model, val, roles, tokens=32_768, batch_size=16, dtype=dtype)
        losses.append([step, round(loss, 4)])

    for step in tqdm(range(steps), desc="adapters"):
        if step % 100 == 0:
            evaluate(step)
        start = time.perf_counter()
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 30, 2 - 2 * step / steps, 1)
        x, y = loader.next_batch()
        with autocast(torch.device("cpu"), dtype):
            loss = model(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent += time.perf_counter() - start
    evaluate(steps)
    few = sum(p.numel() for p in parameters) - wte.numel() + int(new.sum()) * wte.size(1)
    merge_adapters(model)
    return model, tokenizer, {"losses": losses, "seconds": round(spent, 1), "trainable": few}


def record_of(name: str, steps: int, asked: int, data: Path) -> dict:
    """Do one run and examine what it made."""
    flags = RUNS[name][0].format(steps=steps, data=data)
    shown = RUNS[name][0].format(steps=steps, data="data")
    record = {"run": name, "steps": steps, "train.py": shown, "machine": about()}
    if not name.startswith("sonnets"):
        record["old_loss_before"] = old_loss(load_model(RECORDED, say=lambda line: None)[0], data)
    if name == "adapters":
        model, tokenizer, more = adapted(steps, data)
        return {**record, **more, **examined(model, tokenizer, asked, data)}
    with tempfile.TemporaryDirectory() as folder:
        record |= trained(flags, Path(folder) / "run")
        record["steps"] = record["losses"][-1][0]
        if not name.startswith("sonnets"):
            model, tokenizer = load_model(Path(folder) / "run", say=lambda line: None)
            record |= examined(model, tokenizer, asked, data)
    return record


def main() -> None:
    """Do the runs that are missing in the file."""
    parser = OneLineParser(prog="finetuning.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, help="file of JSON lines")
    add("--only", help="names of runs, with commas between (default: all)")
    add("--steps", type=int, help="of every run, instead of its own number")
    add("--asked", type=int, default=100, help="tasks of each kind (default: %(default)s)")
    add("--data", type=Path, default=ROOT / "data", help="folder of the datasets (%(default)s)")
    add("--list", action="store_true", help="print the names")
    args = parser.parse_args()
    if args.list:
        return print(*RUNS, sep="\n")
    names = [n for n in RUNS if args.only is None or n in args.only.split(",")]
    if args.out is None or not names:
        parser.error("give --out FILE.jsonl, and with --only names of --list")
    make_data(args.data)
    done = {record["run"] for record in read_lines(args.out)}
    for name in names:
        if name in done:
            print(f"{name}: already in {args.out}")
            continue
        record = record_of(name, args.steps or RUNS[name][1], args.asked, args.data)
        append_line(args.out, record)
        mean = {n: sum(of.values()) / len(of) for n, of in record.get("exact", {}).items()}
        print(name, *(f"{n} {share:.0%}" for n, share in mean.items()), record["losses"][-1])
    return None


if __name__ == "__main__":
    run_program("finetuning.py", main)
