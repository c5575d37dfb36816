"""Edit, run and check the notebooks from a terminal.

    python tools/nb.py text 02          write notebooks/02_module.py, a text twin to edit
    python tools/nb.py save 02          put the edited twin back into the notebook
    python tools/nb.py run 02 [--smoke] execute top to bottom and save with outputs
    python tools/nb.py check            every notebook tidy and executed? exit 1 if not

A notebook is named by its number (solutions by `s02`) or by its path; no name means all of them.
The twin (jupytext's percent format) is git-ignored and never read but by `save`.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|var/folders)/[\w.+-]+")


def find(names: list[str]) -> list[Path]:
    """Resolve numbers (`02`, `s02`) and paths to notebook (or not yet existing) files."""
    if not names:
        return sorted(NOTEBOOKS.glob("*.ipynb")) + sorted(NOTEBOOKS.glob("solutions/*.ipynb"))
    found = []
    for name in names:
        folder = NOTEBOOKS / "solutions" if name.startswith("s") else NOTEBOOKS
        hits = sorted({p.with_suffix(".ipynb") for p in folder.glob(f"{name.lstrip('s')}_*.*")})
        if not hits and not Path(name).parent.is_dir():
            sys.exit(f"nb: no notebook {name}")
        found += hits or [Path(name).with_suffix(".ipynb").resolve()]
    return found


def tidy(nb):
    """Drop what differs from machine to machine: timings, versions, widgets; fix the kernel."""
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
        tags = cell.metadata.get("tags")
        cell.metadata.clear()
        if tags:
            cell.metadata["tags"] = tags
    return nb


def text(path: Path) -> None:
    """Write the text twin of a notebook."""
    import jupytext

    nb = jupytext.read(path)
    for cell in nb.cells:
        cell.pop("id", None)
    jupytext.write(nb, path.with_suffix(".py"), fmt="py:percent")
    print(f"wrote {path.with_suffix('.py').relative_to(ROOT)}")


def save(path: Path) -> None:
    """Make the notebook from its twin; a cell keeps its output if it did not change."""
    import jupytext
    import nbformat

    nb = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
    before = nbformat.read(path, as_version=4) if path.exists() else nb
    nbformat.write(tidy(nb), path)
    ruff = [sys.executable, "-m", "ruff", "format", "--quiet", str(path)]
    if subprocess.run(ruff, cwd=ROOT).returncode:
        sys.exit(f"nb: ruff cannot format {path.name}: a syntax error in a cell?")
    nb = nbformat.read(path, as_version=4)
    old = {c.source: c for c in before.cells if c.cell_type == "code"} if before is not nb else {}
    changed = 0
    for cell in (c for c in nb.cells if c.cell_type == "code" and c.source.strip()):
        if previous := old.get(cell.source):
            cell.outputs, cell.execution_count = previous.outputs, previous.execution_count
        else:
            changed += 1
    nbformat.write(tidy(nb), path)
    state = f"{changed} cells without outputs: now run it" if changed else "outputs kept"
    print(f"wrote {path.relative_to(ROOT)} ({state})")


def run(path: Path, smoke: bool) -> None:
    """Execute a notebook; save it with outputs only if every cell succeeded (and not in smoke)."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    os.environ["NANOGPT_SMOKE"] = "1" if smoke else "0"
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
            # an output says where it ran only relative to the repository
            if "text" in output:
                output["text"] = output["text"].replace(str(ROOT) + os.sep, "")
    if smoke:
        print(f"ran {path.name} in smoke size; not saved")
    else:
        nbformat.write(tidy(nb), path)
        print(f"ran and saved {path.relative_to(ROOT)}")


def faults(path: Path) -> list[str]:
    """What is untidy in a notebook, one line each; empty when it can be committed."""
    import nbformat

    nb = nbformat.read(path, as_version=4)
    bad = []
    if nb.metadata != {"kernelspec": KERNEL, "language_info": {"name": "python"}}:
        bad.append("metadata: kernel must be python3 and nothing else")
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        bad.append("not executed top to bottom since its last edit")
    for number, cell in enumerate(nb.cells):
        if set(cell.metadata) - {"tags"}:
            bad.append(f"cell {number}: metadata {sorted(cell.metadata)}")
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


def main() -> int:
    """Parse the command line and do what it says; return the exit status."""
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
                print(f"{path.relative_to(ROOT)}: {line}")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
