"""nanogpt_lib/hellaswag.py: an item is four rows, its endings have a loss, and three scores."""

import json
import math
import sys

import pytest
import torch
from torch.nn import functional as F

from conftest import ROOT, subprocess
from nanogpt_lib.hellaswag import (
    SCORES,
    Item,
    choose_endings,
    describe_items,
    ending_losses,
    parse_item,
    read_items,
    render_item,
    score,
)
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import GPT2Tokenizer

OWN = ROOT / "data" / "hellaswag_own.jsonl"


def random_items(count=40, vocab=300, seed=0):
    """Items of odd lengths over a small vocabulary, for which scoring is fast."""
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


def small_model(**changes) -> GPT:
    """A model of two layers with random weights whose endings differ by nats."""
    torch.manual_seed(0)
    shape = dict(block_size=48, vocab_size=300, n_layer=2, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    return model


@torch.no_grad()
def one_row(model, tokens, ending):
    """Loss of the last `ending` tokens of a row: no padding, no batch, no mask."""
    logits = model(torch.tensor([tokens[:-1]]))[0][0, -ending:]
    return F.cross_entropy(logits, torch.tensor(tokens[-ending:]), reduction="sum").item()


def reference_losses(model, item):
    """The four losses, row by row; rows are cut on the left, one token of context stays."""
    block_size, losses = model.config.block_size, []
    for ending in item.endings:
        ending = ending[:block_size]
        losses.append(one_row(model, (item.context + ending)[-block_size - 1 :], len(ending)))
    return losses


@pytest.fixture(scope="module")
def items():
    return read_items(OWN, GPT2Tokenizer())


@pytest.fixture(scope="module")
def model():
    return small_model()


# ---- losses and scores


def test_the_losses_equal_one_row_at_a_time_through_transformers(tmp_path):
    from transformers import GPT2LMHeadModel

    from nanogpt_lib import save_huggingface

    torch.manual_seed(0)
    ours = GPT(GPTConfig(block_size=48, n_layer=2, n_head=2, n_embd=32)).eval()
    save_huggingface(tmp_path, vars(ours.config), ours.state_dict())
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    some = read_items(OWN, GPT2Tokenizer(), limit=6)
    with torch.no_grad():
        expected = torch.empty(6, 4)
        for i, item in enumerate(some):
            for e, ending in enumerate(item.endings):
                row = torch.tensor([item.context + ending])
                logits = theirs(row).logits[0, len(item.context) - 1 : -1]
                expected[i, e] = F.cross_entropy(logits, torch.tensor(ending), reduction="sum")
        sums = torch.stack([ending_losses(ours, item) for item in some])
    assert sums.dtype == torch.float32 and torch.allclose(sums, expected, atol=1e-3)
    winners = choose_endings(sums, some)
    assert winners[0].tolist() == expected.argmin(dim=1).tolist()
    lengths = torch.tensor([[len(e) for e in item.endings] for item in some])
    assert winners[1].tolist() == (expected / lengths).argmin(dim=1).tolist()
    texts = [json.loads(line)["endings"] for line in OWN.read_text("utf-8").splitlines()[:6]]
    sizes = torch.tensor([[len(t.encode()) for t in row] for row in texts])
    assert winners[2].tolist() == (expected / sizes).argmin(dim=1).tolist()


def test_a_rendered_item_holds_its_rows_and_marks_the_predictions_of_the_endings():
    item = Item([1, 2, 3], [[7, 8, 9], [7, 5], [6], [4, 4]], [1] * 4, 0)
    tokens, mask = render_item(item, 48)
    assert tokens.tolist() == [
        [1, 2, 3, 7, 8, 9], [1, 2, 3, 7, 5, 0], [1, 2, 3, 6, 0, 0], [1, 2, 3, 4, 4, 0]
    ]  # fmt: skip
    assert mask.tolist() == [
        [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0]
    ]  # fmt: skip


def test_an_item_longer_than_the_context_is_cut_on_the_left(model):
    """One token of context is always left; no assertion fails (ERRATA 32)."""
    item = Item(list(range(100, 190)), [[1, 2], list(range(60)), [3], [4] * 47], [2, 9, 1, 9], 0)
    tokens, mask = render_item(item, 48)
    assert tokens.shape == (4, 49)
    assert tokens[0].tolist() == [*range(143, 190), 1, 2]
    assert tokens[1].tolist() == [189, *range(48)] and mask[1].sum() == 48
    assert render_item(item, 1)[0][:, 0].tolist() == [189] * 4
    with torch.no_grad():
        assert ending_losses(model, item).tolist() == pytest.approx(
            reference_losses(model, item), abs=1e-3
        )


def test_the_three_scores_are_three_rules(model):
    items = random_items()
    sums = torch.tensor([reference_losses(model, item) for item in items])
    lengths = torch.tensor([[len(e) for e in item.endings] for item in items])
    sizes = torch.tensor([item.ending_bytes for item in items])
    labels = torch.tensor([item.label for item in items])
    scores = score(model, items)
    for name, losses in zip(SCORES, (sums, sums / lengths, sums / sizes), strict=True):
        expected = (losses.argmin(dim=1) == labels).double().mean().item()
        assert scores[name] == pytest.approx(expected)
    assert len({scores[name] for name in SCORES}) > 1


def test_the_plain_score_measures_without_dropout_and_keeps_the_mode():
    model = small_model(dropout=0.5).train()
    items = random_items(8)
    assert score(model, items) == score(model, items) == score(small_model(), items)
    assert model.training


def test_losses_rounded_to_bfloat16_would_change_winners():
    """ERRATA 7: near 3 bf16 has steps of 1/64; ties go to the ending with the lower number."""
    torch.manual_seed(0)
    exact = 3 + 0.5 * torch.randn(10_042, 4)
    rough = exact.bfloat16().float()
    one = [Item([1], [[1]] * 4, [1] * 4, 0)] * len(exact)
    changed = (choose_endings(exact, one) != choose_endings(rough, one)).float().mean()
    assert changed > 0.002
    two = rough.sort(dim=1).values
    assert (two[:, 0] == two[:, 1]).float().mean() > 0.005


# ---- items


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


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


BAD_LINES = [
    ("not json", "Expecting value"),
    ("[1, 2]", "not a JSON object"),
    ('"text"', "not a JSON object"),
    ("[" * 100_000, "recursion"),
    (GOOD | {"endings": ["a", "b"]}, "endings is not a list of four strings"),
    (GOOD | {"endings": ["a", "b", "c", "d", "e"]}, "endings is not a list of four strings"),
    (GOOD | {"endings": "abcd"}, "endings is not a list of four strings"),
    (GOOD | {"endings": dict.fromkeys("abcd", "x")}, "endings is not a list of four strings"),
    (GOOD | {"endings": [1, 2, 3, 4]}, "endings is not a list of four strings"),
    (GOOD | {"endings": None}, "endings is not a list of four strings"),
    (GOOD | {"label": 4}, "label is 4, not 0, 1, 2 or 3"),
    (GOOD | {"label": -1}, "label is -1, not"),
    (GOOD | {"label": 2.7}, "label is 2.7, not"),
    (GOOD | {"label": 2.0}, "label is 2.0, not"),
    (GOOD | {"label": math.nan}, "label is nan, not"),
    (GOOD | {"label": True}, "label is True, not"),
    (GOOD | {"label": ""}, "label is '', not"),  # the test split has no labels
    (GOOD | {"label": "²"}, "label is '²', not"),
    (GOOD | {"label": None}, "label is None, not"),
    (GOOD | {"ctx": ""}, "ctx is not a non-empty string"),
    (GOOD | {"ctx": ["A man"]}, "ctx is not a non-empty string"),
    (without("ctx"), "ctx is not a non-empty string"),
    (without("endings"), "endings is not a list"),
    (without("label"), "label is None"),
]


@pytest.mark.parametrize("line, message", BAD_LINES)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, message):
    line = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"line 3: not a HellaSwag item .*{message}") as error:
        read_items(path, GPT2Tokenizer())
    assert "\n" not in str(error.value)
    assert len(read_items(path, GPT2Tokenizer(), limit=1)) == 1


def test_a_label_is_an_integer_as_published_or_its_digit():
    for label in (0, 1, 2, 3, "0", "1", "2", "3"):
        item = parse_item(json.dumps(GOOD | {"label": label}), GPT2Tokenizer())
        assert item.label == int(label)


def test_files_that_hold_nothing_are_said(tmp_path):
    with pytest.raises(UserError, match="no such file; make it with python data/hellaswag.py"):
        read_items(tmp_path / "nowhere.jsonl", GPT2Tokenizer())
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="blank.jsonl: has no items"):
        read_items(tmp_path / "blank.jsonl", GPT2Tokenizer())


def test_a_relative_path_means_the_same_file_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_items("data/hellaswag_own.jsonl", GPT2Tokenizer())) == 32
    (tmp_path / "data").mkdir()
    (tmp_path / "data/hellaswag_own.jsonl").write_text(json.dumps(GOOD))
    assert len(read_items("data/hellaswag_own.jsonl", GPT2Tokenizer())) == 1


def test_odd_texts_are_read(tmp_path):
    path = tmp_path / "items.jsonl"
    odd = GOOD | {"label": "2", "endings": ["", "\ud800", "<|endoftext|>", "🙂"]}
    path.write_text("\ufeff" + json.dumps(odd) + "\n\n", encoding="utf-8")
    (item,) = read_items(path, GPT2Tokenizer())
    assert item.label == 2 and not item.own and all(item.endings) and min(item.ending_bytes) == 1
    assert not any(GPT2Tokenizer.eot in ending for ending in item.endings)


def test_the_module_does_not_need_transformers():
    code = "import sys, nanogpt_lib.scoring; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
