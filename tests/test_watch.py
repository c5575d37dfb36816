"""watch.py and stopwatch.py: a run says itself what is wrong, and which rank lags."""

import math
import os
import re
import subprocess
import sys
import types

import torch
from test_diagnosis import made_up, power_law, published

from conftest import ROOT, TINY, free_port, log_of
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.diagnosis import diagnose
from nanogpt_lib.support.run_log import read_log
from nanogpt_lib.support.stopwatch import Stopwatch, slowest
from nanogpt_lib.watch import judge


def test_the_slowest_rank_is_named_with_its_time_beside_the_others():
    assert slowest([1.0, 1.0, 1.5, 1.1]) == {"slowest_rank": 2, "slowest_ratio": 1.5}
    assert slowest([2.0, 1.0]) == {"slowest_rank": 0, "slowest_ratio": 2.0}
    assert slowest([0.0, 0.0])["slowest_rank"] == 0
    watch = Stopwatch(torch.device("cpu"))
    sum(range(100_000))
    watch.stop()
    taken = watch.seconds()
    sum(range(100_000))
    assert 0 < taken == watch.seconds()


SLOW = """
import os, time
if os.environ.get("RANK") == "1":
    import nanogpt_lib.loader as loader
    plain = loader.TokenLoader.next_batch
    def slow(self):
        time.sleep(0.05)
        return plain(self)
    loader.TokenLoader.next_batch = slow
"""


def test_a_slow_rank_is_found_in_a_real_run_and_said_by_it(tiny_data, tmp_path):
    """Rank 1 sleeps before each batch; the other waits for it, so both take as long for a step."""
    (tmp_path / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--master_addr=127.0.0.1", f"--master_port={free_port()}", "nanogpt_lib/train.py"]
    more = f"--max-steps 60 --eval-every 30 --save-every 0 --data {tiny_data} --out {tmp_path}/run"
    done = subprocess.run(
        [*launch, *TINY, *more.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.returncode == 0, done.stderr
    records = [r for r in read_log(tmp_path / "run/log.jsonl") if "train_loss" in r]
    assert {r["slowest_rank"] for r in records[5:]} == {1}
    assert "lagging" in [s.kind for s in diagnose(records)]
    assert done.stdout.count("symptom: rank 1 lags") == 1  # once, not at every evaluation
    assert re.search(r"step    60 \| verdict: .*lagging", done.stdout)
    assert "slowest" not in done.stdout and "slowest_ratio" not in log_of(tmp_path / "run")[-2]


def run_of(records: list[dict], said: list[str], **settings) -> types.SimpleNamespace:
    """What judge needs of a run, with a log."""
    config = TrainConfig(**({"max_steps": 19_560, "total_batch_size": 524_288} | settings))
    log = types.SimpleNamespace(records=records)
    return types.SimpleNamespace(
        log=log, config=config, step=records[-1]["step"], meta={"vocab_size": 50257},
        symptoms=set(), say=said.append,
    )  # fmt: skip


def test_a_run_says_each_symptom_once_and_its_verdict_at_the_end():
    said = []
    stuck = made_up(lambda s: 7.6 + 3.2 * math.exp(-(s - 1) / 40))
    run = run_of(stuck, said, max_steps=2000, data="data/own")
    run.step = 1990
    judge(run, 7.6)
    judge(run, 7.6)
    assert len(said) == 1 and said[0].startswith("step  1990 | symptom: the loss stays at 7.")
    run.step = 2000
    judge(run, 7.6)
    assert said[1:] == ["step  2000 | verdict: stuck (doctor.py)"]
    judge(run_of(made_up(power_law), said, max_steps=2000, data="data/own"), 3.6)
    assert said[2:] == ["step  2000 | verdict: no symptoms (doctor.py)"]


def test_a_run_like_the_published_one_is_told_its_loss():
    said = []
    run = run_of(published(1000), said, data="data/fineweb_edu")
    run.step = 1000
    judge(run, 4.31)
    assert said == ["step  1000 | llm.c's run had 4.32; normal up to 4.62"]
    judge(run, 4.9)
    assert said[1].startswith("step  1000 | symptom: validation loss 4.90 at step 1000")


def test_only_the_rank_with_a_log_judges_and_not_before_the_first_step():
    said = []
    run = run_of(made_up(power_law, 30), said, data="data/own")
    run.step = 0
    judge(run, 12.0)
    run.step, run.log = 30, None
    judge(run, 12.0)
    assert said == []
