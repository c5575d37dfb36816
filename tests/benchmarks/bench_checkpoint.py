"""Save a sharded model and AdamW's state in our format and by torch.distributed.checkpoint.

    torchrun --standalone --nproc_per_node=4 tests/benchmarks/bench_checkpoint.py --n-layer 24

For each way: seconds until the rank may go on, the same until all have finished, and the memory
that the rank needed meanwhile. Ours also flushes to the disk, reads back and hashes every file.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from nanogpt_lib.checkpoint import optimizer_tensors, save_checkpoint, weights_of
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support.initialising import sharded_model_of_seed
from nanogpt_lib.support.memory import return_freed_memory
from nanogpt_lib.support.processes import World, process_group, read_world

CPU = torch.device("cpu")


def used(kind: str) -> int:
    """This process's memory in bytes: VmRSS now, or VmHWM, the most since the last `measure`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{kind}:\s*(\d+)", status)[1])


def measure(name: str, world: World, save: Callable[[], object]) -> None:
    """Time one way of saving, on all ranks."""
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again
    before, start = used("VmRSS"), time.monotonic()
    later = save()
    waited = time.monotonic() - start
    if hasattr(later, "result"):  # asynchronous
        later.result()
    dist.barrier()
    whole, more = time.monotonic() - start, used("VmHWM") - before
    line = (
        f"{name:<34} rank {world.rank}: {waited:6.2f} s, all {whole:6.2f} s, +{more / 1e6:,.0f} MB"
    )
    print(line, flush=True)


def main() -> None:
    """Save by every way, twice; the first time also fills caches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n-layer", type=int, default=12)
    world, config = read_world(), parser.parse_args()
    return_freed_memory()
    shape = GPTConfig(block_size=64, vocab_multiple=64, n_layer=config.n_layer)
    with process_group(world, CPU):
        model = sharded_model_of_seed(lambda: GPT(shape), 0, world, CPU)
        optimizer = make_optimizer(model, learning_rate=0.0)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
        tensors = {**weights_of(model), **optimizer_tensors(model, optimizer)}
        place = [tempfile.mkdtemp() if world.is_main else None]
        dist.broadcast_object_list(place)
        out, another = Path(place[0]), dist.new_group(backend="gloo")

        def hugging_face():
            writer = dcp.HuggingFaceStorageWriter(str(out / "hf"), save_distributed=True)
            return dcp.save(tensors, storage_writer=writer)

        ways = {
            "ours": lambda: save_checkpoint(out, 1, model, optimizer, {}, world=world),
            "dcp.save (pickled .metadata)": lambda: dcp.save(tensors, checkpoint_id=out / "dcp"),
            "dcp.save, HuggingFaceStorageWriter": hugging_face,
            "dcp.async_save": lambda: dcp.async_save(
                tensors, checkpoint_id=out / "async", process_group=another
            ),
        }
        for _ in range(2):
            for name, save in ways.items():
                measure(name, world, save)
        if world.is_main:
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
