"""What tests/benchmarks/cost_of_weights.py measures: the rounding, and nothing else."""

import subprocess

import compare_sampling
import numpy as np
import pytest
import torch
from cost_of_weights import measure, round_weights, same_for

from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.support.weight_formats import LOSSY, works


def tiny() -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16)).eval()


@pytest.mark.parametrize("name", LOSSY)
def test_a_model_of_rounded_weights_computes_what_sampling_with_them_does(name):
    if not works(name):
        pytest.skip(f"no products in {name} here")
    exact, model, idx = tiny(), tiny(), torch.tensor([[3]])
    round_weights(model, name)
    assert torch.equal(model.transformer.wte.weight, exact.transformer.wte.weight)
    with torch.inference_mode():
        with fast_inference(exact, torch.device("cpu"), torch.float32, 1, name):
            sampled = exact(idx)[0]
        assert torch.allclose(model(idx)[0], sampled, atol=1e-5)
        assert not torch.allclose(exact(idx)[0], sampled, atol=1e-5)


def test_every_format_has_its_cost_beside_the_exact_model(tmp_path):
    rng = np.random.default_rng(0)
    meta = {"name": "noise", "source": "noise", "tokenizer": {"name": "gpt2"}, "vocab_size": 50}
    splits = [rng.integers(0, 50, n).astype(np.uint16) for n in (40, 300)]
    write_splits(tmp_path, meta, *splits)
    rows = measure(lambda: (tiny(), None), tmp_path, tokens=160, new=5)
    assert [row["weights"] for row in rows] == ["float32", *filter(works, LOSSY)]
    for row in rows[1:]:
        assert 0 < row["mean_change"] < row["largest_change"] < 0.1
        assert 0 < abs(row["perplexity"] / rows[0]["perplexity"] - 1) < 0.01
        assert len(row["same_tokens"]) == 8 and max(row["same_tokens"]) <= row["of"] == 5


def test_equal_tokens_are_counted_up_to_the_first_difference():
    assert same_for([1, 2, 3], [1, 2, 3]) == 3 and same_for([1, 5, 3], [1, 2, 3]) == 1


def test_the_busy_process_ends_with_the_measurement(monkeypatch):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *how, **options):
            super().__init__(*how, **options)
            started.append(self)

    monkeypatch.setattr(compare_sampling.subprocess, "Popen", Noted)
    with compare_sampling.busy_core(False):
        assert started == []
    with pytest.raises(ValueError), compare_sampling.busy_core(True):
        assert started[0].poll() is None
        raise ValueError
    assert started[0].poll() is not None
