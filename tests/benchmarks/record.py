"""Keep a benchmark's results as JSON, with the machine they were measured on.

One file per benchmark holds one record for each class of processor, because a machine of one class
cannot measure another: a new record replaces that of its own class and leaves the others.
"""

import json
from pathlib import Path

import torch

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import make_folder, write_json
from nanogpt_lib.support.machine import describe_machine, name_of


def class_of(machine: dict) -> str:
    """The name a record is kept under: the class of the CPU, or the name of the GPU."""
    return machine["device"] if machine["cuda_device"] else machine["cpu_class"]


def about(device: torch.device | str = "cpu") -> dict:
    """The machine of `device`: model, class, cores, threads, versions, commit, date."""
    device = torch.device(device)
    return {**describe_machine(name_of(device)), "cuda_device": device.type == "cuda"}


def read_records(path: Path) -> dict[str, dict]:
    """Class → record; empty if there is no file. Raises UserError if it holds something else."""
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(r, dict) and {"machine", "results"} <= set(r) for r in records.values()):
            return records
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not a file of benchmark records; name another one")


def write_record(path: Path, results, device: torch.device | str = "cpu") -> dict:
    """Add the results of this machine to the file, atomically; return the record.

    `results` is anything JSON can hold.
    """
    path = Path(path)
    records = read_records(path)
    record = {"machine": about(device), "results": results}
    make_folder(path.absolute().parent)
    write_json(path, {**records, class_of(record["machine"]): record})
    return record


def read_lines(path: Path) -> list[dict]:
    """The records of a file of JSON lines, without a last one that a kill has cut; [] if none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def append_line(path: Path, record: dict) -> None:
    """Add a record to a file of JSON lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
