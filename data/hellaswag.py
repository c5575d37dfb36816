"""Make data/hellaswag/val.jsonl: HellaSwag's validation set, 10,042 items.

    python data/hellaswag.py            the published file (12 MB), from the mirror or the internet
    python data/hellaswag.py --own      32 items of our own in the same format, no download
    python data/hellaswag.py --verify   is data/hellaswag/val.jsonl still undamaged?

Without a connection it falls back to our own items and says so. They are easy and few: they show
that the code runs, but a score on them is not a HellaSwag score. Programs recognise them by the
field source_id ("own~…"); data/hellaswag/source.json says where the items came from.

NANOGPT_MIRROR (a folder or URL) is tried first, for hellaswag/hellaswag_val.jsonl; a folder may
instead hold hellaswag_val.jsonl.gz, a version with the evaluation harness's text clean-up applied.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import argparse
import gzip
import hashlib
import json
import sys
from pathlib import Path

from nanogpt_lib.support.cli import OneLineParser, run_recipe
from nanogpt_lib.support.download import from_mirror, obtain
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import make_folder, write_atomically, write_json
from nanogpt_lib.support.places import DATA

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
# SHA-256 of the published file (recorded by Hugging Face datasets) and of the text version
PUBLISHED = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
CLEANED = "c8d1f2fbb2afc7ab182ae3570f634228d89c09658ffed911c6190704d472bbd7"
TITLES = {
    PUBLISHED: "HellaSwag validation set, the published file",
    CLEANED: "HellaSwag validation set, text version with the harness's clean-up",
}
OWN = DATA / "hellaswag_own.jsonl"


def published_items() -> tuple[bytes, str]:
    """The validation set and where it came from; raises UserError if it is unavailable."""
    packed = from_mirror("hellaswag/hellaswag_val.jsonl.gz")
    if isinstance(packed, Path):
        try:
            items = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError) as error:
            raise UserError(f"{packed}: damaged ({error})") from error
        return items, "the mirror"
    path = DATA / "downloads" / "hellaswag_val.jsonl"
    where = obtain("hellaswag/hellaswag_val.jsonl", URL, path, PUBLISHED)
    return path.read_bytes(), where


def write_items(out: Path, items: bytes, source: str) -> None:
    """Write val.jsonl, and source.json that describes it."""
    write_atomically(out / "val.jsonl", items)
    count = items.count(b"\n")
    digest = hashlib.sha256(items).hexdigest()
    write_json(out / "source.json", {"source": source, "items": count, "sha256": digest})
    print(f"{count:,} items in {out / 'val.jsonl'}: {source}")


def existing_items(out: Path) -> tuple[str | None, str | None]:
    """The SHA-256 of val.jsonl and the source that source.json records for it.

    Both are None if either file is missing; the source is None if it describes another val.jsonl.
    """
    note, items = out / "source.json", out / "val.jsonl"
    if not (note.exists() and items.exists()):
        return None, None
    digest = hashlib.sha256(items.read_bytes()).hexdigest()
    try:
        recorded = json.loads(note.read_text(encoding="utf-8"))
        return digest, recorded["source"] if recorded["sha256"] == digest else None
    except (ValueError, KeyError, TypeError):
        return digest, None


def verify(out: Path) -> None:
    """Compare val.jsonl with the SHA-256 in source.json; raises UserError if they differ."""
    digest, source = existing_items(out)
    if digest is None:
        raise UserError(
            f"{out}: no val.jsonl with a source.json; make it with python data/hellaswag.py"
        )
    if source is None:
        raise UserError(f"{out / 'val.jsonl'}: damaged (SHA-256 differs from source.json's)")
    print(f"{out / 'val.jsonl'}: undamaged, {source}")


def main() -> None:
    """Read the command line, get the items, write them."""
    parser = OneLineParser(prog="hellaswag.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--own", action="store_true", help="items of our own, no download")
    default = "(default: data/hellaswag of this repository)"
    parser.add_argument("--out", type=Path, default=DATA / "hellaswag", help=f"folder {default}")
    parser.add_argument("--verify", action="store_true", help="check val.jsonl in OUT")
    args = parser.parse_args()
    if args.verify:
        return verify(args.out)
    make_folder(args.out)
    digest, source = existing_items(args.out)
    if source and (digest in TITLES or args.own):
        print(f"{args.out / 'val.jsonl'}: already there: {source}")
        return None
    if not args.own:
        try:
            items, where = published_items()
            digest = hashlib.sha256(items).hexdigest()
            if digest not in TITLES:
                raise UserError(f"HellaSwag from {where}: damaged or another version")
            return write_items(args.out, items, TITLES[digest])
        except UserError as error:
            print(f"hellaswag.py: {error}", file=sys.stderr)
            print("HellaSwag is unavailable; using our own items, which are NOT HellaSwag")
    return write_items(args.out, OWN.read_bytes(), "items of our own, NOT HellaSwag")


if __name__ == "__main__":
    run_recipe("hellaswag.py", main)
