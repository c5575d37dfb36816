"""A hub on the loopback address with a small dataset, in place of the published tokens.

It speaks as much of the hub's protocol as `data/fineweb.py --pretokenized` asks for. The tokens are
this Python's documentation, in files as published.
"""

import json
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from nanogpt_lib.recipes.pretokenized import PRETOKENIZED
from nanogpt_lib.tokenizer import GPT2Tokenizer

REPO = PRETOKENIZED["fineweb-edu", "10BT"][0]


def shards() -> dict[str, bytes]:
    """Published files in llm.c's format: one for validation, two for training."""
    text = subprocess.run(
        [sys.executable, "-c", "import pydoc_data.topics as t; print(*t.topics.values())"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    ids = np.array(GPT2Tokenizer().encode(text), dtype=np.uint16)
    parts = {"val_000000": ids[:12_000], "train_000001": ids[12_000:60_000]}
    parts["train_000002"] = ids[60_000:]
    return {f"finewebedu_{name}.bin": as_llmc(tokens) for name, tokens in parts.items()}


def as_llmc(tokens: np.ndarray) -> bytes:
    """Tokens as a .bin file of llm.c."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = 20240520, 1, len(tokens)
    return header.tobytes() + tokens.tobytes()


class Hub(BaseHTTPRequestHandler):
    """The hub's protocol for one dataset: a list of files with checksums, and the files."""

    files: dict[str, bytes]

    def do_HEAD(self):
        """Answer a request; GET also sends the body."""
        path = self.path.replace("%2F", "/").split("?")[0]
        if "/tree/" in path or path.count("/") == 4 or "/revision/" in path:
            return self.send(json.dumps(self.about(path)).encode(), "application/json")
        body = self.files.get(path.rsplit("/", 1)[-1])
        if body is None:
            return self.send(b"", "text/plain", 404)
        tag = {"ETag": f'"{sha256(body).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        return self.send(body, "application/octet-stream", 200, tag)

    do_GET = do_HEAD

    def about(self, path: str):
        """The dataset's commit, or its files."""
        if "/tree/" not in path:
            return {"id": REPO, "sha": "0" * 40, "siblings": []}
        return [
            {
                "type": "file", "path": name, "size": len(body), "oid": "0" * 40,
                "lfs": {"oid": sha256(body).hexdigest(), "size": len(body), "pointerSize": 134},
            }
            for name, body in self.files.items()
        ]  # fmt: skip

    def send(self, body: bytes, kind: str, status: int = 200, headers: dict | None = None):
        """One answer."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Silent."""


def serve() -> ThreadingHTTPServer:
    """Start the hub in a thread; `shutdown()` ends it."""
    Hub.files = shards()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
