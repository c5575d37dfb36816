"""Sphinx extension: on each page, the first use of a term is a link to the glossary.

notebooks/glossary.md holds one line for each term: `- **term, other form** (01): meaning`.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

ENTRY = re.compile(
    r"^- \*\*(?P<terms>[^*]+)\*\* \((?P<chapter>\d\d)\): (?P<meaning>.+?)(?=^- |^#|\Z)", re.M | re.S
)
GLOSSARY = "notebooks/glossary"
OTHER = re.compile(r"\s+(quote|manager|comment)")  # a block quote is no block of a transformer
SKIP = (
    nodes.reference | nodes.literal | nodes.title | nodes.literal_block | nodes.math | nodes.rubric
)


def read_terms(text: str) -> list[tuple[list[str], str, str]]:
    """[(the forms of a term, the chapter that introduces it, its meaning)]."""
    return [
        ([t.strip() for t in m["terms"].split(",")], m["chapter"], " ".join(m["meaning"].split()))
        for m in ENTRY.finditer(text)
    ]


def slug(term: str) -> str:
    """The anchor of a term on the glossary's page."""
    return "term-" + re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")


def glossary_page(text: str, chapters: dict[str, str]) -> str:
    """The glossary as a page with an anchor for each term; chapters: {"01": file name}."""
    intro = text.split("\n- **")[0].strip()
    blocks = [intro]
    for forms, chapter, meaning in sorted(read_terms(text), key=lambda e: e[0][0].lower()):
        name = chapters.get(chapter)
        where = f" Introduced in [chapter {chapter}]({name})." if name else ""
        blocks.append(f"({slug(forms[0])})=\n**{', '.join(forms)}**\n: {meaning}{where}")
    return "\n\n".join(blocks) + "\n"


def pattern(forms: dict[str, str]) -> re.Pattern:
    """Any of the forms as a whole word, also in the plural; long forms first."""
    words = sorted(forms, key=len, reverse=True)
    return re.compile(
        r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?:s|es)?(?![\w-])", re.I
    )


def anchor_of(found: str, forms: dict[str, str]) -> str | None:
    """The term of a word in the text. A form with a capital inside must be written so."""
    for word in (found, found.removesuffix("s"), found.removesuffix("es")):
        if word in forms:
            return forms[word]
        if word.lower() in forms and (word.istitle() or word[0].isupper() and word[1:].islower()):
            return forms[word.lower()]
    return None


def link_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the links into a page before it is written."""
    source = Path(app.srcdir) / "glossary-terms.txt"
    if not re.match(r"notebooks/(\d\d_|deeper/|runbook)", docname) or not source.exists():
        return
    entries = read_terms(source.read_text(encoding="utf-8"))
    forms = {form: slug(each[0]) for each, _, _ in entries for form in each}
    if not forms:
        return
    words, seen = pattern(forms), set()
    page = app.builder.get_relative_uri(docname, GLOSSARY)
    for text in list(doctree.findall(nodes.Text)):
        if not in_prose(text):
            continue
        siblings = text.parent.children
        after_code = isinstance(siblings[max(siblings.index(text) - 1, 0)], nodes.literal)
        replacement = linked(text.astext(), words, forms, seen, page, after_code)
        if len(replacement) > 1:
            text.parent.replace(text, replacement)


def in_prose(text: nodes.Node) -> bool:
    """Whether a piece of text stands in running prose, outside links, code and titles."""
    node, prose = text.parent, False
    while node is not None:
        if isinstance(node, SKIP):
            return False
        prose = prose or isinstance(node, nodes.paragraph)
        node = node.parent
    return prose


def linked(
    text: str, words: re.Pattern, forms: dict, seen: set, page: str, after_code: bool = False
) -> list[nodes.Node]:
    """A piece of text with its new terms as links; after_code: `code` stands right before it."""
    out, end = [], 0
    for match in words.finditer(text):
        anchor = anchor_of(match[0], forms)
        of_code = after_code and not text[: match.start()].strip()  # a `with` block
        if not anchor or anchor in seen or of_code or OTHER.match(text, match.end()):
            continue
        seen.add(anchor)
        link = nodes.reference("", match[0], refuri=f"{page}#{anchor}", classes=["term"])
        link["internal"] = True
        out += [nodes.Text(text[end : match.start()]), link]
        end = match.end()
    return [*out, nodes.Text(text[end:])]


def setup(app: Sphinx) -> dict:
    """Register the step before writing."""
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
