"""Sphinx extension: every symbol of the library, in code and in prose, links to its page.

The build writes symbols.json: the names that each page binds, {page: {name: "module.name"}}, and
under "" those that only one module defines.
"""

import json
import re
from pathlib import Path

from library import label
from sphinx.application import Sphinx

CODE = re.compile(r'<div class="highlight"><pre>.*?</pre></div>', re.S)
BEFORE = r'<span class="o">\.</span>|<span class="k">(?:def|class)</span><span class="w"> </span>'
NAME = re.compile(  # not an attribute, a definition, or the name of an argument
    rf'(?P<before>{BEFORE})?<span class="(?P<kind>n|nc|nf|nd)">(?P<name>\w+)</span>'
    r'(?!<span class="o">=</span>)'
)
INLINE = re.compile(
    r'<code class="docutils literal notranslate"><span class="pre">'
    r"(?P<name>[\w./]+?)(?:\(\))?</span></code>"
)


def link_symbols(app: Sphinx, pagename: str, template: str, context: dict, doctree) -> None:
    """Rewrite the body of a page."""
    if "body" not in context or not doctree:
        return
    table = app.symbols_table
    known = table.get(pagename, {})
    files = {f"{m.rpartition('.')[2]}.py": m for m in table["modules"] if "." not in m}
    files |= {f"{m.replace('.', '/')}.py": m for m in table["modules"]}
    files |= {f"nanogpt_lib/{m.replace('.', '/')}.py": m for m in table["modules"]}

    def address(full: str) -> str:
        module, _, name = full.rpartition(".")
        page = app.builder.get_relative_uri(pagename, f"library/{module}")
        return f"{page}#{label(module, name)}"

    def in_code(match: re.Match) -> str:
        name = match["name"]
        if match["before"] or name not in known:
            return match[0]
        return f'<a class="symbol" href="{address(known[name])}">{match[0]}</a>'

    def inline(match: re.Match) -> str:
        name = match["name"]
        if name in files:
            page = app.builder.get_relative_uri(pagename, f"library/{files[name]}")
            return f'<a class="symbol" href="{page}">{match[0]}</a>'
        full = known.get(name) or table["unique"].get(name)
        if not full or pagename == f"library/{full.rpartition('.')[0]}":
            return match[0]
        return f'<a class="symbol" href="{address(full)}">{match[0]}</a>'

    body = CODE.sub(lambda block: NAME.sub(in_code, block[0]), context["body"])
    context["body"] = outside_links(body, lambda piece: INLINE.sub(inline, piece))


def outside_links(body: str, change) -> str:
    """Apply `change` outside links, headings, handles of folded cards and code blocks."""
    kept = re.compile(r"(<(a|h[1-6]|summary|pre)\b[^>]*>.*?</\2>)", re.S)
    out, end = [], 0
    for match in kept.finditer(body):
        out += [change(body[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*out, change(body[end:])])


def read_table(app: Sphinx) -> None:
    """Load what the build wrote."""
    path = Path(app.srcdir) / "symbols.json"
    empty = {"modules": [], "unique": {}}
    app.symbols_table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def setup(app: Sphinx) -> dict:
    """Register the step on each finished page."""
    app.connect("builder-inited", read_table)
    app.connect("html-page-context", link_symbols, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
