"""The recorded model: small, trained, and the same for every chapter that looks into it."""

import json
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from nanogpt_lib.hellaswag import ending_losses, parse_item
from nanogpt_lib.load import RECORDED, recorded_model
from nanogpt_lib.model import count_parameters

TEXT = """Return the number of items in the list. If the optional argument is not given,
the default value is used. Raises ValueError if the string does not contain a valid name."""


@pytest.fixture(scope="module")
def recorded():
    """The model and its tokenizer."""
    model, tokenizer = recorded_model()
    return model.eval(), tokenizer


def test_it_is_small_enough_to_be_cloned_and_long_enough_to_look_into(recorded):
    model, tokenizer = recorded
    assert count_parameters(model) <= 3_400_000 and model.config.block_size == 256
    assert tokenizer.vocab_size == model.config.vocab_size == 96
    assert (RECORDED / "model.safetensors").stat().st_size < 7_000_000
    assert next(model.parameters()).dtype == torch.float32


def test_it_has_learned_english(recorded):
    """Under 1.5 nats per character on a text of ours; ln 96 = 4.56 is a random model's."""
    model, tokenizer = recorded
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        _, loss = model(ids[:, :-1], ids[:, 1:])
        _, backwards = model(ids.flip(1)[:, :-1], ids.flip(1)[:, 1:])
    assert loss < 1.5 and backwards > 3.0


def test_one_of_its_heads_looks_one_token_back(recorded):
    """Chapters show it: mean attention to the token before, by head of the first block."""
    model, tokenizer = recorded
    ids = torch.tensor([tokenizer.encode(TEXT)])
    block, T = model.transformer.h[0], ids.size(1)
    with torch.no_grad():
        x = block.ln_1(model.transformer.wte(ids) + model.transformer.wpe(torch.arange(T)))
        q, k, _ = block.attn.c_attn(x).view(1, T, 3, 4, 64).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / 8).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    back = scores.softmax(-1)[0].diagonal(-1, 1, 2).mean(-1)
    assert back.max() > 0.8 and back.median() < 0.5


def test_sample_takes_it_and_it_is_not_written_over():
    words = ["--prompt", "Return the ", "--max-new-tokens", "20", "--device", "cpu"]
    command = [sys.executable, ROOT / "nanogpt_lib/sample.py", "--checkpoint", RECORDED, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Return the " in done.stdout, done.stderr
    command = [sys.executable, ROOT / "tools/record_model.py", "runs/recorded"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "must not change" in done.stderr


def test_the_recorded_answers_on_hellaswag_are_whole():
    """Chapter 09 computes scores from them: 2,000 items, four losses and lengths each, no text."""
    path = ROOT / "notebooks/recorded/hellaswag.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert len(recorded["items"]) == 2000 and path.stat().st_size < 200_000
    for item in recorded["items"]:
        assert set(item) == {"label", "characters", "losses"} and item["label"] in range(4)
        assert len(item["characters"]) == len(item["losses"]) == 4
        per_character = [a / b for a, b in zip(item["losses"], item["characters"], strict=True)]
        assert all(0.1 < value < 15 for value in per_character)
    labels = [item["label"] for item in recorded["items"]]
    assert all(400 < labels.count(ending) < 600 for ending in range(4))


def test_answers_are_recorded_as_the_plain_loop_gives_them(tmp_path, recorded):
    """Losses equal `hellaswag.ending_losses` over characters; our own items are refused."""
    own = (ROOT / "data/hellaswag_own.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    data, out = tmp_path / "val.jsonl", tmp_path / "out.json"
    tool = [sys.executable, "tools/record_hellaswag.py", "--data", data, "--out", out]
    data.write_text("\n".join(own), encoding="utf-8")
    refused = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1 and "HellaSwag's are needed" in refused.stderr
    assert "Traceback" not in refused.stderr and not out.exists()
    data.write_text("\n".join(own).replace("own~", "wikihow~"), encoding="utf-8")
    subprocess.run(tool, cwd=ROOT, check=True, capture_output=True)
    model, tokenizer = recorded
    with torch.no_grad():
        plain = [ending_losses(model, parse_item(line, tokenizer)).tolist() for line in own]
    for item, losses in zip(json.loads(out.read_text())["items"], plain, strict=True):
        assert item["losses"] == pytest.approx(losses, abs=0.01)


def test_the_recorded_pages_name_licence_and_source():
    """Chapter 08's funnel: real pages under open licences, and some of our own, marked."""
    path = ROOT / "notebooks/recorded/pages.jsonl"
    pages = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(pages) == 38 and path.stat().st_size < 400_000
    licences = {"PSF-2.0", "public domain", "PostgreSQL", "Apache-2.0", "CC0-1.0"}
    for page in pages:
        assert set(page) == {"url", "html", "licence", "source", "ours", "grade"}
        assert page["licence"] in licences and page["source"] and page["grade"] in range(6)
        assert page["ours"] == (".example/" in page["url"])  # an invented address
        assert "<script" not in page["html"]
    assert len({page["url"] for page in pages}) == 38 and sum(p["ours"] for p in pages) == 8
