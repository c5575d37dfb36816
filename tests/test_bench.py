"""What bench.py and the comparisons in tests/benchmarks promise."""

import json
import os
from dataclasses import replace
from pathlib import Path

import bench_speedups
import compare_sampling
import compare_training
import pytest
import speedups
import torch
from other_checkouts import build_nanogpt, time_theirs
from record import read_records
from speedups import OtherLoss, Variant, measure, measure_or_note, padded
from torch.nn import functional as F

from conftest import THEIR_CONFIG
from nanogpt_lib import bench
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import flops_per_token
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.support import machine
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.weight_formats import LOSSY

CPU = torch.device("cpu")
SHAPE = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)


def tiny(**changes) -> GPT:
    torch.manual_seed(1)
    return GPT(replace(SHAPE, **{"vocab_size": 50, **changes}))


def batch(rows=5):
    tokens = torch.randint(0, 50, (rows, 17), generator=torch.Generator().manual_seed(2))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# --- variants of a step ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "chunks"])
def test_a_loss_without_all_logits_is_the_same_function(kind, monkeypatch):
    if kind == "linear" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this PyTorch has no linear_cross_entropy")
    monkeypatch.setattr(speedups, "CHUNK", 32)  # 80 positions: the last piece is shorter
    model, (x, y) = tiny(vocab_multiple=64), batch()
    want = model(x, y)[1]
    gradients = torch.autograd.grad(want, list(model.parameters()))
    got = OtherLoss(model, kind, torch.float32)(x, y)[1]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(got, list(model.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_padding_the_vocabulary_keeps_the_loss():
    model, (x, y) = tiny(), batch()
    wider = padded(model, 64)
    assert wider.lm_head.weight.shape == (64, 16)
    torch.testing.assert_close(wider(x, y)[1], model(x, y)[1])


def test_variants_begin_with_equal_weights_and_an_equal_batch():
    variants = [
        Variant(), Variant(attention="sdpa"), Variant(fused=True), Variant(vocab_multiple=64),
    ]  # fmt: skip
    losses = [measure(variant, SHAPE, 2, 1, CPU)["loss"] for variant in variants]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)


def test_data_read_from_the_disk_and_read_ahead_are_the_same():
    rows = [measure(Variant(data=data), SHAPE, 2, 1, CPU) for data in ("loader", "ahead")]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["tokens"] == 32


def pretend_speeds(monkeypatch, **speeds):
    """Make every variant take 1/speed seconds; returns the list of variants that were tried."""
    tried = []

    def measured(variant, shape, rows, steps, device):
        tried.append(variant)
        if variant.name == "broken":
            return "broken: out of memory"
        seconds = 1 / speeds.get(variant.name, 1.0)
        return speedups.row_of(variant.name, seconds, 8, 4.0, tiny(), device)

    monkeypatch.setattr(bench_speedups, "measure_or_note", measured)
    return tried


def test_a_speed_up_beyond_the_lecture_stays_only_if_it_is_faster(monkeypatch, capsys):
    tried = pretend_speeds(monkeypatch, slower=0.9, faster=2.0, hardly=2.01, upon=3.0)
    further = {
        "slower": dict(loss="chunks"), "faster": dict(kernel="flash"), "broken": dict(factor=4),
        "hardly": dict(fused=True), "upon": dict(factor=2),
    }  # fmt: skip
    table = bench_speedups.Table(SHAPE, 2, 1, CPU)
    bench_speedups.measure_all(table, [Variant(), "TF32: not here"], further)
    assert table.best == replace(Variant(), name="upon", kernel="flash", factor=2)
    kept = {row["name"]: row["kept"] for row in table.results[:7]}
    assert kept == {
        "float32": True, "TF32": False, "slower": False, "faster": True, "broken": False,
        "hardly": False, "upon": True,
    }  # fmt: skip
    assert [variant.data for variant in tried[-2:]] == ["loader", "ahead"]
    assert [row["kept"] for row in table.results[7:]] == [False, False]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("dropped") for line in lines) == 2
    assert "  — broken: out of memory" in lines


def test_a_variant_that_cannot_run_says_so_in_one_line(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    monkeypatch.setattr(speedups, "measure", full)
    assert measure_or_note(Variant(name="rows × 4"), SHAPE, 2, 1, CPU) == "rows × 4: out of memory"


def test_the_lectures_speed_ups_follow_the_device(monkeypatch):
    dtype = {"cuda": torch.bfloat16, "cpu": torch.float32}
    monkeypatch.setattr(speedups, "choose_dtype", lambda device: dtype[device.type])
    names = [v.name for v in speedups.lecture_variants(torch.device("cuda"), compile=True)]
    assert names == [
        "float32", "TF32", "bfloat16", "torch.compile", "fused attention", "vocabulary 50304",
        "fused AdamW",
    ]  # fmt: skip
    variants = speedups.lecture_variants(CPU, compile=False)
    assert sum(isinstance(variant, str) for variant in variants) == 3  # said why
    assert variants[-1] == Variant("fused AdamW", attention="sdpa", vocab_multiple=64, fused=True)


# --- the program ----------------------------------------------------------------------------------


def test_the_speed_ups_are_written_as_rows_that_chapter_05_can_read(monkeypatch, tmp_path, capsys):
    small = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, max_steps=2, total_batch_size=64)
    pretend_presets(monkeypatch, {"small": small, "gpt2-124m": {}, "gpt2-1558m": {}})
    monkeypatch.setattr(bench_speedups, "measure_or_note", lambda *how: measure_fast(*how))
    file = tmp_path / "speedups.json"
    flags = ["--preset", "small", "--device", "cpu", "--steps", "1", "--json", str(file)]
    bench_speedups.main(flags)
    record = json.loads(file.read_text())
    assert {"device", "threads", "torch", "driver", "commit", "rows", "n_layer"} <= set(record)
    assert record["preset"] == "small" and record["block_size"] == 8 and record["rows"] == 1
    first = record["speedups"][0]
    assert first["name"] == "float32" and first["ms"] > 0 and first["moved"] == 0.0
    recorded = json.loads((bench_records() / "speedups_cpu.json").read_text())
    assert set(recorded) - {"others"} <= set(record)  # older records say less
    assert set(recorded["speedups"][0]) == set(first)
    out = capsys.readouterr().out
    for text in ("freed memory kept", "Peak memory (GB) in", "wrote "):
        assert text in out


def pretend_presets(monkeypatch, presets: dict) -> None:
    """Presets that are measured in no time, for both programs."""
    monkeypatch.setattr(bench, "PRESETS", presets)
    monkeypatch.setattr(bench_speedups, "PRESETS", presets)


def bench_records() -> Path:
    return Path(__file__).resolve().parents[1] / "notebooks" / "recorded"


def measure_fast(variant, *how):
    """`measure_or_note` without changing this process's malloc settings."""
    return measure_or_note(replace(variant, keep_memory=False), *how)


def test_a_presets_time_is_its_operations_over_the_rate_and_its_updates():
    rates = {bench.SMALL: bench.Rate(1e9, 0.0), bench.LARGE: bench.Rate(1e12, 1e-9)}
    row = bench.estimate("gpt2-124m", rates, 80e9, torch.bfloat16)
    config = TrainConfig(**PRESETS["gpt2-124m"])
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_multiple=64))
    products = flops_per_token(model) * config.total_batch_size / 1e12
    updates = 1e-9 * sum(p.numel() for p in model.parameters())
    assert row["seconds"] == pytest.approx(config.max_steps * (products + updates), rel=1e-4)
    assert row["rows"] == 64 and row["steps"] == config.max_steps
    slower = bench.estimate("quickstart", rates, 80e9, torch.bfloat16)
    assert slower["tokens_per_sec"] < row["tokens_per_sec"]  # quickstart's own rate, a small one


def test_what_does_not_fit_has_no_time_and_unknown_memory_no_rows(capsys):
    rates = {bench.SMALL: bench.Rate(1e9, 0.0), bench.LARGE: "not enough memory for one row"}
    rows = [bench.estimate("gpt2-1558m", rates, 8e9, torch.float32)]
    rows += [bench.estimate("quickstart", rates, None, torch.float32)]
    assert rows[0]["rows"] == 0 and "seconds" not in rows[0] and rows[1]["rows"] is None
    assert "seconds" not in bench.estimate("gpt2-124m", rates, 80e9, torch.float32)
    bench.print_estimates(rows)
    lines = capsys.readouterr().out.splitlines()
    assert "too large" in lines[2] and lines[2].endswith("—") and "?" in lines[3]


def test_a_rate_is_measured_with_the_presets_own_step():
    rate = bench.measure("quickstart", 2, 8, CPU, repeats=1)
    assert rate.flops_per_second > 1e6 and rate.update_seconds_per_parameter > 0


def test_a_micro_batch_that_does_not_fit_is_halved_until_none_is_left(monkeypatch):
    tried = []

    def full(name, rows, *how):
        tried.append(rows)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "measure", full)
    assert bench.measure_large(torch.device("cuda")) == "not enough memory for one row"
    assert tried == [16, 8, 4, 2, 1]


def test_the_screen_holds_machine_presets_and_sampling(monkeypatch, tmp_path, capsys):
    pretend_presets(monkeypatch, {name: PRESETS[name] for name in ("quickstart", "gpt2-124m")})
    rate = bench.Rate(1e11, 1e-10)
    monkeypatch.setattr(bench, "measure", lambda *how, **repeats: rate)
    monkeypatch.setattr(bench, "GPTConfig", lambda: SHAPE)
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: True)
    file = tmp_path / "bench.json"
    bench.main(["--device", "cpu", "--new-tokens", "3", "--out", str(file)])
    out, record = capsys.readouterr().out, json.loads(file.read_text())
    assert len(out.splitlines()) <= 24  # one screen
    assert [row["preset"] for row in record["presets"]] == ["quickstart", "gpt2-124m"]
    assert record["machine"]["cpu_class"] in out and record["machine"]["commit"]
    ways = [row["way"] for row in record["sampling"]]
    assert ways[0] == "float32" and set(LOSSY) >= {way.split()[0] for way in ways[2:]}
    for text in ("quickstart", "rows that fit", " steps", "tokens/s", f"wrote {file}"):
        assert text in out


def test_the_flag_that_moved_says_where_to(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--json", "speedups.json"])
    assert "tests/benchmarks/bench_speedups.py --json" in capsys.readouterr().err


def test_the_table_of_memory_holds_every_preset_with_its_own_optimizer(monkeypatch, capsys):
    bench_speedups.print_memory(torch.bfloat16)
    with_muon = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in with_muon[3:]} >= set(PRESETS)
    gpt2 = next(line.split() for line in with_muon if line.startswith("  gpt2-124m"))
    assert 512 % int(gpt2[-1]) == 0 and int(gpt2[-1]) >= int(gpt2[-2]) >= int(gpt2[-5])
    assert float(gpt2[1]) > 16 * 0.1244  # more than weights, gradients and averages
    adamw = {name: {**preset, "optimizer": "adamw"} for name, preset in PRESETS.items()}
    pretend_presets(monkeypatch, adamw)
    bench_speedups.print_memory(torch.bfloat16)
    changed = {
        a.split()[0]
        for a, b in zip(with_muon, capsys.readouterr().out.splitlines(), strict=True)
        if a != b
    }
    assert changed == {n for n, p in PRESETS.items() if TrainConfig(**p).optimizer == "muon"}


def test_sampling_is_timed_in_turns_and_the_best_round_counts(monkeypatch, capsys):
    clock = iter([0, 9, 20, 22, 22, 26, 30, 31, 31, 36])  # warm-up, then two rounds
    monkeypatch.setattr(bench, "perf_counter", lambda: next(clock))
    drawn = []
    ways = {name: lambda idx, n, name=name: drawn.append((name, n)) for name in ("one", "two")}
    rows = bench.time_sampling(ways, CPU, new=20, rounds=2)
    assert drawn == [("one", 4), ("two", 4), *[("one", 20), ("two", 20)] * 2]
    assert rows == [{"way": "one", "tokens_per_sec": 20.0}, {"way": "two", "tokens_per_sec": 5.0}]
    bench.print_sampling(rows, 20)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["two", "5.0", "tokens/s", "0.25"]


@pytest.mark.parametrize("flag", ["--batch-size", "--block-size", "--steps", "--rounds"])
def test_a_size_that_is_none_is_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        compare_sampling.main([flag, "0"])
    assert ended.value.code == 2 and f"{flag} must be at least 1" in capsys.readouterr().err


def test_a_program_that_is_not_there_leaves_its_figure_out():
    assert machine.output_of("no-such-program-here") is None
    assert machine.describe_machine("a card")["device"] == "a card"
    assert machine.name_of(CPU)


# --- compared with other implementations ----------------------------------------------------------


def test_what_is_no_checkout_of_theirs_is_refused(tmp_path):
    with pytest.raises(UserError, match="train_gpt2.py: cannot be read"):
        build_nanogpt(tmp_path)
    (tmp_path / "train_gpt2.py").write_text("print('something else')")
    with pytest.raises(UserError, match="not the lecture's last version"):
        build_nanogpt(tmp_path)


def test_their_step_runs_out_of_their_own_file():
    checkout = Path(os.environ.get("NANOGPT_LECTURE", "not given"))
    if not checkout.exists():
        pytest.skip("NANOGPT_LECTURE names no checkout of build-nanogpt")
    how = ("build-nanogpt", checkout, SHAPE, 2, 1, CPU, torch.float32, False)
    seconds, loss = time_theirs(*how)
    assert seconds > 0 and 10 < loss < 12


THEIR_MODEL = (
    THEIR_CONFIG
    + """
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters")
        self.table = torch.nn.Embedding(config.vocab_size, 4)
        self.head = torch.nn.Linear(4, config.vocab_size)

    def forward(self, x, y):
        logits = self.head(self.table(x))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.SGD(self.parameters(), lr=learning_rate)

    def generate(self, idx, n, top_k):
        return idx
"""
)


def results(path: Path) -> dict:
    """What the one record of a file holds."""
    (record,) = read_records(path).values()
    return record["results"]


def test_a_checkouts_step_and_its_texts_stand_beside_ours(monkeypatch, tmp_path, capsys):
    (tmp_path / "model.py").write_text(THEIR_MODEL)
    small = dict(n_layer=1, n_head=1, n_embd=8, block_size=16)
    pretend_presets(monkeypatch, {"small": small, "gpt2-124m": {}})
    monkeypatch.setattr(bench_speedups, "measure_or_note", lambda *how: measure_fast(*how))
    flags = ["--preset", "small", "--device", "cpu", "--nanogpt", str(tmp_path), "--json"]
    compare_training.main([*flags, str(tmp_path / "steps.json"), "--steps", "1"])
    rows = results(tmp_path / "steps.json")["training"]
    assert [row["name"] for row in rows] == ["nanoGPT", "ours", "ours, freed memory kept"]
    assert all(row["ms"] > 0 for row in rows) and rows[0]["loss"] == pytest.approx(10.9, abs=0.4)
    compare_sampling.main([*flags, str(tmp_path / "texts.json"), "--new-tokens", "2"])
    ways = [row["way"] for row in results(tmp_path / "texts.json")["sampling"]]
    assert ways[:3] == ["nanoGPT", "transformers, cached", "ours, plain float32"]
    assert "number of parameters" not in capsys.readouterr().out
