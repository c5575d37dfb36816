"""data/text.py: your own text, in any files and any language, becomes a dataset."""

import codecs
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recipes import DATA, files, quiet, recipe

from conftest import ROOT, TINY
from nanogpt_lib.recipes import text_files
from nanogpt_lib.recipes.own_text import make_text_dataset
from nanogpt_lib.recipes.text_files import find_files, last_break, read_pieces
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import GPT2Tokenizer, tokenizer_from

CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张\n" * 40
EOT = GPT2Tokenizer.eot


def text_of(folder: Path) -> str:
    """All text of a dataset, training and validation."""
    tokenizer = tokenizer_from(read_meta(folder)["tokenizer"])
    ids = np.concatenate([TokenStream(folder, split)[:] for split in ("train", "val")])
    return tokenizer.decode(ids.tolist())


def sizes(folder: Path) -> tuple[int, int]:
    """Training and validation tokens."""
    return len(TokenStream(folder, "train")), len(TokenStream(folder, "val"))


# --- datasets -----------------------------------------------------------------------------------


def test_a_text_file_becomes_a_dataset_split_at_nine_tenths(tmp_path):
    text = "My own text, paragraph by paragraph.\n\n" * 400
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    done = recipe("text.py", tmp_path / "own.txt", "--out", tmp_path / "own")
    assert text_of(tmp_path / "own") == text
    assert sizes(tmp_path / "own") == (int(0.9 * len(text)), len(text) - int(0.9 * len(text)))
    meta = read_meta(tmp_path / "own")
    assert (meta["name"], meta["source"]) == ("own", "own text: own.txt")
    assert meta["vocab_size"] == len(set(text)) and verify_shards(tmp_path / "own") == len(text)
    assert "1 document, 15,200 characters" in done.stdout


def test_the_command_it_prints_trains_on_chinese(tmp_path):
    (tmp_path / "chinese.txt").write_text(CHINESE, encoding="utf-8")
    done = recipe("text.py", tmp_path / "chinese.txt", "--out", tmp_path / "my chinese")
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("train on it: "))
    assert command[0] == "python" and command[2] == "quickstart"
    assert text_of(tmp_path / "my chinese") == CHINESE
    short = [*TINY, "--sample-every", "3", "--out", tmp_path / "run"]  # the same, shortened
    if "--sample-prompt" in short:  # the default one is English
        at = short.index("--sample-prompt")
        del short[at : at + 2]
    command = [sys.executable, *command[1:], *map(str, short)]
    trained = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    assert trained.returncode == 0, trained.stderr
    assert set((tmp_path / "run/samples.txt").read_text(encoding="utf-8")) & set(CHINESE.strip())


def test_files_and_folders_of_every_kind_are_read_in_order_and_parted(tmp_path):
    notes = tmp_path / "notes"
    (notes / "deep").mkdir(parents=True)
    (notes / "a.txt").write_bytes(codecs.BOM_UTF8 + b"first, from Windows\r\nline two")
    (notes / "b.md").write_text("# second\n", encoding="utf-8")
    (notes / "c.jsonl").write_text(
        '{"text": "third", "id": "x"}\n\n{"text": ""}\n{"text": "fourth"}'
    )
    table = pa.table({"text": ["fifth", None, "sixth"], "id": ["a", "b", "c"]})
    pq.write_table(table, notes / "deep" / "d.PARQUET")
    (notes / "empty.txt").touch()
    for name in ("._a.txt", ".hidden.md", "deep/._d.parquet", "picture.png", "old.txt~"):
        (notes / name).write_bytes(b"\x00\x05\x16\x07" + bytes(64))
    (tmp_path / "last").write_text("seventh, named, of no suffix " * 10, encoding="utf-8")
    given = [notes, tmp_path / "last", notes / "a.txt"]  # what is given twice is read once
    done = recipe("text.py", *given, "--out", tmp_path / "out")
    assert "skipped: 3 hidden files, 2 of other kinds" in done.stdout
    expected = ["first, from Windows\nline two", "# second\n", "third", "fourth", "fifth", "sixth"]
    expected.append("seventh, named, of no suffix " * 10)
    assert text_of(tmp_path / "out") == "\n\n".join(expected)
    assert read_meta(tmp_path / "out")["documents"] == 7
    assert (
        read_meta(tmp_path / "out")["source"] == "own text: a.txt, b.md, c.jsonl and 3 more files"
    )

    recipe("text.py", *given, "--tokenizer", "gpt2", "--out", tmp_path / "gpt2")
    tokenizer = GPT2Tokenizer()
    train, val = (TokenStream(tmp_path / "gpt2", split)[:] for split in ("train", "val"))
    documents = np.split(train, np.flatnonzero(train == EOT))
    assert documents.pop(0).size == 0 and EOT not in val
    read = [tokenizer.decode(tokens[1:].tolist()) for tokens in documents]
    assert read[:6] == expected[:6]
    assert read[6] + tokenizer.decode(val.tolist()) == expected[6]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_another_column_is_named_or_is_the_only_one(tmp_path, suffix):
    def write(name, columns):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table(columns), path)
            return path
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    one = write("one", {"content": ["a text " * 50] * 20, "id": list(range(20))})
    recipe("text.py", one, "--out", tmp_path / "a")
    recipe("text.py", one, "--out", tmp_path / "b", "--column", "content")
    assert text_of(tmp_path / "a") == text_of(tmp_path / "b") == "\n\n".join(["a text " * 50] * 20)
    two = write("two", {"title": ["title"] * 20, "body": ["the body"] * 20})
    recipe("text.py", two, "--out", tmp_path / "c", "--column", "body")
    assert text_of(tmp_path / "c") == "\n\n".join(["the body"] * 20)
    for arguments in ([], ["--column", "Body"]):
        done = recipe("text.py", two, "--out", tmp_path / "d", *arguments, check=False)
        assert done.returncode == 1 and "give --column, one of ['title', 'body']" in done.stderr
    done = recipe("text.py", one, "--out", tmp_path / "d", "--column", "id", check=False)
    assert "column id is not text" in done.stderr and not list(tmp_path.glob("d/*"))


def test_without_an_argument_usage_is_printed(tmp_path):
    done = recipe("text.py", check=False)
    assert (done.returncode, done.stdout) == (2, "") and "usage: text.py" in done.stderr


# --- refusals -----------------------------------------------------------------------------------


BAD = {
    "utf16.txt": ("The ".encode("utf-16"), "byte 0xff at offset 0 is not UTF-8 (UTF-16 or"),
    "utf16 without a mark.txt": ("The ".encode("utf-16-le"), "a zero byte at offset 1"),
    "latin1.txt": ("Text, Caf\xe9.".encode("latin-1"), "byte 0xe9 at offset 9 is not UTF-8"),
    "cut.txt": ("Text, Café"[:-1].encode() + b"\xc3", "byte 0xc3 at offset 9 is not UTF-8"),
    "packed.gz": (b"\x1f\x8b\x08\x00more", "byte 0x8b at offset 1 is not UTF-8"),
    "empty.txt": (b"", "0 characters of text are too few"),
    "mark.txt": (codecs.BOM_UTF8, "0 characters of text are too few"),
    "short.txt": (b"too short", "9 characters of text are too few"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "line 2 is not JSON (Expecting value"),
    "deep.jsonl": (b"[" * 100_000, "line 1 is not JSON (nested too deeply"),
    "list.jsonl": (b'["text"]', "line 1 is neither an object nor a string"),
    "missing.jsonl": (b'{"text": "a"}\n{"other": "b"}', "line 2 has no text in the field text"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 5}', "line 2 has no text in the field text"),
    "mixed.jsonl": (b'"a"\n{"text": "b"}', "line 2 has no string"),
    "no text.jsonl": (b'{"id": 5}', "no column text; give --column, one of []"),
    "latin1.jsonl": (b'{"text": "a"}\n{"text": "Caf\xe9"}', "byte 0xe9 at offset 27"),
    "cut.parquet": (b"PAR1 and no more", "not a whole parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_one_line_and_nothing_is_written(tmp_path, name):
    body, message = BAD[name]
    good = tmp_path / "in" / "a.txt"
    good.parent.mkdir()
    (tmp_path / "in" / f"b {name}").write_bytes(body)
    for tokenizer in ("char", "gpt2"):
        with pytest.raises(UserError) as error:
            path = tmp_path / "in" / f"b {name}"
            make_text_dataset([path], tmp_path / "out", "x", tokenizer)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert f"b {name}" in str(error.value)
        assert not list(tmp_path.glob("out/*"))


def test_more_characters_than_a_shard_can_number_are_refused(tmp_path):
    text = "".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1)))
    (tmp_path / "all.txt").write_text(text, encoding="utf-8")
    done = recipe("text.py", tmp_path / "all.txt", "--out", tmp_path / "out", check=False)
    assert done.returncode == 1 and "65,537 different characters" in done.stderr
    assert "use --tokenizer gpt2" in done.stderr and not list(tmp_path.glob("out/*"))
    (tmp_path / "all.txt").write_text(text[1:], encoding="utf-8")
    make_text_dataset([tmp_path / "all.txt"], tmp_path / "out", "x", "char")
    assert text_of(tmp_path / "out") == text[1:]


def test_nothing_to_read_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.txt").write_text("x" * 100)
    with pytest.raises(UserError, match="has no .txt, .md, .jsonl, .parquet files"):
        find_files([tmp_path / "empty"])
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        find_files([tmp_path / "nowhere"])


def test_a_finished_dataset_is_kept_and_told_by_its_contents(tmp_path, capsys):
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("the first text " * 10)
    make_text_dataset([text], out, "a", "char")
    before = files(out)
    os.utime(text, (1, 1))
    make_text_dataset([text], out, "a", "char")
    assert "already there" in capsys.readouterr().out
    text.write_text("the other text " * 10)  # of the same size
    for tokenizer in ("char", "gpt2"):
        with pytest.raises(UserError, match="already a finished dataset; remove it or choose"):
            make_text_dataset([text], out, "a", tokenizer)
    assert files(out) == before


# --- nothing is lost, whatever the sizes and wherever it is killed --------------------------------


TEXTS = st.text(alphabet="ab \n\r\t'5,é天🙂\u3000", max_size=60)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), block=st.integers(4, 40), data=st.data())
def test_pieces_of_any_size_are_the_text_and_can_be_taken_up_anywhere(
    tmp_path_factory, texts, block, data
):
    """One .txt and one .jsonl file; reading can resume from the place of every piece."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "a.txt").write_bytes("".join(texts).encode())
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    found, _, _ = find_files([folder])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", block)
        patch.setattr(text_files, "PIECE", max(2, block // 3))
        whole = list(read_pieces(found, None, "\n\n", math.inf))
        plain = "".join(texts).replace("\r\n", "\n").replace("\r", "\n")
        documents = [text for text in (plain, *texts) if text]
        read = "".join(piece.text for piece in whole)
        assert read.replace("\n", "") == "\n\n".join(documents).replace("\n", "")
        if "\r" not in "".join(texts):  # a block may end between \r and \n, in white space only
            assert read == "\n\n".join(documents)
        assert sum(piece.begins for piece in whole) == len(documents)
        cut = data.draw(st.integers(0, len(read)))
        pieces = list(read_pieces(found, None, "\n\n", cut))
        assert "".join(p.text for p in pieces if not p.held_out) == read[:cut]
        for number, piece in enumerate(pieces):
            assert list(read_pieces(found, None, "\n\n", cut, piece.place)) == pieces[number:]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab  \n\n\t'5,é天s", min_size=1, max_size=40))
def test_gpt2_has_the_same_tokens_for_a_text_and_for_its_parts(text):
    at, tokenizer = last_break(text), GPT2Tokenizer()
    assert tokenizer.encode(text[:at]) + tokenizer.encode(text[at:]) == tokenizer.encode(text)


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_stopped_after_any_piece_and_started_again_gives_the_same_bytes(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(text_files, "PIECE", 40)
    monkeypatch.setattr(text_files, "BLOCK", 150)
    (tmp_path / "a.txt").write_text("some words of one document, 天地玄黄. " * 12, encoding="utf-8")
    lines = "\n".join(json.dumps({"text": f"line {i} " * (i % 5)}) for i in range(12))
    (tmp_path / "b.jsonl").write_text(lines, encoding="utf-8")
    given = [tmp_path / "a.txt", tmp_path / "b.jsonl"]

    def make(out, stop=None):
        real = text_files.read_pieces

        def stopped(*arguments):
            for number, piece in enumerate(real(*arguments)):
                if len(arguments) > 4 and number == stop:
                    raise KeyboardInterrupt
                yield piece

        monkeypatch.setattr("nanogpt_lib.recipes.own_text.read_pieces", stopped)
        make_text_dataset(given, out, "x", tokenizer, shard_tokens=60)

    make(tmp_path / "whole")
    assert len(read_meta(tmp_path / "whole")["splits"]["train"]) > 2
    assert text_of(tmp_path / "whole").startswith("some words" if tokenizer == "char" else "<|")
    for stop in range(0, 24, 3):
        out = tmp_path / f"stopped{stop}"
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                make(out, stop)
                raise KeyboardInterrupt  # what is left was done before the stop
        make(out)
        assert files(out) == files(tmp_path / "whole")


def test_killed_the_same_command_goes_on_and_gives_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        words = rng.choice("the a cat dog sees hears runs to from 天地玄黄".split(), 150_000)
        (tmp_path / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    arguments = [tmp_path, "--tokenizer", "gpt2", "--shard-tokens", "20000", "--out"]
    command = [sys.executable, DATA / "text.py", *map(str, arguments), tmp_path / "out"]
    killed = 0
    for wanted in (2, 9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=quiet({}))
        while process.poll() is None and len(list(tmp_path.glob("out/*.npy"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        killed += process.wait() != 0
    assert killed, "the recipe was too quick to be killed"
    recipe("text.py", *arguments, tmp_path / "out")
    recipe("text.py", *arguments, tmp_path / "undisturbed")
    left = {name: digest for name, digest in files(tmp_path / "out").items() if name[-4:] != ".tmp"}
    assert left == files(tmp_path / "undisturbed")
