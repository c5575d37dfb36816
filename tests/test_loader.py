"""What the loader promises."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lib import run, train
from nanogpt_lib.loader import TokenLoader, WindowOrder, epoch_windows
from nanogpt_lib.shards import TokenStream, write_shard
from nanogpt_lib.support.datasets import write_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import seal
from nanogpt_lib.support.read_ahead import ReadAhead, feed

T = 8
CPU = torch.device("cpu")


def make_stream(folder, *sizes: int, vocab_size: int = 50257) -> TokenStream:
    """Shards in which token i has id i, so that a batch shows where it was read."""
    ids, shards, start = np.arange(sum(sizes)) % vocab_size, [], 0
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        shards.append(write_shard(folder / f"train_{number:06d}.npy", ids[start : start + size]))
        start += size
    val = [write_shard(folder / "val_000000.npy", ids[:100])]
    meta = {"name": "t", "source": "t", "tokenizer": {"name": "gpt2"}, "vocab_size": vocab_size}
    write_meta(folder, meta, {"train": shards, "val": val})
    return TokenStream(folder, "train")


@pytest.fixture
def stream(tmp_path) -> TokenStream:
    """1,000 tokens in three shards of odd sizes."""
    return make_stream(tmp_path / "data", 333, 400, 267)


def starts_of(tokens: int, *drawn_from) -> np.ndarray:
    """The first tokens of an epoch's windows of T tokens, in reading order."""
    cut, numbers = epoch_windows(tokens, T, *drawn_from)
    return cut + T * numbers.astype(np.int64)


def lecture_batches(tokens: np.ndarray, B: int, steps: int) -> list[np.ndarray]:
    """The inputs that the lecture's arithmetic reads from one shard in one process."""
    position, batches = 0, []
    for _ in range(steps):
        batches.append(tokens[position : position + B * T].reshape(B, T))
        position += B * T
        if position + B * T + 1 > len(tokens):
            position = 0
    return batches


def read(loader: TokenLoader, count: int) -> list[list[int]]:
    """The first token of every row of the next batches, batch by batch."""
    return [loader.next_batch()[0][:, 0].tolist() for _ in range(count)]


# --- batches


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda a: a.astype(np.uint16)])
def test_anything_with_a_length_and_slices_can_be_read(stream, kind):
    tokens = kind(np.arange(1000))
    from_memory, from_disk = TokenLoader(tokens, 4, T), TokenLoader(stream, 4, T)
    for _ in range(40):
        for ours, theirs in zip(from_memory.next_batch(), from_disk.next_batch(), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == torch.int64
    with pytest.raises(UserError, match="the data: 8 tokens are too few for block_size 8"):
        TokenLoader(tokens[:8], 4, T)


def test_targets_are_inputs_shifted_by_one_token(stream):
    x, y = TokenLoader(stream, 4, T).next_batch()
    assert x.shape == y.shape == (4, T) and x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)  # token i is i
    assert x.is_contiguous() and y.is_contiguous()


@pytest.mark.parametrize("size", [4 * T * 20 + 1, 4 * T * 20 + 1 + 11])
def test_without_shuffle_the_order_is_the_lectures(tmp_path, size):
    stream = make_stream(tmp_path, size)
    steps = 50 if size == 4 * T * 20 + 1 else 20  # for ever if nothing is left over, else one epoch
    loader = TokenLoader(stream, 4, T, shuffle=False)
    for expected in lecture_batches(np.arange(size), 4, steps):
        x, y = loader.next_batch()
        assert np.array_equal(x, expected) and np.array_equal(y, expected + 1)


def test_a_window_may_cross_from_one_shard_to_the_next(stream):
    rows = torch.cat([TokenLoader(stream, 124, T, shuffle=False).next_batch()[0]])
    assert torch.equal(rows.flatten(), torch.arange(124 * T))


# --- order (faults 1, 2, 3 of the lecture's code)


@pytest.mark.parametrize(("world_size", "B", "micro"), [(2, 4, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_the_same_for_every_world_size_and_micro_batch(
    stream, world_size, B, micro, shuffle
):
    whole = TokenLoader(stream, 8, T, shuffle=shuffle)
    parts = [
        TokenLoader(stream, B, T, rank=r, world_size=world_size, shuffle=shuffle)
        for r in range(world_size)
    ]
    for _ in range(40):  # past the end of the epoch, which is no multiple of the batch
        rows = torch.cat([part.next_batch()[0] for _ in range(micro) for part in parts])
        assert torch.equal(rows, whole.next_batch()[0])


def test_row_b_of_micro_step_m_on_rank_r_is_window_mW_plus_r_times_B_plus_b(stream):
    W, B = 3, 2
    starts = starts_of(1000, True, 1337, 0)
    for r in range(W):
        loader = TokenLoader(stream, B, T, rank=r, world_size=W)
        for m in range(10):
            expected = [starts[(m * W + r) * B + b] for b in range(B)]
            assert loader.next_batch()[0][:, 0].tolist() == expected


def test_ranks_never_drift_apart(tmp_path):
    """The lecture's ranks change shards at different steps: 190 and 189 batches of 100M tokens."""

    def lecture(n: int, B: int, T: int, W: int, rank: int) -> int:
        position, batches = B * T * rank, 0
        while True:
            batches, position = batches + 1, position + B * T * W
            if position + (B * T * W + 1) > n:
                return batches

    assert [lecture(100_000_000, 64, 1024, 8, r) for r in range(8)] == [190] * 6 + [189] * 2
    n, W, B = 1000, 8, 2
    assert len({lecture(n, B, T, W, r) for r in range(W)}) > 1  # this size shows it too
    stream = make_stream(tmp_path, n)
    loaders = [TokenLoader(stream, B, T, rank=r, world_size=W, shuffle=False) for r in range(W)]
    for _ in range(60):
        rows = torch.cat([loader.next_batch()[0][:, 0] for loader in loaders]).tolist()
        places = [(loader.order.epoch, loader.order.position) for loader in loaders]
        assert len(set(places)) == 1
        assert len(set(rows)) == len(rows)  # and no window is read twice in a step


def test_every_window_is_read_once_per_epoch_whatever_the_batch(stream):
    starts = starts_of(1000, True, 1337, 0).tolist()
    loader = TokenLoader(stream, 7, T)
    rows = sum(read(loader, -(-len(starts) // 7)), [])
    assert rows[: len(starts)] == starts and len(starts) == len(set(starts))
    assert len(starts) % 7  # the epoch ended within a batch
    assert rows[len(starts) :] == starts_of(1000, True, 1337, 1)[: len(rows) - len(starts)].tolist()


@pytest.mark.parametrize("n", [9, 10, 16, 17, 1000, 1007])
def test_no_tail_is_left_out_for_ever(n):
    seen = set()
    for epoch in range(80):
        for start in starts_of(n, True, 0, epoch):
            assert start >= 0 and start + T + 1 <= n
            seen.update(range(start, start + T + 1))
    assert seen == set(range(n))


def test_epochs_are_shuffled_each_in_its_own_way_and_repeatably():
    first, second = (starts_of(1000, True, 5, epoch) for epoch in (0, 1))
    assert not np.array_equal(first, np.sort(first))
    assert not np.array_equal(first - first.min(), second - second.min())
    assert np.array_equal(first, starts_of(1000, True, 5, 0))
    assert not np.array_equal(first, starts_of(1000, True, 6, 0))


FEW = settings(max_examples=40, deadline=None, derandomize=True)


@FEW
@given(
    tokens=st.integers(7, 120),
    block_size=st.integers(1, 6),
    worlds=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=2, max_size=3),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_run_that_changes_its_world_reads_each_window_once_per_epoch(
    tokens, block_size, worlds, shuffle, seed
):
    row, how, state, starts = np.arange(tokens), dict(shuffle=shuffle, seed=seed), None, []
    epochs = [epoch_windows(tokens, block_size, shuffle, seed, epoch) for epoch in range(2)]
    while len(starts) < sum(len(numbers) for _, numbers in epochs):
        world_size, B = worlds[len(starts) % len(worlds)]
        ranks = [
            TokenLoader(row, B, block_size, rank=r, world_size=world_size, **how)
            for r in range(world_size)
        ]
        for loader in ranks:
            if state:
                loader.load_state_dict(state)
            x, y = loader.next_batch()
            assert torch.equal(y, x + 1) and x.shape == (B, block_size)
            starts += x[:, 0].tolist()
        state = ranks[0].state_dict()
        assert all(loader.state_dict() == state for loader in ranks)
    for cut, numbers in epochs:
        epoch, starts = starts[: len(numbers)], starts[len(numbers) :]
        assert sorted(epoch) == list(range(cut, tokens - block_size, block_size))
        assert epoch == [cut + block_size * int(i) for i in numbers]


# --- bad data (faults 4, 5, 6)


@pytest.mark.parametrize("size", [2, T])
def test_a_short_shard_gets_a_message(tmp_path, size):
    stream = make_stream(tmp_path / "short", size)
    with pytest.raises(UserError, match=rf"short: {size} tokens are too few for block_size {T}"):
        TokenLoader(stream, 4, T)


def test_the_shortest_stream_that_works_is_one_window(tmp_path):
    stream = make_stream(tmp_path, T + 1)
    x, y = TokenLoader(stream, 3, T).next_batch()
    assert x.tolist() == [list(range(T))] * 3 and y[0, -1] == T


def test_a_short_next_shard_is_no_obstacle(tmp_path):
    stream = make_stream(tmp_path, 50, 3, 1, 50)
    rows = sum(read(TokenLoader(stream, 4, T, shuffle=False), 3), [])
    assert rows == [w * T for w in range(12)]


def test_a_dataset_larger_than_memory_takes_next_to_none(tmp_path):
    """A sparse shard of 64 GB, in a separate process whose memory is measured."""
    pytest.importorskip("resource")
    tokens = 32_000_000_000
    make_stream(tmp_path, 100)
    shard = tmp_path / "train_000000.npy"
    with open(shard, "wb") as file:  # a sparse file: its size is 64 GB, its blocks are not
        about = {"descr": "<u2", "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(file, about)
        file.truncate(file.tell() + 2 * tokens)
    assert shard.stat().st_blocks < 100
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["splits"]["train"][0]["tokens"] = tokens
    meta.pop("sha256")
    (tmp_path / "meta.json").write_text(json.dumps(seal(meta)))
    code = (
        "import resource, sys\n"
        "from nanogpt_lib.loader import TokenLoader\n"
        "from nanogpt_lib.shards import TokenStream\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "unit = 1 if sys.platform == 'darwin' else 1024\n"
        "before = peak()\n"
        f"loader = TokenLoader(TokenStream({str(tmp_path)!r}, 'train'), 8, 1024)\n"
        "for _ in range(20): loader.next_batch()\n"
        "print((peak() - before) * unit)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 125 MB for the order of 31 million windows, and the pages of the 160 that were read
    assert int(done.stdout) < 150e6


def test_shards_are_chosen_by_meta_json_and_not_by_their_names(tmp_path):
    folder = tmp_path / "train_set"  # even the folder says train
    before = read(TokenLoader(make_stream(folder, 300, 300), 4, T, shuffle=False), 30)
    for name in ("train_000002.npy", "edu_train_000003.npy", "train_000000.npy.tmp", "a_train.txt"):
        np.save(folder / f"{name}.npy", np.full(500, 7, dtype=np.uint16))
        (folder / f"{name}.npy").rename(folder / name)
    assert read(TokenLoader(TokenStream(folder, "train"), 4, T, shuffle=False), 30) == before


# --- resuming (fault 34)


@pytest.mark.parametrize("stop_after", [0, 1, 17, 31, 63])
def test_a_resumed_order_equals_the_uninterrupted_one(stream, stop_after):
    uninterrupted = TokenLoader(stream, 4, T)
    read(uninterrupted, stop_after)
    saved = json.loads(json.dumps(uninterrupted.state_dict()))
    resumed = TokenLoader(stream, 4, T)
    resumed.load_state_dict(saved)
    assert read(resumed, 50) == read(uninterrupted, 50)


def test_a_run_can_be_resumed_with_another_batch_size_and_world_size(stream):
    one = TokenLoader(stream, 8, T)
    read(one, 13)
    two = [TokenLoader(stream, 2, T, rank=r, world_size=2) for r in range(2)]
    for loader in two:
        loader.load_state_dict(one.state_dict())
    for _ in range(20):
        assert sum([read(loader, 1)[0] for _ in range(2) for loader in two], []) == read(one, 1)[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 5}, "saved with seed 1337 and cannot continue with 5"),
        ({"block_size": 16}, "saved with block_size 8 and cannot continue with 16"),
        ({"shuffle": False}, "saved with shuffle True and cannot continue with False"),
    ],
)
def test_a_position_in_another_order_is_refused(stream, changed, message):
    saved = TokenLoader(stream, 4, T).state_dict()
    kind = {"block_size": T, **changed}
    with pytest.raises(UserError, match=message):
        TokenLoader(stream, 4, **kind).load_state_dict(saved)


def test_a_position_in_another_dataset_is_refused(stream, tmp_path):
    other = make_stream(tmp_path / "other", 999)
    with pytest.raises(UserError, match="saved with tokens 1000 and cannot continue with 999"):
        TokenLoader(other, 4, T).load_state_dict(TokenLoader(stream, 4, T).state_dict())


def test_a_token_beyond_the_vocabulary_is_named(tmp_path):
    stream = make_stream(tmp_path, 200)
    stream.vocab_size = 150
    with pytest.raises(
        UserError, match=r"train_000000\.npy: token 1\d\d at offset 1\d\d is outside"
    ):
        read(TokenLoader(stream, 4, T, shuffle=False), 6)


def test_taking_windows_one_by_one_equals_taking_many():
    order, again = WindowOrder(100, T, True, 3), WindowOrder(100, T, True, 3)
    assert sum([order.take(1) for _ in range(100)], []) == again.take(100)
    assert order.state_dict() == again.state_dict()


# --- reading ahead


def test_reading_ahead_gives_the_same_batches_and_the_position_of_what_was_handed_out(stream):
    plain, ahead = TokenLoader(stream, 4, T), ReadAhead(TokenLoader(stream, 4, T), CPU)
    assert ahead.state_dict() == plain.state_dict()
    for _ in range(70):  # past the end of two epochs
        for ours, theirs in zip(ahead.next_batch(), plain.next_batch(), strict=True):
            assert torch.equal(ours, theirs)
        assert ahead.state_dict() == plain.state_dict()


@pytest.mark.parametrize("stop_after", [0, 1, 31])
def test_a_run_that_reads_ahead_resumes_where_it_stopped(stream, stop_after):
    ahead, resumed = (ReadAhead(TokenLoader(stream, 4, T), CPU) for _ in range(2))
    read(ahead, stop_after)
    read(resumed, 5)  # what it had read ahead must not come back
    resumed.load_state_dict(json.loads(json.dumps(ahead.state_dict())))
    assert resumed.state_dict() == ahead.state_dict()
    assert read(resumed, 40) == read(ahead, 40)


def test_the_next_batch_is_read_while_the_caller_works(stream):
    loader, second = TokenLoader(stream, 4, T), threading.Event()
    batches = []

    def noted():
        batches.append(TokenLoader.next_batch(loader))
        if len(batches) == 2:
            second.set()
        return batches[-1]

    loader.next_batch = noted
    ReadAhead(loader, CPU).next_batch()
    assert second.wait(timeout=30)  # nobody has asked for it yet
    time.sleep(0.05)
    assert len(batches) == 2  # one ahead, not more


def test_an_error_of_the_reading_thread_reaches_the_caller(tmp_path):
    stream = make_stream(tmp_path, 200)
    stream.vocab_size = 150
    ahead = ReadAhead(TokenLoader(stream, 4, T, shuffle=False), CPU)
    with pytest.raises(UserError, match="outside the vocabulary of 150"):
        read(ahead, 6)


def test_a_process_that_reads_ahead_ends_by_itself(stream):
    code = (
        "import sys, torch\n"
        "from nanogpt_lib.loader import TokenLoader\n"
        "from nanogpt_lib.shards import TokenStream\n"
        "from nanogpt_lib.support.read_ahead import ReadAhead\n"
        f"loader = TokenLoader(TokenStream({str(stream.folder)!r}, 'train'), 4, {T})\n"
        "ReadAhead(loader, torch.device('cpu')).next_batch()\n"
        "sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_closed_loader_leaves_no_thread_behind(stream):
    before = set(threading.enumerate())
    ahead = ReadAhead(TokenLoader(stream, 4, T), CPU)
    ahead.next_batch()
    assert set(threading.enumerate()) - before
    ahead.close()
    assert not set(threading.enumerate()) - before
    assert len(ahead.tokens) == 1000  # what it read can still be asked


def test_a_run_ends_its_reading_thread_however_it_ends(stream, tiny_data, tmp_path, monkeypatch):
    before, made = set(threading.enumerate()), []

    def with_thread(loader, device):
        made.append(ReadAhead(loader, device))
        return made[-1]

    monkeypatch.setattr(run, "feed", with_thread)
    monkeypatch.setattr(train, "report", lambda *_, **__: 1 / 0)
    flags = ["quickstart", "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    with pytest.raises(ZeroDivisionError):
        train.main([*flags, "--max-steps", "3", "--compile", "off", "--device", "cpu"])
    assert made and not set(threading.enumerate()) - before


def test_a_loader_reads_ahead_for_a_device_only(stream):
    loader = TokenLoader(stream, 4, T)
    assert feed(loader, CPU) is loader
    assert isinstance(feed(loader, torch.device("cuda")), ReadAhead)


# --- training


def test_a_small_model_learns_from_it(tiny_data):
    from nanogpt_lib.model import GPT, GPTConfig

    stream = TokenStream(tiny_data, "train")
    torch.manual_seed(0)
    shape = dict(block_size=32, n_layer=1, n_head=2, n_embd=32)
    model = GPT(GPTConfig(vocab_size=stream.vocab_size, **shape))
    optimizer, loader = torch.optim.AdamW(model.parameters(), lr=1e-2), TokenLoader(stream, 8, 32)
    losses = []
    for _ in range(60):
        _, loss = model(*loader.next_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.9 and np.mean(losses[-5:]) < 2.0
