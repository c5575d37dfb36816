"""Where datasets of many files come from: a folder or the Hugging Face hub, one file at a time."""

import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nanogpt_lib.recipes.text import DATA
from nanogpt_lib.shards import SHARD_TOKENS
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256
from nanogpt_lib.tokenizer import GPT2Tokenizer


def recipe_parser(name: str, summary: str) -> OneLineParser:
    """The flags that fineweb.py and openwebtext.py share."""
    parser = OneLineParser(prog=f"{name}.py", description=summary)
    parser.add_argument("--revision", help="tag, branch or commit (default: the pinned commit)")
    parser.add_argument("--local", type=Path, metavar="DIR", help="folder with .parquet files")
    parser.add_argument("--files", type=int, metavar="N", help="only the first N files")
    parser.add_argument("--keep", action="store_true", help="keep the parquet files in OUT/parquet")
    parser.add_argument("--out", type=Path, default=DATA / name, help=f"(data/{name})")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per shard")
    parser.add_argument("--verify", action="store_true", help="read OUT again, compare all sums")
    return parser


def parse(parser: OneLineParser) -> Namespace:
    """The command line; numbers below 1 end with exit status 2."""
    args = parser.parse_args()
    if args.shard_tokens < 1 or (args.files is not None and args.files < 1):
        parser.error("--shard-tokens and --files must be at least 1")
    return args


@dataclass
class Source:
    """Files in a fixed order, and how to have one of them on the disk for a while."""

    title: str  # goes into meta.json
    files: list[tuple[str, int]]  # name, bytes
    fetch: Callable[[str], Path]  # name → where it is now
    release: Callable[[Path], None] = field(default=lambda path: None)  # it has been read
    remote: bool = False  # a file takes disk space while it is read
    sums: dict[str, str] = field(default_factory=dict)  # name → SHA-256 where the hub states it

    def __post_init__(self):
        if not self.files:
            raise UserError(f"{self.title}: no .parquet or .bin files there")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def fingerprint(self) -> str:
        """Changes if a file is added, removed, renamed or of another length."""
        return hashlib.sha256(json.dumps(self.files).encode("utf-8")).hexdigest()[:16]


def local_source(folder: Path, title: str, files: int | None = None) -> Source:
    """The .parquet files below a folder, in the order of their names; they are left there."""
    if not folder.is_dir():
        raise UserError(f"--local {folder}: no such folder")
    found = sorted(p for p in folder.rglob("*.parquet") if p.is_file())[:files]
    names = [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in found]
    return Source(title, names, lambda name: folder / name)


def dataset_meta(source: Source, name: str) -> dict:
    """What meta.json says of a dataset of GPT-2 tokens, but for the shards."""
    meta = {"name": name, "source": source.title, "fingerprint": source.fingerprint}
    return meta | {"tokenizer": {"name": "gpt2"}, "vocab_size": GPT2Tokenizer.vocab_size}


def is_there(out: Path, source: Source, name: str) -> bool:
    """Whether `out` is this dataset already, finished; says so."""
    if not (out / "meta.json").exists() or (out / "progress.json").exists():
        return False
    meta = read_meta(out)
    there = (meta.get("fingerprint"), meta.get("name")) == (source.fingerprint, name)
    if there:
        print(f"{out}: already there, from {source.title}")
    return there


def verify(out: Path) -> None:
    """Read a dataset again: every SHA-256 and every id; raises UserError that names the shard."""
    print(f"{out}: {verify_shards(out):,} tokens, every shard undamaged")


def is_final(error: Exception) -> bool:
    """Whether asking the hub again is useless: offline by choice, or a 4xx that means no."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return "OfflineMode" in type(error).__name__ or (400 <= status < 500 and status != 429)


def ask_hub(question: Callable, attempts: int = 4):
    """The hub's answer to question(), asked again with growing pauses; else UserError."""
    for attempt in range(attempts):
        try:
            return question()
        except Exception as error:
            problem = error
        if is_final(problem):
            break
        if attempt + 1 < attempts:
            time.sleep(0.5 * 2**attempt)
    first = (str(problem).strip() or type(problem).__name__).split("\n")[0]
    advice = "once the hub can be reached, the same command goes on; or give files with --local"
    raise UserError(f"{first}; {advice}") from problem


def hub_source(
    repo: str,
    folder: str,
    revision: str,
    downloads: Path,
    *,
    keep: bool = False,
    files: int | None = None,
    suffix: str = ".parquet",
) -> Source:
    """The files below a folder of a dataset on the Hugging Face hub, fetched one by one.

    HF_ENDPOINT, HF_TOKEN and the proxy variables are obeyed; a broken transfer is continued; the
    length and the SHA-256 that the hub lists are compared.
    """
    from huggingface_hub import HfApi, hf_hub_download

    where = dict(revision=revision, repo_type="dataset")
    tree = ask_hub(
        lambda: list(HfApi().list_repo_tree(repo, folder or None, recursive=True, **where))
    )
    found = sorted((e.path, e) for e in tree if e.path.endswith(suffix))[:files]
    sizes = {path: entry.size for path, entry in found}
    sums = {path: entry.lfs.sha256 for path, entry in found if entry.lfs}

    def fetch_once(name: str) -> Path:
        path = Path(hf_hub_download(repo, name, local_dir=downloads, **where))
        right = path.stat().st_size == sizes[name]
        if not right or (name in sums and file_sha256(path) != sums[name]):
            path.unlink()
            raise OSError(f"{name}: damaged on the way (length or SHA-256 differs)")
        return path

    release = (lambda path: None) if keep else (lambda path: path.unlink())
    title = f"{repo}, {folder or 'all of it'}, revision {revision}"
    listed = list(sizes.items())
    return Source(title, listed, lambda n: ask_hub(lambda: fetch_once(n)), release, True, sums)
