"""The ladder of speed-ups on this machine, and how long each preset's real run would take here.

    python nanogpt_lib/bench.py                        GPT-2 124M, sizes that suit the device
    python nanogpt_lib/bench.py --preset gpt2-350m --batch-size 16 --block-size 1024
    python nanogpt_lib/bench.py --json ladder.json     also write the rows, with card and versions
    python nanogpt_lib/bench.py --sampling --nanogpt PATH      tokens per second when drawing text,
                                                       beside transformers and a nanoGPT checkout

Every rung keeps what the rungs above it changed. A rung this machine cannot climb says so.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import copy
import importlib.util
import platform
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from nanogpt_lib.config import PRESETS, OneLineParser, TrainConfig, UserError, run_program
from nanogpt_lib.device import (
    autocast,
    choose_dtype,
    compile_model,
    detect_device,
    flops_per_token,
    median_seconds,
    peak_flops,
    synchronize,
)
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import decay_groups, make_optimizer
from nanogpt_lib.sampling import generate, pack_weights
from nanogpt_lib.shards import write_json

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "bias")


@dataclass
class Rung:
    """How a step is computed; each rung of the ladder changes one field."""

    name: str = "float32"
    tf32: bool = False
    dtype: torch.dtype = torch.float32
    compile: bool = False
    attention: str = "manual"
    vocab_multiple: int = 1
    fused: bool = False


def ladder(device: torch.device, compile: bool) -> list[Rung | str]:
    """The rungs for a device; a string in place of one says why it is missing."""
    rung = Rung()
    rungs: list[Rung | str] = [rung]

    def climb(name: str, **change) -> None:
        nonlocal rung
        rung = replace(rung, name=name, **change)
        rungs.append(rung)

    if device.type == "cuda":
        climb("TF32", tf32=True)
    else:
        rungs.append("TF32: only NVIDIA GPUs have it")
    fast = choose_dtype(device)
    if fast == torch.float32:
        rungs.append("bfloat16: this device multiplies float32 faster")
    else:
        climb(str(fast).removeprefix("torch."), dtype=fast)
    if compile:
        climb("torch.compile", compile=True)
    else:
        rungs.append("torch.compile: off on this device (--compile tries it)")
    climb("fused attention", attention="sdpa")
    climb("vocabulary 50304", vocab_multiple=64)
    climb("fused AdamW", fused=True)
    return rungs


def measure(rung: Rung, shape: dict, rows: int, steps: int, device: torch.device) -> dict:
    """Median milliseconds of one training step (forward, backward, update) after two warm-ups."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if rung.tf32 else "highest")
    config = GPTConfig(**shape, attention=rung.attention, vocab_multiple=rung.vocab_multiple)
    raw = GPT(config).to(device)
    if rung.fused:
        optimizer = make_optimizer(raw, learning_rate=1e-4)
    else:
        optimizer = torch.optim.AdamW(decay_groups(raw, 0.1), lr=1e-4, foreach=False)
    tokens = torch.randint(config.vocab_size, (rows, config.block_size + 1), device=device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model, note = raw, ""
    if rung.compile:
        model, note = compile_model(raw, "on", device, x, y, rung.dtype)

    def step() -> None:
        with autocast(device, rung.dtype):
            _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = median_seconds(step, device, repeats=steps, warmup=2)
    flops = flops_per_token(raw) * x.numel() / seconds
    peak = peak_flops(device)
    return {
        "rung": rung.name,
        "ms": round(seconds * 1e3, 2),
        "tokens_per_sec": round(x.numel() / seconds, 1),
        "gflops": round(flops / 1e9, 1),
        "mfu": round(flops / peak, 4) if peak else None,
        "note": note if note.startswith("not") else "",
    }


def print_ladder(rungs: list[Rung | str], shape: dict, rows: int, steps: int, device) -> list[dict]:
    """Measure and print rung by rung; return the rows."""
    print(f"{'rung':<18}{'ms/step':>10}{'tokens/s':>12}{'GFLOP/s':>11}{'MFU':>8}{'ratio':>8}")
    rows_out: list[dict] = []
    for rung in rungs:
        if isinstance(rung, str):
            print(f"  — {rung}")
            continue
        row = measure(rung, shape, rows, steps, device)
        rows_out.append(row)
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "—"
        ratio = rows_out[0]["ms"] / row["ms"]
        print(
            f"{row['rung']:<18}{row['ms']:>10.1f}{row['tokens_per_sec']:>12,.0f}"
            f"{row['gflops']:>11,.0f}{mfu:>8}{ratio:>8.2f}  {row['note']}",
            flush=True,
        )
    return rows_out


def print_estimates(flops_per_second: float, device_name: str) -> None:
    """How long every preset would take at this rate: operations of the run over operations/s."""
    print(f"\nWhole runs at {flops_per_second / 1e9:,.0f} GFLOP/s, as measured on {device_name}:")
    for name, changes in PRESETS.items():
        config = TrainConfig(**changes)
        shape = {key: getattr(config, key) for key in SHAPE}
        vocabulary = {} if config.vocab_multiple > 1 else {"vocab_size": 96}  # characters
        with torch.device("meta"):
            model = GPT(GPTConfig(**shape, **vocabulary))
        tokens = config.max_steps * config.total_batch_size
        left = timedelta(seconds=round(flops_per_token(model) * tokens / flops_per_second))
        print(f"  {name:<22}{tokens / 1e6:>12,.1f}M tokens   {left}")


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def theirs(path: Path, shape: dict) -> torch.nn.Module:
    """nanoGPT's own model, from the model.py of a checkout, with random weights."""
    spec = importlib.util.spec_from_file_location("nanogpt_checkout_model", path / "model.py")
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # its dataclass looks itself up there
        spec.loader.exec_module(module)
    except OSError as error:
        raise UserError(f"--nanogpt {path}: no model.py of nanoGPT here") from error
    return module.GPT(module.GPTConfig(**shape, vocab_size=50257)).eval()


def samplers(shape: dict, device: torch.device, nanogpt: Path | None) -> dict:
    """Ways to draw n tokens after a prompt idx, by name: others' with top-k 50, and ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ways = {}
    sizes = {key: shape[key] for key in ("n_layer", "n_head", "n_embd")}
    if nanogpt:
        nano = theirs(nanogpt, shape).to(device)
        ways["nanoGPT"] = lambda idx, n: nano.generate(idx, n, top_k=50)
    hf = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=shape["block_size"])).to(device).eval()
    options = dict(do_sample=True, top_k=50, pad_token_id=50256)
    ways["transformers, cached"] = torch.inference_mode()(
        lambda idx, n: hf.generate(idx, max_new_tokens=n, min_new_tokens=n, **options)
    )
    model = GPT(GPTConfig(**shape)).to(device).eval()
    ways["ours, float32"] = lambda idx, n: generate(model, idx, n, top_k=50)
    fast = choose_dtype(device)
    for dtype in dict.fromkeys([torch.float32, fast] if device.type == "cpu" else [fast]):
        short = str(dtype).removeprefix("torch.")
        if device.type == "cpu":
            packed = pack_weights(copy.deepcopy(model), dtype)
            ways[f"ours, packed {short}"] = partial(generate, packed, top_k=50)
        elif dtype != torch.float32:
            half = copy.deepcopy(model).to(dtype)  # head() sums in float32, rounds its products
            ways[f"ours, {short}"] = partial(generate, half, top_k=50)
    return ways


def print_sampling(shape: dict, device: torch.device, new: int, nanogpt: Path | None) -> list[dict]:
    """Tokens per second at batch 1 after a prompt of 8, the best of three rounds taken in turns."""
    torch.manual_seed(0)
    ways = samplers(shape, device, nanogpt)
    idx = torch.randint(50257, (1, 8), device=device)
    best = dict.fromkeys(ways, 0.0)
    for round_ in range(4):
        for name, way in ways.items():
            start = perf_counter()
            count = new if round_ else 4  # the first round warms up
            way(idx, count)
            synchronize(device)
            if round_:
                best[name] = max(best[name], count / (perf_counter() - start))
    first = next(iter(best.values()))
    print(f"{new} tokens after a prompt of 8, top-k 50, random weights, best of 3 rounds")
    for name, rate in best.items():
        print(f"{name:<24}{rate:>10.1f} tokens/s{rate / first:>8.2f}", flush=True)
    return [{"way": name, "tokens_per_sec": round(rate, 1)} for name, rate in best.items()]


def main(argv: list[str] | None = None) -> None:
    """Climb the ladder, then extrapolate; or, with --sampling, draw text."""
    parser = OneLineParser(prog="bench.py", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gpt2-124m", choices=list(PRESETS))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--batch-size", type=int, help="rows (default: 16 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--block-size", type=int, help="tokens per row (default: the preset's, 256 on a CPU)"
    )
    parser.add_argument("--steps", type=int, help="timed steps (default: 20 on a GPU, 3 on a CPU)")
    parser.add_argument("--compile", action="store_true", help="try torch.compile off CUDA, too")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--sampling", action="store_true", help="measure sampling instead")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to sample beside ours")
    parser.add_argument("--new-tokens", type=int, default=400, help="tokens per text (--sampling)")
    args = parser.parse_args(argv)
    device = detect_device(args.device)
    on_cpu = device.type == "cpu"
    config = TrainConfig(**PRESETS[args.preset])
    shape = {key: getattr(config, key) for key in SHAPE}
    if args.block_size or (on_cpu and not args.sampling):
        shape["block_size"] = args.block_size or min(256, config.block_size)
    if args.sampling:
        print(
            f"{args.preset} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
        rates = print_sampling(shape, device, args.new_tokens, args.nanogpt)
        if args.json:
            about = {"device": device_name(device), "torch": torch.__version__}
            write_json(args.json, {**about, "preset": args.preset, "sampling": rates})
        return
    rows = args.batch_size or (1 if on_cpu else 16)
    name = device_name(device)
    print(f"{args.preset}: {rows} × {shape['block_size']} tokens per step, {device} ({name}),")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    rungs = ladder(device, args.compile or device.type == "cuda")
    results = print_ladder(rungs, shape, rows, args.steps or (3 if on_cpu else 20), device)
    best = max(results, key=lambda row: row["gflops"])
    print_estimates(best["gflops"] * 1e9, name)
    if args.json:
        about = {"device": name, "torch": torch.__version__, "preset": args.preset}
        write_json(args.json, {**about, "rows": rows, **shape, "ladder": results})
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run_program("bench.py", main)
