"""The hub over HTTP: a small server with its file protocol, also slow, broken or silent."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.model import GPT, GPTConfig


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small model as a Hugging Face folder."""
    model = GPT(GPTConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16))
    save_huggingface(tmp_path / "gpt", vars(model.config), model.state_dict())
    return tmp_path / "gpt"


class Hub(BaseHTTPRequestHandler):
    """The hub's file protocol, for the files of one folder; counts requests."""

    root: Path
    asked: list
    mode = "whole"
    patience: threading.Event  # what a slow answer waits for: the end of the test

    def do_HEAD(self, body: bool = False):
        """Answer /{owner}/{name}/resolve/main/{file}."""
        self.asked.append(self.path)
        owner, name, *_, file = self.path.strip("/").split("/")
        path = self.root / file
        if self.mode == "dead":
            return self.connection.close()
        if self.mode == "deaf":
            return self.patience.wait()
        if name != "gpt" or not path.exists():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if name != "gpt" else "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = path.read_bytes()
        self.send_response(200 if self.mode != "gone" else 403)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{file}{len(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            cut = self.mode in ("interrupted", "slow") and file.endswith(".safetensors")
            self.wfile.write(data[: len(data) // 2] if cut else data)
            slow, type(self).mode = cut and self.mode == "slow", "gone" if cut else self.mode
            if slow:
                self.wfile.flush()
                self.patience.wait()
        return None

    def do_GET(self):
        """HEAD with a body."""
        self.do_HEAD(body=True)

    def log_message(self, *args):
        """Stay silent."""


@pytest.fixture
def hub(folder):
    """A running hub with the repository someone/gpt."""
    handler = type("Handler", (Hub,), {"root": folder, "asked": [], "patience": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    handler.patience.set()
    server.shutdown()
    server.server_close()


def ask(hub, home: Path, *sources: str) -> list[str]:
    """Load checkpoints in a separate process for which `hub` is the hub."""
    code = (
        "import sys\nfrom nanogpt_lib import UserError, load_model\n"
        "for source in sys.argv[1:]:\n"
        "    try: print(len(load_model(source, say=lambda line: None)[0].state_dict()))\n"
        "    except UserError as error: print(error)\n"
    )
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NANOGPT_"))}
    # what travels between this test and its server must not take a proxy
    env = {**keep, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}  # seconds
    done = subprocess.run(
        [sys.executable, "-c", code, *sources],
        env=env, cwd=home.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_name_is_downloaded_once_and_then_found_without_the_hub(hub, tmp_path):
    loaded, missing = ask(hub, tmp_path / "home", "someone/gpt", "someone/nothing")
    assert loaded == "29"  # 2 tables, 2 blocks of 12, 2 of ln_f, the tied head
    assert missing.startswith("no folder or file someone/nothing here; as a name on the hub: ")
    assert "someone/nothing: config.json could not be downloaded (404" in missing
    for hub.mode in ("dead", "deaf"):  # hangs up, never answers
        hub.asked[:] = []
        cached, unknown = ask(hub, tmp_path / "home", "someone/gpt", "someone/else")
        assert cached == "29"
        assert "someone/else: not in the local cache and the hub cannot be reached" in unknown
        tries = [path for path in hub.asked if "someone/else" in path]
        assert len(tries) == 1  # huggingface_hub alone tries six times, for half a minute
    assert not hub.patience.is_set()  # it was given up, HF_HUB_ETAG_TIMEOUT is obeyed


@pytest.mark.parametrize("fault", ["interrupted", "slow"])
def test_a_broken_or_stalled_download_is_an_error_and_leaves_nothing_half_cached(
    hub, tmp_path, fault
):
    hub.mode = fault  # half the file, then the end or silence; what is asked next is refused
    (line,) = ask(hub, tmp_path / "home", "someone/gpt")
    assert "someone/gpt: model.safetensors could not be downloaded" in line
    assert not hub.patience.is_set()  # it gave up by itself, HF_HUB_DOWNLOAD_TIMEOUT is obeyed
    assert not list((tmp_path / "home").glob("**/snapshots/*/model.safetensors"))
    hub.mode = "whole"
    assert ask(hub, tmp_path / "home", "someone/gpt") == ["29"]


def test_the_tokenizer_of_a_hub_repository_is_judged_by_its_files_too(hub, folder, tmp_path):
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "merges.txt").write_text("a b\n")
    for hub.mode in ("whole", "dead"):  # from the hub, then from the cache
        (line,) = ask(hub, tmp_path / "home", "someone/gpt")
        assert line.endswith("merges.txt: not GPT-2's tokenizer, so its ids mean other tokens")


def test_an_answer_of_the_hub_is_believed_for_all_files_of_a_repository(hub, tmp_path):
    hub.mode = "dead"
    lines = ask(hub, tmp_path / "home", "someone/gpt", "someone/gpt")
    assert len(lines) == 2 and len(hub.asked) == 1
