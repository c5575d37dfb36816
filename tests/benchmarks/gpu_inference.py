"""The parts of gpu.py that use a model: sampling with CUDA graphs, and HellaSwag."""

import json
import time
from collections.abc import Callable

import torch
from gpu_base import RECORDED, Plan, Report, new_model, peak_memory
from torch import Tensor

from nanogpt_lib.device import choose_dtype, synchronize
from nanogpt_lib.graphs import fast_sampling, graph_decoder, graph_stream
from nanogpt_lib.hellaswag import choose_endings, describe_items, read_items
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.sampling import stream
from nanogpt_lib.scoring import item_losses
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.support.places import ROOT
from nanogpt_lib.tokenizer import GPT2Tokenizer

OWN_ITEMS = ROOT / "data" / "hellaswag_own.jsonl"
TOP_K = 50

# --- sampling -------------------------------------------------------------------------------------


def text_with(way: Callable, model: GPT, idx: Tensor, n: int, **options) -> Tensor:
    """The n tokens that `way` (stream or graph_stream) generates from a fixed seed, (B, n)."""
    generator = torch.Generator(idx.device).manual_seed(1)
    tokens = way(model, idx, n, top_k=TOP_K, generator=generator, **options)
    return torch.cat(list(tokens), dim=1)


def equal_start(a: Tensor, b: Tensor) -> int:
    """How many columns of two texts are equal before the first that is not."""
    return int((a == b).all(dim=0).int().cumprod(0).sum())


def same_tokens(plan: Plan, model: GPT, idx: Tensor, dtype: torch.dtype) -> dict:
    """The text of the graphs beside that of the ordinary way, from the same seed."""
    n = plan.sizes["new_tokens"]
    with fast_inference(model, plan.on, dtype, rows=len(idx)):
        ordinary = text_with(stream, model, idx, n)
    with fast_sampling(model, plan.on, dtype, rows=len(idx)):
        called = text_with(graph_stream, model, idx, n, graphs=False)
        replayed = text_with(graph_stream, model, idx, n)
    return {
        "of": n,
        "replayed_as_called": equal_start(replayed, called),
        "replayed_as_ordinary": equal_start(replayed, ordinary),
    }


def tokens_per_second(way: Callable[[int], object], n: int, device: torch.device) -> float:
    """Tokens per second of one row, the best of two rounds after a short one."""
    best = 0.0
    for count in (4, n, n):
        synchronize(device)
        start = time.perf_counter()
        way(count)
        synchronize(device)
        best = max(best, count / (time.perf_counter() - start)) if count == n else 0.0
    return round(best, 1)


def ordinary_rate(plan: Plan, model: GPT, idx: Tensor, dtype: torch.dtype) -> dict:
    """Without graphs, as before: a quarter of the tokens, since it is slow."""
    n = max(8, plan.sizes["new_tokens"] // 4)
    with fast_inference(model, plan.on, dtype, rows=len(idx)):
        way = lambda count: list(stream(model, idx, count, top_k=TOP_K))  # noqa: E731
        return {"tokens_per_sec": tokens_per_second(way, n, plan.on)}


@torch.inference_mode()
def graph_rate(
    plan: Plan, model: GPT, idx: Tensor, dtype: torch.dtype, compile: bool = False
) -> dict:
    """With graphs: steady, once they are recorded, and for a whole text with the recording."""
    device, n = plan.on, plan.sizes["new_tokens"]
    most = plan.shape.block_size - idx.size(1) - 1  # beyond, the cache would be rebuilt
    most = min(n, most, 240 if compile else n)  # compiling is slow: for one reach only
    with fast_sampling(model, device, dtype, rows=len(idx)):
        decoder = graph_decoder(model, top_k=TOP_K)
        if compile:
            decoder.transformer = torch.compile(model.transformer, dynamic=False)
        way = lambda count: [decoder.step() for _ in range(count)]  # noqa: E731
        decoder.start(idx)
        way(most)  # records a graph for every reach
        decoder.start(idx)
        steady = tokens_per_second(way, most // 2 - 3, device)
        result = {"tokens_per_sec": steady, "graphs": len(decoder.recorded)}
        if not compile:
            whole = lambda count: list(graph_stream(model, idx, count, top_k=TOP_K))  # noqa: E731
            result["with_recording"] = tokens_per_second(whole, n, device)
    return result | {"replayed": decoder.graphs}


def transformers_rate(plan: Plan, idx: Tensor, dtype: torch.dtype) -> dict:
    """transformers' generate with its ordinary cache, weights in `dtype`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape, n = plan.shape, max(8, plan.sizes["new_tokens"] // 4)
    names = dict(n_positions=shape.block_size, n_layer=shape.n_layer, n_head=shape.n_head)
    config = GPT2Config(**names, n_embd=shape.n_embd)
    theirs = GPT2LMHeadModel(config).to(plan.on, dtype).eval()
    options = dict(do_sample=True, top_k=TOP_K, pad_token_id=50256)
    options["attention_mask"] = torch.ones_like(idx)

    def way(count: int) -> None:
        theirs.generate(idx, max_new_tokens=count, min_new_tokens=count, **options)

    return {"tokens_per_sec": tokens_per_second(way, n, plan.on)}


def sampling(plan: Plan, report: Report) -> None:
    """Texts with random weights: the same tokens, then tokens per second of each row."""
    report["weights"] = "random, of GPT-2 124M's shape in a full run; top-k 50, a prompt of 8"
    device, dtype = plan.on, choose_dtype(plan.on)
    model = new_model(plan.shape, device).eval()
    prompts = torch.randint(50257, (8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    one, low = prompts[:1], str(dtype).removeprefix("torch.")
    low = low if dtype != torch.float32 else "low"
    report.attempt("same tokens, float32", lambda: same_tokens(plan, model, one, torch.float32))
    report.attempt(f"same tokens, {low}", lambda: same_tokens(plan, model, prompts, dtype))
    for rows in (one, prompts):
        name = f"batch {len(rows)}"
        report.attempt(f"{name}, graphs", lambda r=rows: graph_rate(plan, model, r, dtype))
        report.attempt(f"{name}, ordinary", lambda r=rows: ordinary_rate(plan, model, r, dtype))
        report.attempt(f"{name}, transformers", lambda r=rows: transformers_rate(plan, r, dtype))
    exact = torch.float32
    report.attempt("batch 1, graphs, float32", lambda: graph_rate(plan, model, one, exact))
    if plan.compile == "on" and plan.deadline - time.monotonic() > plan.sizes["guess"]:
        way = lambda: graph_rate(plan, model, one, dtype, compile=True)  # noqa: E731
        report.attempt("batch 1, graphs of a compiled step", way)


# --- HellaSwag ------------------------------------------------------------------------------------


def score_at(model: GPT, items: list, plan: Plan, dtype: torch.dtype, budget: int) -> dict:
    """Seconds and scores with at most `budget` tokens per batch."""
    options = dict(device=plan.on, dtype=dtype, budget=budget)
    item_losses(model, items[:4], **options)  # the first call loads libraries
    start = time.perf_counter()
    sums = item_losses(model, items, **options)
    seconds = time.perf_counter() - start
    right = choose_endings(sums, items) == torch.tensor([item.label for item in items])
    shares = [round(share, 4) for share in right.float().mean(dim=1).tolist()]
    result = {"seconds": round(seconds, 2), "items_per_sec": round(len(items) / seconds, 1)}
    return result | {"sum_token_byte": shares, "memory_gb": peak_memory(plan.on), "losses": sums}


def own_losses(device: torch.device) -> list[list[float]]:
    """Losses of our own first items with GPT-2 124M's first weights, in float32."""
    items = read_items(OWN_ITEMS, GPT2Tokenizer(), 6)
    return item_losses(new_model(GPTConfig(), device), items, device=device).tolist()


def beside_a_cpu(plan: Plan, known: dict) -> dict:
    """The largest difference to the losses that a CPU gave to our own items."""
    torch.set_float32_matmul_precision("highest")
    pairs = torch.tensor(own_losses(plan.on)), torch.tensor(known["hellaswag_own"])
    gap = (pairs[0] - pairs[1]).abs().max().item()
    return {"items": len(pairs[0]), "largest_gap": gap, "agrees": gap < 0.02}


def hellaswag(plan: Plan, report: Report) -> None:
    """All items, in 16 bits with two sizes of batch, and in float32."""
    start = time.perf_counter()
    items = read_items(plan.hellaswag or OWN_ITEMS, GPT2Tokenizer(), plan.sizes["items"])
    report["items"] = describe_items(items)
    report["tokenizing_seconds"] = round(time.perf_counter() - start, 2)
    model, dtype = new_model(plan.shape, plan.on).eval(), choose_dtype(plan.on)
    report["weights"] = "random: the scores are those of guessing"
    kept = {}
    budgets = (16384, 65536) if plan.on.type == "cuda" else (1024,)
    cases = [(dtype, budget) for budget in budgets] + [(torch.float32, budgets[0])]

    def case(kind: torch.dtype, budget: int) -> dict:
        found = score_at(model, items, plan, kind, budget)
        kept[kind] = found.pop("losses")
        return found

    for kind, budget in dict.fromkeys(cases):
        name = f"{str(kind).removeprefix('torch.')}, {budget} tokens"
        report.attempt(name, lambda kind=kind, budget=budget: case(kind, budget))
    if len(kept) == 2:
        low, exact = kept[dtype], kept[torch.float32]
        changed = (choose_endings(low, items) != choose_endings(exact, items)).sum(dim=1)
        report["changed_by_rounding"] = dict(items=len(items), sum_token_byte=changed.tolist())
    if plan.mode != "rehearsal":
        known = json.loads(RECORDED.read_text("utf-8"))
        report.attempt("own items beside a CPU", lambda: beside_a_cpu(plan, known))
