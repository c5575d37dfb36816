"""Sources of multi-file datasets: a folder or the Hugging Face hub, one file at a time."""

import hashlib
import json
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nanogpt_lib.shards import SHARD_TOKENS
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256
from nanogpt_lib.support.hub import ask_hub, dataset_files
from nanogpt_lib.support.places import DATA
from nanogpt_lib.tokenizer import GPT2Tokenizer


def counted(number: int, thing: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def out_help(name: str) -> str:
    """The --help text of --out."""
    return f"folder for the dataset (default: data/{name} of this repository)"


def recipe_parser(name: str, docstring: str, prog: str | None = None) -> OneLineParser:
    """The options that fineweb.py and openwebtext.py share; --help begins with the docstring."""
    parser = OneLineParser(prog=prog or f"{name}.py", description=docstring)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("--revision", help="tag, branch or commit (default: the pinned commit)")
    parser.add_argument("--local", type=Path, metavar="DIR", help="folder with .parquet files")
    parser.add_argument("--column", help="text column (default: text, or the only string column)")
    parser.add_argument("--files", type=int, metavar="N", help="only the first N files")
    parser.add_argument("--keep", action="store_true", help="keep the parquet files in OUT/parquet")
    parser.add_argument("--out", type=Path, default=DATA / name, help=out_help(name))
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per shard")
    parser.add_argument("--verify", action="store_true", help="check the dataset in OUT")
    return parser


def parse(parser: OneLineParser) -> Namespace:
    """The command line; numbers below 1 end with exit status 2."""
    args = parser.parse_args()
    if args.shard_tokens < 1 or (args.files is not None and args.files < 1):
        parser.error("--shard-tokens and --files must be at least 1")
    return args


@dataclass
class Source:
    """Files in a fixed order, and how to get one of them onto the disk for a while."""

    title: str  # goes into meta.json
    files: list[tuple[str, int]]  # name, bytes
    fetch: Callable[[str], Path]  # name → its path, after any download
    release: Callable[[Path], None] = field(default=lambda path: None)  # called once it is read
    remote: bool = False  # whether a file takes disk space while it is read
    sums: dict[str, str] = field(default_factory=dict)  # name → SHA-256 if the hub lists it
    column: str | None = None  # text column; None: text, or the only string column
    ends: list[str] = field(default_factory=list)  # SHA-256 of each local file's last bytes

    def __post_init__(self):
        if not self.files:
            raise UserError(f"{self.title}: has no .parquet or .bin files")

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(size for _, size in self.files)

    @property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and last bytes, and of the column."""
        known = self.files + self.ends + ([self.column] if self.column else [])
        return hashlib.sha256(json.dumps(known).encode("utf-8")).hexdigest()[:16]


def is_hidden(path: Path) -> bool:
    """Whether any part of a path begins with a dot, as macOS's `._` companion files do."""
    return any(part.startswith(".") for part in path.parts)


def end_sha256(path: Path, length: int = 1 << 16) -> str:
    """SHA-256 of a file's last bytes: for parquet the footer, with lengths and min/max values."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - length))
        return hashlib.sha256(file.read()).hexdigest()


def local_source(
    folder: Path, title: str, files: int | None = None, column: str | None = None
) -> Source:
    """The .parquet files under a folder, sorted by name; they are never removed.

    Hidden ones are skipped and their number is printed.
    """
    if not folder.is_dir():
        raise UserError(f"--local {folder}: no such folder")
    found = sorted(p.relative_to(folder) for p in folder.rglob("*.parquet") if p.is_file())
    visible = [path for path in found if not is_hidden(path)]
    if len(visible) < len(found):
        print(f"{folder}: {counted(len(found) - len(visible), 'hidden file')} skipped")
    names = [(path.as_posix(), (folder / path).stat().st_size) for path in visible[:files]]
    ends = [end_sha256(folder / name) for name, _ in names]
    return Source(title, names, lambda name: folder / name, column=column, ends=ends)


def dataset_meta(source: Source, name: str) -> dict:
    """meta.json of a dataset of GPT-2 tokens, apart from the shards."""
    meta = {"name": name, "source": source.title, "fingerprint": source.fingerprint}
    return meta | {"tokenizer": {"name": "gpt2"}, "vocab_size": GPT2Tokenizer.vocab_size}


def same_dataset(out: Path, fingerprint: str, name: str) -> dict | None:
    """The meta of `out` if it holds this dataset and is finished; else None."""
    if not (out / "meta.json").exists() or (out / "progress.json").exists():
        return None
    meta = read_meta(out)
    same = (meta.get("fingerprint"), meta.get("name")) == (fingerprint, name)
    return meta if same else None


def is_finished(out: Path, source: Source, name: str) -> bool:
    """Whether `out` already holds this dataset, finished; prints a line if so."""
    there = same_dataset(out, source.fingerprint, name) is not None
    if there:
        print(f"{out}: already there, from {source.title}")
    return there


def refuse_other_dataset(out: Path, name: str, tokenizer: str) -> None:
    """Raise UserError if a folder about to be written holds another or an unfinished dataset."""
    other = "remove it or choose another --out"
    if (out / "progress.json").exists():
        raise UserError(f"{out}: another dataset is being made there; {other}")
    if not (out / "meta.json").exists():
        return
    try:
        meta = read_meta(out)
    except UserError:  # damaged: may be overwritten
        return
    if (meta.get("name"), meta["tokenizer"].get("name")) != (name, tokenizer):
        raise UserError(f"{out}: holds the dataset {meta.get('name')}; {other}")


def verify(out: Path) -> None:
    """Check a dataset's every SHA-256 and id; raises UserError that names the shard."""
    print(f"{out}: {verify_shards(out):,} tokens, every shard undamaged")


def hub_source(
    repo: str,
    folder: str,
    revision: str,
    downloads: Path,
    *,
    keep: bool = False,
    files: int | None = None,
    suffix: str = ".parquet",
    column: str | None = None,
) -> Source:
    """The files under a folder of a dataset on the Hugging Face hub, fetched one by one.

    Honours HF_ENDPOINT, HF_TOKEN and the proxy variables. Interrupted downloads are resumed, and
    length and SHA-256 are compared with those the hub lists.
    """
    from huggingface_hub import hf_hub_download

    advice = "run the same command again when the hub is reachable, or give files with --local"
    listed = dataset_files(repo, folder, revision, suffix, advice)[:files]
    sizes = {entry.path: entry.size for entry in listed}
    sums = {entry.path: entry.lfs.sha256 for entry in listed if entry.lfs}

    def fetch_once(name: str) -> Path:
        where = dict(revision=revision, repo_type="dataset", local_dir=downloads)
        path = Path(hf_hub_download(repo, name, **where))
        right = path.stat().st_size == sizes[name]
        if not right or (name in sums and file_sha256(path) != sums[name]):
            path.unlink()
            raise OSError(f"{name}: damaged in transfer (length or SHA-256 differs)")
        return path

    def fetch(name: str) -> Path:
        return ask_hub(lambda: fetch_once(name), advice)

    release = (lambda path: None) if keep else (lambda path: path.unlink())
    title = f"{repo}, {folder or 'all files'}, revision {revision}"
    files_and_sizes = list(sizes.items())
    return Source(title, files_and_sizes, fetch, release, remote=True, sums=sums, column=column)
