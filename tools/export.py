"""Turn the marked cells of the notebooks into the library nanogpt_lib.

    python tools/export.py            write the library
    python tools/export.py --check    print what would change, exit 1 if anything would

A cell that says `#| default_exp model` names the module that the cells below it go to; a cell whose
first line is `#| export` goes there, `#| export other` to another module. A module's docstring is
the block quote above `#| default_exp`. Imports of all cells move to the top and are merged.
Standard library only, so that the first chapter can show the whole of it.
"""

import argparse
import ast
import builtins
import difflib
import json
import re
import symtable
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nanogpt_lib"
GUARD = """if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
"""


class ExportError(Exception):
    """The notebooks contradict each other or cannot become modules; the message says where."""


def docstring(quote: str, notebook: Path) -> str:
    """The first paragraph of the quote, where the module comes from, the other paragraphs."""
    first, *rest = re.split(r"\n\s*\n", quote.strip())
    origin = f"Exported from notebooks/{notebook.name}; edit the notebook, not this file."
    return '"""' + "\n\n".join([first, origin, *rest]) + '\n"""\n'


def read_notebook(path: Path) -> list[tuple[str, str, str]]:
    """Return the exported cells as (module, module docstring or "", source), in notebook order."""
    cells, default, doc, quote = [], None, "", ""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for block in re.findall(r"(?:^>.*\n?)+", source, flags=re.MULTILINE):
                text = re.sub(r"^> ?", "", block, flags=re.MULTILINE)
                if not text.startswith("**"):  # a note such as **Differs from the lecture:**
                    quote = text
        elif match := re.match(r"#\|\s*default_exp\s+(\w+)\s*$", source, flags=re.MULTILINE):
            if not quote:
                raise ExportError(f"{path.name}: no block quote above `#| default_exp {match[1]}`")
            default, doc, quote = match[1], docstring(quote, path), ""
        if match := re.match(r"#\|\s*export(?:[ ]+(\w+))?[ ]*\n", source):
            if re.search(r"^\s*[%!]", source, flags=re.MULTILINE):
                raise ExportError(f"{path.name} cell {number}: a magic in an exported cell")
            if not (module := match[1] or default):
                raise ExportError(f"{path.name} cell {number}: `#| export` before `#| default_exp`")
            cells.append((module, doc if module == default else "", source[match.end() :].strip()))
    return cells


def split_imports(source: str, where: str) -> tuple[list[ast.stmt], str]:
    """Take the top-level imports out of a cell; return them and the rest of the source."""
    lines, imports = source.split("\n"), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            if any("#" in lines[i] for i in range(node.lineno - 1, node.end_lineno)):
                raise ExportError(f"{where}: put the comment above the import, not on its line")
            if isinstance(node, ast.ImportFrom) and node.level:
                raise ExportError(f"{where}: write the import absolute (from {PACKAGE}.x import y)")
            imports.append(node)
            for i in range(node.lineno - 1, node.end_lineno):
                lines[i] = None
    return imports, "\n".join(line for line in lines if line is not None).strip()


def render_imports(imports: list[ast.stmt]) -> str:
    """Merge imports and sort them: standard library, packages, our own; `import` before `from`."""
    plain, names = set(), {}
    for node in imports:
        for alias in node.names:
            text = alias.name + (f" as {alias.asname}" if alias.asname else "")
            if isinstance(node, ast.Import):
                plain.add(text)
            else:
                names.setdefault(node.module, set()).add(text)

    def group(module: str) -> int:
        top = module.split(".")[0]
        return 0 if top in sys.stdlib_module_names else 2 if top == PACKAGE else 1

    def order(name: str):  # as ruff and isort do: CONSTANTS, Classes, functions
        return (not name.isupper() if len(name) > 1 else True, not name[0].isupper(), name)

    blocks = []
    for number in range(3):
        block = [f"import {m}" for m in sorted(plain) if group(m) == number]
        for module in sorted(names):
            if group(module) == number:
                listed = sorted(names[module], key=order)
                line = f"from {module} import {', '.join(listed)}"
                if len(line) > 100:
                    line = f"from {module} import (\n    " + ",\n    ".join(listed) + ",\n)"
                block.append(line)
        if block:
            blocks.append("\n".join(block))
    return "\n\n".join(blocks)


def used_imports(imports: list[ast.stmt], body: str) -> list[ast.stmt]:
    """The imports that `body` uses; a chapter may import more than it exports."""
    read = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    kept = []
    for node in imports:
        names = [a for a in node.names if (a.asname or a.name).split(".")[0] in read]
        if names:
            fields = {"module": node.module, "level": 0} if isinstance(node, ast.ImportFrom) else {}
            kept.append(type(node)(names=names, **fields))
    return kept


def undefined_names(source: str) -> set[str]:
    """Names a module reads as globals but neither defines, imports nor finds among the builtins."""
    top = symtable.symtable(source, "module", "exec")
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    defined |= set(dir(builtins)) | {"__file__", "__name__", "__package__"}
    read, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for s in table.get_symbols():
            if s.is_referenced() and (s.is_global() or table is top):
                read.add(s.get_name())
    return read - defined


def build(root: Path) -> dict[Path, str]:
    """Return {library file: its text} for the notebooks below root; raise ExportError."""
    modules, owner = {}, {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        for module, doc, source in read_notebook(path):
            entry = modules.setdefault(
                module, {"doc": doc, "imports": [], "bodies": [], "nb": path}
            )
            entry["doc"] = entry["doc"] or doc
            imports, body = split_imports(source, f"{path.name} (module {module})")
            entry["imports"] += imports
            if not body:
                continue
            entry["bodies"].append(body)
            for name in symtable.symtable(body, module, "exec").get_symbols():
                if name.is_assigned() and owner.setdefault(name.get_name(), module) != module:
                    first = owner[name.get_name()]
                    raise ExportError(f"{name.get_name()} is exported by {first} and by {module}")
    files = {}
    for module, entry in modules.items():
        if not entry["doc"]:
            raise ExportError(
                f"module {module} has no `#| default_exp {module}` with a quote above"
            )
        defined = [n.name for b in entry["bodies"] for n in ast.parse(b).body if hasattr(n, "name")]
        if twice := {name for name in defined if defined.count(name) > 1}:
            raise ExportError(f"{entry['nb'].name}: exported twice: {', '.join(sorted(twice))}")
        parts = [entry["doc"]]
        if any('__name__ == "__main__"' in body for body in entry["bodies"]):
            parts.append(GUARD)
        body = "\n\n\n".join(entry["bodies"])
        parts.append(render_imports(used_imports(entry["imports"], body)) + "\n")
        gap = "\n\n" if body.startswith(("def ", "class ", "@")) else "\n"  # as formatters do
        text = "\n".join(parts) + gap + body + "\n"
        if missing := undefined_names(text):
            names = ", ".join(sorted(missing))
            raise ExportError(f"{entry['nb'].name}: module {module} uses undefined {names}")
        files[root / PACKAGE / f"{module}.py"] = text
    return files


def orphans(root: Path, files: dict[Path, str]) -> list[str]:
    """Exported modules in the library that no notebook exports any more."""
    exported = [f for f in sorted((root / PACKAGE).glob("*.py")) if f not in files]
    mark = "\nExported from notebooks/"
    return [f.name for f in exported if mark in f.read_text(encoding="utf-8")]


def main(argv: list[str] | None = None) -> int:
    """Write the library, or with --check compare it with the notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="print a diff and write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    args = parser.parse_args(argv)
    try:
        files = build(args.root)
    except (ExportError, SyntaxError) as error:
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
