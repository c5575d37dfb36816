"""The checks of a run that need no model: processes, settings, data, disk, links.

Each function is a job for support.checks.Checks, or makes the line from all ranks' answers. A job
raises UserError for what must be mended, and returns a Note for what is only worth a look.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist

from nanogpt_lib.config import PATHS, TrainConfig, as_dict, flag, micro_batch
from nanogpt_lib.device import median_seconds
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.checks import Note
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import in_units
from nanogpt_lib.support.machine import name_of, output_of
from nanogpt_lib.support.places import ROOT
from nanogpt_lib.support.processes import World

VERIFY_SECONDS = 30  # per process, for the shards' checksums: a full check may take minutes
EPOCHS = 4  # repeating text up to so often is almost as good as new text (arXiv 2305.16264) …
TOO_MANY_EPOCHS = 20  # … and beyond about 16 times it adds nothing

# Data-sheet NVLink bandwidth in one direction (GB/s); ring all-reduce gets about 0.8 of it (README)
NVLINK = {"H100": 450, "H200": 450, "A100": 300}
LINKS_BYTES = 2**26, 2**30  # with less to send, latency counts; with more, nothing changes


# --- processes ----------------------------------------------------------------------------------


def digest(value: object) -> str:
    """A short digest of plain values or bytes."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def driver_version() -> str | None:
    """The version of the NVIDIA driver; None without one."""
    return output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def describe_process(config: TrainConfig, world: World, device: torch.device) -> dict:
    """What this process runs on. Raises UserError if there is a GPU that PyTorch cannot use."""
    driver = driver_version()
    if device.type == "cpu" and driver and config.device == "auto":
        cuda = f"is for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        raise UserError(
            f"there is a GPU (driver {driver}), but torch {torch.__version__} {cuda} and cannot "
            "use it: install the build for this driver (pytorch.org), or add --device cpu"
        )
    known = {"host": socket.gethostname(), "device": name_of(device), "driver": driver}
    known |= {"torch": torch.__version__, "Python": platform.python_version(), "note": ""}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = total - free - torch.cuda.memory_reserved(device)
        if used > max(0.05 * total, 2e9):  # less is this process's own context
            known["note"] = f"{in_units(used)} of {device} are in use by another program"
        elif (idle := torch.cuda.device_count() - local_size(world)) > 0:
            known["note"] = f"{idle} of {torch.cuda.device_count()} GPUs idle: --nproc_per_node"
    return known


def local_size(world: World) -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world.size > 1 else 1


def processes_line(known: list[dict]) -> str:
    """The line about the processes; raises UserError if they run on different things."""
    names = ("device", "driver", "torch", "Python")
    problems = [differing([ours[name] for ours in known], name) for name in names]
    if any(problems):
        raise UserError("; ".join(filter(None, problems)))
    first, hosts = known[0], len({ours["host"] for ours in known})
    many = f"{len(known)} processes" if len(known) > 1 else "1 process"
    where = f"{hosts} machines" if hosts > 1 else "1 machine"
    backend = f", {dist.get_backend()}" if dist.is_initialized() else ""
    driver = f"driver {first['driver']}, " if first["driver"] else ""
    text = f"{many} on {where}{backend}, {first['device']}, {driver}torch {first['torch']}"
    notes = [f"rank {rank}: {ours['note']}" for rank, ours in enumerate(known) if ours["note"]]
    return Note("; ".join([text, *notes])) if notes else text


def differing(values: list, what: str, advice: str = "") -> str:
    """Which ranks' value differs from most ranks' (with two, from rank 0's); "" if none does."""
    usual = Counter(values).most_common(1)[0][0]
    odd = [rank for rank, value in enumerate(values) if value != usual]
    if not odd:
        return ""
    advice = advice or f" ({values[odd[0]]}, not {usual})"
    return f"rank {', '.join(map(str, odd))} has another {what}{advice}"


def fingerprints(config: TrainConfig) -> dict[str, str]:
    """Digests of what must be the same for every rank: the code and the settings."""
    files = sorted((ROOT / "nanogpt_lib").rglob("*.py"))
    code = b"".join(
        path.relative_to(ROOT).as_posix().encode() + path.read_bytes() for path in files
    )
    settings = {name: value for name, value in as_dict(config).items() if name not in PATHS}
    return {"code": digest(code), "settings": digest(settings)}


def sameness_line(prints: list[dict], data: list[str]) -> str:
    """The line about code, settings and data; raises UserError that names the odd ranks."""
    values = {"nanogpt_lib": [p["code"] for p in prints]}
    values |= {"set of flags": [p["settings"] for p in prints], "dataset": data}
    advice = {"nanogpt_lib": ": copy the same commit to every machine"}
    advice |= {"set of flags": ": start the same line everywhere"}
    advice |= {"dataset": " in --data: copy the same shards to every machine"}
    problems = [differing(ours, what, advice[what]) for what, ours in values.items()]
    if any(problems):
        raise UserError("; ".join(filter(None, problems)))
    return f"code {prints[0]['code'][:7]}, flags and data are the same for every rank"


# --- settings -----------------------------------------------------------------------------------


def settings_line(config: TrainConfig, world: World, notes: list[str]) -> str:
    """How a step is divided. Raises UserError for what would keep the run from starting."""
    out = Path(config.out)
    if not config.resume and ((out / "log.jsonl").exists() or any(out.glob("checkpoints/step_*"))):
        raise UserError(f"{out} holds a run: add --resume to continue it, or choose another --out")
    if config.logger != "none" and not importlib.util.find_spec(config.logger):
        raise UserError(f"--logger {config.logger}: not installed (pip install {config.logger})")
    rows, micro_steps = micro_batch(config, world.size)
    text = (
        f"{config.total_batch_size:,} tokens per step = {rows} rows × {config.block_size} × "
        f"{world.size} × {micro_steps} micro-step(s); {config.max_steps:,} steps"
    )
    if not 0 < config.save_every < config.max_steps:
        notes = [*notes, f"{flag('save_every')} {config.save_every}: nothing is saved on the way"]
    return Note("; ".join([text, *notes])) if notes else text


# --- data ---------------------------------------------------------------------------------------


def verify_data(config: TrainConfig, world: World) -> dict:
    """Check as many of this machine's shards as fit into VERIFY_SECONDS; all sizes are checked.

    The processes of a machine share its shards. Returns how many, and a digest of the dataset.
    """
    meta = read_meta(config.data)
    streams = [TokenStream(config.data, split) for split in ("train", "val")]
    count = sum(len(meta["splits"][split]) for split in ("train", "val"))
    part, parts = world.local_rank, local_size(world)
    start, checked = perf_counter(), 0
    # in an order that jumps, so that a part of them is a sample of the whole
    mine = sorted(range(part, count, parts), key=lambda number: digest([number]))
    for number in mine:
        if perf_counter() - start > VERIFY_SECONDS:
            break
        verify_shards(config.data, number, count)
        checked += 1
    places = [(s, at) for s in streams for at in range(0, len(s) - 64, 1 + len(s) // 16)]
    windows = b"".join(stream.read(at, 64).tobytes() for stream, at in places)
    return {
        "digest": digest([meta, digest(windows)]),
        "meta": meta,
        "shards": count,
        "checked": checked / count,  # of this machine's, so the ranks' sum counts machines
        "sealed": all("sha256" in s for split in meta["splits"].values() for s in split),
        "tokens": [len(stream) for stream in streams],
    }


def data_line(found: list[dict], machines: int) -> str:
    """The line about the data: how many shards are whole, and how that is known."""
    first, share = found[0], sum(ours["checked"] for ours in found) / machines
    how = "SHA-256" if first["sealed"] else "sizes and ids (it has no checksums)"
    count = first["shards"]
    text = f"all {count} shards" if share > 0.999 else f"{share:.0%} of {count} shards"
    others = "" if share > 0.999 else ", the others by size (data/NAME.py --verify checks all)"
    name = first["meta"].get("name", "unnamed")
    return f"{name}: {text} whole by {how}{others}; {in_tokens(first['tokens'][1])} for validation"


def tokens_line(config: TrainConfig, tokens: int) -> str:
    """How often the run reads its text. Raises UserError if that is far too often."""
    asked = config.max_steps * config.total_batch_size
    epochs = asked / tokens
    text = f"{in_tokens(asked)} asked of {in_tokens(tokens)}: {epochs:.3g} epochs"
    if epochs <= EPOCHS or config.dropout:
        return text
    text += f"; get more data, or --max-steps {max(1, EPOCHS * tokens // config.total_batch_size)}"
    if epochs > TOO_MANY_EPOCHS:
        raise UserError(f"{text}; so often it would be learned by heart")
    return Note(text)


def in_tokens(count: float) -> str:
    """A number of tokens for people to read: 9.95B, 24.8M, 820K, 96."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def data_needed(config: TrainConfig) -> str:
    """What a missing dataset would take on its disk, if the steps asked read it once."""
    folder = existing(Path(config.data))
    needed = 2 * config.max_steps * config.total_batch_size
    return (
        f"the {in_tokens(needed / 2)} tokens of this run take {in_units(needed)}, "
        f"{in_units(shutil.disk_usage(folder).free)} free in {folder}"
    )


# --- disk ---------------------------------------------------------------------------------------


def existing(folder: Path) -> Path:
    """The folder itself or the nearest parent that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def disk_line(config: TrainConfig, checkpoint: int, most: int, log: int) -> str:
    """The line about the disk: room for `most` checkpoints and `log` bytes where --out is.

    Raises UserError if there is too little. The checkpoints of a run to resume count as room.
    """
    out = Path(config.out)
    place = existing(out)
    there = sum(path.stat().st_size for path in out.glob("checkpoints/step_*/*"))
    needed, free = most * checkpoint + log, shutil.disk_usage(place).free + there
    text = (
        f"{in_units(needed)} for {most} checkpoint(s) of {in_units(checkpoint)} and the log, "
        f"{in_units(free)} free in {place}"
    )
    if not os.access(place, os.W_OK):
        raise UserError(f"{place}: cannot be written to; choose another --out")
    if needed > free:
        raise UserError(f"{text}; free some, lower --keep-checkpoints, or choose another --out")
    return text


# --- links --------------------------------------------------------------------------------------


def time_all_reduce(size: int, world: World, device: torch.device) -> float:
    """Seconds to sum `size` bytes of float32 over all ranks, in one piece if it is not too large:
    the median of three."""
    if world.size == 1:
        return 0.0
    piece = min(size, LINKS_BYTES[1])
    buffer = torch.zeros(piece // 4, device=device)
    return size / piece * median_seconds(lambda: dist.all_reduce(buffer), device, repeats=3)


def links_line(size: int, seconds: float, world: World, device: torch.device) -> str:
    """The line about the links: bus bandwidth, as nccl-tests defines it, beside NVLink's.

    Raises UserError if the cards have NVLink and all-reduce gets less than half of what it should.
    """
    if world.size == 1:
        return "1 process, no gradients to exchange"
    bus = 2 * (world.size - 1) / world.size * size / seconds / 1e9
    text = f"all-reduce of {in_units(size)} in {seconds * 1e3:.3g} ms: busbw {bus:.3g} GB/s"
    should = nvlink_bandwidth(device) if local_size(world) == world.size else None
    if should is None or size < LINKS_BYTES[0]:
        return text
    text += f", NVLink of this card gives about {should:.0f}"
    if bus < should / 2:
        raise UserError(f"{text}; look at nvidia-smi topo -m and at NCCL_DEBUG=INFO")
    return text


def nvlink_bandwidth(device: torch.device) -> float | None:
    """The busbw (GB/s) to expect between GPUs joined by NVLink; None if unknown or not joined."""
    if device.type != "cuda":
        return None
    name = name_of(device)
    joined = any(f"NV{n}" in topology().split() for n in range(1, 19))
    card = next((card for card in NVLINK if card in name and "PCIe" not in name), None)
    return 0.8 * NVLINK[card] if joined and card and "NVL" not in name else None


def topology() -> str:
    """What nvidia-smi says about the links between the GPUs; "" without it."""
    try:
        return subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True).stdout
    except OSError:
        return ""
