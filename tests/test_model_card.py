"""model_card.py and `python nanogpt_lib/huggingface.py`: a card with what a run's files say."""

import json
import math
import shutil

import pytest
import yaml

from conftest import program
from nanogpt_lib import huggingface, score
from nanogpt_lib.model_card import model_card, read_scores, standard_error
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import seal, write_json
from nanogpt_lib.support.run_log import read_log

SCORES = {"acc_sum": 0.286, "acc_token": 0.2955, "acc_byte": 0.3114, "items": 10_042, "own": 0}


@pytest.fixture
def run(tiny_run, tmp_path):
    """A small run with a HellaSwag score beside it."""
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run/hellaswag.json").write_text(json.dumps(SCORES), encoding="utf-8")
    return tmp_path / "run"


def test_the_card_states_data_tokens_losses_scores_and_licences(run):
    card = model_card(run, "my-gpt2", 12_345, "mit")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit" and text.startswith("\n# my-gpt2\n")
    losses = [r["val_loss"] for r in read_log(run / "log.jsonl") if "val_loss" in r]
    for words in (
        "| parameters | 12,345 |",
        "| data | tiny |",
        "| made from | random words |",
        "| licence of the data | unknown: look it up",
        "| training tokens | 1,536 |",  # 6 steps of 256
        f"| validation loss | {losses[-1]:.4f} nats per token (step 6) |",
        "| HellaSwag | 0.2955 ± 0.0046 (10,042 items, per token) |",
        "| HellaSwag | 0.3114 ± 0.0046 (10,042 items, per byte, lm-eval's acc_norm) |",
    ):
        assert words in text, words
    assert "No licence was chosen" not in text
    unknown = model_card(run, "my-gpt2", 12_345)
    assert "No licence was chosen" in unknown and "license: unknown" in unknown
    (run / "hellaswag.json").unlink()
    assert "HellaSwag |" not in model_card(run, "my-gpt2", 1)
    settings = json.loads((run / "config.json").read_text()) | {"data": "gone/fineweb"}
    settings.pop("sha256")
    write_json(run / "config.json", seal(settings))
    assert "ODC-By 1.0" in model_card(run, "my-gpt2", 1)  # even without the data at hand


def test_scores_on_our_own_items_are_not_called_hellaswag(run):
    (run / "hellaswag.json").write_text(json.dumps(SCORES | {"own": 32, "items": 32}))
    card = model_card(run, "x", 1)
    assert "| our own items, not HellaSwag | 0.2955 ± 0.0807 (32 items" in card
    (run / "hellaswag.json").write_text("{}")
    with pytest.raises(UserError, match="not written by score.py --json"):
        read_scores(run)


def test_the_error_bar_is_the_spread_of_repeated_scores():
    """A model that is right with probability p, scored many times on n items."""
    import numpy as np

    scores = np.random.default_rng(0).binomial(500, 0.3, 20_000) / 500
    assert math.isclose(standard_error(0.3, 500), scores.std(), rel_tol=0.02)


def test_the_program_exports_a_run_with_its_card(run, tmp_path):
    out = tmp_path / "my-gpt2"
    done = program("huggingface.py", run, out, "--license", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    assert "README.md, the model card" in done.stdout
    from transformers import GPT2LMHeadModel

    assert GPT2LMHeadModel.from_pretrained(out).config.n_layer == 1
    assert "license: cc-by-4.0" in (out / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="exists already"):
        huggingface.main([str(run), str(out)])
    with pytest.raises(UserError, match="no such folder|no folder"):
        huggingface.main([str(tmp_path / "nowhere"), str(tmp_path / "new")])
    with pytest.raises(SystemExit):
        huggingface.main([str(run), str(tmp_path / "new"), "--license", "my own: yes"])
    assert not (tmp_path / "new").exists()


def test_score_writes_what_the_card_reads(run, tmp_path, monkeypatch, capsys):
    """With a model stand-in: the numbers of the file are the ones that were printed."""
    items = [type("Item", (), {"own": True})()] * 32
    monkeypatch.setattr(
        score, "load_model", lambda source: (type("M", (), {"to": lambda s, d: s})(), None)
    )
    monkeypatch.setattr(score, "require_gpt2_tokens", lambda *args: None)
    monkeypatch.setattr(score, "read_items", lambda *args: items)
    monkeypatch.setattr(score, "describe_items", lambda items: "32 items")
    monkeypatch.setattr(score, "score_items", lambda *args, **options: SCORES)
    score.main(["--checkpoint", str(run), "--json", str(run / "hellaswag.json"), "--device", "cpu"])
    assert "acc_token 0.2955 ± 0.0807" in capsys.readouterr().out
    kept = read_scores(run)
    assert (kept["items"], kept["own"], kept["acc_token"]) == (32, 32, 0.2955)
