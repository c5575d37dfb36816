"""What graphs.py promises; without a GPU, a graph is replaced by a plain call."""

import contextlib

import pytest
import torch

from nanogpt_lib import graphs
from nanogpt_lib.device import autocast
from nanogpt_lib.graphs import Decoder, cast_weights, draw_unchecked, graph_stream
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.sampling import stream

CPU = torch.device("cpu")
SHAPE = dict(block_size=16, vocab_size=37, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(autouse=True)
def short_reach(monkeypatch):
    """Several reaches within a context of 16."""
    monkeypatch.setattr(graphs, "REACH", 5)


def make_model(**changes) -> GPT:
    """A small model with weights large enough that its choices differ."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SHAPE, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return model.eval()


def text(way, model, rows=3, n=40, **options):
    idx = torch.randint(37, (rows, 4), generator=torch.Generator().manual_seed(rows))
    generator = torch.Generator().manual_seed(7)
    return torch.cat(list(way(model, idx, n, generator=generator, **options)), dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5}, {"top_p": 0.8, "temperature": 0.7}, {"temperature": 0.0}]
)
def test_a_cache_of_fixed_size_draws_the_tokens_of_the_plain_one(attention, options):
    model = make_model(attention=attention)
    for rows in (1, 3):  # 40 tokens in a context of 16: the cache is rebuilt three times
        ours = text(graph_stream, model, rows, **options)
        assert torch.equal(ours, text(stream, model, rows, **options))


def test_it_stops_where_the_plain_one_stops():
    model = make_model()
    plain = text(stream, model, n=200, eot=3)
    assert plain.size(1) < 200 and torch.equal(text(graph_stream, model, n=200, eot=3), plain)


def test_what_is_not_yet_written_must_be_hidden(monkeypatch):
    model, context = make_model(), graphs.Context
    plain = text(stream, model)

    def seeing_all(position, visible=None, cache=None):
        return context(position, None if visible is None else visible | True, cache)

    monkeypatch.setattr(graphs, "Context", seeing_all)
    assert not torch.equal(text(graph_stream, model), plain)


class FakeGraph:
    """Records which decoder it belongs to, and replays its step as a plain call."""

    recording: Decoder
    replays: list[int] = []

    def register_generator_state(self, generator):
        self.generator = generator

    def replay(self):
        FakeGraph.replays.append(self.recording.cache[0].reach)
        self.recording.compute()


@pytest.fixture
def fake_graphs(monkeypatch):
    """Let a Decoder on the CPU record and replay FakeGraphs."""
    FakeGraph.replays = []
    init, compute = Decoder.__init__, Decoder.compute

    def started(self, *args, **how):
        init(self, *args, **how)
        self.graphs, FakeGraph.recording = True, self

    @contextlib.contextmanager
    def capture(graph):
        monkeypatch.setattr(Decoder, "compute", lambda self: None)  # recording computes nothing
        yield
        monkeypatch.setattr(Decoder, "compute", compute)

    monkeypatch.setattr(Decoder, "__init__", started)
    monkeypatch.setattr(Decoder, "on_another_stream", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)


def test_recording_changes_no_token_and_happens_once_for_each_reach(fake_graphs):
    model = make_model()
    assert torch.equal(text(graph_stream, model), text(stream, model))
    assert len(FakeGraph.recording.recorded) == 4 and set(FakeGraph.replays) == {5, 10, 15, 16}
    assert len(FakeGraph.replays) > 30


def test_where_no_graph_can_be_recorded_it_says_so_once_and_goes_on(
    fake_graphs, monkeypatch, capsys
):
    @contextlib.contextmanager
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    model = make_model()
    assert torch.equal(text(graph_stream, model), text(stream, model))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "operation not permitted when stream is capturing)" in said


def test_drawing_without_a_check_chooses_as_multinomial_does():
    probs = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    for seed in range(20):
        ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        want = torch.multinomial(probs, 1, generator=theirs)
        assert torch.equal(draw_unchecked(probs, ours), want)
        assert torch.equal(ours.get_state(), theirs.get_state())


def test_weights_cast_beforehand_give_what_autocast_gives():
    model = make_model(bias=True)
    idx = torch.randint(37, (2, 9), generator=torch.Generator().manual_seed(0))
    names = set(model.state_dict())
    with torch.no_grad():
        with autocast(CPU, torch.bfloat16):
            want = model.transformer(idx)
        with cast_weights(model, torch.bfloat16):
            got = model.transformer(idx)
            layer = model.transformer.h[0].mlp.c_fc
            assert layer.weight.dtype == torch.bfloat16 == layer(want).dtype
        exact = model.transformer(idx)
    assert got.dtype == torch.float32 and torch.equal(got, want) and not torch.equal(got, exact)
    assert set(model.state_dict()) == names and model.lm_head.weight.dtype == torch.float32
