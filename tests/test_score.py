"""nanogpt_lib/scoring.py and score.py: the plain losses, in any batch, precision and process."""

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hellaswag import OWN, random_items, reference_losses, small_model

from conftest import ROOT, program, subprocess
from nanogpt_lib import score, scoring
from nanogpt_lib.checkpoint import save_checkpoint
from nanogpt_lib.device import autocast
from nanogpt_lib.hellaswag import SCORES, Item, choose_endings, ending_losses, read_items
from nanogpt_lib.hellaswag import score as plain_score
from nanogpt_lib.model import ATTENTION, GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.scoring import batches_within_budget, build_tree, item_losses, score_items
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import GPT2Tokenizer


@pytest.fixture(scope="module")
def model():
    return small_model()


@torch.no_grad()
def plain_losses(model, items):
    return torch.stack([ending_losses(model, item) for item in items])


# ---- the fast scorer equals the plain loop


TOKENS = st.integers(0, 39)
ITEMS = st.builds(
    Item,
    context=st.lists(TOKENS, min_size=1, max_size=24),
    endings=st.lists(st.lists(TOKENS, min_size=1, max_size=14), min_size=4, max_size=4),
    ending_bytes=st.lists(st.integers(1, 50), min_size=4, max_size=4),
    label=st.integers(0, 3),
)


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(ITEMS, min_size=1, max_size=6),
    block_size=st.integers(1, 40),
    budget=st.integers(1, 300),
    attention=st.sampled_from(sorted(ATTENTION)),
    vocab_multiple=st.sampled_from([1, 64]),
)
def test_trees_give_the_losses_of_the_rows(items, block_size, budget, attention, vocab_multiple):
    """Any items, any block size (rows cut on the left included), any composition of batches."""
    shape = dict(block_size=block_size, vocab_size=40, n_layer=1, n_embd=8)
    model = small_model(**shape, attention=attention, vocab_multiple=vocab_multiple)
    sums = item_losses(model, items, budget=budget)
    assert torch.allclose(sums, plain_losses(model, items), atol=1e-3)


def test_the_losses_equal_rows_without_padding_batch_or_mask(model):
    items = random_items() + [Item([9] * 44, [[1, 2], [3], [4] * 9, [5] * 3], [1] * 4, 0)] * 2
    items += [Item([9, 8] * 22, [[*range(60)], [3], [4] * 47, [5] * 6], [1] * 4, 0)]
    expected = torch.tensor([reference_losses(model, item) for item in items])
    for budget in (1, 50, 300, 4096):
        assert torch.allclose(item_losses(model, items, budget=budget), expected, atol=1e-3)


def test_a_tree_holds_what_is_read_and_says_what_it_predicts():
    item = Item([1, 2, 3], [[7, 8, 9], [7, 5], [6], [4, 4]], [1] * 4, 0)
    tree = build_tree(item, 48)
    assert tree.tokens == [1, 2, 3, 7, 8, 7, 4]  # the last token of an ending is never read
    assert tree.position == [0, 1, 2, 3, 4, 3, 3]
    assert tree.branch == [0, 0, 0, 1, 1, 2, 4]
    assert tree.predictors == [[2, 3, 4], [2, 5], [2], [2, 6]]  # the trunk's end predicts all four
    assert tree.endings == item.endings
    seen = scoring.visibility(torch.tensor([tree.branch]))[0, 0]
    expected = [{0}, {0, 1}, {0, 1, 2}]  # the trunk, then branches 1, 1, 2 and 4
    expected += [{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 2, 5}, {0, 1, 2, 6}]
    assert [set(row.nonzero()[:, 0].tolist()) for row in seen] == expected


def test_an_item_longer_than_the_context_has_no_trunk():
    item = Item(list(range(100, 190)), [[1, 2], list(range(60)), [3], [4] * 47], [2, 9, 1, 9], 0)
    tree = build_tree(item, 48)
    assert 0 not in tree.branch  # rows cut at different places share nothing
    rows = [
        [t for t, branch in zip(tree.tokens, tree.branch, strict=True) if branch == b]
        for b in range(1, 5)
    ]
    assert all(len(row) == 48 for row in rows) and tree.position == [*range(48)] * 4
    assert rows[0] == [*range(143, 190), 1] and tree.endings[0] == [1, 2]
    assert rows[1] == [189, *range(47)]  # one token of context is always left
    assert tree.endings[1] == [*range(48)] and tree.predictors[1] == [*range(48, 96)]
    whole = Item(list(range(40)), [[1] * 9, [2], [3] * 4, [4]], [1] * 4, 0)
    assert build_tree(whole, 48).branch[:40] == [0] * 40  # the 49th is only predicted
    assert 0 not in build_tree(whole, 47).branch
    assert build_tree(item, 1).tokens == [189] * 4


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_the_proof_would_catch_branches_that_see_each_other_or_stand_in_line(
    monkeypatch, attention
):
    model, items = small_model(attention=attention), random_items(8)
    expected = plain_losses(model, items)
    assert torch.allclose(item_losses(model, items), expected, atol=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "visibility", lambda b: (b[:, :, None] >= 0).tril()[:, None])
        assert (item_losses(model, items) - expected).abs().max() > 0.1

    def in_line(item, block_size):
        tree = build_tree(item, block_size)
        tree.position = [min(i, block_size - 1) for i in range(len(tree.tokens))]
        return tree

    monkeypatch.setattr(scoring, "build_tree", in_line)
    assert (item_losses(model, items, budget=1) - expected).abs().max() > 0.1


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), budget=st.integers(1, 400))
def test_batches_stay_in_their_budget_and_hold_everything_once(lengths, budget):
    runs = list(batches_within_budget(lengths, budget))
    assert [i for run in runs for i in run] == list(range(len(lengths)))
    for run in runs:
        padded = max(lengths[i] for i in run) * len(run)
        assert padded <= budget or len(run) == 1


def test_batches_are_as_large_as_the_budget_allows():
    assert [list(r) for r in batches_within_budget([2, 2, 3, 3], 9)] == [[0, 1, 2], [3]]
    assert [list(r) for r in batches_within_budget([300, 2], 256)] == [[0], [1]]


def test_contexts_are_read_once_and_the_head_works_only_where_it_counts(model, monkeypatch):
    items, read, made = random_items(), [], []
    forward = scoring.CentredHead.forward
    hook = model.transformer.register_forward_pre_hook(lambda _, a: read.append(a[0].numel()))
    monkeypatch.setattr(
        scoring.CentredHead, "forward", lambda s, h, *a: (made.append(len(h)), forward(s, h, *a))[1]
    )
    item_losses(model, items, budget=256)
    hook.remove()
    branches = [sum(len(ending) - 1 for ending in item.endings) for item in items]
    assert sum(made) == sum(branches) + len(items)  # the trunk's end predicts four, once
    lean = sum(branches) + sum(len(item.context) for item in items)
    assert lean <= sum(read) < 1.15 * lean  # little padding
    rows = sum(4 * (len(i.context) + max(map(len, i.endings)) - 1) for i in items)
    assert sum(read) < 0.5 * rows


# ---- precision


@pytest.mark.processor
@pytest.mark.parametrize("route", ["autocast", "packed"])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_bfloat16_products_give_float32_losses(route, offset, monkeypatch):
    """No loss lies on the grid of bf16, also where all logits share an offset, as GPT-2's do."""
    if route == "autocast":  # as on a device that packs nothing
        monkeypatch.setattr(scoring, "fast_inference", lambda m, d, t, **how: autocast(d, t))
    model, items = small_model(), random_items()
    with torch.no_grad():
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


def test_an_offset_of_all_logits_costs_no_precision():
    """GPT-2's logits are near -35, where bf16 has steps of 0.25; the softmax ignores a constant.

    Nearly equal logits are the hard case: all of them count, not only the largest.
    """
    model, items = small_model(), random_items(20)
    with torch.no_grad():
        model.lm_head.weight.div_(6)
        model.transformer.ln_f.bias.fill_(0.5)
        model.lm_head.weight.sub_(40 / 16)  # moves every logit by -40
    exact, mixed = item_losses(model, items), item_losses(model, items, dtype=torch.bfloat16)
    tokens = torch.tensor([[len(e) for e in item.endings] for item in items])
    assert ((mixed - exact) / tokens).abs().mean() < 1e-3


def test_logits_rounded_to_bfloat16_would_be_caught(model):
    """What the lecture does; one loss in bf16 at 12 nats is up to 0.03 off."""
    items = random_items()

    class Rough(torch.nn.Module):
        config = model.config

        def forward(self, tokens):
            return model(tokens)[0].sub(40).bfloat16().float(), None

    exact, rough = plain_losses(model, items), plain_losses(Rough(), items)
    tokens = torch.tensor([[len(e) for e in item.endings] for item in items])
    assert ((rough - exact) / tokens**0.5).abs().mean() > 0.03


# ---- scores


def test_the_fast_scores_are_the_plain_ones(model):
    items = random_items()
    scores = score_items(model, items)
    assert scores.pop("items") == 40
    assert scores == pytest.approx(plain_score(model, items))


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
from test_hellaswag import random_items, small_model
from nanogpt_lib.support.processes import process_group, read_world
from nanogpt_lib.scoring import score_items
model = small_model()
model.load_state_dict(torch.load({str(tmp_path / "model.pt")!r}, weights_only=True))
world = read_world()
with process_group(world, torch.device("cpu")):
    for count in (41, 1):  # with one item the second process has none
        scores = score_items(model, random_items(count), world=world)
        print(f"RESULT {{scores}}\\n", end="", flush=True)
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    done = subprocess.run(
        [*launch, tmp_path / "two.py"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    alone = [str(score_items(model, random_items(count))) for count in (41, 1)]
    assert sorted(lines) == sorted(alone * 2)


def test_the_model_keeps_its_mode_and_its_weights(model):
    before = [p.clone() for p in model.parameters()]
    for training in (True, False):
        model.train(training)
        assert score_items(model, random_items(4)) and model.training == training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_mode_is_restored_after_an_exception(model, monkeypatch):
    monkeypatch.setattr(scoring, "tree_losses", lambda *a: 1 / 0)
    model.train()
    with pytest.raises(ZeroDivisionError):
        item_losses(model, random_items(4))
    assert model.training and all(module.training for module in model.modules())
    model.eval()


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


# ---- the program


def test_the_program_scores_a_run_and_says_whose_items_they_are(tmp_path):
    torch.manual_seed(0)
    tiny = GPT(GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=8))
    state = {"tokenizer": {"name": "gpt2"}}
    save_checkpoint(tmp_path, 1, tiny, make_optimizer(tiny, learning_rate=1e-3), state)
    how = ["--data", OWN, "--limit", "4", "--device", "cpu", "--dtype", "float32"]
    done = program("score.py", "--checkpoint", tmp_path, *how)
    assert done.returncode == 0, done.stderr
    assert "4 items, 4 of them our own: not a HellaSwag score" in done.stdout
    assert "float32, " in done.stdout and "items/s" in done.stdout
    expected = plain_score(tiny, read_items(OWN, GPT2Tokenizer(), limit=4))
    said = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:]}
    assert said == {name: f"{expected[name]:.4f}" for name in SCORES}
    assert "HellaSwag:" not in done.stderr  # the bar is for terminals


@pytest.mark.parametrize(
    "arguments, message, status",
    [
        (["--checkpoint", "nowhere/run"], "nowhere/run", 1),
        (["--limit", "3"], "--checkpoint", 2),
        (["--checkpoint", "gpt2", "--limit", "0"], "--limit must be at least 1", 2),
        (["--checkpoint", "gpt2", "--batch", "0"], "--batch must be at least 1", 2),
        (["--checkpoint", "gpt2", "--dtype", "int8"], "invalid choice", 2),
        (["--checkpoint", "gpt2", "--device", "tpu"], "not available here", 1),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, status, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((UserError, SystemExit)) as error:
        score.main(arguments)
    said = str(error.value) if status == 1 else capsys.readouterr().err
    assert message in said and len(said.strip().split("\n")) == 1
    assert status == 1 or error.value.code == status


def test_no_score_without_gpt2s_tokenizer(tiny_run, monkeypatch):
    """Characters, or an unknown tokenizer: refused, never a number."""
    arguments = ["--data", str(OWN), "--device", "cpu", "--checkpoint"]
    with pytest.raises(UserError, match="HellaSwag needs a model with GPT-2's tokenizer"):
        score.main([*arguments, str(tiny_run)])
    monkeypatch.setattr(score, "load_model", lambda source: (small_model(), None))
    with pytest.raises(UserError, match="somewhere: HellaSwag needs"):
        score.main([*arguments, "somewhere"])


def test_sum_and_per_byte_scores_equal_the_harness_item_by_item(tmp_path, monkeypatch):
    """lm-eval's own model class, tokenizer and request form; its task divides by len(choice)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("lm_eval")
    from compare_lm_eval import harness_losses

    from nanogpt_lib import save_huggingface

    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=256, n_layer=2, n_head=2, n_embd=64)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), GPT2Tokenizer())
    raw = [json.loads(line) for line in OWN.read_text("utf-8").splitlines()]
    theirs = harness_losses(str(tmp_path), raw, batch_size=8)
    loaded, items = GPT.from_pretrained(str(tmp_path)), read_items(OWN, GPT2Tokenizer())
    ours = item_losses(loaded, items)
    assert torch.allclose(ours, theirs, atol=1e-3)
    characters = torch.tensor([[float(len(e)) for e in item["endings"]] for item in raw])
    winners = choose_endings(ours, items)
    assert winners[0].tolist() == theirs.argmin(dim=1).tolist()
    assert winners[2].tolist() == (theirs / characters).argmin(dim=1).tolist()
