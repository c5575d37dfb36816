"""Fine-tuning: more tokens, adapters, train.py on conversations, chat.py, the recipes."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from conftest import ROOT, TINY, log_of, program
from nanogpt_lib import chat, train
from nanogpt_lib.conversations import roles_of, with_roles
from nanogpt_lib.finetuning import add_adapters, extend_vocabulary, kept_rows, merge_adapters
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.recipes.tasks import KINDS
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, tokenizer_from

TUNE = [*TINY, "--loss-on", "answers", "--block-size", "32"]


def small_gpt(**shape) -> GPT:
    torch.manual_seed(0)
    defaults = dict(block_size=16, vocab_size=11, n_layer=2, n_head=2, n_embd=16)
    return GPT(GPTConfig(**{**defaults, **shape})).eval()


# --- more tokens --------------------------------------------------------------------------------


def test_which_rows_are_kept():
    a, b = CharTokenizer("abd"), CharTokenizer("abcd▸")
    assert kept_rows(a, b) == [0, 1, -1, 2, -1]
    assert kept_rows(a, a) == [0, 1, 2]
    assert kept_rows(b, a) is None  # a lacks a token of b
    bpe = GPT2Tokenizer()
    assert kept_rows(bpe, with_roles(bpe)) == [*range(50257), -1, -1, -1]
    assert kept_rows(with_roles(bpe), GPT2Tokenizer(["<|other|>"])) is None
    assert kept_rows(a, bpe) is None and kept_rows(bpe, a) is None


@pytest.mark.parametrize("vocab_multiple", [1, 8])
def test_new_tokens_change_no_logit_of_the_known_ones(vocab_multiple):
    model = small_gpt(vocab_multiple=vocab_multiple)
    order = [3, -1, 0, 1, 2, *range(4, 11), -1, -1]
    larger = extend_vocabulary(model, order).eval()
    where = [order.index(i) for i in range(11)]
    idx = torch.randint(11, (2, 16))
    old, new = model(idx)[0], larger(torch.tensor(where)[idx])[0]
    torch.testing.assert_close(new[..., where], old, atol=1e-5, rtol=0)
    mean = old.mean(dim=-1, keepdim=True).expand(-1, -1, 3)
    torch.testing.assert_close(new[..., [1, -2, -1]], mean, atol=1e-5, rtol=0)
    assert larger.lm_head.weight is larger.transformer.wte.weight
    grown = larger.config.padded_vocab_size - model.config.padded_vocab_size
    assert count_parameters(larger) - count_parameters(model) == 16 * grown


# --- adapters -----------------------------------------------------------------------------------


def test_adapters_begin_as_nothing_learn_alone_and_vanish_in_the_weights():
    model = small_gpt()
    plain, idx = copy.deepcopy(model), torch.randint(11, (4, 16))
    add_adapters(model, rank=2)
    assert torch.equal(model(idx)[0], plain(idx)[0])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * 2 and all(n.endswith((".A", ".B")) for n in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        loss = model(idx, idx.roll(-1, 1))[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(idx, idx.roll(-1, 1))[1] < plain(idx, idx.roll(-1, 1))[1] - 0.01
    learned = {n: p.detach().clone() for n, p in model.named_parameters() if n in trained}
    before = model(idx)[0].detach()
    merge_adapters(model)
    torch.testing.assert_close(model(idx)[0], before, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, weight in plain.state_dict().items():  # against the formula, written out
        stem = name.removesuffix(".weight")
        change = model.state_dict()[name] - weight
        if f"{stem}.A" in learned:
            expected = 2.0 * torch.einsum("or,ri->oi", learned[f"{stem}.B"], learned[f"{stem}.A"])
            torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-5)
            assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 2
        else:
            assert not change.any()


def test_an_adapter_is_a_linear_layer_with_a_changed_weight():
    model = small_gpt(bias=False)
    add_adapters(model, rank=3, scale=0.5)
    adapter = model.transformer.h[0].mlp.c_fc
    nn.init.normal_(adapter.B)
    x = torch.randn(5, 16)
    changed = adapter.linear.weight + 0.5 * adapter.B @ adapter.A
    torch.testing.assert_close(adapter(x), x @ changed.T, atol=1e-5, rtol=1e-5)


# --- the programs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talks(tmp_path_factory, tiny_run):
    """Conversations in the tokens of the tiny run's model, which lacks most of the characters."""
    folder = tmp_path_factory.mktemp("talks")
    lines = [
        {"instruction": f"the dog {i}", "response": f"sees {i % 7}"} for i in range(60)
    ] + [
        {"messages": [
            {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "runs"},
            {"role": "user", "content": "the fox"}, {"role": "assistant", "content": "hears"},
        ]}
    ]  # fmt: skip
    path = folder / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    done = recipe("conversations.py", path, "--out", folder / "data", "--tokenizer", tiny_run)
    assert done.returncode == 0, done.stderr
    return folder / "data"


def recipe(name: str, *args):
    return program(ROOT / "data" / name, *args)


@pytest.fixture(scope="module")
def tuned(talks, tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "run"
    done = program("train.py", *TUNE, "--init-from", tiny_run, "--data", talks, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "tokens are new" in done.stderr
    return out


def test_a_file_of_conversations_becomes_a_dataset(talks, tiny_run):
    meta = read_meta(talks)
    tokenizer = tokenizer_from(meta["tokenizer"])
    roles_of(tokenizer)
    known = load_model(tiny_run, say=lambda line: None)[1]
    assert set(known.characters) < set(tokenizer.characters)  # digits are new, none was dropped
    text = tokenizer.decode(TokenStream(talks, "train")[: 10**6].tolist())
    assert text.count("¶") == 57 and "¶▸the cat◂runs■▸the fox◂hears■" in text + tokenizer.decode(
        TokenStream(talks, "val")[: 10**6].tolist()
    )
    assert TokenStream(talks, "val")[:1].tolist() == [roles_of(tokenizer).start]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"x": 1}', "line 21: no conversation"),
        ('{"messages": []}', "must end with an answer"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "must end with an answer"),
        ('{"messages": [{"role": "system"}]}', "line 21: no conversation"),
        ("[1, 2]", "line 21: no conversation"),
        ("{cut", "line 21: no conversation"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(line, message, tmp_path):
    path = tmp_path / "talks.jsonl"
    good = '{"instruction": "a", "response": "b"}\n'
    path.write_text(good * 20 + line + "\n", encoding="utf-8")
    done = recipe("conversations.py", path, "--out", tmp_path / "data")
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list((tmp_path / "data").glob("*.npy"))


def test_fine_tuning_begins_from_the_other_weights_and_counts_answers(tuned, tiny_run, talks):
    log, model = log_of(tuned), load_model(tuned, say=lambda line: None)[0]
    assert log[0]["val_loss"] > log[-1]["val_loss"] + 0.1
    assert model.config.vocab_size == read_meta(talks)["vocab_size"]
    assert json.loads((tuned / "config.json").read_text())["loss_on"] == "answers"


def test_a_resumed_run_on_conversations_equals_the_uninterrupted_one(tuned, talks, tmp_path):
    out = shutil.copytree(tuned, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(out / "checkpoints" / f"step_{step:06d}")
    assert train.main([*TUNE, "--resume", "--out", str(out), "--data", str(talks)]) == 0
    assert log_of(out) == log_of(tuned)
    a, b = (load_model(run, say=lambda line: None)[0].state_dict() for run in (tuned, out))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss-on", "answers"], "this tokenizer has no role token"),
        (["--loss-on", "conversations"], "this tokenizer has no role token"),
    ],
)
def test_text_without_roles_is_refused_in_one_line(flags, message, tiny_data, tmp_path):
    done = program("train.py", *TINY, *flags, "--data", tiny_data, "--out", tmp_path / "run")
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_what_the_loss_counts_cannot_change_in_a_run(tuned, talks):
    flags = ["--resume", "--out", str(tuned), "--data", str(talks), "--loss-on", "text"]
    with pytest.raises(UserError, match="--loss-on: the run to resume has answers"):
        train.main(flags)


def test_a_model_with_tokens_that_the_data_lacks_is_refused(tuned, tiny_data, tmp_path):
    flags = ["--init-from", str(tuned), "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    with pytest.raises(UserError, match="the tokenizers differ .make the data with --tokenizer"):
        train.main([*TINY, *flags])


def test_two_processes_tune_as_one(talks, tiny_run, tmp_path):
    losses = []
    for ranks in (0, 2):
        out = tmp_path / str(ranks)
        flags = [*TUNE, "--init-from", tiny_run, "--data", talks, "--out", out]
        done = program("train.py", *flags, ranks=ranks)
        assert done.returncode == 0, done.stderr
        losses.append([r["val_loss"] for r in log_of(out) if "val_loss" in r])
    assert losses[0] == pytest.approx(losses[1], abs=0.05)  # means of micro-batches, not of tokens
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)


# --- chat.py ------------------------------------------------------------------------------------


def talk(run, *flags, text: str = ""):
    command = [sys.executable, str(ROOT / "nanogpt_lib/chat.py"), "--checkpoint", str(run), *flags]
    return subprocess.run(
        [*command, "--device", "cpu"], capture_output=True, text=True, encoding="utf-8", input=text
    )


def test_questions_are_answered_line_by_line_and_repeat(tuned):
    text = "the dog 1\nthe cat\n/new\nthe dog 1\n"
    done = talk(tuned, "--max-new-tokens", "8", text=text)
    assert done.returncode == 0, done.stderr
    first, _, third = done.stdout.splitlines()
    assert first == third  # after /new the history is gone
    once = talk(tuned, "--max-new-tokens", "8", "--ask", "the dog 1")
    assert once.stdout.splitlines() == [first]


def test_the_history_is_part_of_what_it_sees(tuned, monkeypatch):
    seen = []
    monkeypatch.setattr(chat, "reply", lambda m, t, messages, n, **o: seen.append(messages) or [1])
    lines = iter(["the dog", "the cat"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, ""))
    chat.main(["--checkpoint", str(tuned), "--device", "cpu"])
    assert [len(messages) for messages in seen] == [1, 3]
    assert [m["role"] for m in seen[1]] == ["user", "assistant", "user"]


def test_what_cannot_be_asked_is_said_in_a_line_and_the_talk_goes_on(tuned):
    done = talk(tuned, "--max-new-tokens", "8", text="no■\nça\n" + "the " * 20 + "\nthe dog\n")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert "■ is a role token" in done.stderr and "'ç' is not in the alphabet" in done.stderr
    assert "at most 24 fit" in done.stderr and "Traceback" not in done.stderr
    assert talk(tuned, "--ask", "no■").returncode == 1


def test_a_model_that_has_seen_no_conversations_is_refused(tiny_run):
    done = talk(tiny_run, "--ask", "the dog")
    assert done.returncode == 1 and "no role token" in done.stderr
    assert done.stderr.count("\n") <= 2 and "Traceback" not in done.stderr
    assert talk(tiny_run, "--temperature", "-1").returncode == 1


# --- data ---------------------------------------------------------------------------------------


def test_tasks_are_the_same_bytes_from_the_same_seed(tmp_path):
    for name in "ab":
        done = recipe("tasks.py", "--conversations", "50", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    a, b = ((tmp_path / name / "train_000000.npy").read_bytes() for name in "ab")
    assert a == b
    assert recipe("tasks.py", "--verify", "--out", tmp_path / "a").returncode == 0
    other = ["tasks.py", "--conversations", "50", "--seed", "2", "--out", tmp_path / "c"]
    assert recipe(*other).returncode == 0
    assert (tmp_path / "c" / "train_000000.npy").read_bytes() != a


def test_text_for_a_model_is_encoded_with_its_alphabet(tmp_path, tiny_run):
    text = tmp_path / "new.txt"
    text.write_text("the cat sees Zürich\n" * 50, encoding="utf-8")
    done = recipe("text.py", text, "--tokenizer", tiny_run, "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    known = load_model(tiny_run, say=lambda line: None)[1]
    tokenizer = tokenizer_from(read_meta(tmp_path / "data")["tokenizer"])
    assert set(tokenizer.characters) == set(known.characters) | set("Zürich\n")
    read = TokenStream(tmp_path / "data", "train")[:19].tolist()
    assert tokenizer.decode(read) == "the cat sees Zürich"
    done = recipe("text.py", text, "--tokenizer", tmp_path / "none", "--out", tmp_path / "no")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_the_runs_of_chapter_11_can_be_rehearsed_and_are_not_repeated(tmp_path):
    done = recipe("tasks.py", "--conversations", "60", "--out", tmp_path / "tasks")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs.jsonl"
    flags = ["--out", out, "--data", tmp_path, "--steps", 2, "--asked", 2]
    only = "answers,adapters,sonnets small rate"
    done = program(ROOT / "tests/benchmarks/finetuning.py", *flags, "--only", only)
    assert done.returncode == 0, done.stderr
    records = {r["run"]: r for r in map(json.loads, out.read_text().splitlines())}
    assert list(records) == only.split(",")
    assert [step for step, _ in records["answers"]["losses"]][-1] == 2
    assert set(records["answers"]["exact"]) == {"known", "items", "lengths", "wordings"}
    assert records["adapters"]["trainable"] == 4 * 16 * 256 * (4 + 2 + 5 + 5) + 4 * 256
    again = program(ROOT / "tests/benchmarks/finetuning.py", *flags, "--only", only)
    assert again.stdout.count("already in") == 3 and len(out.read_text().splitlines()) == 3


def test_the_recorded_runs_of_chapter_11_are_whole():
    text = (ROOT / "notebooks/recorded/finetuning.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    assert len(text) < 100_000 and {"answers", "five minutes"} <= {r["run"] for r in records}
    for record in records:
        assert record["losses"][-1][0] == record["steps"] and record["machine"]["torch"]
        for kind, right in ((f[1], f[3]) for f in record.get("failures", [])):
            assert kind in KINDS and right
