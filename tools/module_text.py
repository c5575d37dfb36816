"""The text of an exported module: its docstring, the names it defines, the imports it needs."""

import ast
import builtins
import re
import symtable
import sys
import textwrap

PACKAGE = "nanogpt_lib"


class ExportError(Exception):
    """The notebooks contradict each other or cannot become modules; the message says where."""


def docstring(quote: str, notebooks: list[str]) -> str:
    """A module's docstring: the quote, with a note on its origin after the first paragraph."""
    first, *rest = re.split(r"\n\s*\n", quote.strip())
    listed = ", ".join(notebooks[:-1]) + " and " * (len(notebooks) > 1) + notebooks[-1]
    edit = "edit the notebooks" if len(notebooks) > 1 else "edit the notebook"
    origin = textwrap.fill(f"Exported from notebooks/{listed}; {edit}, not this file.", 100)
    return '"""' + "\n\n".join([first, origin, *rest]) + '\n"""\n'


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


def defined_names(body: str, where: str) -> set[str]:
    """The global names that a cell defines: functions, classes, variables."""
    blocks = [node.name for node in ast.parse(body).body if hasattr(node, "name")]
    if twice := {name for name in blocks if blocks.count(name) > 1}:
        raise ExportError(f"{where}: exported twice: {', '.join(sorted(twice))}")
    table = symtable.symtable(body, where, "exec")
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}


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


def global_reads(source: str) -> set[str]:
    """Names that a module reads as globals, including in its functions and classes."""
    top = symtable.symtable(source, "module", "exec")
    read, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for s in table.get_symbols():
            if s.is_referenced() and (s.is_global() or table is top):
                read.add(s.get_name())
    return read


def names_in_strings(tree: ast.Module) -> set[str]:
    """Names in annotations written as strings ("GPT | None"), in `cast("GPT", x)` and `__all__`."""
    places, names = [], set()
    for node in ast.walk(tree):
        places += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "cast":
            places += node.args[:1]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            places.append(node.value)
    for node in (n for place in places if place for n in ast.walk(place)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                quoted = ast.parse(node.value.strip(), mode="eval")
            except SyntaxError:  # Literal["any text"]
                continue
            names |= {n.id for n in ast.walk(quoted) if isinstance(n, ast.Name)}
    return names


def used_imports(imports: list[ast.stmt], body: str, where: str) -> list[ast.stmt]:
    """The imports that `body` uses; a chapter may import more than it exports."""
    tree = ast.parse(body)
    read = global_reads(body) | names_in_strings(tree)
    chains = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    plain = [a.name for n in imports if isinstance(n, ast.Import) for a in n.names if not a.asname]
    bound = {name.split(".")[0] for name in plain if name in chains or "." not in name}
    kept, source_of = [], dict.fromkeys(defined_names(body, where), "its own definition")
    for node in imports:
        package = node.module + "." if isinstance(node, ast.ImportFrom) else ""
        names = []
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            # `import os` and `import os.path` both bind os: keep the one whose attributes are read
            dotted = not package and not alias.asname and alias.name != name
            if name not in read or dotted and name in bound and alias.name not in chains:
                continue
            names.append(alias)
            origin = name if dotted else package + alias.name
            if source_of.setdefault(name, origin) != origin:
                raise ExportError(f"{where}: {name} is {source_of[name]} and {origin}")
        if names:
            fields = {"module": node.module, "level": 0} if package else {}
            kept.append(type(node)(names=names, **fields))
    return kept


def undefined_names(source: str) -> set[str]:
    """Names a module reads as globals but neither defines, imports nor finds among the builtins."""
    top = symtable.symtable(source, "module", "exec")
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    return global_reads(source) - defined - set(dir(builtins)) - {"__file__"}
