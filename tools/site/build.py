"""Build the web book from the executed notebooks; nothing is run, nothing is downloaded.

    python tools/site/build.py [--out site]

The result is a folder of files for any static host; its index.html also opens by a double click.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from chapter import Book, Chapter, page_of, prose, solution_cells  # noqa: E402
from library import index_page, module_page, owners, read_library  # noqa: E402
from story import ExportError, exported_cells  # noqa: E402
from terms import glossary_page  # noqa: E402

ROOT = HERE.parents[1]
OURS = "nanogpt-site.json"  # in the folder that we made, so that we never empty another


def chapter_files(root: Path) -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def deeper_files(root: Path) -> list[Path]:
    """The optional notebooks."""
    return sorted((root / "notebooks" / "deeper").glob("*.ipynb"))


def text_files(root: Path) -> list[Path]:
    """The book's reference, in its order: notes beside the notebooks, README's other pages."""
    folders = [root / name for name in ("nanogpt_lib", "data", "tests/benchmarks")]
    pages = [folder / "README.md" for folder in folders]
    notes = sorted((root / "notebooks").glob("*.md"), reverse=True)
    return [*notes, *(page for page in pages if page.exists())]


def addresses(root: Path) -> dict[str, str]:
    """[tool.nanogpt.site] of pyproject.toml: where the project is hosted; empty where nowhere."""
    path = root / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return project.get("tool", {}).get("nanogpt", {}).get("site", {})


def theme_options(site: dict[str, str]) -> dict:
    """Buttons for the addresses that are known, and none for the others."""
    if not site.get("repository"):
        return {}
    options = {
        "repository_url": site["repository"],
        "repository_branch": site.get("branch") or "main",
        "use_repository_button": True,
    }
    buttons = {"colab_url": site.get("colab"), "binderhub_url": site.get("binder")}
    if launch := {key: url for key, url in buttons.items() if url}:
        options["launch_buttons"] = launch
    return options


def parts_of(root: Path) -> dict[str, list[Path]]:
    """The chapters by part; a part without a chapter is left out."""
    lecture = [f for f in chapter_files(root) if int(f.name[:2]) <= 10]
    beyond = [f for f in chapter_files(root) if int(f.name[:2]) > 10]
    ordered = {"The lecture": lecture, "Deeper": deeper_files(root), "Beyond the lecture": beyond}
    return {title: files for title, files in ordered.items() if files}


def make_book(root: Path) -> Book:
    """What there is to link to."""
    files = [*chapter_files(root), *deeper_files(root), *text_files(root)]
    site = addresses(root)
    address, branch = site.get("repository"), site.get("branch") or "main"
    blob = f"{address}/blob/{branch}" if address else ""
    pages = {f.relative_to(root).as_posix() for f in files}
    for path in sorted(pages):
        if path.endswith(".ipynb"):
            Chapter.read(root, path)  # a damaged one is named before anything else looks at it
    return Book(root, pages, set(read_library(root)), exported_cells(chapter_files(root)), blob)


def front_page(root: Path, alive: bool) -> str:
    """The first page: a model that writes, then the chapters."""
    text = (HERE / "front.md").read_text(encoding="utf-8")
    frame = (HERE / "frame.html").read_text(encoding="utf-8") if alive else ""
    tables, trees = [], []
    for title, files in parts_of(root).items():
        rows = []
        for file in files:
            path = file.relative_to(root).as_posix()
            chapter = Chapter.read(root, path)
            rows.append(f"| [{chapter.title}]({path}) | {chapter.lecture} | {chapter.summary} |")
        table = "\n".join(["| chapter | lecture | what it is about |", "|---|---|---|", *rows])
        tables.append(f"## {title}\n\n{table}")
        entries = "\n".join(f.relative_to(root).with_suffix("").as_posix() for f in files)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```")
    more = [f.relative_to(root).with_suffix("").as_posix() for f in text_files(root)]
    entries = "\n".join([*more, "library/index"])
    trees.append(f"```{{toctree}}\n:hidden:\n:caption: Reference\n\n{entries}\n```")
    page = text.replace("{{model}}", frame).replace("{{chapters}}", "\n\n".join(tables))
    return page.rstrip() + "\n\n" + "\n\n".join(trees) + "\n"


def write(path: Path, text: str) -> None:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_notebooks(root: Path, out: Path, book: Book) -> dict[str, dict[str, str]]:
    """Write the chapters' pages; return {page: the library's names that it binds}."""
    bound = {}
    for file in [*chapter_files(root), *deeper_files(root)]:
        path = file.relative_to(root).as_posix()
        chapter = Chapter.read(root, path)
        page = page_of(chapter, solution_cells(root, chapter, book), book)
        write(out / path, json.dumps(page, ensure_ascii=False))
        bound[path.removesuffix(".ipynb")] = chapter.bound(book)
    return bound


def write_texts(root: Path, out: Path, book: Book) -> None:
    """Write the glossary and the other texts beside the notebooks."""
    numbers = {f.name[:2]: f.name for f in chapter_files(root)}
    for file in text_files(root):
        path, text = file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
        if file.name == "glossary.md":
            write(out / "glossary-terms.txt", text)
            text = glossary_page(text, numbers)
        write(out / path, prose(text, path, book))


def write_library(root: Path, out: Path, bound: dict[str, dict[str, str]], book: Book) -> None:
    """Write the library's pages and the table of symbols."""
    modules = read_library(root)
    taught: dict[str, list[str]] = {}
    for here in book.exported.values():
        if here.chapter not in taught.setdefault(here.module, []):
            taught[here.module].append(here.chapter)
    for module in modules.values():
        write(out / "library" / f"{module.name}.md", module_page(module, taught))
        own = {s.name: f"{module.name}.{s.name}" for s in module.symbols}
        bound[f"library/{module.name}"] = {**module.imports, **own}
    write(out / "library" / "index.md", index_page(modules))
    there = {f"{m.name}.{s.name}" for m in modules.values() for s in m.symbols}
    unique = {name: f"{module}.{name}" for name, module in owners(modules).items()}
    table = {
        page: {n: full for n, full in names.items() if full in there}
        for page, names in bound.items()
    }
    write(out / "symbols.json", json.dumps({**table, "modules": list(modules), "unique": unique}))


def write_sources(root: Path, out: Path, alive: bool) -> None:
    """Write everything that Sphinx reads."""
    book = make_book(root)
    bound = write_notebooks(root, out, book)
    write_texts(root, out, book)
    write_library(root, out, bound, book)
    write(out / "index.md", front_page(root, alive))
    write(out / "site.json", json.dumps(theme_options(addresses(root))))


def put_model_in_a_page(root: Path, out: Path) -> None:
    """Write the recorded model as gpt.html, which the first page shows."""
    model = root / "notebooks/recorded/model"
    command = [sys.executable, root / "nanogpt_lib/page.py", "--checkpoint", model]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"build.py: the model of the first page: {done.stderr.strip()[-500:]}")


def empty(out: Path) -> None:
    """Make the folder, or empty the one that an earlier build made; refuse any other."""
    if out.exists() and any(out.iterdir()):
        if not (out / OURS).exists():
            raise SystemExit(f"build.py: {out} holds something else; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write(out / OURS, "{}\n")


def run_sphinx(source: Path, out: Path, scratch: Path) -> None:
    """Call Sphinx; a warning is an error. It may leave folders beside its own, so in scratch."""
    env = {**os.environ, "NANOGPT_SITE": str(source / "site.json")}
    options = ["-c", HERE, "-d", scratch / "doctrees", "-j", "auto", "-W", "--keep-going", "-q"]
    command = [sys.executable, "-m", "sphinx", "-b", "html", *options, source, scratch / "book"]
    done = subprocess.run([str(word) for word in command], cwd=source, env=env)
    if done.returncode:
        raise SystemExit("build.py: the warnings above must be mended first")
    shutil.copytree(scratch / "book", out, dirs_exist_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Build the book and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder (default: site)")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    args = parser.parse_args(argv)
    start, root, out = time.perf_counter(), args.root.resolve(), args.out.resolve()
    empty(out)
    alive = (root / "nanogpt_lib/page.py").exists()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        try:
            write_sources(root, source, alive)
        except (ExportError, ValueError, KeyError, OSError) as error:
            raise SystemExit(f"build.py: {error}") from None
        run_sphinx(source, out, Path(scratch))
    if alive:
        put_model_in_a_page(root, out / "gpt.html")
    pages = len(list(out.rglob("*.html")))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    seconds = time.perf_counter() - start
    print(f"{pages} pages, {size:.1f} MB, {seconds:.0f} s: open {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
