"""A chapter's Markdown as the web book wants it: links, lecture times, formulas, navigation."""

import re
from collections.abc import Callable

VIDEO = "https://www.youtube.com/watch?v=l8pRSuU81PU"
LECTURE_SECONDS = 4 * 3600 + 100
VERBATIM = re.compile(
    r"(^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)|`+[^`\n]*`+|\$\$.+?\$\$|\$[^$\n]+\$)", re.S | re.M
)
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]*)\)")
TIME = re.compile(r"(?<![\d:/.])(?P<h>\d):(?P<m>[0-5]\d):(?P<s>[0-5]\d)(?![\d:])")


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to the pieces of a Markdown text that are neither code nor formulas."""
    pieces, end = [], 0
    for match in VERBATIM.finditer(text):
        pieces += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*pieces, change(text[end:])])


def link_times(text: str) -> str:
    """Make each time of the lecture (0:33:31) a link to that second of the video."""

    def link(match: re.Match) -> str:
        seconds = 3600 * int(match["h"]) + 60 * int(match["m"]) + int(match["s"])
        return f"[{match[0]}]({VIDEO}&t={seconds}s)" if seconds < LECTURE_SECONDS else match[0]

    def change(piece: str) -> str:
        out, end = [], 0
        for match in LINK.finditer(piece):  # what is a link already stays one
            out += [TIME.sub(link, piece[end : match.start()]), match[0]]
            end = match.end()
        return "".join([*out, TIME.sub(link, piece[end:])])

    return outside_code(text, change)


def relink(text: str, resolve: Callable[[str], str | None]) -> str:
    """Rewrite relative links: `resolve` gives the new target, or None for a link without one."""

    def change(match: re.Match) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:|#|$", target):
            return match[0]
        new = resolve(target)
        return match["text"] if new is None else f"[{match['text']}]({new})"

    # not by `outside_code`: a link's text may be code
    parts = re.split(r"(^(?P<f>`{3,}).*?^(?P=f))", text, flags=re.S | re.M)
    return "".join(
        LINK.sub(change, p) if i % 3 == 0 else p for i, p in enumerate(parts) if i % 3 < 2
    )


def space_formulas(text: str) -> str:
    """Blank lines around each displayed formula that has its own lines, or it would not be one."""

    def change(match: re.Match) -> str:
        alone = match[0].startswith("$$") and text[: match.start()].endswith("\n")
        return f"\n{match[0]}\n" if alone else match[0]

    return re.sub(r"\n{3,}", "\n\n", VERBATIM.sub(change, text))


def without_navigation(text: str) -> str:
    """Drop a line of arrows to the chapters before and after: the book has its own."""
    arrow = r"\[(?:← [^\]]*|[^\]]* →)\]\([^)]*\)"
    return re.sub(rf"^{arrow}(?: · {arrow})*[ ]*$\n?", "", text, flags=re.M).rstrip()
