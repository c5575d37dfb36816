"""What `make gpu` promises: every part once, tiny, on this CPU, in real processes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_run
import pytest
from gpu_base import Plan, Report
from gpu_run import Child, Part, Record, allowed, missing_from, room

from conftest import ROOT, THEIR_CONFIG
from nanogpt_lib.support.errors import UserError

PROGRAM = ROOT / "tests" / "benchmarks" / "gpu.py"

# a model.py that builds, and then cannot step
BROKEN = (
    THEIR_CONFIG
    + """
class GPT(torch.nn.Module):
    def __init__(self, config):
        raise ValueError("no model today")
"""
)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> tuple[dict, str, str]:
    """The record, the terminal and the log of a rehearsal in which one contender fails."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "model.py").write_text(BROKEN, encoding="utf-8")
    out = folder / "gpu.json"
    flags = ["--rehearse", "--out", out, "--nanogpt", folder, "--commit", "abc1234"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *flags], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    log = out.with_suffix(".log").read_text("utf-8")
    return json.loads(out.read_text("utf-8")), done.stdout, log


def test_every_part_runs_from_end_to_end_on_a_cpu(rehearsed):
    record, said, _ = rehearsed
    assert {n: part["status"] for n, part in record["parts"].items()} == dict.fromkeys(
        gpu.PARTS, "ok"
    )
    about = record["about"]
    assert about["mode"] == "rehearsal" and about["commit"] == "abc1234"
    assert {"device", "torch", "cuda", "driver", "date", "python"} <= set(about)
    assert all(f"{name}: ok" in said for name in gpu.PARTS)
    lost = {n: missing_from(part["result"]) for n, part in record["parts"].items()}
    assert lost.pop("others") == ["nanoGPT: ValueError: no model today"]
    ladder = lost.pop("ladder")
    assert all("TF32" in line or "off" in line or "float32 is faster" in line for line in ladder)
    assert not any(lost.values())


def test_a_failure_is_noted_in_one_line_and_traced_in_the_log(rehearsed):
    record, said, log = rehearsed
    assert "    nanoGPT: ValueError: no model today\n" in said
    assert 'raise ValueError("no model today")' in log and "Traceback" in log
    assert record["parts"]["others"]["result"]["ours"]["tokens_per_sec"] > 0


def test_losses_are_those_recorded_and_one_process_is_as_good_as_none(rehearsed):
    parts = {name: part["result"] for name, part in rehearsed[0]["parts"].items()}
    for way in ("float32", "bfloat16", "bfloat16, 16-bit residual stream"):
        found = parts["losses"][way]
        assert found["agrees"] and found["steps"] == 10 and found["last"] < found["first"] - 1
    parallel = parts["parallel"]
    assert parallel["backend"] == "gloo"
    assert parallel["ddp: largest gap"] == parallel["fsdp: largest gap"] == 0


def test_plain_calls_in_place_of_graphs_draw_the_same_tokens(rehearsed):
    sampling = rehearsed[0]["parts"]["sampling"]["result"]
    assert (
        sampling["same tokens, float32"].items()
        >= dict(of=40, replayed_as_called=40, replayed_as_ordinary=40).items()
    )
    assert not sampling["batch 1, graphs"]["replayed"]


def test_the_ladder_and_the_updates_are_measured(rehearsed):
    parts = {name: part["result"] for name, part in rehearsed[0]["parts"].items()}
    rows = {row["name"]: row for row in parts["ladder"]["speedups"]}
    assert {"float32", "fused AdamW", "rows × 4", "8 micro-steps"} <= set(rows)
    factor = 2 if rows["rows × 2"]["kept"] else 4 if rows["rows × 4"]["kept"] else 1
    assert rows["8 micro-steps"]["tokens"] == 8 * factor * rows["float32"]["tokens"]
    others = parts["others"]
    assert others["ours"]["losses"] == pytest.approx([10.82, 10.82], abs=0.05)
    assert others["tokens_per_update"] == others["rows"] * others["micro_steps"] * 32


# --- budget, kills, bad input ---------------------------------------------------------------------


def test_a_part_that_would_take_too_long_leaves_time_for_the_later_ones():
    plan = Plan("full", "cpu", ".", 0.0)
    one, later = [Part(print, 20, 60)], [Part(print, 50, 100), Part(print, 30, 40)]
    assert allowed(plan, one, later, 400) == (60, "")  # its limit
    assert allowed(plan, one, later, 120) == (40, "")  # what the later ones do not need
    assert allowed(plan, one, later, 90) == (20, "")  # no less than it needs itself
    assert allowed(plan, one, later, 15)[1] == "needs about 20 s, 15 s are left"


def test_only_untimed_parts_share_the_card_in_a_full_run():
    plan = Plan("full", "cpu", ".", 0.0)
    one, timed = SimpleNamespace(names=["compile"]), SimpleNamespace(names=["ladder"])
    assert room(plan, [], ["ladder"]) and room(plan, [one], ["losses"])
    assert not room(plan, [one], ["ladder"]) and not room(plan, [timed], ["losses"])


def test_parts_without_time_are_skipped_and_noted(tmp_path):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--budget", "0.01", "--parts", "peak", "--out", str(out)]) == 0
    part = json.loads(out.read_text("utf-8"))["parts"]["peak"]
    assert part["status"] == "skipped" and part["note"] == "no time"


def test_a_part_that_hangs_is_ended_and_keeps_what_it_has_found(tmp_path, monkeypatch):
    program = tmp_path / "hangs.py"
    program.write_text(
        "import sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[-1]).parent\n"
        "(folder / 'peak.json').write_text('{\"copy\": 3}')\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(gpu_run, "PROGRAM", program)
    plan = Plan("full", "cpu", str(tmp_path), 0.0)
    child = Child(plan.folder, ["peak"])
    child.go(plan, 600.0)
    found = tmp_path / "peak.json"
    while not (found.exists() and found.stat().st_size):
        assert child.ended() is None
    child.seconds = 0.0
    how = child.ended()
    record = Record(tmp_path / "gpu.json", {})
    record.collect(plan, "peak", how, 0.0)
    part = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["parts"]["peak"]
    assert part["status"] == "stopped" and part["result"] == {"copy": 3}
    assert part["note"] == "stopped after 0 s" and child.process.returncode == -9


def test_a_report_is_whole_after_each_entry(tmp_path, capsys):
    report = Report(tmp_path / "part.json")
    report["one"] = 1
    report.attempt("two", lambda: 1 / 0)
    kept = json.loads((tmp_path / "part.json").read_text("utf-8"))
    assert kept == dict(report) and kept["one"] == 1
    assert kept["two"]["missing"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quick"], "--out FILE.json is required"),
        (["--out", "x.json", "--parts", "peak,piek"], "--parts: no 'piek'"),
    ],
)
def test_a_wrong_command_line_is_one_line(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(flags)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_missing_checkout_is_refused_before_anything_runs(tmp_path):
    out, folder = tmp_path / "gpu.json", Path("no/such/folder")
    with pytest.raises(UserError, match="--nanogpt no/such/folder: does not exist"):
        gpu.main(["--rehearse", "--out", str(out), "--nanogpt", str(folder)])
    assert not out.exists()
