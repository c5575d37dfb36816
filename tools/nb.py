"""Edit, run and check the notebooks from a terminal.

    python tools/nb.py text 02          write notebooks/02_module.py, a text twin to edit
    python tools/nb.py save 02          put the edited twin back into the notebook
    python tools/nb.py run 02 [--smoke] execute top to bottom and save with outputs
    python tools/nb.py check            check that all are tidy and executed; exit 1 if not;
                                        print what each chapter consists of (anatomy.py)

A notebook is named by its number (solutions: `s02`), by its path or, in deeper/, by its file name;
no name means all of them.
The twin (jupytext's percent format) is git-ignored and read only by `save`.
"""

import argparse
import difflib
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from nanogpt_lib.support.threads import wait_briefly

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
FOLDED = {"source_hidden": True}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|var/folders)/[\w.+-]+")


def find(names: list[str]) -> list[Path]:
    """Resolve numbers (`02`, `s02`) and paths to notebooks, which need not exist yet."""
    if not names:
        folders = (NOTEBOOKS, NOTEBOOKS / "deeper", NOTEBOOKS / "solutions")
        return [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    found = []
    for name in names:
        if re.fullmatch(r"s?\d\d", name):
            folder = NOTEBOOKS / "solutions" if name[0] == "s" else NOTEBOOKS
            hits = sorted({p.with_suffix(".ipynb") for p in folder.glob(f"{name[-2:]}_*.*")})
        else:
            deeper = NOTEBOOKS / "deeper" / f"{name}.ipynb"
            known = deeper.exists() or deeper.with_suffix(".py").exists()
            hits = [deeper if known else Path(name).resolve().with_suffix(".ipynb")]
        if not hits or not (hits[0].exists() or hits[0].with_suffix(".py").exists()):
            sys.exit(f"nb: no notebook {name}")
        found += hits
    return found


def shown(path: Path) -> str:
    """A path for messages: relative to the repository if inside it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def is_folded(cell) -> bool:
    """Whether a cell hides its source; JupyterLab then shows only its first line."""
    return cell.metadata.get("jupyter", {}).get("source_hidden") is True


def tidy(nb):
    """Drop what differs between machines (timings, versions, widgets) and set the kernel.

    Of a cell's metadata, only its tags and whether its source is hidden are kept.
    """
    nb.metadata.clear()
    nb.metadata.update(kernelspec=KERNEL, language_info={"name": "python"})
    nb.nbformat_minor = 5
    seen = set()
    for cell in nb.cells:
        name = hashlib.sha1(f"{cell.cell_type}{cell.source}".encode()).hexdigest()[:8]
        while name in seen:  # two equal cells
            name += "x"
        seen.add(name)
        cell["id"] = name
        tags, folded = cell.metadata.get("tags"), is_folded(cell)
        cell.metadata.clear()
        if tags:
            cell.metadata["tags"] = tags
        if folded:
            cell.metadata["jupyter"] = FOLDED
    return nb


def text(path: Path) -> None:
    """Write the text twin of a notebook."""
    import jupytext

    nb = jupytext.read(path)
    for cell in nb.cells:
        cell.pop("id", None)
    jupytext.write(nb, path.with_suffix(".py"), fmt="py:percent")
    print(f"wrote {shown(path.with_suffix('.py'))}")


def copy_outputs(before: list, after: list) -> int:
    """Restore the outputs of unchanged code cells; return how many cells have none.

    Cells may be identical: they are matched in order first, then cells that moved.
    """
    before = [c for c in before if c.cell_type == "code" and c.source.strip()]
    after = [c for c in after if c.cell_type == "code" and c.source.strip()]
    sources = [[c.source for c in cells] for cells in (before, after)]
    same = difflib.SequenceMatcher(None, *sources, autojunk=False).get_matching_blocks()
    pairs = {b + i: before[a + i] for a, b, size in same for i in range(size)}
    left = [cell for cell in before if not any(cell is taken for taken in pairs.values())]
    for number, cell in enumerate(after):
        previous = pairs.get(number) or next((c for c in left if c.source == cell.source), None)
        if previous is None:
            cell.outputs, cell.execution_count = [], None
            continue
        left = [c for c in left if c is not previous]
        cell.outputs, cell.execution_count = previous.outputs, previous.execution_count
    return sum(cell.execution_count is None for cell in after)


def save(path: Path) -> None:
    """Make the notebook from its twin; unchanged cells keep their outputs."""
    import jupytext
    import nbformat

    nb = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(path), "-"]
    done = subprocess.run(
        ruff, cwd=ROOT, input=nbformat.writes(tidy(nb)), stdout=subprocess.PIPE, encoding="utf-8"
    )
    if done.returncode:
        sys.exit(f"nb: ruff cannot format {path.name}: a syntax error in a cell?")
    nb = nbformat.reads(done.stdout, as_version=4)
    before = nbformat.read(path, as_version=4).cells if path.exists() else []
    changed = copy_outputs(before, nb.cells)
    nbformat.write(tidy(nb), path)
    state = f"{changed} cells without outputs: now run it" if changed else "outputs kept"
    print(f"wrote {shown(path)} ({state})")


def run(path: Path, smoke: bool) -> None:
    """Execute a notebook; save it with outputs if every cell succeeded, unless in smoke size."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    os.environ["NANOGPT_SMOKE"] = "1" if smoke else "0"
    wait_briefly()  # the kernel inherits it, as from `make lab`
    if smoke:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the tests run it (conftest.py)
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"nb: {path.name} failed\n{error}")
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            # outputs show paths only relative to the repository
            for texts in (output, output.get("data", {})):
                for kind, content in texts.items():
                    if isinstance(content, str) and kind.startswith("text"):
                        texts[kind] = content.replace(str(ROOT) + os.sep, "")
    if smoke:
        print(f"ran {path.name} in smoke size; not saved")
    else:
        nbformat.write(tidy(nb), path)
        print(f"ran and saved {shown(path)}")


def faults(path: Path) -> list[str]:
    """What is untidy in a notebook, one line each; empty if it can be committed."""
    import nbformat

    nb = nbformat.read(path, as_version=4)
    bad = []
    if nb.metadata != {"kernelspec": KERNEL, "language_info": {"name": "python"}}:
        bad.append("metadata: kernel must be python3 and nothing else")
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        bad.append("not executed top to bottom since its last edit")
    for number, cell in enumerate(nb.cells):
        allowed = {"tags"} | ({"jupyter"} if cell.metadata.get("jupyter") == FOLDED else set())
        if odd := set(cell.metadata) - allowed:
            bad.append(f"cell {number}: metadata {', '.join(sorted(odd))}")
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                bad.append(f"cell {number}: saved with an error")
            if output.get("name") == "stderr":
                bad.append(f"cell {number}: saved with stderr: {output.text[:60]!r}")
            if hit := MACHINE_PATHS.search(
                str(output.get("text", "")) + str(output.get("data", ""))
            ):
                bad.append(f"cell {number}: output names a path of a machine: {hit.group()}")
    return bad


def print_anatomy(paths: list[Path]) -> None:
    """Print the table of chapters and, below it, the terms that each uses too early."""
    import anatomy
    import nbformat

    glossary, rows = anatomy.read_glossary(NOTEBOOKS / "glossary.md"), {}
    early = {}
    for path in paths:
        nb = nbformat.read(path, as_version=4)
        chapter = int(path.name[:2]) if path.name[:2].isdigit() else 99
        early[path.stem] = anatomy.forward_uses(nb, chapter, glossary)
        rows[path.stem] = {**anatomy.measure(nb), "forward": len(early[path.stem])}
    print(anatomy.table(rows))
    for name, uses in early.items():
        if uses:
            print(f"{name}, used before explained: {', '.join(uses)}")


def main() -> int:
    """Parse and execute the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["text", "save", "run", "check"])
    parser.add_argument("notebook", nargs="*", help="02, s02 or a path; default: all")
    parser.add_argument("--smoke", action="store_true", help="short loops, outputs not saved")
    args = parser.parse_args()
    status = 0
    for path in find(args.notebook):
        if args.command == "text":
            text(path)
        elif args.command == "save":
            save(path)
        elif args.command == "run":
            run(path, args.smoke)
        else:
            for line in faults(path):
                print(f"{shown(path)}: {line}")
                status = 1
    if args.command == "check":
        print_anatomy([path for path in find(args.notebook) if path.parent.name != "solutions"])
    return status


if __name__ == "__main__":
    sys.exit(main())
