"""Shards made by nanoGPT, llm.c and the lecture's script are read unchanged, or refused."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.shard_files import open_bin
from nanogpt_lib.tokenizer import CharTokenizer, tokenizer_from

IDS = np.random.default_rng(0).integers(0, 50257, 5000).astype(np.uint16)


def llmc(tokens, magic=20240520, version=1, count=None):
    """The bytes of a .bin file of llm.c."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + tokens.tobytes()


def write_llmc(folder):
    (folder / "edu_fineweb_val_000000.bin").write_bytes(llmc(IDS[:500]))
    (folder / "edu_fineweb_train_000001.bin").write_bytes(llmc(IDS[:3000]))
    (folder / "edu_fineweb_train_000002.bin").write_bytes(llmc(IDS[3000:]))


def write_nanogpt(folder):
    (folder / "val.bin").write_bytes(IDS[:500].tobytes())
    (folder / "train.bin").write_bytes(IDS.tobytes())


def write_lecture(folder):
    np.save(folder / "edufineweb_val_000000", IDS[:500])
    np.save(folder / "edufineweb_train_000001", IDS[:3000])
    np.save(folder / "edufineweb_train_000002", IDS[3000:])


@pytest.mark.parametrize("write", [write_llmc, write_nanogpt, write_lecture])
def test_they_are_mapped_and_read_without_conversion(tmp_path, write):
    write(tmp_path)
    train, val = (TokenStream(tmp_path, split) for split in ("train", "val"))
    assert np.array_equal(train.read(0, len(train)), IDS)
    assert np.array_equal(val.read(0, len(val)), IDS[:500])
    assert np.array_equal(train.read(2990, 20), IDS[2990:3010])  # across two files
    arrays = [train.map_shard(i) for i in range(len(train.shards))]
    assert all(isinstance(a, np.memmap) and not a.flags.writeable for a in arrays)
    meta = read_meta(tmp_path)
    assert meta["tokenizer"] == {"name": "gpt2"} and meta["vocab_size"] == 50257
    assert "another program" in meta["source"]
    assert verify_shards(tmp_path) == 5500
    assert not (tmp_path / "meta.json").exists()


@pytest.mark.parametrize(
    "body, message",
    [
        (llmc(IDS)[:-2], "room for 4999 tokens, not 5000 as expected"),
        (llmc(IDS)[:-1], "room for 4999.5 tokens"),
        (llmc(IDS) + b"xx", "room for 5001 tokens"),
        (llmc(IDS)[:700], "header truncated"),
        (llmc(IDS, version=7), "or another version"),
        (llmc(IDS, count=-1), "room for 5000 tokens, not -1"),
        (llmc(IDS[:0]), "not 0 as expected"),
        (llmc(IDS, magic=20240801), "does not begin with 20240520"),  # llm.c's Llama 3 shards
        (b"<html>404</html>", "does not begin with 20240520"),
        (b"", "does not begin with 20240520"),
    ],
)
def test_a_damaged_shard_of_llmc_is_named_with_the_reason(tmp_path, body, message):
    write_llmc(tmp_path)
    (tmp_path / "edu_fineweb_train_000002.bin").write_bytes(body)
    with pytest.raises(UserError, match=message) as error:
        TokenStream(tmp_path, "train")
    assert "train_000002.bin" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("body", [b"", IDS.tobytes()[:-1]])
def test_a_bare_file_of_half_a_token_or_none_is_refused(tmp_path, body):
    write_nanogpt(tmp_path)
    (tmp_path / "train.bin").write_bytes(body)
    with pytest.raises(UserError, match="train.bin: the file has room for"):
        TokenStream(tmp_path, "train")


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8"])
@pytest.mark.parametrize("vocab_size", [65, 50_000, 128_000])
def test_a_bare_file_of_wider_integers_is_refused(tmp_path, dtype, vocab_size):
    """As written by a prepare.py for a large vocabulary: every second uint16 would be 0."""
    ids = np.random.default_rng(0).integers(0, vocab_size, 3000)
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(ids.astype(dtype).tobytes())
    with pytest.raises(UserError, match="train.bin: holds 32- or 64-bit integers; write the ids"):
        read_meta(tmp_path)


@pytest.mark.parametrize("vocab_size", [2, 10, 65, 50_257])
def test_bare_files_of_small_alphabets_are_not_taken_for_wider_integers(tmp_path, vocab_size):
    ids = np.random.default_rng(0).integers(0, vocab_size, 3000).astype("<u2")
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(ids.tobytes())
    stream = TokenStream(tmp_path, "train")
    assert np.array_equal(stream[:], ids)


def test_no_gpt2_tokens_can_be_taken_for_a_header():
    first = np.frombuffer(np.int32(20240520).tobytes(), dtype=np.uint16)[0]
    assert first > 50256


def test_nanogpts_characters_are_never_unpickled_but_read_from_json(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    tokenizer = CharTokenizer("to be, or not to be\n")
    ids = np.array(tokenizer.encode("to be, or not to be\n"), dtype=np.uint16)
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(ids.tobytes())
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="pickles are not opened here") as error:
        TokenStream(tmp_path, "train")
    assert not (tmp_path / "exploded").exists()
    # the command that the message gives, run by the one who trusts the file
    stoi = {c: i for i, c in enumerate(tokenizer.characters)}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": stoi, "vocab_size": len(stoi)}))
    code = str(error.value).split('-c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    stream, meta = TokenStream(tmp_path, "train"), read_meta(tmp_path)
    text = tokenizer_from(meta["tokenizer"]).decode(stream.read(0, len(stream)).tolist())
    assert text == "to be, or not to be\n" and meta["vocab_size"] == tokenizer.vocab_size


@pytest.mark.parametrize("text", ["", "[]", "{}", '"ba"', '"aab"', "[" * 100_000])
def test_an_alphabet_that_is_no_sorted_string_is_refused(tmp_path, text):
    write_nanogpt(tmp_path)
    (tmp_path / "characters.json").write_text(text)
    with pytest.raises(UserError, match="one string of sorted characters"):
        read_meta(tmp_path)


def test_two_datasets_in_one_folder_or_an_unfinished_one_are_refused(tmp_path):
    write_llmc(tmp_path)
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(UserError, match="not a finished dataset"):
        read_meta(tmp_path)
    (tmp_path / "progress.json").unlink()
    (tmp_path / "fineweb_train_000001.bin").write_bytes(llmc(IDS))
    with pytest.raises(UserError, match=r"several datasets \['edu_fineweb', 'fineweb'\]"):
        read_meta(tmp_path)


def test_a_missing_split_is_named(tmp_path):
    (tmp_path / "train.bin").write_bytes(IDS.tobytes())
    assert len(TokenStream(tmp_path, "train")) == 5000
    with pytest.raises(UserError, match="has no val split"):
        TokenStream(tmp_path, "val")


def test_verify_names_the_offset_of_an_id_beyond_the_vocabulary(tmp_path):
    write_llmc(tmp_path)
    odd = IDS.copy()
    odd[4321] = 60000
    (tmp_path / "edu_fineweb_train_000002.bin").write_bytes(llmc(odd))
    with pytest.raises(UserError, match="train_000002.bin: token 60000 at offset 4321 is outside"):
        verify_shards(tmp_path)


def test_our_own_shard_with_bytes_behind_it_is_refused(tmp_path):
    meta = {"name": "t", "source": "t", "tokenizer": {"name": "gpt2"}, "vocab_size": 50257}
    write_splits(tmp_path, meta, IDS, IDS[:9])
    with open(tmp_path / "train_000000.npy", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="longer than its header says"):
        TokenStream(tmp_path, "train")


def test_a_bare_file_under_another_name_has_no_known_layout(tmp_path):
    (tmp_path / "tokens.bin").write_bytes(IDS.tobytes())
    with pytest.raises(UserError, match="does not begin with 20240520"):
        open_bin(tmp_path / "tokens.bin")
