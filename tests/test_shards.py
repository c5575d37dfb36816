"""nanogpt_lib/shards.py: what is written is what is read, whatever happens in between."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lib.recipes.encoding import batch_encoder, encode_documents
from nanogpt_lib.recipes.shard_writer import ShardWriter
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.shards import TokenStream, document_row, write_shard
from nanogpt_lib.support.datasets import read_meta, verify_shards, write_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.shard_files import check_shard
from nanogpt_lib.tokenizer import GPT2Tokenizer

META = {"name": "test", "source": "random", "tokenizer": {"name": "gpt2"}, "vocab_size": 50257}
EOT = GPT2Tokenizer.eot


def random_documents(count=60, longest=90, seed=0):
    """(position, tokens): position is the number of the document."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        length = rng.integers(1, longest)
        yield [i], np.array([EOT, *rng.integers(0, 50256, length)], dtype=np.uint16)


def run(folder, documents, *, val_tokens=100, shard_tokens=256, stop_after=None, held_out=None):
    """Write documents from the writer's position; stop after `stop_after` of them."""
    writer = ShardWriter(folder, val_tokens, shard_tokens)
    first = writer.progress.position[0] if writer.progress.position else 0
    for position, tokens in documents[first:]:
        if stop_after is not None and position[0] == stop_after:
            return None
        writer.add(position, tokens, bool(held_out and position[0] in held_out))
    return writer.close(META)


def files(folder):
    """Every file of a folder and its SHA-256."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def everything(folder, split):
    stream = TokenStream(folder, split)
    return stream.read(0, len(stream))


@pytest.mark.parametrize("ids", [[-1], [5, 65_536], np.array([3, -2])])
def test_ids_that_do_not_fit_are_refused(ids):
    assert document_row([0, 65_535], 7).tolist() == [7, 0, 65_535]
    assert document_row([], 7).tolist() == [7]
    with pytest.raises(UserError, match="from 0 to 65535"):
        document_row(ids, 7)


def test_what_is_written_is_what_is_read(tmp_path):
    documents = list(random_documents())
    run(tmp_path, documents)
    written = np.concatenate([tokens for _, tokens in documents])
    read = np.concatenate([everything(tmp_path, "val"), everything(tmp_path, "train")])
    assert np.array_equal(read, written)
    sizes = [shard["tokens"] for shard in read_meta(tmp_path)["splits"]["train"]]
    assert sizes[:-1] == [256] * (len(sizes) - 1) and 0 < sizes[-1] <= 256
    assert [s["tokens"] for s in read_meta(tmp_path)["splits"]["val"]] == [100]


def test_a_window_may_cross_from_one_shard_to_the_next(tmp_path):
    run(tmp_path, list(random_documents()))
    whole, stream = everything(tmp_path, "train"), TokenStream(tmp_path, "train")
    rng = np.random.default_rng(1)
    for _ in range(300):
        start = int(rng.integers(len(whole) - 1))
        length = int(rng.integers(1, min(700, len(whole) - start) + 1))
        assert np.array_equal(stream.read(start, length), whole[start : start + length])


def test_shards_are_mapped_not_copied_into_memory(tmp_path):
    run(tmp_path, list(random_documents()))
    stream = TokenStream(tmp_path, "train")
    assert all(isinstance(stream.map_shard(i), np.memmap) for i in range(len(stream.shards)))
    assert stream.ends.dtype == np.int64  # more than 2^31 tokens, on Windows with NumPy 1, too


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=20),
)
def test_tokens_of_any_shards_are_read_as_one_row(tmp_path_factory, sizes, cuts):
    folder = tmp_path_factory.mktemp("row")
    whole = np.arange(sum(sizes) + 3) % 50257
    pieces = np.split(whole[:-3], np.cumsum(sizes)[:-1])
    lines = [write_shard(folder / f"train_{i:06d}.npy", p) for i, p in enumerate(pieces)]
    val = [write_shard(folder / "val_000000.npy", whole[:2])]
    if sum(sizes) < 2:
        with pytest.raises(UserError, match="no tokens left for the train split"):
            write_meta(folder, META, {"train": lines, "val": val})
        return
    write_meta(folder, META, {"train": lines, "val": val})
    stream = TokenStream(folder, "train")
    assert len(stream) == sum(sizes)
    for start, stop in cuts:
        assert np.array_equal(stream[start:stop], whole[:-3][start:stop])
    assert stream.read(0, len(stream)).dtype == np.int64


@settings(max_examples=80, deadline=None)
@given(tokens=st.integers(1, 60), kept=st.integers(0, 10**6), ours=st.booleans())
def test_a_shard_cut_anywhere_is_refused_in_one_line(tmp_path_factory, tokens, kept, ours):
    folder = tmp_path_factory.mktemp("cut")
    path = folder / ("train_000000.npy" if ours else "x_train_000000.bin")
    line = write_shard(folder / "train_000000.npy", np.arange(tokens))
    if not ours:  # llm.c's layout
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, tokens
        path.write_bytes(header.tobytes() + np.arange(tokens, dtype="<u2").tobytes())
        line = {"file": path.name, "tokens": tokens}
    whole = path.read_bytes()
    assert check_shard(folder, line).tolist() == list(range(tokens))
    path.write_bytes(whole[: kept % len(whole)])
    with pytest.raises(UserError) as error:
        check_shard(folder, line)
    assert path.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_thousands_of_shards_are_read_with_few_files_open(tmp_path):
    """5,000 shards under a limit of 256 open files, macOS' default; read in any order."""
    for i in range(5000):
        np.save(tmp_path / f"train_{i:06d}.npy", np.full(4, i, dtype=np.uint16))
    lines = [{"file": f"train_{i:06d}.npy", "tokens": 4} for i in range(5000)]
    write_meta(tmp_path, META, {"train": lines, "val": lines[:1]})
    done = limited(
        256,
        "import numpy as np; from nanogpt_lib.shards import TokenStream\n"
        "train, val = (TokenStream(folder, split) for split in ('train', 'val'))\n"
        "order = np.random.default_rng(0).permutation(5000)\n"
        "read = [train.read(4 * i + 2, 2).tolist() for i in order.tolist()]\n"
        "assert read == [[i, i] for i in order.tolist()] and len(val) == 4\n"
        "print(train[0 : len(train)].sum())",
        tmp_path,
    )
    assert done.stdout == f"{4 * sum(range(5000))}\n", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_limit_of_open_files_is_called_a_limit(tmp_path):
    write_splits(tmp_path, META, np.arange(50), np.arange(20))
    done = limited(
        64,
        "from nanogpt_lib.shards import TokenStream\n"
        "from nanogpt_lib.support.errors import UserError\n"
        "stream, held = TokenStream(folder, 'train'), []\n"
        "try:\n"
        "    while True: held.append(open(__import__('os').devnull))\n"
        "except OSError: pass\n"
        "try: stream.read(0, 4)\n"
        "except UserError as error: print(error)",
        tmp_path,
    )
    assert "train_000000.npy: too many open files" in done.stdout
    assert "truncated" not in done.stdout


def limited(files: int, code: str, folder) -> subprocess.CompletedProcess:
    """Run code in a process with a limit of open files; the code can use the name `folder`."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))\n"
    code = f"{limit}folder = {str(folder)!r}\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("tokens", [1, 0])
def test_a_split_of_one_token_is_refused_at_the_door(tmp_path, tokens):
    with pytest.raises(UserError, match="no tokens left for the val split; too little text"):
        write_splits(tmp_path, META, np.arange(50), np.arange(tokens))
    np.save(tmp_path / "x_train_000001.npy", np.arange(50, dtype=np.uint16))
    np.save(tmp_path / "x_val_000000.npy", np.arange(tokens, dtype=np.uint16))
    with pytest.raises(UserError, match=f"the val split has {tokens} token, too few"):
        TokenStream(tmp_path, "val")


def test_a_document_longer_than_two_shards_is_cut_and_complete(tmp_path):
    long = np.arange(1000, dtype=np.uint16)
    documents = [([0], long[:5]), ([1], long), ([2], long[:7])]
    run(tmp_path, documents, val_tokens=3, shard_tokens=100)
    read = np.concatenate([everything(tmp_path, "val"), everything(tmp_path, "train")])
    assert np.array_equal(read, np.concatenate([long[:5], long, long[:7]]))


@pytest.mark.parametrize("size", [63, 64, 65, 128, 129])
def test_a_document_that_exactly_fills_a_fresh_shard_is_written_once(tmp_path, size):
    tokens = np.arange(size, dtype=np.uint16)
    run(tmp_path, [([0], tokens), ([1], tokens), ([2], tokens)], val_tokens=64, shard_tokens=64)
    read = np.concatenate([everything(tmp_path, "val"), everything(tmp_path, "train")])
    assert np.array_equal(read, np.concatenate([tokens] * 3))


def test_less_than_one_shard_of_data_still_trains(tmp_path):
    run(tmp_path, list(random_documents(3)), val_tokens=10, shard_tokens=10**8)
    assert len(TokenStream(tmp_path, "train")) > len(TokenStream(tmp_path, "val")) == 10


def test_data_that_leaves_a_split_empty_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="no tokens left for the train split; too little text"):
        run(tmp_path, [([0], np.arange(10, dtype=np.uint16))], val_tokens=10)


def test_held_out_documents_go_whole_to_validation(tmp_path):
    documents = list(random_documents())
    held_out = {0, 7, 8, 30, 59}
    run(tmp_path, documents, val_tokens=0, held_out=held_out)
    for split, wanted in (("val", True), ("train", False)):
        expected = [tokens for (i,), tokens in documents if (i in held_out) == wanted]
        assert np.array_equal(everything(tmp_path, split), np.concatenate(expected))


@pytest.mark.parametrize("held_out", [None, {0, 3, 7, 8, 15, 29}])
def test_stopped_anywhere_and_started_again_gives_the_same_bytes(tmp_path, held_out):
    documents = list(random_documents(30))
    how = dict(val_tokens=0 if held_out else 100, shard_tokens=128, held_out=held_out)
    run(tmp_path / "whole", documents, **how)
    for stop in range(30):
        folder = tmp_path / f"stopped_{stop}"
        run(folder, documents, stop_after=stop, **how)
        run(folder, documents, stop_after=min(29, stop + 5), **how)
        run(folder, documents, **how)
        assert files(folder) == files(tmp_path / "whole")


def test_killed_between_a_shard_and_its_record_the_shard_is_written_again(tmp_path):
    documents = list(random_documents(30))
    run(tmp_path / "whole", documents)
    folder = tmp_path / "killed"
    run(folder, documents, stop_after=12)
    number = len(json.loads((folder / "progress.json").read_text())["shards"]) - 1
    (folder / f"train_{number:06d}.npy").write_bytes(b"a shard that progress.json does not know")
    (folder / f"train_{number + 1:06d}.npy.tmp").write_bytes(b"half a sh")
    (folder / "progress.json.tmp").write_bytes(b'{"plan"')
    run(folder, documents)
    left = {name: digest for name, digest in files(folder).items() if not name.endswith(".tmp")}
    assert left == files(tmp_path / "whole")


def test_killed_after_the_last_document_nothing_is_added_twice(tmp_path):
    documents = list(random_documents(30))
    run(tmp_path / "whole", documents)
    writer = ShardWriter(tmp_path / "killed", 100, 256)
    for position, tokens in documents:
        writer.add(position, tokens)
    writer.flush(None, 0, META)  # … and here the power fails: no meta.json yet
    again = ShardWriter(tmp_path / "killed", 100, 256)
    assert again.progress.meta == META
    again.close(META)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_folder_begun_with_another_plan_is_refused(tmp_path):
    run(tmp_path, list(random_documents()), stop_after=20)
    before = files(tmp_path)
    with pytest.raises(UserError, match="started from other files or with another shard size"):
        ShardWriter(tmp_path, 100, 999)
    with pytest.raises(UserError, match="remove it or choose another --out"):
        ShardWriter(tmp_path, 100, 256, source="other files")
    assert files(tmp_path) == before


def test_a_finished_dataset_is_never_written_over(tmp_path):
    run(tmp_path, list(random_documents()))
    before = files(tmp_path)
    with pytest.raises(UserError, match="already a finished dataset"):
        ShardWriter(tmp_path, 100, 256)
    assert files(tmp_path) == before


def test_batched_encoding_equals_one_text_at_a_time():
    tokenizer = GPT2Tokenizer()
    texts = [
        "Hello, I'm a language model,",
        "",
        "naïve café 你好 🙂",
        "\x00\x1b[0m\r\n",
        "a" * 5000,
    ]
    texts += [f"Document number {i}. " * (i % 7) for i in range(100)]
    encoded = encode_documents(enumerate(texts), tokenizer.encoding.encode_ordinary_batch, EOT, 8)
    expected = [(i, [EOT, *tokenizer.encode(text)]) for i, text in enumerate(texts) if text]
    assert [(i, tokens.tolist()) for i, tokens in encoded] == expected


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_threads_and_chunks_keep_texts_in_order(chunk):
    tokenizer = GPT2Tokenizer()
    texts = [f"{i} " * (i % 37) for i in range(200)]
    encode_batch = batch_encoder(tokenizer.encode, threads=3, chunk=chunk)
    assert encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert encode_batch([]) == []


def test_endoftext_begins_every_document_and_is_never_smuggled_in():
    tokenizer = GPT2Tokenizer()
    texts = ["one", "two <|endoftext|> three", "<|endoftext|>", "lone \ud800 surrogate"]
    encode = tokenizer.encoding.encode_ordinary_batch
    for (_, tokens), text in zip(
        encode_documents(enumerate(texts), encode, EOT), texts, strict=True
    ):
        assert tokens[0] == EOT and EOT not in tokens[1:]
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert tokenizer.decode(tokens[1:].tolist()) == clean


def test_encoding_is_lazy_so_memory_stays_constant():
    asked = []

    def endless():
        for i in range(10**9):
            asked.append(i)
            yield i, "text"

    stream = encode_documents(endless(), lambda texts: [[1]] * len(texts), EOT, batch=4)
    next(stream)
    assert len(asked) <= 8  # the batch being consumed and the one ahead
    stream.close()


def test_only_the_shards_that_meta_names_are_read(tmp_path):
    write_splits(tmp_path, META, np.arange(50), np.arange(20))
    write_shard(tmp_path / "train_000001.npy", np.arange(99))
    (tmp_path / "train_000002.npy.tmp").write_bytes(b"half")
    assert len(TokenStream(tmp_path, "train")) == 50


def test_verify_finds_one_flipped_bit(tmp_path):
    run(tmp_path, list(random_documents()))
    total = len(TokenStream(tmp_path, "train")) + len(TokenStream(tmp_path, "val"))
    assert verify_shards(tmp_path) == total
    path = tmp_path / "train_000001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="train_000001.npy: damaged"):
        verify_shards(tmp_path)


@pytest.mark.parametrize("ids", [[-1, 5], [5, 65536], [1.0, 1.7], [True, False]])
def test_ids_that_are_no_integers_from_0_to_65535_are_refused(tmp_path, ids):
    with pytest.raises(UserError, match="from 0 to 65535"):
        write_shard(tmp_path / "train_000000.npy", np.array(ids))
    assert not list(tmp_path.iterdir())


def test_a_token_beyond_the_vocabulary_names_shard_and_offset(tmp_path):
    tokens = np.zeros(30, dtype=np.int64)
    tokens[17] = 50257
    write_splits(tmp_path, META, tokens, tokens[:5])
    stream = TokenStream(tmp_path, "train")
    assert stream.read(0, 17).sum() == 0
    with pytest.raises(UserError, match="train_000000.npy: token 50257 at offset 17 is outside"):
        stream.read(10, 20)


def damaged_shard(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "cut in the header":
        path.write_bytes(path.read_bytes()[:40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404</html>")
    elif how == "other type":
        np.save(path, np.zeros(50, dtype=np.int32))
    elif how == "other length":
        np.save(path, np.zeros(40, dtype=np.uint16))
    elif how == "pickle":
        np.save(path, np.array([{"a": 1}] * 50, dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing", "missing, though meta.json lists it"),
        ("cut short", "truncated or not a token shard"),
        ("cut in the header", "truncated or not a token shard"),
        ("empty", "truncated or not a token shard"),
        ("text", "truncated or not a token shard"),
        ("other type", "expected uint16, 1-d"),
        ("other length", "40 tokens; meta.json says 50"),
        ("pickle", "truncated or not a token shard"),
    ],
)
def test_a_truncated_or_foreign_shard_is_named(tmp_path, how, message):
    write_splits(tmp_path, META, np.arange(50), np.arange(20))
    damaged_shard(tmp_path / "train_000000.npy", how)
    with pytest.raises(UserError, match=message) as error:
        TokenStream(tmp_path, "train")
    assert "train_000000.npy" in str(error.value) and "\n" not in str(error.value)
    assert len(TokenStream(tmp_path, "val")) == 20  # the other split is not touched


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 2}', '{"format": 1, "vocab_size": "x", "tokenizer": {}}'],
)
def test_a_damaged_meta_is_one_clear_line(tmp_path, text):
    write_splits(tmp_path, META, np.arange(50), np.arange(20))
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match="meta.json: damaged or in another format"):
        read_meta(tmp_path)


def test_a_meta_cannot_point_out_of_its_folder(tmp_path):
    meta = write_splits(tmp_path, META, np.arange(50), np.arange(20))
    meta["splits"]["train"][0]["file"] = "../secret.npy"
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="damaged or in another format"):
        TokenStream(tmp_path, "train")


def test_a_missing_or_unfinished_dataset_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such data folder; make it with python data/NAME.py"):
        TokenStream(tmp_path / "nowhere", "train")
    run(tmp_path, list(random_documents()), stop_after=20)
    with pytest.raises(UserError, match="no meta.json, so not a finished dataset"):
        TokenStream(tmp_path, "train")
    meta = write_splits(tmp_path / "small", META, np.arange(9), np.arange(9))
    with pytest.raises(UserError, match="no tokens left for the val split"):
        write_meta(tmp_path / "small", META, {**meta["splits"], "val": []})


def test_check_shard_reads_nothing_until_asked(tmp_path):
    shard = write_shard(tmp_path / "train_000000.npy", np.arange(1000))
    tokens = check_shard(tmp_path, shard)
    assert (
        isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and not tokens.flags.writeable
    )
