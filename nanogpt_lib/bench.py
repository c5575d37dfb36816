"""What this machine can do, on one screen, in about a minute: how long each preset would take
here, what fits into its memory, and how fast it writes text.

    python nanogpt_lib/bench.py
    python nanogpt_lib/bench.py --out bench.json       also keep the figures, by class of processor

Measured: a step of `quickstart`, a micro-batch of `gpt2-124m` and sampling with 124M's shape; the
other presets are calculated from their operations. The lecture's speed-ups one by one, and
comparisons with other projects: tests/benchmarks (bench_speedups.py, compare_training.py, …).
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from nanogpt_lib.choices import MODELS, OPTIMIZERS, model_config, state_bytes
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import (
    autocast,
    choose_dtype,
    compile_model,
    detect_device,
    flops_per_token,
    median_seconds,
    synchronize,
)
from nanogpt_lib.forecast import in_hours, training_seconds
from nanogpt_lib.graphs import fast_sampling, graph_stream
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.sampling import stream
from nanogpt_lib.scaling import Sizes, sizes_of
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.machine import describe_machine, name_of
from nanogpt_lib.support.memory import (
    is_out_of_memory,
    keep_freed_memory,
    memory_bytes,
    rows_that_fit,
)
from nanogpt_lib.support.weight_formats import LOSSY, works

CHARACTERS = 96  # about the number of different characters in English text
SMALL, LARGE = "quickstart", "gpt2-124m"  # the presets that are measured


# --- presets --------------------------------------------------------------------------------------


def preset_shape(config: TrainConfig) -> GPTConfig:
    """The shape of a preset's model; without its data, the vocabulary size is a guess."""
    return model_config(config, 50257 if config.vocab_multiple > 1 else CHARACTERS)


def preset_model(name: str) -> tuple[TrainConfig, GPT]:
    """A preset and its model on the meta device, which allocates nothing."""
    config = TrainConfig(**PRESETS[name])
    with torch.device("meta"):
        return config, MODELS[config.model](preset_shape(config))


@dataclass
class Rate:
    """How fast a measured preset trains: operations in micro-batches, parameters in updates."""

    flops_per_second: float
    update_seconds_per_parameter: float

    def step_seconds(self, config: TrainConfig, sizes: Sizes) -> float:
        """Seconds of one optimizer step of a preset: its micro-batches and the update."""
        products = config.total_batch_size * sizes.flops / self.flops_per_second
        return products + self.update_seconds_per_parameter * sizes.parameters


def measure(name: str, rows: int, block: int, device: torch.device, repeats: int) -> Rate:
    """Time a preset's micro-batch of rows × block tokens and its update, on random tokens."""
    config = TrainConfig(**{**PRESETS[name], "block_size": block})
    dtype = choose_dtype(device)
    raw = MODELS[config.model](preset_shape(config)).to(device).train()
    optimizer = OPTIMIZERS[config.optimizer](raw, config, dtype)
    tokens = torch.randint(raw.config.vocab_size, (rows, block + 1), device=device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model, _ = compile_model(raw, "auto", device, x, y, dtype)

    def micro_batch() -> None:
        with autocast(device, dtype):
            _, loss = model(x, y)
        loss.backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        optimizer.step()

    micro = median_seconds(micro_batch, device, repeats)
    seconds = median_seconds(update, device, repeats)
    rate = rows * block * flops_per_token(raw) / micro
    return Rate(rate, seconds / count_parameters(raw))


def measure_large(device: torch.device) -> Rate | str:
    """GPT-2 124M's rate with a micro-batch that suits the device; or why there is none."""
    rows, block, repeats = (1, 256, 2) if device.type == "cpu" else (16, 1024, 10)
    while rows:
        try:
            return measure(LARGE, rows, block, device, repeats)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            rows //= 2
    return "not enough memory for one row"


def estimate(name: str, rates: dict[str, Rate | str], memory: float | None, dtype) -> dict:
    """One preset on this machine: the micro-batch that fits, tokens per second, and the time."""
    config, model = preset_model(name)
    own = state_bytes(OPTIMIZERS[config.optimizer](model, config, dtype))
    step_rows = config.total_batch_size // config.block_size
    fits = rows_that_fit(model, dtype, memory, step_rows, own) if memory else None
    sizes = sizes_of(model)
    row = {"preset": name, "parameters": sizes.parameters, "rows": fits}
    rate = rates[SMALL if config.n_embd < 512 else LARGE]
    if isinstance(rate, str) or fits == 0:
        return row
    step = rate.step_seconds(config, sizes)
    speed = config.total_batch_size / step
    # with `minutes` set, the machine decides how many steps
    seconds = 60 * config.minutes or training_seconds(config, speed)
    figures = {"steps": max(1, round(seconds / step)), "seconds": round(seconds, 1)}
    return {**row, "tokens_per_sec": round(speed, 1), **figures}


def print_estimates(rows: list[dict]) -> None:
    """Print what each preset would take."""
    print(
        f"\n{'preset':<22}{'parameters':>11}{'rows that fit':>15}{'tokens/s':>10}   training here"
    )
    for row in rows:
        fits = {None: "?", 0: "too large"}.get(row["rows"], row["rows"])
        print(f"{row['preset']:<22}{row['parameters'] / 1e6:>10,.1f}M{fits:>15}", end="")
        if "seconds" in row:
            length = f"{in_hours(row['seconds'])} for {row['steps']:,} steps"
            print(f"{row['tokens_per_sec']:>10,.0f}   {length}")
        else:
            print(f"{'—':>10}   —")


# --- sampling -------------------------------------------------------------------------------------


def sampling_ways(shape: GPTConfig, device: torch.device) -> dict[str, Callable]:
    """Ways to generate n tokens after idx as sample.py does, by name: dtypes, and on a CPU rounded
    weights."""
    model = GPT(shape).to(device).eval()
    run = graph_stream if device.type == "cuda" else stream
    dtypes = dict.fromkeys([torch.float32, choose_dtype(device)])
    kinds = {str(dtype).removeprefix("torch."): (dtype, "float32") for dtype in dtypes}
    if device.type == "cpu":
        able = (weights for weights in LOSSY if works(weights))
        kinds |= {f"{weights} weights": (torch.float32, weights) for weights in able}

    def way(dtype: torch.dtype, weights: str) -> Callable:
        def write(idx, n):
            with fast_sampling(model, device, dtype, rows=1, weights=weights):
                for _ in run(model, idx, n, top_k=50):
                    pass

        return write

    return {name: way(*kind) for name, kind in kinds.items()}


def time_sampling(ways: dict[str, Callable], device: torch.device, new: int, rounds: int) -> list:
    """Tokens per second at batch size 1 after a prompt of 8: the best of interleaved rounds.

    Packing the weights, once per text here and once per program in sample.py, counts.
    """
    idx = torch.randint(50257, (1, 8), device=device)
    best = dict.fromkeys(ways, 0.0)
    for count in (4, *[new] * rounds):  # the first one warms up
        for name, way in ways.items():
            start = perf_counter()
            way(idx, count)
            synchronize(device)
            best[name] = max(best[name], count / (perf_counter() - start)) if count == new else 0.0
    return [{"way": name, "tokens_per_sec": round(rate, 1)} for name, rate in best.items()]


def print_sampling(rows: list[dict], new: int) -> None:
    """Print tokens per second, and how many times the first one's."""
    print(f"\nsampling {new} tokens, one text, GPT-2 124M's shape, top-k 50")
    for row in rows:
        ratio = row["tokens_per_sec"] / rows[0]["tokens_per_sec"]
        print(f"{row['way']:<24}{row['tokens_per_sec']:>10.1f} tokens/s{ratio:>8.2f}")


# --- the program ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="bench.py", description="What this machine can do, on one screen.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens to sample (%(default)s)")
    parser.add_argument("--json", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.json:
        parser.error("the speed-ups are measured by tests/benchmarks/bench_speedups.py --json FILE")
    if args.new_tokens < 1:
        parser.error("--new-tokens must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, then print one screen."""
    args = arguments(argv)
    device = detect_device(args.device)
    dtype, memory = choose_dtype(device), memory_bytes(device)
    machine = describe_machine(name_of(device))
    size = f", {memory / 1e9:.1f} GB" if memory else ""
    print(f"{device}: {machine['device']}, {machine['cpu_class']}, {machine['cores']} cores{size}")
    print(f"torch {torch.__version__}, {machine['threads']} threads, products in {dtype}")
    if device.type == "cpu":
        keep_freed_memory()  # as train.py does
    small = TrainConfig(**PRESETS[SMALL])
    print(f"measuring {SMALL} and {LARGE} …", flush=True)
    rates = {
        SMALL: measure(SMALL, small.batch_size, small.block_size, device, repeats=10),
        LARGE: measure_large(device),
    }
    rows = [estimate(name, rates, memory, dtype) for name in PRESETS]
    print_estimates(rows)
    texts = time_sampling(sampling_ways(GPTConfig(), device), device, args.new_tokens, rounds=2)
    print_sampling(texts, args.new_tokens)
    if args.out:
        write_json(args.out, {"machine": machine, "presets": rows, "sampling": texts})
        print(f"wrote {args.out}")


if __name__ == "__main__":
    run_program("bench.py", main)
