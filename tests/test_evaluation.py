"""nanogpt_lib/evaluation.py: the validation loss depends on model and data alone."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from conftest import ROOT, subprocess
from nanogpt_lib import evaluation
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.processes import World

pytestmark = pytest.mark.processor  # once more as with AVX2 only
CONFIG = dict(block_size=16, n_layer=1, n_head=2, n_embd=16)


@pytest.fixture(scope="module")
def val(tiny_data):
    return TokenStream(tiny_data, "val")


@pytest.fixture(scope="module")
def model(val):
    torch.manual_seed(3)
    return GPT(GPTConfig(vocab_size=val.vocab_size, **CONFIG))


def plain_loop(model, stream, windows, T=16):
    """Mean over windows of T tokens, one at a time, with PyTorch's own cross entropy."""
    losses = []
    with torch.no_grad():
        for w in range(windows):
            row = torch.from_numpy(stream.read(T * w, T + 1))
            logits = model(row[None, :-1])[0][0]
            losses.append(F.cross_entropy(logits, row[1:]).item())
    return float(np.mean(losses))


def test_it_equals_a_plain_loop_over_the_windows(model, val):
    ours = validation_loss(model, val, tokens=16 * 40, batch_size=8)
    assert ours == pytest.approx(plain_loop(model, val, 40), abs=1e-5)


class Numbers:
    """A stream of given tokens."""

    def __init__(self, count, vocab_size):
        self.tokens = np.random.default_rng(count).integers(vocab_size, size=count)

    def __len__(self):
        return len(self.tokens)

    def read(self, start, count):
        assert start + count <= len(self)
        return self.tokens[start : start + count]


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(2, 400),
    tokens=st.integers(1, 500),
    batch_size=st.integers(1, 40),
    size=st.integers(1, 9),
)
def test_any_batch_size_and_world_size_give_the_mean_over_the_windows(
    model, val, length, tokens, batch_size, size
):
    """Short streams, fewer windows than processes, a last batch that is not full."""
    stream, shares = Numbers(length, val.vocab_size), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "all_reduce_sum", lambda v, *_: shares.append(v) or [1.0, 1.0])
        for rank in range(size):
            world = World(rank=rank, size=size)
            validation_loss(model, stream, tokens=tokens, batch_size=batch_size, world=world)
    total, count = (sum(values) for values in zip(*shares, strict=True))
    T = min(16, length - 1)
    windows = max(1, min(tokens, length - 1) // T)
    assert count == windows * T
    assert total / count == pytest.approx(plain_loop(model, stream, windows, T), abs=1e-5)


def test_it_repeats_bit_for_bit_and_leaves_the_model_as_it_was(model, val):
    how = dict(tokens=16 * 20, batch_size=4)
    model.train()
    before = [p.clone() for p in model.parameters()]
    assert validation_loss(model, val, **how) == validation_loss(model, val, **how)
    assert model.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    model.eval()
    validation_loss(model, val, **how)
    assert not model.training


def test_the_mode_is_restored_after_an_exception(model, val, monkeypatch):
    model.train()
    monkeypatch.setattr(val, "read", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        validation_loss(model, val, tokens=320, batch_size=4)
    assert all(module.training for module in model.modules())


def test_dropout_is_off_while_it_measures(val):
    torch.manual_seed(3)
    noisy = GPT(GPTConfig(vocab_size=val.vocab_size, dropout=0.5, **CONFIG)).train()
    assert validation_loss(noisy, val, tokens=320, batch_size=4) == validation_loss(
        noisy, val, tokens=320, batch_size=4
    )


def test_a_budget_that_is_no_multiple_of_the_window_reads_whole_windows(model, val):
    ours = validation_loss(model, val, tokens=16 * 10 + 15, batch_size=4)
    assert ours == pytest.approx(plain_loop(model, val, 10), abs=1e-5)


def test_more_tokens_than_there_are_means_all_of_them(model, val):
    windows = (len(val) - 1) // 16
    ours = validation_loss(model, val, tokens=10**9, batch_size=64)
    assert ours == pytest.approx(plain_loop(model, val, windows), abs=1e-5)


def test_a_stream_shorter_than_the_context_is_one_short_window(model, tmp_path):
    from nanogpt_lib.recipes.text import write_splits

    meta = {"name": "t", "source": "t", "tokenizer": {}, "vocab_size": model.config.vocab_size}
    write_splits(tmp_path, meta, np.arange(9), np.arange(6))
    stream = TokenStream(tmp_path, "val")
    row = torch.arange(6)
    with torch.no_grad():
        expected = F.cross_entropy(model(row[None, :-1])[0][0], row[1:]).item()
    assert validation_loss(model, stream, tokens=100, batch_size=4) == pytest.approx(expected)


def test_any_number_of_processes_gives_the_same_loss(model, val, tiny_data, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "two.py").write_text(f"""
import torch
from nanogpt_lib.support.processes import process_group, read_world
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.shards import TokenStream
model = GPT(GPTConfig(vocab_size={val.vocab_size}, **{CONFIG}))
model.load_state_dict(torch.load({str(tmp_path / "model.pt")!r}, weights_only=True))
world, val = read_world(), TokenStream({str(tiny_data)!r}, "val")
with process_group(world, torch.device("cpu")):
    loss = validation_loss(model, val, tokens={16 * 37}, batch_size=4, world=world)
    print(f"RESULT {{world.size}} {{loss!r}}\\n", end="", flush=True)
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, tmp_path / "two.py"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert [size for size, _ in results] == ["2", "2"]
    alone = validation_loss(model, val, tokens=16 * 37, batch_size=4)
    for _, loss in results:  # every process knows it: all can decide by it
        assert float(loss) == pytest.approx(alone, abs=1e-5)


def test_training_lowers_it(model, val, tiny_data):
    from nanogpt_lib.loader import TokenLoader
    from nanogpt_lib.optimizer import make_optimizer

    torch.manual_seed(3)
    fresh = GPT(GPTConfig(vocab_size=val.vocab_size, **CONFIG))
    before = validation_loss(fresh, val, tokens=1600, batch_size=16)
    assert before == pytest.approx(np.log(val.vocab_size), abs=0.2)
    loader, optimizer = TokenLoader(TokenStream(tiny_data, "train"), 16, 16), None
    optimizer = make_optimizer(fresh, learning_rate=1e-2)
    for _ in range(60):
        fresh(*loader.next_batch())[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert validation_loss(fresh, val, tokens=1600, batch_size=16) < before - 0.5
