"""nanogpt_lib/hellaswag.py: the true ending's loss, right in every batch, precision and process."""

import json
import sys

import pytest
import torch
from torch.nn import functional as F

from conftest import ROOT, program, subprocess
from nanogpt_lib import hellaswag
from nanogpt_lib.checkpoint import save_checkpoint
from nanogpt_lib.context import Context
from nanogpt_lib.device import autocast
from nanogpt_lib.hellaswag import (
    SCORES,
    Item,
    choose_endings,
    describe_items,
    fill,
    grow_tree,
    item_losses,
    read_items,
    score_items,
)
from nanogpt_lib.model import ATTENTION, GPT, GPTConfig, Transformer
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import GPT2Tokenizer

OWN = ROOT / "data" / "hellaswag_own.jsonl"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items():
    return read_items(OWN, GPT2Tokenizer())


def random_items(count=40, vocab=300, seed=0):
    """Items of odd lengths over a small vocabulary, where scoring is quick."""
    g = torch.Generator().manual_seed(seed)

    def ids(low, high):
        return torch.randint(
            vocab, (int(torch.randint(low, high, (1,), generator=g)),), generator=g
        )

    return [
        Item(
            context=ids(1, 30).tolist(),
            endings=[ids(1, 12).tolist() for _ in range(4)],
            ending_bytes=torch.randint(1, 60, (4,), generator=g).tolist(),
            label=i % 4,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPTConfig(block_size=48, vocab_size=300, n_layer=2, n_head=2, n_embd=32)
    model = GPT(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # so that endings differ by nats, not by thousandths
    return model


@torch.no_grad()
def one_item(logits_of, item):
    """Sum of the loss of each ending: no padding, no batch, no mask, all logits."""
    sums = []
    for ending in item.endings:
        row = torch.tensor([item.context + ending])
        logits = logits_of(row)[0, len(item.context) - 1 : -1]
        sums.append(F.cross_entropy(logits.float(), torch.tensor(ending), reduction="sum").item())
    return sums


def cut_rows(item, block_size=48):
    """Four (tokens, length of the ending), cut on the left; one token of context always stays."""
    endings = [ending[:block_size] for ending in item.endings]
    return [((item.context + ending)[-block_size - 1 :], len(ending)) for ending in endings]


def test_a_batch_equals_one_item_at_a_time_through_transformers(tmp_path):
    from transformers import GPT2LMHeadModel

    from nanogpt_lib.huggingface import save_huggingface

    torch.manual_seed(0)
    ours = GPT(GPTConfig(block_size=48, n_layer=2, n_head=2, n_embd=32)).eval()
    save_huggingface(tmp_path, vars(ours.config), ours.state_dict())
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    some = read_items(OWN, GPT2Tokenizer(), limit=6)
    expected = torch.tensor([one_item(lambda row: theirs(row).logits, item) for item in some])
    sums = item_losses(ours, some)
    assert torch.allclose(sums, expected, atol=1e-3)
    winners = choose_endings(sums, some)
    assert winners[0].tolist() == expected.argmin(dim=1).tolist()
    lengths = torch.tensor([[len(e) for e in item.endings] for item in some])
    assert winners[1].tolist() == (expected / lengths).argmin(dim=1).tolist()
    texts = [json.loads(line)["endings"] for line in OWN.read_text("utf-8").splitlines()[:6]]
    sizes = torch.tensor([[len(t.encode()) for t in row] for row in texts])
    assert winners[2].tolist() == (expected / sizes).argmin(dim=1).tolist()


@pytest.mark.parametrize("budget", [1, 50, 300, 4096])
@pytest.mark.parametrize("vocab", [0, 300])
def test_trees_sorting_and_batches_change_nothing(model, budget, vocab):
    """Every batch composition equals one row at a time; also where rows are cut on the left."""
    items = random_items() + [Item([9] * 44, [[1, 2], [3], [4] * 9, [5] * 3], [1] * 4, 0)] * 2
    items += [Item([9, 8] * 22, [[*range(60)], [3], [4] * 47, [5] * 6], [1] * 4, 0)]
    items = items if vocab else items[:40]
    expected = torch.tensor(
        [
            [
                one_row(model, tokens, ending)
                for tokens, ending in cut_rows(item, model.config.block_size)
            ]
            for item in items
        ]
    )
    assert torch.allclose(item_losses(model, items, budget=budget), expected, atol=1e-3)


@torch.no_grad()
def one_row(model, tokens, ending):
    logits = model(torch.tensor([tokens[:-1]]))[0][0, -ending:]
    return F.cross_entropy(logits, torch.tensor(tokens[-ending:]), reduction="sum").item()


def test_a_tree_holds_what_is_read_and_says_what_it_predicts():
    item = Item([1, 2, 3], [[7, 8, 9], [7, 5], [6], [4, 4]], [1] * 4, 0)
    tree = grow_tree(item, 48)
    assert tree.tokens == [1, 2, 3, 7, 8, 7, 4]  # the last token of an ending is never read
    assert tree.position == [0, 1, 2, 3, 4, 3, 3]
    assert tree.branch == [0, 0, 0, 1, 1, 2, 4]
    assert tree.before == [[2, 3, 4], [2, 5], [2], [2, 6]]  # the trunk's end predicts all four
    assert tree.endings == item.endings
    seen = hellaswag.visibility(torch.tensor([tree.branch]))[0, 0]
    expected = [{0}, {0, 1}, {0, 1, 2}]  # the trunk, then branches 1, 1, 2 and 4
    expected += [{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 2, 5}, {0, 1, 2, 6}]
    assert [set(row.nonzero()[:, 0].tolist()) for row in seen] == expected


@pytest.mark.parametrize("manual", [False, True])
def test_the_proof_would_catch_branches_that_see_each_other_or_stand_in_line(
    model, monkeypatch, manual
):
    items = random_items(8)
    if manual:  # attention by hand obeys the same table
        for block in model.transformer.h:
            monkeypatch.setattr(block.attn, "attend", ATTENTION["manual"])
    expected = torch.tensor([one_item(lambda row: model(row)[0], item) for item in items])
    assert torch.allclose(item_losses(model, items), expected, atol=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(hellaswag, "visibility", lambda b: (b[:, :, None] >= 0).tril()[:, None])
        assert (item_losses(model, items) - expected).abs().max() > 0.1
    forward = Transformer.forward

    def in_line(model, idx, context):
        position = torch.arange(idx.size(1)).clamp(max=47)
        return forward(model, idx, Context(position, context.visible))

    monkeypatch.setattr(Transformer, "forward", in_line)
    assert (item_losses(model, items, budget=1) - expected).abs().max() > 0.1


def test_batches_stay_in_their_budget_and_hold_everything_once():
    lengths = sorted(torch.randint(1, 60, (200,), generator=torch.manual_seed(0)).tolist())
    runs = list(fill(lengths, 256))
    assert [i for run in runs for i in run] == list(range(200))
    assert all(max(lengths[i] for i in run) * len(run) <= 256 for run in runs)
    assert [list(run) for run in fill([300, 2], 256)] == [[0], [1]]  # one too long goes alone


def test_the_three_scores_are_three_rules(model):
    items = random_items()
    sums = torch.tensor([one_item(lambda row: model(row)[0], item) for item in items])
    lengths = torch.tensor([[len(e) for e in item.endings] for item in items])
    sizes = torch.tensor([item.ending_bytes for item in items])
    labels = torch.tensor([item.label for item in items])
    scores = score_items(model, items)
    for name, losses in zip(SCORES, (sums, sums / lengths, sums / sizes), strict=True):
        expected = (losses.argmin(dim=1) == labels).double().mean().item()
        assert scores[name] == pytest.approx(expected)
    assert scores["items"] == 40 and len({scores[name] for name in SCORES}) > 1


def test_scores_do_not_depend_on_the_batch_or_the_order(model):
    items = random_items()
    expected = score_items(model, items)
    for budget in (1, 100, 4096):
        assert score_items(model, items, budget=budget) == expected
    assert score_items(model, items[::-1]) == expected


def test_any_number_of_processes_gives_the_same_score(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "two.py").write_text(f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
from test_hellaswag import random_items
from nanogpt_lib.support.processes import process_group, read_world
from nanogpt_lib.hellaswag import score_items
from nanogpt_lib.model import GPT, GPTConfig
model = GPT(GPTConfig(block_size=48, vocab_size=300, n_layer=2, n_head=2, n_embd=32))
model.load_state_dict(torch.load({str(tmp_path / "model.pt")!r}, weights_only=True))
world = read_world()
with process_group(world, torch.device("cpu")):
    scores = score_items(model, random_items(41), world=world)
    print(f"RESULT {{scores}}\\n", end="", flush=True)
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, tmp_path / "two.py"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines == [str(score_items(model, random_items(41)))] * 2


@pytest.mark.parametrize("route", ["autocast", "onednn"])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_bfloat16_products_give_float32_losses(route, offset, monkeypatch):
    """No loss lies on the grid of bf16, also where all logits share an offset, as GPT-2's do."""
    if route == "autocast":  # as on a device that packs nothing
        monkeypatch.setattr(hellaswag, "fast_inference", lambda m, d, t, **how: autocast(d, t))
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=48, vocab_size=300, n_layer=2, n_head=2, n_embd=32)).eval()
    items = random_items()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
        model.transformer.ln_f.bias.fill_(0.5)  # a part of hidden that is always there …
        model.lm_head.weight.sub_(offset / 16)  # … moves every logit by -offset
    exact, mixed = item_losses(model, items), item_losses(model, items, dtype=torch.bfloat16)
    tokens = torch.tensor([[len(e) for e in item.endings] for item in items])
    assert mixed.dtype == torch.float32
    assert (mixed.bfloat16().float() == mixed).float().mean() < 0.2
    assert ((mixed - exact) / tokens**0.5).abs().mean() < 0.03
    two = exact.sort(dim=1).values
    clear = two[:, 1] - two[:, 0] > 0.5
    assert (mixed.argmin(dim=1) == exact.argmin(dim=1))[clear].all() and clear.sum() > 20


def test_logits_rounded_to_bfloat16_would_be_caught(model):
    """What the lecture does; one loss in bf16 at 12 nats is up to 0.03 off."""
    items = random_items()
    exact = torch.tensor([one_item(lambda row: model(row)[0], item) for item in items])
    rough = torch.tensor([one_item(lambda r: model(r)[0].sub(40).bfloat16(), i) for i in items])
    tokens = torch.tensor([[len(e) for e in item.endings] for item in items])
    assert ((rough - exact) / tokens**0.5).abs().mean() > 0.03


def test_an_item_longer_than_the_context_is_cut_on_the_left():
    item = Item(list(range(100, 190)), [[1, 2], list(range(60)), [3], [4] * 47], [2, 9, 1, 9], 0)
    tree = grow_tree(item, 48)
    assert 0 not in tree.branch  # rows cut at different places share nothing
    rows = [
        [t for t, branch in zip(tree.tokens, tree.branch, strict=True) if branch == b]
        for b in range(1, 5)
    ]
    assert all(len(row) == 48 for row in rows) and tree.position == [*range(48)] * 4
    assert rows[0] == [*range(143, 190), 1] and tree.endings[0] == [1, 2]
    assert rows[1] == [189, *range(47)]  # one token of context is always left
    assert tree.endings[1] == [*range(48)] and tree.before[1] == [*range(48, 96)]
    whole = Item(list(range(40)), [[1] * 9, [2], [3] * 4, [4]], [1] * 4, 0)
    assert grow_tree(whole, 48).branch[:40] == [0] * 40  # the 49th is only predicted
    assert 0 not in grow_tree(whole, 47).branch
    assert grow_tree(item, 1).tokens == [189] * 4
    torch.manual_seed(0)
    small = GPT(GPTConfig(block_size=48, vocab_size=300, n_layer=1, n_head=2, n_embd=16))
    scores = score_items(small, [item, *random_items(3)])
    assert scores["items"] == 4 and all(0 <= scores[name] <= 1 for name in SCORES)


def test_contexts_are_read_once_and_the_head_works_only_where_it_counts(model, monkeypatch):
    items, read, made = random_items(), [], []
    forward, token_losses = Transformer.forward, hellaswag.token_losses
    monkeypatch.setattr(
        Transformer, "forward", lambda s, i, c: (read.append(i.numel()), forward(s, i, c))[1]
    )
    monkeypatch.setattr(
        hellaswag, "token_losses", lambda h, *a: (made.append(len(h)), token_losses(h, *a))[1]
    )
    item_losses(model, items, budget=256)
    branches = [sum(len(ending) - 1 for ending in item.endings) for item in items]
    assert sum(made) == sum(branches) + len(items)  # the trunk's end predicts four, once
    lean = sum(branches) + sum(len(item.context) for item in items)
    assert lean <= sum(read) < 1.15 * lean  # little padding
    plain = sum(4 * (len(i.context) + max(map(len, i.endings)) - 1) for i in items)
    assert sum(read) < 0.5 * plain


def test_the_model_keeps_its_mode_and_its_weights(model):
    before = [p.clone() for p in model.parameters()]
    for training in (True, False):
        model.train(training)
        assert score_items(model, random_items(4)) and model.training == training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_model_that_knows_the_endings_scores_100_percent():
    items = random_items(6, vocab=60)
    torch.manual_seed(0)
    pupil = GPT(GPTConfig(block_size=48, vocab_size=60, n_layer=1, n_head=2, n_embd=32))
    optimizer = make_optimizer(pupil, learning_rate=1e-2)
    rows = [torch.tensor(item.context + item.endings[item.label]) for item in items]
    for step in range(240):
        row = rows[step % len(rows)][None]
        pupil(row[:, :-1], row[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert score_items(pupil, items)["acc_token"] == 1.0


def test_own_items_are_never_called_hellaswag(items):
    assert len(items) == 32 and all(item.own for item in items)
    assert describe_items(items) == "32 items, 32 of them our own: not a HellaSwag score"
    assert describe_items(random_items(10)) == "10 HellaSwag items"
    assert "not a HellaSwag score" in describe_items([*random_items(9), items[0]])


def test_the_space_belongs_to_the_ending(items):
    tokenizer = GPT2Tokenizer()
    raw = json.loads(OWN.read_text("utf-8").splitlines()[0])
    item = items[0]
    for ending, text in zip(item.endings, raw["endings"], strict=True):
        assert tokenizer.decode(item.context + ending) == f"{raw['ctx']} {text}"
        assert tokenizer.encode(f"{raw['ctx']} {text}") == item.context + ending
    assert item.ending_bytes == [len(text) for text in raw["endings"]]


GOOD = {"ctx": "A man", "label": 1, "endings": ["a", "b", "c", "d"]}


@pytest.mark.parametrize(
    "line, message",
    [
        ("not json", "Expecting value"),
        ("[1, 2]", "no usable field"),
        (json.dumps(GOOD | {"endings": ["a", "b"]}), "not four endings"),
        (json.dumps(GOOD | {"label": 4}), "label from 0 to 3"),
        (json.dumps(GOOD | {"label": ""}), "invalid literal"),
        (json.dumps(GOOD | {"ctx": ""}), "ctx is empty"),
        (json.dumps(GOOD | {"endings": [1, 2, 3, 4]}), "can only concatenate str"),
        (json.dumps({"label": 1}), "no usable field 'ctx'"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, message):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(UserError, match=f"line 2: not a HellaSwag item .*{message}") as error:
        read_items(path, GPT2Tokenizer())
    assert "\n" not in str(error.value)
    assert len(read_items(path, GPT2Tokenizer(), limit=1)) == 1


def test_odd_texts_are_read(tmp_path):
    path = tmp_path / "items.jsonl"
    odd = GOOD | {"label": "2", "endings": ["", "\ud800", "<|endoftext|>", "🙂"]}
    path.write_text(json.dumps(odd) + "\n")
    (item,) = read_items(path, GPT2Tokenizer())
    assert item.label == 2 and not item.own and all(item.endings) and min(item.ending_bytes) == 1
    assert not any(GPT2Tokenizer.eot in ending for ending in item.endings)


def test_the_module_does_not_need_transformers():
    code = "import sys, nanogpt_lib.hellaswag; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_the_program_scores_a_run_and_says_whose_items_they_are(tmp_path):
    torch.manual_seed(0)
    tiny = GPT(GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=8))
    state = {"tokenizer": {"name": "gpt2"}}
    save_checkpoint(tmp_path, 1, tiny, make_optimizer(tiny, learning_rate=1e-3), state)
    how = ["--data", OWN, "--limit", "4", "--device", "cpu", "--dtype", "float32"]
    done = program("hellaswag.py", "--checkpoint", tmp_path, *how)
    assert done.returncode == 0, done.stderr
    assert "4 items, 4 of them our own: not a HellaSwag score" in done.stdout
    assert "float32, " in done.stdout and "items/s" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(SCORES)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments, message, status",
    [
        (["--checkpoint", "nowhere/run"], "nowhere/run", 1),
        (["--limit", "3"], "--checkpoint", 2),
        (["--checkpoint", "gpt2", "--limit", "0"], "--limit must be at least 1", 2),
        (["--checkpoint", "gpt2", "--batch", "0"], "--batch must be at least 1", 2),
        (["--checkpoint", "gpt2", "--dtype", "int8"], "invalid choice", 2),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, status, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((UserError, SystemExit)) as error:
        hellaswag.main(arguments)
    said = str(error.value) if status == 1 else capsys.readouterr().err
    assert message in said and len(said.strip().split("\n")) == 1
    assert status == 1 or error.value.code == status


def test_a_character_model_is_told_that_it_cannot_play(tiny_run, capsys):
    with pytest.raises(UserError, match="HellaSwag needs a model with GPT-2's tokenizer"):
        hellaswag.main(["--checkpoint", str(tiny_run), "--data", str(OWN)])
    with pytest.raises(UserError, match="no such file; make it with python data/hellaswag.py"):
        read_items("nowhere.jsonl", GPT2Tokenizer())


def test_sum_and_per_byte_scores_equal_the_harness_item_by_item(tmp_path, items, monkeypatch):
    """lm-eval's own model class, tokenizer and request form; its task divides by len(choice)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("lm_eval")
    from compare_lm_eval import harness_losses

    from nanogpt_lib.checkpoint import load_model
    from nanogpt_lib.huggingface import save_huggingface

    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=256, n_layer=2, n_head=2, n_embd=64)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), GPT2Tokenizer())
    raw = [json.loads(line) for line in OWN.read_text("utf-8").splitlines()]
    theirs = harness_losses(str(tmp_path), raw, batch_size=8)
    loaded, _ = load_model(str(tmp_path))
    ours = item_losses(loaded, items)
    assert torch.allclose(ours, theirs, atol=1e-3)
    characters = torch.tensor([[float(len(e)) for e in item["endings"]] for item in raw])
    winners = choose_endings(ours, items)
    assert winners[0].tolist() == theirs.argmin(dim=1).tolist()
    assert winners[2].tolist() == (theirs / characters).argmin(dim=1).tolist()
