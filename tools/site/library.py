"""The library's pages: every public symbol with its signature, docstring and source."""

import ast
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from cells import fence

PACKAGE = "nanogpt_lib"
Definition = ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
FLOORS = {"": "Lessons and programs", "recipes": "Recipes for datasets", "support": "Support"}


@dataclass
class Symbol:
    """One public name of a module."""

    name: str
    node: ast.stmt
    source: str
    methods: list["Symbol"] = field(default_factory=list)


@dataclass
class LibraryModule:
    """One file of the library: its page's name, docstring, public symbols and imports."""

    path: str  # "support/guard.py"
    doc: str
    symbols: list[Symbol]
    imports: dict[str, str]  # {bound name: "module.name" within the library}

    @property
    def name(self) -> str:
        """Dotted, without the package: "support.guard"."""
        return self.path.removesuffix(".py").replace("/", ".")


def names_of(node: ast.stmt) -> list[str]:
    """The names that a top-level statement defines."""
    if isinstance(node, Definition):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = getattr(node, "targets", None) or [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def library_imports(body: list[ast.stmt]) -> dict[str, str]:
    """{bound name: "module.name"} of everything a file takes from the library."""
    found = {}
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            inside = node.module.removeprefix(PACKAGE).removeprefix(".")
            for alias in node.names:
                found[alias.asname or alias.name] = f"{inside}.{alias.name}".removeprefix(".")
    return found


def segment(lines: list[str], node: ast.stmt) -> str:
    """The source of a statement, with its decorators."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return "\n".join(lines[first - 1 : node.end_lineno])


def read_module(root: Path, file: Path) -> LibraryModule:
    """Read one file without importing it."""
    text = file.read_text(encoding="utf-8")
    tree, lines, symbols = ast.parse(text), text.split("\n"), []
    for node in tree.body:
        for name in names_of(node):
            if not name.startswith("_") and name not in {s.name for s in symbols}:
                symbol = Symbol(name, node, segment(lines, node))
                if isinstance(node, ast.ClassDef):
                    functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
                    symbol.methods = [Symbol(f.name, f, segment(lines, f)) for f in functions]
                symbols.append(symbol)
    path = file.relative_to(root / PACKAGE).as_posix()
    return LibraryModule(path, ast.get_docstring(tree) or "", symbols, library_imports(tree.body))


def read_library(root: Path) -> dict[str, LibraryModule]:
    """{dotted name: module} of the whole library, without packages' own files."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    modules = [read_module(root, f) for f in files if not f.name.startswith("__")]
    return {module.name: module for module in modules}


def plain(docstring: str) -> str:
    """A docstring as Markdown: only its backticks and indented blocks mean something."""
    out, inside = [], False
    for line in docstring.split("\n"):
        inside = line.startswith("    ") and (inside or not out or not out[-1].strip())
        if inside:
            out.append(line)
            continue
        parts = re.split(r"(`[^`]+`)", line.strip())
        parts[::2] = [re.sub(r"([\\*_<>\[\]$#|{}~`])", r"\\\1", part) for part in parts[::2]]
        out.append(re.sub(r"^(\d*)([-+=:.)])", r"\1\\\2", "".join(parts)))  # no list, no heading
    return "\n".join(out)


def label(module: str, name: str) -> str:
    """The anchor of a symbol. Anchors have no capitals, so `Piece` and `piece` need two words."""
    kind = "constant" if name.isupper() else "class" if name[0].isupper() else "function"
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{module}-{name}".lower()).strip("-")


def signature(symbol: Symbol) -> str:
    """The head of a definition: decorators, name, arguments; a constant in full if it is short."""
    node = symbol.node
    if not isinstance(node, Definition):
        lines = symbol.source.split("\n")
        return symbol.source if len(lines) <= 12 else "\n".join([*lines[:10], "    # …"])
    first = node.body[0]
    head = symbol.source.split("\n")
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    if first.lineno == node.end_lineno == node.lineno:
        return symbol.source
    return "\n".join(head[: first.lineno - start]).rstrip()


def fields_of(symbol: Symbol) -> str:
    """The fields of a dataclass, with their comments, as code."""
    node, lines = symbol.node, symbol.source.split("\n")
    if not isinstance(node, ast.ClassDef):
        return ""
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    kept = [n for n in node.body if isinstance(n, ast.AnnAssign | ast.Assign)]
    return "\n".join("\n".join(lines[n.lineno - start : n.end_lineno - start + 1]) for n in kept)


def symbol_text(module: LibraryModule, symbol: Symbol) -> str:
    """One symbol's part of its module's page."""
    is_code = isinstance(symbol.node, Definition)
    head = signature(symbol)
    if listed := fields_of(symbol):
        head += "\n" + listed
    blocks = [f"({label(module.name, symbol.name)})=\n## `{symbol.name}`", fence(head, "python")]
    if is_code and (doc := ast.get_docstring(symbol.node)):
        blocks.append(plain(doc))
    for method in symbol.methods:
        doc = ast.get_docstring(method.node)
        if doc and not method.name.startswith("_"):
            blocks.append(f"### `{symbol.name}.{method.name}`")
            blocks += [fence(textwrap.dedent(signature(method)), "python"), plain(doc)]
    if is_code:
        source = fence(symbol.source, "python")
        blocks.append(f"::::{{dropdown}} Source of {symbol.name}\n\n{source}\n::::")
    return "\n\n".join(blocks)


def module_page(module: LibraryModule, chapters: dict[str, list[str]]) -> str:
    """The page of a module, as Markdown; chapters: {module: the chapters that export it}."""
    doc = re.sub(r"\n*Exported from notebooks/.*?not\s+this\s+file\.", "", module.doc, flags=re.S)
    blocks = [f"# {PACKAGE}/{module.path}", plain(doc)]
    if taught := chapters.get(module.name):
        links = ", ".join(f"[](../notebooks/{name}.ipynb)" for name in taught)
        blocks.append(f"*Taught in {links}.*")
    blocks += [symbol_text(module, symbol) for symbol in module.symbols]
    return "\n\n".join(blocks) + "\n"


def index_page(modules: dict[str, LibraryModule]) -> str:
    """The list of all modules, floor by floor, and their table of contents."""
    blocks = ["# The library", "Every module of `nanogpt_lib`, with its public symbols."]
    for folder, title in FLOORS.items():
        inside = [m for m in modules.values() if m.name.rpartition(".")[0] == folder]
        rows = [f"- [{m.path}]({m.name}.md): {plain(m.doc.split(chr(10))[0])}" for m in inside]
        blocks.append(f"## {title}\n\n" + "\n".join(rows))
    entries = "\n".join(f"{m.path} <{m.name}>" for m in modules.values())
    blocks.append(f"```{{toctree}}\n:hidden:\n\n{entries}\n```")
    return "\n\n".join(blocks) + "\n"


def owners(modules: dict[str, LibraryModule]) -> dict[str, str]:
    """{symbol: module} for every name that only one module of the library defines."""
    found: dict[str, set[str]] = {}
    for module in modules.values():
        for symbol in module.symbols:
            found.setdefault(symbol.name, set()).add(module.name)
    return {name: where.pop() for name, where in found.items() if len(where) == 1}
