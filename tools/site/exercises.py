"""Exercises as cards: the question and the cell to fill in, the worked solution folded inside."""

import re

from cells import fence, text_of

START = re.compile(r"^\*\*(?P<number>\d+) (?P<stars>★+)\s*(?P<kind>[^*]*?)\.?\*\*\s*", re.M)


def split_exercises(cells: list[dict]) -> tuple[list[dict], dict[int, dict]]:
    """Cells → (what stands before the first exercise, {number: {title, body: [cells]}})."""
    before, found, current = [], {}, None
    for cell in cells:
        if cell["cell_type"] != "markdown":
            (found[current]["body"] if current else before).append(cell)
            continue
        source = "".join(cell["source"])
        marks = list(START.finditer(source))
        if head := source[: marks[0].start() if marks else None].strip():
            piece = {**cell, "source": head}
            (found[current]["body"] if current else before).append(piece)
        for mark, following in zip(marks, [*marks, None][1:], strict=True):
            current = int(mark["number"])
            title = f"{mark['number']} {mark['stars']} {mark['kind']}".strip()
            text = source[mark.end() : following.start() if following else None].strip()
            body = [{**cell, "source": text}] if text else []
            found[current] = {"title": title, "body": body}
    return before, found


def as_markdown(cells: list[dict], outputs: bool) -> str:
    """Cells as one Markdown text; with `outputs`, what the code printed under it."""
    blocks = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif source.strip():
            blocks.append(fence(source, "python"))
            printed = "".join(text_of(o) for o in cell.get("outputs", []))
            if outputs and printed.strip():
                blocks.append(fence(printed, "{code-block} text\n:class: printed\n"))
            if outputs:
                blocks += [picture(o["data"]["image/png"]) for o in pictures(cell)]
    return "\n\n".join(blocks)


def pictures(cell: dict) -> list[dict]:
    """The outputs of a cell that are pictures."""
    return [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]


def picture(png: str | list[str]) -> str:
    """A picture within the page: a solution's card has no cell of its own to show it."""
    data = "".join("".join(png).split())
    return fence(
        '<div class="cell_output"><img alt="Figure of the worked solution" '
        f'src="data:image/png;base64,{data}"></div>',
        "{raw} html",
    )


def card(title: str, body: str, open_: bool, kind: str, label: str) -> str:
    """A foldable card; its fence is longer than any within."""
    colons = ":" * max(3, 1 + max((len(c) for c in re.findall(r"^:{3,}", body, re.M)), default=0))
    options = [f":class-container: {kind}", f":name: {label}", *([":open:"] if open_ else [])]
    return "\n".join([f"{colons}{{dropdown}} {title}", *options, "", body, colons])


def exercise_cards(cells: list[dict], solution_cells: list[dict], page: str) -> list[str]:
    """The text before the exercises and one card for each, as Markdown; labels begin with page."""
    before, asked = split_exercises(cells)
    _, solved = split_exercises(solution_cells)
    texts = [as_markdown(before, outputs=False)] if before else []
    for number, exercise in asked.items():
        body = as_markdown(exercise["body"], outputs=False)
        if answer := solved.get(number):
            solution = as_markdown(answer["body"], outputs=True)
            title = f"Solution of exercise {number}"
            body += "\n\n" + card(title, solution, False, "solution", f"{page}-solution-{number}")
        title = f"Exercise {exercise['title']}"
        texts.append(card(title, body, True, "exercise", f"{page}-exercise-{number}"))
    return texts
