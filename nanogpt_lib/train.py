"""Train a GPT, on a laptop or on many GPUs.

    torchrun nanogpt_lib/train.py                                     quickstart, on this machine
    torchrun nanogpt_lib/train.py shakespeare-char --max-steps 500    a preset and a change
    torchrun nanogpt_lib/train.py --resume --out runs/quickstart      go on where it stopped
    torchrun --standalone --nproc_per_node=8 nanogpt_lib/train.py gpt2-124m
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
        nanogpt_lib/train.py gpt2-124m                                the same line on both nodes

`python nanogpt_lib/train.py` does too, for one process. --help lists every setting.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from nanogpt_lib.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_model,
    load_optimizer,
    save_checkpoint,
)
from nanogpt_lib.config import TrainConfig, UserError, as_dict, grad_accum_steps, parse_config
from nanogpt_lib.device import (
    allow_tf32,
    autocast,
    choose_dtype,
    compile_model,
    detect_device,
    flops_per_token,
    peak_flops,
)
from nanogpt_lib.distributed import (
    World,
    add_up,
    own_device,
    process_group,
    read_world,
    sync_gradients,
    wait_for_all,
    wrap_ddp,
)
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.hellaswag import read_items, score_items
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.logbook import RunLog, external_logger, plot_run, read_log
from nanogpt_lib.model import GPT, GPTConfig, count_parameters
from nanogpt_lib.optimizer import learning_rate_at, make_optimizer
from nanogpt_lib.sampling import generate
from nanogpt_lib.shards import TokenStream, read_meta, write_json
from nanogpt_lib.tokenizer import tokenizer_from

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_multiple")


def build_model(config: TrainConfig, vocab_size: int) -> tuple[GPT, dict, Path | None]:
    """The model to begin with, and when resuming the checkpoint's state and folder."""
    if config.resume:
        model, state, folder = load_checkpoint(config.out)
        for name in SHAPE:
            if getattr(config, name) != getattr(model.config, name):
                saved = getattr(model.config, name)
                raise UserError(f"--{name.replace('_', '-')}: the run to resume has {saved}")
        model.config.dropout = config.dropout
        return model, state, folder
    if config.init_from == "scratch":
        shape = {name: getattr(config, name) for name in SHAPE}
        torch.manual_seed(config.seed)
        shape |= dict(dropout=config.dropout, attention=config.attention)
        return GPT(GPTConfig(vocab_size=vocab_size, **shape)), {}, None
    model, _ = load_model(
        config.init_from,
        block_size=config.block_size,
        dropout=config.dropout,
        vocab_multiple=config.vocab_multiple,
    )
    if model.config.vocab_size != vocab_size:
        raise UserError(
            f"--init-from {config.init_from} has {model.config.vocab_size} tokens, the data in "
            f"{config.data} {vocab_size}: another tokenizer"
        )
    for name in SHAPE:  # config.json shall say what was trained
        setattr(config, name, getattr(model.config, name))
    return model, {}, None


def claim_directory(config: TrainConfig) -> None:
    """Refuse to write over a run."""
    out = Path(config.out)
    if config.resume:
        return
    if (out / "log.jsonl").exists() or checkpoints(out):
        raise UserError(
            f"{out}: holds a run already; add --resume to continue it, or another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be created ({error.strerror})") from error


class Stopper:
    """Notes SIGTERM and Ctrl-C, so that the run can finish its step and save; a second kills."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number, frame) -> None:
        """Remember the signal and give the next one its usual effect."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def train_step(model, loader, optimizer, scaler, config, accum, device, dtype):
    """One update from `accum` micro-batches; return this process's mean loss and gradient norm."""
    loss_sum = torch.zeros((), device=device)
    for micro in range(accum):
        x, y = loader.next_batch()
        if device.type == "cuda":  # pinned memory lets the copy overlap with the computation
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with sync_gradients(model, sync=micro == accum - 1):
            with autocast(device, dtype):
                _, loss = model(x, y)
                loss = loss / accum  # gradients add up; the loss is a mean over all micro-batches
            loss_sum += loss.detach()
            scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    limit = config.grad_clip if config.grad_clip > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss_sum.item(), norm.item()


def draw_samples(model, tokenizer, config, step: int, device, dtype) -> str:
    """Two continuations of the prompt, seeded by the step; also appended to samples.txt."""
    prompt = torch.tensor([tokenizer.encode(config.sample_prompt)] * 2, device=device)
    generator = torch.Generator(device).manual_seed(config.seed + step)
    with autocast(device, dtype):
        rows = generate(model, prompt, config.sample_tokens, top_k=50, generator=generator)
    text = "\n---\n".join(tokenizer.decode(row) for row in rows.tolist())
    with open(Path(config.out) / "samples.txt", "a", encoding="utf-8") as file:
        file.write(f"=== step {step}\n{text}\n\n")
    return text


def train(config: TrainConfig, world: World, device: torch.device, meta: dict) -> int:
    """The run, from the first line of the log to the last; return the exit status."""
    out = Path(config.out)
    say = print if world.is_main else lambda *_: None
    dtype = choose_dtype(device, config.dtype)
    allow_tf32()
    accum = grad_accum_steps(config, world.size)
    tokenizer = tokenizer_from(meta["tokenizer"])

    # data and model
    train_stream, val_stream = TokenStream(config.data, "train"), TokenStream(config.data, "val")
    raw, state, folder = build_model(config, meta["vocab_size"])
    if len(tokenizer.encode(config.sample_prompt)) not in range(1, config.block_size + 1):
        raise UserError(f"--sample-prompt must have 1 to {config.block_size} tokens")
    items = read_items(config.hellaswag_data, tokenizer) if config.hellaswag_every else []
    loader = TokenLoader(
        train_stream,
        config.batch_size,
        config.block_size,
        rank=world.rank,
        world_size=world.size,
        shuffle=config.shuffle,
        seed=config.seed,
    )
    raw.to(device).train()
    optimizer = make_optimizer(
        raw,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # compile and wrap; `raw` stays usable for evaluation, sampling and saving: same weights
    example = torch.zeros(config.batch_size, config.block_size, dtype=torch.long, device=device)
    model, compiled = compile_model(raw, config.compile, device, example, example, dtype)
    model = wrap_ddp(model, world, device)

    # where to begin
    first, elapsed = 0, 0.0
    if config.resume:
        first, elapsed = state["step"], state["elapsed"]
        load_optimizer(folder, optimizer)
        loader.load_state_dict(state["loader"])
        scaler.load_state_dict(state["scaler"])
    log = None
    if world.is_main:
        write_json(out / "config.json", as_dict(config))
        also = external_logger(config.logger, out, as_dict(config))
        log = RunLog(out / "log.jsonl", first if config.resume else None, also)

    say(f"{count_parameters(raw):,} parameters, {len(train_stream):,} training tokens")
    say(f"{device}, {str(dtype).removeprefix('torch.')}, {compiled}, {world.size} process(es)")
    say(
        f"{config.total_batch_size:,} tokens per step = {config.batch_size} rows × "
        f"{config.block_size} × {world.size} process(es) × {accum} micro-steps"
    )
    if config.resume:
        say(f"resumed from {folder} at step {first}")
    flops, peak = flops_per_token(raw), peak_flops(device)
    stopper, started_at = Stopper(), first
    begun = elapsed

    for step in range(first, config.max_steps + 1):  # `step` updates have been made so far
        last = step == config.max_steps

        def due(every: int, step=step, last=last) -> bool:
            return last or (every > 0 and step % every == 0)

        if due(config.eval_every):
            loss = validation_loss(
                raw,
                val_stream,
                tokens=config.eval_tokens,
                batch_size=config.batch_size,
                world=world,
                device=device,
                dtype=dtype,
            )
            say(f"step {step:5d} | validation loss {loss:.4f}")
            if log:
                log.write(step, val_loss=loss)
        if items and due(config.hellaswag_every):
            scores = score_items(raw, items, world=world, device=device, dtype=dtype)
            say(f"step {step:5d} | HellaSwag {scores['acc_token']:.4f} ({scores['items']} items)")
            if log:
                log.write(step, hellaswag=scores["acc_token"])
        if world.is_main and due(config.sample_every) and step > 0:
            text = draw_samples(raw, tokenizer, config, step, device, dtype)
            say(f"step {step:5d} | samples\n{text}")
        wait_for_all(world)
        if last:
            break

        # one update; dropout depends on seed, step and rank alone, so a resumed run repeats it
        start = time.perf_counter()
        torch.manual_seed((config.seed * 1_000_003 + step) * 4096 + world.rank)
        lr = learning_rate_at(
            step,
            max_lr=config.learning_rate,
            min_lr=config.min_lr,
            warmup_steps=config.warmup_steps,
            max_steps=config.max_steps,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, norm = train_step(model, loader, optimizer, scaler, config, accum, device, dtype)
        loss, stop = add_up([loss / world.size, float(stopper.signal > 0)], world, device)
        seconds = time.perf_counter() - start
        elapsed += seconds
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss} at step {step + 1} (gradient norm {norm})")

        # log before saving: a checkpoint never knows more than the log
        done, rate = step + 1, config.total_batch_size / seconds
        mfu = flops * rate / (peak * world.size) if peak else None
        if log:
            log.write(
                done,
                train_loss=loss,
                lr=lr,
                grad_norm=norm,
                tokens_per_sec=round(rate, 1),
                mfu=mfu and round(mfu, 4),
                seconds=round(elapsed, 4),
            )
        if done % config.log_every == 0 or done == config.max_steps or done == first + 1:
            pace = (elapsed - begun) / (done - started_at)
            left = timedelta(seconds=round(pace * (config.max_steps - done)))
            say(
                f"step {done:5d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
                f"{seconds * 1e3:.0f} ms | {rate:,.0f} tokens/s | "
                + (f"MFU {mfu:.1%} | " if mfu else "")
                + f"{left} left"
            )
        saving = (
            done == config.max_steps or stop or config.save_every and done % config.save_every == 0
        )
        if world.is_main and saving:
            save_checkpoint(
                out,
                done,
                raw,
                optimizer,
                {
                    "train_config": as_dict(config),
                    "tokenizer": tokenizer.describe(),
                    "loader": loader.state_dict(),
                    "scaler": scaler.state_dict(),
                    "elapsed": elapsed,
                },
                keep=config.keep_checkpoints,
            )
        if stop:
            say(f"stopped after step {done}; continue with --resume --out {config.out}")
            return 128 + (stopper.signal or signal.SIGTERM)

    if log:
        log.close()
        plot_run(read_log(out / "log.jsonl")).savefig(out / "loss.png", dpi=120)
        say(f"trained for {timedelta(seconds=round(elapsed))}; everything is in {out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Read the command line, join the other processes, train."""
    config = parse_config(argv)
    world = read_world()
    device = own_device(detect_device(config.device), world)
    grad_accum_steps(config, world.size)
    meta = read_meta(config.data)
    if world.is_main:
        claim_directory(config)
    with process_group(world, device):
        return train(config, world, device, meta)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
