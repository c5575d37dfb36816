"""What distributed.py promises, checked with two real gloo processes under torchrun.

One launch runs all of PROGRAM and records what each rank saw, which the tests read. In a second
launch one rank dies.
"""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import ROOT
from nanogpt_lib.distributed import all_reduce_sum, sync_gradients, wrap_ddp
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.initialising import Recording, key_of
from nanogpt_lib.support.lock_step import layer_by_layer
from nanogpt_lib.support.processes import (
    World,
    longest_wait,
    on_every_rank,
    own_device,
    process_group,
    read_world,
    wait_for_all,
)
from nanogpt_lib.support.sharding import give_memory, shard_fsdp, without_weights

SETUP = """
import contextlib
import sys
from functools import partial
import torch
import torch.distributed as dist
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.distributed import *
from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import open_model
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.sampling import generate
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.start import load_shares
from nanogpt_lib.support.errors import UserError
from nanogpt_course.measuring import peak_bytes
from nanogpt_lib.support.evaluating import join_evaluation
from nanogpt_lib.support.initialising import sharded_model_of_seed
from nanogpt_lib.support.lock_step import layer_by_layer
from nanogpt_lib.support.memory import training_bytes
from nanogpt_lib.support.processes import process_group, read_world, wait_for_all
from nanogpt_lib.support.sharding import *
from nanogpt_lib.training_loss import compile_for_training

CPU = torch.device("cpu")


def model_and_rows(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=2, n_embd=16))
    tokens = torch.randint(16, (8, 9), generator=torch.Generator().manual_seed(1))
    return model, tokens[:, :-1], tokens[:, 1:]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def hook(calls, bucket):
    calls.append(bucket.index())
    work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
    return work.get_future().then(lambda f: f.value()[0])


def train(wrapped, model, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for x, y in steps:
        optimizer.zero_grad()
        wrapped(x, y)[1].backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def adam(wrapped, model, rows, scaler, limit=0.5):
    # three clipped updates of two micro-steps each, of rows(micro); norms and losses
    optimizer, saw = make_optimizer(model, learning_rate=1e-2), []
    for step in range(3):
        for micro in range(2):
            x, y = rows(micro)
            with sync_gradients(wrapped, sync=micro == 1):
                loss = wrapped(x, y)[1] / 2
                scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        saw.append([clip_gradients(wrapped, limit).item(), loss.item()])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return torch.tensor(saw), optimizer
"""

PROGRAM = (
    SETUP
    + """
out, data = sys.argv[1:]
world, saw = read_world(), {}
mine = slice(world.rank * 4, world.rank * 4 + 4)
with process_group(world, CPU):
    saw["world"] = [world.rank, world.local_rank, world.size, world.is_main]
    saw["backend"] = dist.get_backend()

    model, x, y = model_and_rows(seed=world.rank)  # DDP must overwrite rank 1's weights
    wrapped = wrap_ddp(model, world, CPU)
    wrapped(x[mine], y[mine])[1].backward()
    saw["ddp"] = gradient(model)

    for name in ("ours", "always", "flag after forward"):
        model, x, y = model_and_rows()
        wrapped, calls = wrap_ddp(model, world, CPU), []
        wrapped.register_comm_hook(calls, hook)
        for micro in range(2):
            first, last = 4 * micro + 2 * world.rank, micro == 1
            rows = slice(first, first + 2)
            with sync_gradients(wrapped, sync=last or name != "ours"):
                loss = wrapped(x[rows], y[rows])[1] / 2
                if name == "flag after forward":
                    wrapped.require_backward_grad_sync = last
                loss.backward()
            calls.append("end")
        saw[name] = [str(c) for c in calls], gradient(model)

    compile_, how = torch.compile, TrainConfig(compile="on")
    for name, broken in (("compiled", False), ("not compiled", world.rank == 1)):

        def backend(graph, inputs):
            raise RuntimeError("no compiler here")

        torch.compile = partial(compile_, backend=backend if broken else "aot_eager")
        torch._dynamo.reset()
        torch.manual_seed(0)  # 0.8M parameters: more than a first bucket of 1 MB
        gpt = GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=4, n_head=2, n_embd=128))
        _, x, y = model_and_rows()
        before = torch._dynamo.utils.counters["aot_autograd"]["ok"]
        wrapped, done = compile_for_training(gpt, how, CPU, x[mine], torch.float32, world)
        pieces = torch._dynamo.utils.counters["aot_autograd"]["ok"] - before
        empty = all(p.grad is None for p in gpt.parameters())
        wrapped(x[mine], y[mine])[1].backward()
        saw[name] = done, pieces, empty, gradient(gpt)
    torch.compile = compile_

    model, _, _ = model_and_rows()
    loader = TokenLoader(TokenStream(data, "train"), 2, 8, rank=world.rank, world_size=2, seed=3)
    saw["weights"] = train(
        wrap_ddp(model, world, CPU), model, [loader.next_batch() for _ in range(40)]
    )
    loader = TokenLoader(
        TokenStream(data, "train"), 2, 8, rank=world.rank, world_size=2, shuffle=False
    )
    saw["windows"] = [loader.next_batch()[0][:, 0].tolist() for _ in range(60)]

    def share(micro):
        rows = slice(4 * micro + 2 * world.rank, 4 * micro + 2 * world.rank + 2)
        return x[rows], y[rows]

    for name, scale in (("plain", None), ("scaled", 1024.0)):
        scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
        model, x, y = model_and_rows()
        shard_fsdp(model, model.transformer.h, world, CPU)
        numbers, optimizer = adam(model, model, share, scaler)
        weights = {n: full_tensor(p.detach()) for n, p in model.named_parameters()}
        saw["fsdp " + name] = numbers, weights
    model(x, y)[1].backward()  # now let a number overflow in the part of one rank alone
    if world.rank == 1:
        model.lm_head.weight.grad.to_local()[0, 0] = torch.inf
    before = [p.to_local().clone() for p in model.parameters()]
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    after = [p.to_local() for p in model.parameters()]
    saw["skipped"] = scaler.get_scale(), all(map(torch.equal, before, after))
    saw["held"] = sum(p.to_local().numel() for p in model.parameters())
    moments = {i: s["exp_avg"] for i, s in optimizer.state_dict()["state"].items()}
    saw["moments held"] = sum(m.to_local().numel() for m in moments.values())
    config = GPTConfig(block_size=8, vocab_size=17, n_layer=3, n_head=2, n_embd=16)
    sent = sharded_model_of_seed(lambda: GPT(config), 5, world, CPU)
    stream = TokenStream(data, "train")
    saw["random"] = torch.rand(1)
    saw["shares"] = sum(p.to_local().numel() for p in sent.parameters())
    saw["tied"] = sent.lm_head.weight is sent.transformer.wte.weight
    saw["sent"] = {n: full_tensor(p.detach()) for n, p in sent.named_parameters()}
    saw["blocks"] = []  # how many of them are whole while one runs

    def count(*_):
        norms = [block.ln_1.weight for block in sent.transformer.h]
        saw["blocks"].append(sum(not hasattr(weight, "to_local") for weight in norms))

    for when in ("before", "after"):  # before the sharded model's own first pass, and after it
        with layer_by_layer(sent, GPT, CPU) as plain:
            for block in plain.transformer.h:
                block.mlp.register_forward_hook(count)
            uneven = dict(tokens=5 * 8, batch_size=1, world=world)
            saw["uneven " + when] = validation_loss(plain, stream, **uneven)
            if world.is_main:
                saw["text " + when] = generate(plain, x[:1, :4], 12, temperature=0)
            else:
                join_evaluation(plain)
        saw["sharded again " + when] = all(hasattr(p, "to_local") for p in sent.parameters())
        if when == "before":
            sent(x, y)[1].backward()
            saw["tied after a step"] = sent.lm_head.weight is sent.transformer.wte.weight
            saw["gradient"] = torch.cat([full_tensor(p.grad).flatten() for p in sent.parameters()])
            torch.optim.SGD(sent.parameters(), lr=0.5).step()
    saw["whole"] = {n: full_tensor(p.detach()) for n, p in model.named_parameters()}
    mine = [p.detach() for p in model.parameters()]
    fulls = [full_tensor(p) for p in mine]
    again = [torch.zeros_like(p) for p in mine]
    for whole, ours in zip(fulls, again):
        copy_rows(ours, lambda start, stop: whole[start:stop])
    saw["cut"] = all(torch.equal(a.to_local(), p.to_local()) for a, p in zip(again, mine))
    parts = [own_rows(p, world) for p in mine]
    saw["parts"] = [torch.zeros(0) if part is None else part for part in parts]

    if world.is_main:  # a Hugging Face folder: matrices transposed, wte without padding
        save_huggingface(f"{out}/gpt2", vars(config), GPT(config).state_dict())
    wait_for_all(world)
    found, _ = open_model(f"{out}/gpt2", block_size=4, vocab_multiple=8)
    read, config = sharded_model(lambda: GPT(GPTConfig(**found.config)), world, CPU), TrainConfig()
    load_shares(read, config, found)
    saw["read"] = {n: full_tensor(p.detach()) for n, p in read.named_parameters()}
    del found.state.shapes["transformer.ln_f.bias"]
    try:
        load_shares(read, config, found)
    except UserError as error:
        saw["refused"] = str(error)

    config = GPTConfig(block_size=64, vocab_size=300, n_layer=4, n_head=2, n_embd=128)
    big = sharded_model_of_seed(lambda: GPT(config), 5, world, CPU)
    optimizer, rows = make_optimizer(big, learning_rate=1e-3), torch.zeros(1, 64, dtype=torch.long)

    def step():
        big(rows, rows)[1].backward()

    step()
    optimizer.step()
    share = 16 * sum(p.to_local().numel() for p in big.parameters())
    saw["peak"] = share + peak_bytes(step), training_bytes(big, 1, torch.float32, ranks=2)

    saw["sums"] = all_reduce_sum([0.1, 2.0**60 + world.rank, float(world.rank)], world, CPU)
    wait_for_all(world)
saw["left"] = not dist.is_initialized()
torch.save(saw, f"{out}/rank{world.rank}.pt")
"""
)

DEATH = (
    SETUP
    + """
import signal
from nanogpt_lib.support.errors import UserError
world = read_world()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a run does: torchrun's SIGTERM does not end it
with process_group(world, CPU):
    model, x, y = model_and_rows()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)
    wrapped(x, y)[1].backward()  # settles the buckets
    sent, loss = [], wrapped(x, y)[1]
    if world.rank == 0:
        dist.recv(torch.ones(1), src=1)  # waits for a message that never comes
    wrapped.register_comm_hook(sent, hook)

    def fail(parameter):
        if sent:  # a bucket is on its way, and rank 0 does not take part
            raise UserError(f"rank 1 ran out of memory, {len(sent) > 0}")

    model.transformer.wpe.weight.register_post_accumulate_grad_hook(fail)
    loss.backward()
"""
)


def torchrun(source: str, folder, *args) -> subprocess.CompletedProcess:
    """Two gloo processes that run a program given as text."""
    program = folder / "program.py"
    program.write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if os.name == "nt":
        env["USE_LIBUV"] = "0"
    command += [str(program), *map(str, args)]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    with subprocess.Popen(command, start_new_session=True, **how) as agent:
        try:
            said = agent.communicate(timeout=120)
        except subprocess.TimeoutExpired:  # the workers would outlive their torchrun
            os.killpg(agent.pid, signal.SIGKILL) if os.name != "nt" else agent.kill()
            raise
    return subprocess.CompletedProcess(command, agent.returncode, *said)


@pytest.fixture(scope="module")
def reference():
    """The functions of SETUP in this process, for single-process reference values."""
    names: dict = {}
    exec(SETUP, names)
    return names


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A stream whose tokens repeat 0 … 15, so that a tiny model can learn it."""
    from nanogpt_lib.recipes.text import write_splits

    folder = tmp_path_factory.mktemp("data") / "numbers"
    meta = {"name": "n", "source": "test", "tokenizer": {"kind": "none"}, "vocab_size": 16}
    tokens = np.arange(8 * 240 + 1) % 16
    write_splits(folder, meta, tokens, tokens)
    return folder


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, numbers):
    """What each of the two processes recorded."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(PROGRAM, folder, folder, numbers)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{r}.pt") for r in range(2)]


def whole_gradient(reference):
    model, x, y = reference["model_and_rows"]()
    model(x, y)[1].backward()
    return reference["gradient"](model)


def test_torchrun_tells_each_process_who_it_is_and_the_cpu_takes_gloo(ranks):
    assert [saw["world"] for saw in ranks] == [[0, 0, 2, True], [1, 1, 2, False]]
    assert [saw["backend"] for saw in ranks] == ["gloo", "gloo"]


def test_a_compiled_model_is_cut_where_buckets_end_so_that_they_can_travel(ranks, reference):
    """Wrapped after its first call it would be one piece, and every bucket wait for the last."""
    _, x, y = reference["model_and_rows"]()
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=4, n_head=2, n_embd=128))
    gpt(x, y)[1].backward()
    for saw in ranks:
        done, pieces, empty, gradient = saw["compiled"]
        assert done == "compiled" and pieces >= 2 and empty  # the trial leaves no gradient
        torch.testing.assert_close(gradient, reference["gradient"](gpt), atol=1e-6, rtol=0)


def test_if_one_rank_cannot_compile_no_rank_does(ranks):
    says = [saw["not compiled"][0] for saw in ranks]
    assert says[0] == "not compiled (another rank cannot)"
    assert says[1].startswith("not compiled (BackendCompilerFailed")
    for saw in ranks:
        torch.testing.assert_close(saw["not compiled"][3], saw["compiled"][3], atol=1e-6, rtol=0)


def test_gradients_of_two_processes_equal_those_of_one(ranks, reference):
    whole = whole_gradient(reference)
    for saw in ranks:
        torch.testing.assert_close(saw["ddp"], whole, atol=1e-6, rtol=0)
    assert torch.equal(ranks[0]["ddp"], ranks[1]["ddp"])


def test_accumulated_gradients_are_averaged_once_and_equal_one_process(ranks, reference):
    whole = whole_gradient(reference)
    for saw in ranks:
        calls, ours = saw["ours"]
        assert calls == ["end", "0", "end"]  # nothing is sent in the first micro-step
        assert saw["always"][0] == ["0", "end", "0", "end"]
        torch.testing.assert_close(ours, whole, atol=1e-6, rtol=0)


def test_the_sync_flag_must_be_set_before_forward(ranks):
    """The lecture's order as a mutation: the wrong micro-step is sent and the ranks drift apart."""
    calls, rank0 = ranks[0]["flag after forward"]
    assert calls == ["0", "end", "end"]
    assert (rank0 - ranks[1]["flag after forward"][1]).abs().max() > 1e-3
    assert torch.equal(ranks[0]["ours"][1], ranks[1]["ours"][1])


def test_training_on_two_processes_equals_one_with_the_whole_batch_and_learns(
    ranks, reference, numbers
):
    model, _, _ = reference["model_and_rows"]()
    stream = reference["TokenStream"](numbers, "train")
    loader = reference["TokenLoader"](stream, 4, 8, seed=3)
    steps = [loader.next_batch() for _ in range(40)]
    before = model(*steps[0])[1].item()
    weights = reference["train"](model, model, steps)
    for saw in ranks:
        torch.testing.assert_close(saw["weights"], weights, atol=1e-5, rtol=1e-4)
    assert model(*steps[0])[1].item() < before - 0.5


def test_every_rank_reads_as_many_batches_of_an_epoch_and_no_window_is_read_twice(ranks):
    """240 windows, 2 ranks, 2 rows: 60 micro-steps are one epoch for both (ERRATA 1, 2)."""
    rows = [
        window for micro in zip(*(s["windows"] for s in ranks), strict=True) for window in micro
    ]
    starts = [start for pair in rows for start in pair]
    assert starts == [8 * w % 16 for w in range(240)]


@pytest.mark.parametrize("name", ["plain", "scaled"])
def test_sharded_accumulated_clipped_updates_equal_one_process(name, ranks, reference):
    model, x, y = reference["model_and_rows"]()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    rows = [(x[:4], y[:4]), (x[4:], y[4:])]
    numbers, _ = reference["adam"](model, model, rows.__getitem__, scaler)
    weights = dict(model.named_parameters())
    found = [saw["fsdp " + name][0] for saw in ranks]
    for theirs in found:
        torch.testing.assert_close(theirs[:, 0], numbers[:, 0], atol=1e-5, rtol=0)  # norms
    losses = (found[0] + found[1])[:, 1] / 2
    torch.testing.assert_close(losses, numbers[:, 1], atol=1e-5, rtol=0)
    for saw in ranks:
        found = saw["fsdp " + name][1]
        assert found.keys() == weights.keys()
        for key, weight in weights.items():
            pair = [found[key], weight.detach()]
            if key.endswith("attn.c_attn.bias"):
                # softmax ignores what is added to all keys alike: the gradient of their biases is
                # rounding noise, which Adam divides by itself
                pair = [torch.cat([bias[:16], bias[32:]]) for bias in pair]
            torch.testing.assert_close(*pair, atol=1e-5, rtol=0)


def test_an_overflow_in_the_part_of_one_rank_makes_all_skip_the_update(ranks):
    assert [saw["skipped"] for saw in ranks] == [(512.0, True), (512.0, True)]


def test_each_rank_holds_its_share_and_makes_it_whole_again(ranks, reference):
    model, _, _ = reference["model_and_rows"]()
    total = sum(p.numel() for p in model.parameters())
    assert [saw["held"] for saw in ranks] == [saw["moments held"] for saw in ranks]
    assert sum(saw["held"] for saw in ranks) == total
    assert max(saw["held"] for saw in ranks) < 0.6 * total
    assert all(saw["cut"] for saw in ranks)
    whole, parts = ranks[0]["whole"], [saw["parts"] for saw in ranks]
    for (name, tensor), *rows in zip(whole.items(), *parts, strict=True):
        assert torch.equal(tensor, ranks[1]["whole"][name])
        assert torch.equal(torch.cat([r for r in rows if r.numel()]), tensor)  # as in the files


@pytest.fixture(scope="module")
def of_seed_5():
    """The plain model that the ranks shard: a vocabulary of 17 over two ranks, 9 rows and 8."""
    torch.manual_seed(5)
    return GPT(GPTConfig(block_size=8, vocab_size=17, n_layer=3, n_head=2, n_embd=16))


def test_a_new_sharded_model_is_the_plain_one_of_the_same_seed(ranks, of_seed_5):
    model, random = of_seed_5, torch.rand(1)
    total = sum(p.numel() for p in model.parameters())
    assert sum(saw["shares"] for saw in ranks) == total > 1.8 * max(s["shares"] for s in ranks)
    tokens = torch.randint(16, (8, 9), generator=torch.Generator().manual_seed(1))
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    for saw in ranks:
        assert saw["tied"] and saw["tied after a step"]
        assert torch.equal(saw["random"], random)  # and what is drawn next
        assert saw["sent"].keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(saw["sent"][name], p) for name, p in model.named_parameters())
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(saw["gradient"], gradient, atol=1e-6, rtol=0)


def test_each_rank_reads_its_rows_of_a_hugging_face_folder(ranks, tmp_path_factory):
    """Cropped to 4 positions and padded to 24 rows, as load_model does."""
    folder = next(tmp_path_factory.getbasetemp().glob("ranks*")) / "gpt2"
    model, _ = load_model(folder, say=lambda line: None, block_size=4, vocab_multiple=8)
    for saw in ranks:
        assert saw["read"].keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(saw["read"][name], p) for name, p in model.named_parameters())
        assert saw["refused"].endswith("differ in 1 tensors, e.g. transformer.ln_f.bias")


def test_an_initialisation_is_repeated_tensor_by_tensor_whatever_it_does():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.noise = torch.nn.Parameter(torch.ones(3)), torch.nn.Linear(5, 5)
            self.matrix = torch.nn.Parameter(torch.randn(4, 4))
            self.table = torch.nn.Embedding(7, 3, padding_idx=2)
            self.noise.weight.data.normal_(0, 0.3).mul_(2)
            with torch.no_grad():
                self.matrix[1:2].zero_()
                self.matrix.clamp_(-1, 1)

    torch.manual_seed(1)
    plain, state = Odd(), torch.get_rng_state()
    torch.manual_seed(1)
    with Recording() as recording, without_weights(recording.note):
        model = Odd()
    assert torch.equal(torch.get_rng_state(), state)
    for (name, p), bare in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert bare.is_meta
        assert torch.equal(recording.recipes[key_of(bare)].make(bare), p), name


def test_an_initialisation_that_cannot_be_repeated_is_refused_in_one_line():
    with Recording() as recording, without_weights(recording.note):
        a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        with torch.no_grad(), pytest.raises(UserError, match="needs whole tensors; take ddp"):
            a.weight.copy_(b.weight)
        with pytest.raises(UserError, match="needs whole tensors; take ddp"):
            torch.nn.init.trunc_normal_(a.weight)  # it would do nothing
    assert torch.nn.init.trunc_normal_(torch.ones(3), std=9.0).abs().max() < 2.1


def test_a_model_without_weights_has_buffers_and_takes_no_memory_until_it_is_given_some():
    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.register_buffer("angles", torch.arange(4.0), persistent=False)

    with without_weights():
        model = Turned()
    assert all(p.is_meta for p in model.parameters())
    give_memory(model, torch.device("cpu"))
    assert torch.equal(model.angles, torch.arange(4.0)) and model.b.weight is model.a.weight
    assert not any(p.is_meta for p in model.parameters())
    assert not torch.nn.Linear(2, 2).weight.is_meta  # and everything is as before


def test_sharded_weights_are_evaluated_block_by_block_by_ranks_with_unequal_work(
    ranks, of_seed_5, reference, numbers
):
    """Five windows over two ranks, and a text that only rank 0 draws, longer than its context."""
    model, x, y = of_seed_5, *reference["model_and_rows"]()[1:]
    model.zero_grad()
    stream = reference["TokenStream"](numbers, "train")
    for when in ("before", "after"):
        loss = reference["validation_loss"](model, stream, tokens=5 * 8, batch_size=1)
        assert [saw["uneven " + when] for saw in ranks] == pytest.approx([loss, loss], abs=1e-6)
        text = reference["generate"](model, x[:1, :4], 12, temperature=0)
        assert torch.equal(ranks[0]["text " + when], text)
        assert all(saw["sharded again " + when] for saw in ranks)
        model(x, y)[1].backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
    for saw in ranks:  # three passes each of the windows, and 12 of the text
        assert set(saw["blocks"]) == {1} and len(saw["blocks"]) == 2 * 3 * (3 + 12)


def test_the_memory_of_a_sharded_step_is_within_a_quarter_of_the_formula(ranks):
    for saw in ranks:
        measured, said = saw["peak"]
        assert 0.97 * measured < said < 1.25 * measured


def test_sums_over_processes_are_float64_and_the_same_everywhere(ranks):
    assert ranks[0]["sums"] == ranks[1]["sums"] == [0.2, 2.0**61, 1.0]


def test_the_group_is_left_at_the_end_of_the_block(ranks):
    assert all(saw["left"] for saw in ranks)


def test_a_rank_that_fails_with_gradients_in_flight_ends_all_each_in_one_line(tmp_path):
    """Leaving the group cleanly would wait for the bucket, which waits for rank 0."""
    done = torchrun(DEATH, tmp_path)  # would stop at its time limit if either went on waiting
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert "program.py: rank 1 ran out of memory, True" in said
    assert "program.py: rank 0: another process has ended; see its message" in said
    assert "raise UserError" not in done.stderr and "dist.recv" not in done.stderr


def test_without_torchrun_there_is_one_process_and_nothing_to_wait_for(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    world, cpu, model = read_world(), torch.device("cpu"), torch.nn.Linear(2, 2)
    assert world == World(0, 0, 1) and world.is_main
    with process_group(world, cpu):
        assert not torch.distributed.is_initialized()
        assert wrap_ddp(model, world, cpu) is model
        assert isinstance(sync_gradients(model, sync=False), contextlib.nullcontext)
        shard_fsdp(model, [], world, cpu)
        with layer_by_layer(model, GPT, cpu) as same:
            assert same is model and type(model) is torch.nn.Linear
        assert on_every_rank(lambda: 5, world) == [5]
        assert all_reduce_sum([0.1, 3.0], world, cpu) == [0.1, 3.0]
        wait_for_all(world)
    assert own_device(cpu, World(3, 3, 8)) == cpu


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"RANK": "x"}, "RANK='x' in the environment is not a number: start with torchrun"),
        ({"RANK": "-1"}, "RANK='-1' in the environment is not a number"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE='2.0' in the environment is not a number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT='http' in the environment is not a number"),
        ({"RANK": "2"}, "RANK=2 in the environment, but WORLD_SIZE=2: start with torchrun"),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_line(changes, message, monkeypatch):
    told = dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1")
    for name, value in (told | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as error:
        read_world()
    assert "\n" not in str(error.value)


def test_how_long_to_wait_for_the_others_can_be_set(monkeypatch):
    assert longest_wait().total_seconds() == 3600  # a checkpoint of 19 GB on a slow disk
    monkeypatch.setenv("NANOGPT_WAIT_MINUTES", "90")
    assert longest_wait().total_seconds() == 5400
    for wrong in ("", "0", "1h", "-1", "inf"):
        monkeypatch.setenv("NANOGPT_WAIT_MINUTES", wrong)
        with pytest.raises(UserError, match="must be a number of minutes above 0"):
            longest_wait()


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused_by_name(missing, monkeypatch):
    told = dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert read_world() == World(1, 1, 2)
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"RANK is set but not {missing}: start with torchrun"):
        read_world()


def test_more_processes_than_gpus_is_said_in_one_line(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert own_device(torch.device("cuda"), World(3, 3, 8)) == torch.device("cuda", 3) == taken[0]
    assert own_device(torch.device("cuda:1"), World(7, 7, 8)) == torch.device("cuda:1")
    with pytest.raises(UserError, match="exceeds the 4 GPU"):
        own_device(torch.device("cuda"), World(4, 4, 8))


def test_sharding_on_a_gpu_without_nccl_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(UserError, match="fsdp on cuda needs NCCL; take --parallel ddp"):
        shard_fsdp(torch.nn.Linear(2, 2), [], World(0, 0, 2), torch.device("cuda:0"))
