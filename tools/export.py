"""Turn the marked cells of the notebooks into the library nanogpt_lib.

    python tools/export.py                      write the library
    python tools/export.py --check              print what would change, exit 1 if anything would
    python tools/export.py --upto 04 --out DIR  write DIR/nanogpt_lib as of chapter 04

A cell with `#| default_exp model` names the module for the cells below it; a cell whose first line
is `#| export` is exported to it, `#| export other` to another module. A module's docstring is the
block quote above the first `#| default_exp` that names it. Imports of all cells are merged at the
top; unused ones are dropped.

The code grows from chapter to chapter: a cell `#| export replaces` (or `#| export other replaces`)
replaces the one earlier cell of its module that defines the same names. It may define more names,
never fewer. Without `replaces`, a name that is defined twice is an error.

Docstrings and imports are written by module_text.py. Standard library only.
"""

import argparse
import ast
import difflib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P does not add it
from module_text import (  # noqa: E402
    PACKAGE,
    ExportError,
    defined_names,
    docstring,
    render_imports,
    split_imports,
    undefined_names,
    used_imports,
)

ROOT = Path(__file__).resolve().parents[1]
EXPORT = re.compile(r"#\|\s*export(?:[ ]+(?!replaces\b)(\w+))?([ ]+replaces)?[ ]*(?:\n|$)")
GUARD = """if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
"""


@dataclass
class Cell:
    """An exported cell: its module, whether it replaces an earlier cell there, and its code."""

    module: str
    replaces: bool
    source: str
    where: str  # "02_module.ipynb cell 6"


@dataclass
class Module:
    """One module, as far as the cells have been read."""

    notebooks: list[str] = field(default_factory=list)
    imports: list[ast.stmt] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    names: list[set[str]] = field(default_factory=list)  # the names each body defines


def read_notebook(path: Path) -> tuple[dict[str, str], list[Cell]]:
    """Return the quotes {module: text} and the exported cells of a notebook, in order."""
    quotes, cells, default, quote = {}, [], None, ""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source, where = "".join(cell["source"]), f"{path.name} cell {number}"
        if cell["cell_type"] == "markdown":
            for block in re.findall(r"(?:^>.*\n?)+", source, flags=re.MULTILINE):
                text = re.sub(r"^> ?", "", block, flags=re.MULTILINE)
                if not text.startswith("**"):  # a note such as **Differs from the lecture:**
                    quote = text
        elif match := re.match(r"#\|\s*default_exp\s+(\w+)\s*$", source, flags=re.MULTILINE):
            default = match[1]
            quotes[default], quote = quotes.get(default) or quote, ""
        elif match := EXPORT.match(source):
            if re.search(r"^\s*[%!]", source, flags=re.MULTILINE):
                raise ExportError(f"{where}: a magic in an exported cell")
            if not (module := match[1] or default):
                raise ExportError(f"{where}: `#| export` before `#| default_exp`")
            cells.append(Cell(module, bool(match[2]), source[match.end() :].strip(), where))
        elif re.match(r"#\|.*exp", source):
            raise ExportError(f"{where}: cannot read {source.splitlines()[0]!r}")
    return quotes, cells


def add(module: Module, cell: Cell) -> None:
    """Append a cell to its module, or put it in place of the cell that it replaces."""
    imports, body = split_imports(cell.source, cell.where)
    names = defined_names(body, cell.where)
    module.imports += imports
    if (notebook := cell.where.split()[0]) not in module.notebooks:
        module.notebooks.append(notebook)
    places = [i for i, earlier in enumerate(module.names) if names & earlier]
    if not cell.replaces:
        if places:
            twice = set.union(*(names & module.names[i] for i in places))
            hint = f"a new definition begins with `#| export {cell.module} replaces`"
            raise ExportError(f"{cell.where}: exported twice: {', '.join(sorted(twice))} ({hint})")
        if body:
            module.bodies.append(body)
            module.names.append(names)
        return
    if len(places) != 1:
        found = "several earlier cells" if places else "no earlier cell"
        listed = ", ".join(sorted(names)) or "nothing"
        raise ExportError(f"{cell.where}: replaces {found} of {cell.module} (defines {listed})")
    if dropped := module.names[places[0]] - names:
        raise ExportError(f"{cell.where}: replaces a cell but drops {', '.join(sorted(dropped))}")
    module.bodies[places[0]], module.names[places[0]] = body, names


def render(name: str, module: Module, quote: str) -> str:
    """The text of a module."""
    where = f"{module.notebooks[0]}: module {name}"
    if not quote:
        raise ExportError(f"{where}: no block quote above `#| default_exp {name}`")
    parts = [docstring(quote, module.notebooks)]
    if any('__name__ == "__main__"' in body for body in module.bodies):
        parts.append(GUARD)
    body = "\n\n\n".join(module.bodies)
    if imports := render_imports(used_imports(module.imports, body, where)):
        parts.append(imports + "\n")
    gap = "\n\n" if body.startswith(("def ", "class ", "@")) else "\n"  # as formatters do
    text = "\n".join(parts) + gap + body + "\n"
    if missing := undefined_names(text):
        raise ExportError(f"{where} uses undefined {', '.join(sorted(missing))}")
    return text


def build(root: Path, upto: int = 99) -> dict[Path, str]:
    """Return {library file: its text} for the notebooks below root, up to a chapter."""
    quotes, modules, owner = {}, {}, {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if int(path.name[:2]) > upto:
            break
        found, cells = read_notebook(path)
        quotes = {**found, **{module: quote for module, quote in quotes.items() if quote}}
        for cell in cells:
            add(modules.setdefault(cell.module, Module()), cell)
    for name, module in modules.items():
        for symbol in set().union(*module.names):
            if owner.setdefault(symbol, name) != name:
                raise ExportError(f"{symbol} is exported by {owner[symbol]} and by {name}")
    return {
        root / PACKAGE / f"{name}.py": render(name, module, quotes.get(name, ""))
        for name, module in modules.items()
    }


def orphans(root: Path, files: dict[Path, str]) -> list[str]:
    """Exported modules in the library that no notebook exports any longer."""
    exported = [f for f in sorted((root / PACKAGE).glob("*.py")) if f not in files]
    mark = "\nExported from notebooks/"
    return [f.name for f in exported if mark in f.read_text(encoding="utf-8")]


def stage(root: Path, upto: int) -> dict[str, str]:
    """The library as of a chapter, {path: text}: lessons, support/, a matching __init__."""
    package = root / PACKAGE
    files = {file.name: text for file, text in build(root, upto).items()}
    for file in sorted((package / "support").glob("*.py")):
        files[f"support/{file.name}"] = file.read_text(encoding="utf-8")
    there = set()  # (module, name)
    for path, text in files.items():
        module = path.removesuffix(".py").replace("/", ".")
        there |= {(module, name) for name in defined_names(text, path)}
    init = (package / "__init__.py").read_text(encoding="utf-8")
    lines, (first, *rest) = init.split("\n"), ast.parse(init).body
    for node in rest:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OWNERS":
            for name, owner in zip(node.value.keys, node.value.values, strict=True):
                if (owner.value, name.value) not in there:
                    lines[name.lineno - 1] = None
    lines[: first.end_lineno] = [f'"""The library as it stands after chapter {upto:02d}."""']
    files["__init__.py"] = "\n".join(line for line in lines if line is not None)
    return files


def write_stage(root: Path, upto: int, out: Path) -> None:
    """Write the library as of a chapter into out/nanogpt_lib, which must not exist."""
    files, folder = stage(root, upto), out / PACKAGE
    if folder.exists():
        raise ExportError(f"{folder} already exists; choose another --out")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
    print(f"wrote {folder} as it stands after chapter {upto:02d}: {len(files)} files")


def main(argv: list[str] | None = None) -> int:
    """Write the library, or with --check compare it with the notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="print a diff and write nothing")
    parser.add_argument("--upto", type=int, metavar="NN", help="write the library as of chapter NN")
    parser.add_argument("--out", type=Path, metavar="DIR", help="… is written into DIR/nanogpt_lib")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    args = parser.parse_args(argv)
    if (args.upto is None) != (args.out is None) or args.check and args.out:
        parser.error("--upto NN and --out DIR belong together, without --check")
    try:
        if args.out:
            write_stage(args.root, args.upto, args.out)
            return 0
        files = build(args.root)
    except (ExportError, SyntaxError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    stale = 0
    for file, text in sorted(files.items()):
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        if old == text:
            continue
        stale += 1
        name = file.relative_to(args.root).as_posix()
        if args.check:
            diff = difflib.unified_diff(
                old.split("\n"), text.split("\n"), name, "notebooks", "", "", 2
            )
            print("\n".join(diff))
        else:
            file.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {name}")
    if args.check and stale:
        print(f"export: {stale} modules differ from the notebooks: python tools/export.py")
    for name in (left := orphans(args.root, files)):
        print(f"export: {PACKAGE}/{name}: no notebook exports it (any more)", file=sys.stderr)
    return int(bool(left) or args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
