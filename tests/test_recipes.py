"""The recipes in data/: real processes on real files, and a server that drops, stalls and lies."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import ROOT
from nanogpt_lib.hellaswag import read_items
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import GPT2Tokenizer

DATA = Path(__file__).resolve().parents[1] / "data"
ODD = [
    "",
    None,
    "two <|endoftext|> marks <|endoftext|>",
    "control \x00\x01\x1b characters\r\n\t\x7f",
    "naïve café, 你好, 🙂",
    "a long document. " * 2000,
    b"bytes that are no UTF-8: \xed\xa0\x80 \xff",  # the first three encode a lone surrogate
]


def recipe(name, *arguments, check=True, **environment):
    """Run a recipe in a separate process; no mirror and no hub unless the test sets one."""
    done = subprocess.run(
        [sys.executable, DATA / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=quiet(environment),
    )
    assert not check or done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def quiet(environment):
    env = {k: v for k, v in os.environ.items() if k != "NANOGPT_MIRROR"}
    return env | {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", **environment}


def files(folder):
    """Every file of a folder and its SHA-256."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def write_parquet(path, texts, **columns):
    """One parquet file like FineWeb's: a text column among others, small row groups."""
    raw = [t.encode() if isinstance(t, str) else t for t in texts]
    text = pa.Array.from_buffers(pa.string(), len(raw), pa.array(raw, pa.binary()).buffers())
    table = pa.table({"text": text, "id": [f"<{i}>" for i in range(len(raw))], **columns})
    pq.write_table(table, path, row_group_size=50, compression="zstd")


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A folder with three parquet files, and their texts as the recipes should read them."""
    folder, rng, all_texts = tmp_path_factory.mktemp("parquet"), random.Random(1), []
    words = [w for w in (DATA / "text.py").read_text(encoding="utf-8").split() if len(w) > 2]
    for number in range(3):
        texts = [" ".join(rng.choices(words, k=rng.randint(5, 200))) for _ in range(100)]
        texts[20:20] = ODD if number == 1 else []
        write_parquet(folder / f"{number:03d}_00000.parquet", texts)
        all_texts += texts
    clean = [t.decode("utf-8", "replace") if isinstance(t, bytes) else t or "" for t in all_texts]
    return folder, clean


@pytest.fixture(scope="module")
def undisturbed(parquet, tmp_path_factory):
    """What the recipes make of these files when not interrupted."""
    out = tmp_path_factory.mktemp("undisturbed")
    where = ["--local", parquet[0], "--shard-tokens", "3000", "--out"]
    recipe("fineweb.py", *where, out / "fineweb.py")
    recipe("openwebtext.py", *where, out / "openwebtext.py")
    return out


def everything(folder, split):
    stream = TokenStream(folder, split)
    return stream.read(0, len(stream))


# --- parquet → shards ---------------------------------------------------------------------------


def test_fineweb_shards_equal_a_plain_loop_over_the_documents(parquet, undisturbed):
    tokenizer = GPT2Tokenizer()
    expected = []
    for text in parquet[1]:
        if text:
            expected += [tokenizer.eot, *tokenizer.encode(text)]
    folder = undisturbed / "fineweb.py"
    read = np.concatenate([everything(folder, "val"), everything(folder, "train")])
    assert read.tolist() == expected
    meta = read_meta(folder)
    assert meta["documents"] == sum(bool(text) for text in parquet[1])
    assert meta["tokenizer"] == {"name": "gpt2"} and meta["vocab_size"] == 50257
    assert meta["source"].startswith("parquet files of")
    assert verify_shards(folder) == len(expected)


def test_validation_is_at_most_a_tenth_of_small_data(undisturbed):
    for name in ("fineweb.py", "openwebtext.py"):
        train, val = (len(TokenStream(undisturbed / name, split)) for split in ("train", "val"))
        assert 0 < val <= 0.15 * (train + val)
    assert len(TokenStream(undisturbed / "fineweb.py", "val")) < 3000  # not a whole shard


def test_openwebtext_splits_whole_documents_by_their_place(parquet, undisturbed):
    folder = undisturbed / "openwebtext.py"
    train, val = everything(folder, "train"), everything(folder, "val")
    eot = GPT2Tokenizer.eot
    assert (train == eot).sum() + (val == eot).sum() == read_meta(folder)["documents"]
    assert train[0] == eot and val[0] == eot
    assert val[1:].tolist()[: len(parquet[1][0])] != train[1:].tolist()[: len(parquet[1][0])]
    fineweb = undisturbed / "fineweb.py"
    both = len(TokenStream(fineweb, "train")) + len(TokenStream(fineweb, "val"))
    assert len(train) + len(val) == both  # the same documents, another split


@pytest.mark.parametrize("name", ["fineweb.py", "openwebtext.py"])
def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(
    parquet, undisturbed, tmp_path, name
):
    command = [sys.executable, DATA / name, "--local", parquet[0], "--shard-tokens", "3000"]
    killed = 0
    for wanted in (1, 6, 12):  # shards on the disk when the process is killed
        process = subprocess.Popen(
            [*command, "--out", tmp_path / "out"], stdout=subprocess.DEVNULL, env=quiet({})
        )
        while process.poll() is None and len(list(tmp_path.glob("out/*.npy"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        killed += process.wait() != 0
    assert killed >= 2, "the recipe was too quick to be killed"
    recipe(name, "--local", parquet[0], "--shard-tokens", "3000", "--out", tmp_path / "out")
    left = {f: digest for f, digest in files(tmp_path / "out").items() if not f.endswith(".tmp")}
    assert left == files(undisturbed / name)


def test_a_finished_dataset_is_kept_and_another_one_refused(parquet, undisturbed):
    out = undisturbed / "fineweb.py"
    before = files(out)
    again = recipe("fineweb.py", "--local", parquet[0], "--out", out)
    assert "already there" in again.stdout
    other = recipe("fineweb.py", "--local", parquet[0], "--files", 1, "--out", out, check=False)
    assert other.returncode == 1 and "choose another --out" in other.stderr
    assert files(out) == before


def test_other_files_of_the_same_names_and_sizes_are_another_dataset(tmp_path):
    (tmp_path / "in").mkdir()
    sizes, status = set(), []
    for word in ("cat", "dog"):
        write_parquet(tmp_path / "in" / "a.parquet", [f"a {word} sat down"] * 60)
        sizes.add((tmp_path / "in" / "a.parquet").stat().st_size)
        where = ["--local", tmp_path / "in", "--out", tmp_path / "out"]
        done = recipe("fineweb.py", *where, check=False)
        status.append(done.returncode)
    assert len(sizes) == 1 and status == [0, 1]
    assert "already a finished dataset" in done.stderr


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path):
    write_parquet(tmp_path / "whole.parquet", ["some text"] * 9)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "a.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-9])
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (["--local", tmp_path / "nowhere"], "no such folder", 1),
        (["--local", empty], "has no .parquet or .bin files", 1),
        (["--local", cut], "a.parquet: not a whole parquet file", 1),
        (["--sample", "11BT"], "invalid choice: '11BT'", 2),
    ]
    for number, (arguments, message, status) in enumerate(cases):
        out = tmp_path / f"out{number}"
        done = recipe("fineweb.py", *arguments, "--out", out, check=False)
        assert done.returncode == status and message in done.stderr
        assert len(done.stderr.strip().split("\n")) == 1
        assert not list(out.glob("*.npy")) and not (out / "meta.json").exists()


def test_a_document_of_much_white_space_is_encoded_whole(tmp_path):
    far = "start" + " " * 1_200_000 + "far to the right"  # tiktoken alone panics on this
    write_parquet(tmp_path / "a.parquet", [far, "short"] * 2)
    recipe("fineweb.py", "--local", tmp_path, "--out", tmp_path / "out")
    read = np.concatenate([everything(tmp_path / "out", s) for s in ("val", "train")])
    eot = GPT2Tokenizer.eot
    documents = np.split(read, np.flatnonzero(read == eot))[1:]
    texts = [GPT2Tokenizer().decode(tokens[1:].tolist()) for tokens in documents]
    assert texts == [far, "short"] * 2


def test_a_file_without_a_text_column_and_a_full_disk_are_told_in_words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    from nanogpt_lib.recipes import parquet as recipes
    from nanogpt_lib.recipes import sources

    pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), tmp_path / "a.parquet")
    source = sources.local_source(tmp_path, "test")
    columns = r"no column text; give --column, one of \['title', 'body'\]"
    with pytest.raises(UserError, match=f"a.parquet: {columns}"):
        list(recipes.read_documents(source, recipes.BEGIN, lambda read: None))
    big = sources.Source("big", [("a.parquet", 10**15)], lambda name: tmp_path, remote=True)
    with pytest.raises(UserError, match="needed, .* free in .*; choose a larger disk with --out"):
        recipes.check_disk(big, tmp_path, keep=False, written=0)
    small = tmp_path / "small"
    small.mkdir()
    write_parquet(small / "a.parquet", [f"{i} is a number and no word" for i in range(5000)])
    text = sum(len(f"{i} is a number and no word") for i in range(5000))
    assert 0.9 < recipes.shard_bytes(sources.local_source(small, "t")) / (text * 2 / 3.4) < 1.3
    # the lecture's data: the first whole shard validates
    edu = sources.Source("edu", [("a", 28_518_193_415)], lambda name: tmp_path)
    assert recipes.validation_tokens(edu) == 100_000_000


def test_importing_a_recipe_does_nothing(tmp_path):
    names = "fineweb, openwebtext, hellaswag, pydocs, shakespeare"  # spawned workers import them
    done = subprocess.run(
        [sys.executable, "-c", f"import {names}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=quiet({"PYTHONPATH": os.pathsep.join([str(DATA), str(DATA.parent)])}),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# --- servers that drop, stall and lie -----------------------------------------------------------


@pytest.fixture
def server():
    """A loopback web server; `answer(handler, number of the request)` is set by the test."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append((self.command, self.path, self.headers.get("Range")))
            self.server.answer(self, len(self.server.asked))

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.asked, web.url = [], f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield web
    web.shutdown()
    web.server_close()


def send(handler, body, status=200, length=None, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


@pytest.fixture
def text_module(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    monkeypatch.delenv("NANOGPT_MIRROR", raising=False)
    from nanogpt_lib.support import download as text

    monkeypatch.setattr(text.time, "sleep", lambda seconds: None)
    return text


BODY = bytes(range(256)) * 40
SUM = hashlib.sha256(BODY).hexdigest()


def test_a_broken_download_is_continued_where_it_broke(server, text_module, tmp_path):
    def answer(handler, number):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        part = BODY[start : start + 3000]  # each connection breaks after 3,000 bytes
        where = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        length = len(BODY) - start
        send(handler, part, 206 if start else 200, length=length, Content_Range=where)

    server.answer = answer
    where = text_module.obtain("file", server.url, tmp_path / "file", SUM)
    assert where == server.url and (tmp_path / "file").read_bytes() == BODY
    assert [r for _, _, r in server.asked] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_proxy_is_asked_for_what_lies_behind_it(server, text_module, tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setattr(text_module.urllib.request, "_opener", None)  # it remembers its proxies
    server.answer = lambda handler, number: send(handler, BODY)
    text_module.obtain("file", "http://data.invalid/file", tmp_path / "file", SUM)
    assert server.asked[0][1] == "http://data.invalid/file"


def test_an_error_page_is_not_kept(server, text_module, tmp_path):
    server.answer = lambda handler, number: send(handler, b"<html>not here</html>", 404)
    with pytest.raises(UserError, match="the server replied 404"):
        text_module.obtain("file", server.url, tmp_path / "file")
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_a_server_in_trouble_is_asked_again(server, text_module, tmp_path):
    server.answer = lambda handler, n: send(
        handler, BODY if n == 3 else b"busy", 200 if n == 3 else 503
    )
    text_module.obtain("file", server.url, tmp_path / "file", SUM)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_server_that_continues_at_the_wrong_byte_is_not_believed(server, text_module, tmp_path):
    def answer(handler, number):
        if handler.headers.get("Range"):
            send(handler, BODY[:9], 206, Content_Range=f"bytes 0-8/{len(BODY)}")
        else:
            send(handler, BODY[:3000] if number == 1 else BODY, length=len(BODY))

    server.answer = answer
    text_module.obtain("file", server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY and len(server.asked) == 3


def test_a_stalled_server_times_out_and_what_arrived_is_continued(server, text_module, tmp_path):
    release = threading.Event()

    def answer(handler, number):
        send(handler, BODY[:500], length=len(BODY))
        handler.wfile.flush()
        release.wait(20)

    server.answer = answer
    with pytest.raises(UserError, match="timed out .4 attempts.; set NANOGPT_MIRROR"):
        text_module.obtain("file", server.url, tmp_path / "file", SUM, timeout=0.1)
    release.set()
    assert [p.name for p in tmp_path.iterdir()] == ["file.tmp"]  # not under its final name
    rest = f"bytes 500-{len(BODY) - 1}/{len(BODY)}"
    server.answer = lambda handler, n: send(handler, BODY[500:], 206, Content_Range=rest)
    text_module.obtain("file", server.url, tmp_path / "file", SUM)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked[-1][2] == "bytes=500-"


def test_a_server_that_lies_is_caught_by_the_checksum(server, text_module, tmp_path):
    server.answer = lambda handler, number: send(handler, b"<html>please log in</html>")
    with pytest.raises(UserError, match="SHA-256 differs"):
        text_module.obtain("file", server.url, tmp_path / "file", SUM)
    assert not list(tmp_path.iterdir())


def test_half_a_file_from_before_does_not_count_as_whole(server, text_module, tmp_path):
    (tmp_path / "file").write_bytes(BODY[:100])
    server.answer = lambda handler, number: send(handler, BODY)
    text_module.obtain("file", server.url, tmp_path / "file", SUM)
    assert (tmp_path / "file").read_bytes() == BODY
    assert text_module.obtain("file", server.url, tmp_path / "file", SUM) == "already here"
    assert len(server.asked) == 1


def test_the_hub_is_read_file_by_file_and_gives_what_local_files_give(
    parquet, undisturbed, server, tmp_path
):
    commit, repo = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9", "HuggingFaceFW/fineweb-edu"
    stored = {f"sample/10BT/{p.name}": p.read_bytes() for p in sorted(parquet[0].iterdir())}
    most = [0]

    def answer(handler, number):
        path = handler.path.replace("%2F", "/").split("?")[0]
        if path == f"/api/datasets/{repo}/tree/{commit}/sample/10BT":
            listed = [
                {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                for name, body in stored.items()
            ]
            return send(handler, json.dumps(listed).encode(), Content_Type="application/json")
        name = path.removeprefix(f"/datasets/{repo}/resolve/{commit}/")
        if name not in stored:
            return send(handler, b"{}", 404)
        most[0] = max(most[0], len(list(tmp_path.glob("out/parquet/sample/10BT/*.parquet"))))
        etag = hashlib.sha256(stored[name]).hexdigest()
        return send(handler, stored[name], ETag=f'"{etag}"', X_Repo_Commit=commit)

    server.answer = answer
    out = tmp_path / "out"
    recipe(
        "fineweb.py",
        "--out",
        out,
        "--shard-tokens",
        3000,
        HF_ENDPOINT=server.url,
        HF_HUB_OFFLINE="0",
    )
    downloaded = [path for method, path, _ in server.asked if method == "GET" and "resolve" in path]
    assert len(downloaded) == 3 and most[0] <= 1  # each once, never two on the disk
    assert not (out / "parquet").exists()
    ours, theirs = files(out), files(undisturbed / "fineweb.py")
    assert {k: v for k, v in ours.items() if k != "meta.json"} == {
        k: v for k, v in theirs.items() if k != "meta.json"
    }
    assert read_meta(out)["source"] == f"{repo}, sample/10BT, revision {commit}"


# --- HellaSwag, pydocs, Shakespeare -------------------------------------------------------------


def test_own_items_have_hellaswags_format_and_say_what_they_are(tmp_path):
    done = recipe("hellaswag.py", "--own", "--out", tmp_path)
    assert "NOT HellaSwag" in done.stdout
    assert "NOT HellaSwag" in json.loads((tmp_path / "source.json").read_text())["source"]
    items = read_items(tmp_path / "val.jsonl", GPT2Tokenizer())
    assert len(items) == 32 and all(item.own for item in items)
    assert {label: sum(i.label == label for i in items) for label in range(4)} == dict.fromkeys(
        range(4), 8
    )


def test_hellaswag_falls_back_to_own_items_in_words_and_keeps_no_junk(server, tmp_path):
    server.answer = lambda handler, number: send(handler, b"<html>please log in</html>")
    done = recipe("hellaswag.py", "--out", tmp_path / "hs", NANOGPT_MIRROR=server.url)
    assert "SHA-256 differs" in done.stderr and "NOT HellaSwag" in done.stdout
    assert server.asked[0][1] == "/hellaswag/hellaswag_val.jsonl"
    assert sorted(files(tmp_path / "hs")) == ["source.json", "val.jsonl"]
    assert (tmp_path / "hs/val.jsonl").read_bytes() == (DATA / "hellaswag_own.jsonl").read_bytes()


@pytest.mark.skipif(
    not (Path(os.environ.get("NANOGPT_MIRROR", "-")) / "hellaswag/hellaswag_val.jsonl.gz").exists(),
    reason="NANOGPT_MIRROR has no HellaSwag",
)
def test_the_mirror_gives_all_10042_items_and_own_ones_do_not_replace_them(tmp_path):
    mirror = os.environ["NANOGPT_MIRROR"]
    recipe("hellaswag.py", "--out", tmp_path, NANOGPT_MIRROR=mirror)
    items = (tmp_path / "val.jsonl").read_bytes()
    assert items.count(b"\n") == 10_042
    assert "already there" in recipe("hellaswag.py", "--own", "--out", tmp_path).stdout
    assert (tmp_path / "val.jsonl").read_bytes() == items


def test_a_text_recipe_makes_the_same_dataset_every_time(tmp_path):
    recipe("pydocs.py", "--out", tmp_path / "again", PYTHONHASHSEED="7")
    meta, train = read_meta(tmp_path / "again"), TokenStream(tmp_path / "again", "train")
    assert meta["tokenizer"]["name"] == "char" and 90 < meta["vocab_size"] < 100
    val = len(TokenStream(tmp_path / "again", "val"))
    assert len(train) + val > 500_000 and abs(9 * val - len(train)) < 10
    assert "undamaged" in recipe("pydocs.py", "--verify", "--out", tmp_path / "again").stdout
    if (DATA / "pydocs" / "meta.json").exists() and read_meta(DATA / "pydocs") == meta:
        assert files(DATA / "pydocs") == files(tmp_path / "again")


def test_shakespeare_takes_the_mirror_and_nothing_else_for_it(server, tmp_path):
    name = "downloads/shakespeare.txt"
    if (DATA / name).exists():
        pytest.skip("Tiny Shakespeare is already in data/downloads")
    server.answer = lambda handler, number: send(handler, b"To be, or not to be")
    done = recipe("shakespeare.py", "--out", tmp_path / "s", NANOGPT_MIRROR=server.url, check=False)
    assert done.returncode == 1 and "SHA-256 differs" in done.stderr
    assert not (tmp_path / "s").exists() and not (DATA / name).exists()


# --- any recipe, from anywhere, into any folder -------------------------------------------------


RECIPES = ["fineweb.py", "openwebtext.py", "hellaswag.py", "pydocs.py", "shakespeare.py", "text.py"]


@pytest.fixture
def arguments(tmp_path):
    """What each recipe needs to make a small dataset without a network."""
    folder = tmp_path / "input"
    folder.mkdir()
    write_parquet(folder / "a.parquet", ["some ordinary text"] * 60)
    (tmp_path / "own.txt").write_text("text of my own " * 60)
    local, own = ["--local", folder], [tmp_path / "own.txt"]
    return {"fineweb.py": local, "openwebtext.py": local, "hellaswag.py": ["--own"], "text.py": own}


@pytest.mark.parametrize("name", [*RECIPES, "fineweb_datatrove.py"])
def test_a_recipe_belongs_to_the_repository_it_lies_in(tmp_path, name):
    """Nothing installed, another working directory, a Python that adds no folder to its path."""
    for folder in ("data", "nanogpt_lib"):
        only = shutil.ignore_patterns("*.npy", "*.json", "*.txt", "downloads", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=only)
    command = [sys.executable, tmp_path / "copy" / "data" / name]
    for safe in ("", "1"):
        env = quiet({"PYTHONSAFEPATH": safe, "PYTHONPATH": "", "PYTHONIOENCODING": "ascii"})
        arguments = ["--verify", "a.txt"] if name == "text.py" else ["--verify"]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert done.returncode == 1 and str(tmp_path / "copy" / "data") in done.stderr
        assert done.stderr.count("\n") == 1
        help = subprocess.run([*command, "--help"], capture_output=True, cwd=tmp_path, env=env)
        assert help.returncode == 0 and f"python data/{name}".encode() in help.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_an_out_that_is_a_file_or_cannot_be_written_is_one_line(tmp_path, name, arguments):
    (tmp_path / "file").write_text("mine")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    cases = [(tmp_path / "file", "a file is in the way; choose another --out")]
    cases.append((tmp_path / "file" / "below", "a file is in the way; choose another --out"))
    if os.name != "nt" and os.getuid() != 0:
        cases.append((locked, "cannot be written to; choose another --out"))
        cases.append((locked / "below", "cannot be created (Permission denied)"))
    if sys.platform == "linux":  # root is refused there, too
        cases.append((Path("/proc/nowhere"), "cannot be created (No such file or directory)"))
    for out, message in cases:
        done = recipe(name, *arguments.get(name, []), "--out", out, check=False)
        assert done.returncode == 1 and message in done.stderr and str(out) in done.stderr
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine" and not list(locked.iterdir())


@pytest.mark.parametrize("name", ["fineweb.py", "openwebtext.py", "hellaswag.py", "text.py"])
def test_verify_finds_one_flipped_bit_in_what_any_recipe_made(tmp_path, name, arguments):
    out = tmp_path / "out"
    recipe(name, *arguments[name], "--out", out)
    assert "undamaged" in recipe(name, "--verify", "--out", out).stdout
    path = out / ("val.jsonl" if name == "hellaswag.py" else "val_000000.npy")
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    done = recipe(name, "--verify", "--out", out, check=False)
    assert done.returncode == 1 and f"{path}: damaged" in done.stderr
    done = recipe(name, "--verify", "--out", tmp_path / "nowhere", check=False)
    assert done.returncode == 1 and "nowhere" in done.stderr and done.stderr.count("\n") == 1


def test_a_text_recipe_never_writes_over_another_dataset(tmp_path, arguments):
    recipe("fineweb.py", *arguments["fineweb.py"], "--out", tmp_path / "fineweb")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "progress.json").write_text("{}")
    for folder, words in (("fineweb", "holds the dataset input"), ("half", "is being made there")):
        before = files(tmp_path / folder)
        done = recipe("pydocs.py", "--out", tmp_path / folder, check=False)
        assert done.returncode == 1 and words in done.stderr and "another --out" in done.stderr
        assert files(tmp_path / folder) == before


@pytest.mark.parametrize("name", ["fineweb.py", "openwebtext.py"])
def test_another_column_is_taken_and_apples_files_are_skipped(tmp_path, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    pq.write_table(
        pa.table({"content": ["a text " * 50] * 40, "id": list(range(40))}), folder / "0.parquet"
    )
    (folder / "._0.parquet").write_bytes(b"\x00\x05\x16\x07" + bytes(64))
    done = recipe(name, "--local", folder, "--out", tmp_path / "only")  # the one of strings
    assert "1 hidden file skipped" in done.stdout and "40 documents" in done.stdout
    recipe(name, "--local", folder, "--column", "content", "--out", tmp_path / "named")
    text = GPT2Tokenizer().decode(everything(tmp_path / "named", "train").tolist())
    assert "a text a text" in text
    assert read_meta(tmp_path / "only")["splits"] == read_meta(tmp_path / "named")["splits"]
    done = recipe(name, "--local", folder, "--column", "text", "--out", tmp_path / "x", check=False)
    assert done.returncode == 1 and "no column text; give --column, one of" in done.stderr
    done = recipe(name, "--local", folder, "--column", "id", "--out", tmp_path / "x", check=False)
    assert done.returncode == 1 and "column id is not text" in done.stderr


def test_meta_says_what_the_files_are_not_what_was_asked_for(tmp_path):
    for given in ("mirror/fineweb_edu_standin/sample/10BT", "mirror/openwebtext", "my books"):
        (tmp_path / given).mkdir(parents=True)
        write_parquet(tmp_path / given / "a.parquet", ["some ordinary text"] * 60)
    cases = [
        ("fineweb.py", [], "fineweb-edu-stand-in", "NOT FineWeb-Edu"),
        ("openwebtext.py", [], "openwebtext", "OpenWebText from the mirror"),
        ("fineweb.py", ["--local", tmp_path / "my books"], "my books", "parquet files of my books"),
        ("openwebtext.py", ["--local", tmp_path / "my books"], "my books", "files of my books"),
    ]
    for number, (name, arguments, called, source) in enumerate(cases):
        out = tmp_path / f"out{number}"
        mirror = str(tmp_path / "mirror")
        done = recipe(name, *arguments, "--out", out, NANOGPT_MIRROR=mirror)
        meta = read_meta(out)
        assert meta["name"] == called and source in meta["source"] and source in done.stdout


@pytest.mark.skipif(find_spec("datatrove") is not None, reason="datatrove is installed")
def test_without_datatrove_its_recipe_says_what_is_missing(tmp_path, arguments):
    where = [*arguments["fineweb.py"], "--out", tmp_path / "out"]
    done = recipe("fineweb_datatrove.py", *where, check=False)
    assert done.returncode == 1 and "needs datatrove: pip install datatrove" in done.stderr
    assert not (tmp_path / "out").exists()
