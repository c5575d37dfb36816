"""Interoperation: transformers and lm-eval load our models and compute the same."""

import hashlib

import pytest
import torch

from nanogpt_lib.checkpoint import save_checkpoint
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.pretrained import GPT2_SIZES
from nanogpt_lib.sampling import generate, next_token_logits
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.tokenizer_files import gpt2_files, merge_of
from nanogpt_lib.support.vocabulary import GPT2_FILES
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

TEXT = "  The naïve cat's 3 hats\n\n\tin 日本 <|endofte 🙂 "
CHARACTERS = CharTokenizer(TEXT + "abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> GPT2Tokenizer:
    """GPT-2's tokenizer."""
    return GPT2Tokenizer()


def odd_model(**changes) -> GPT:
    """A small GPT with large, uneven weights, so that no mistake can hide."""
    torch.manual_seed(0)
    shape = dict(block_size=32, vocab_size=61, n_layer=2, n_head=2, n_embd=16, vocab_multiple=64)
    model = GPT(GPTConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(float("ln_" in name and name.endswith("weight")), 0.3)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory, gpt2_tokenizer):
    """A run of ours with GPT-2's tokens, and the Hugging Face folder made of it."""
    folder = tmp_path_factory.mktemp("run")
    model = odd_model(vocab_size=50257)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(folder, 1, model, optimizer, {"tokenizer": gpt2_tokenizer.describe()})
    model, tokenizer = load_model(str(folder))
    save_huggingface(folder / "hf", vars(model.config), model.state_dict(), tokenizer)
    return model.eval(), folder


def continuation(model: GPT, tokenizer, text: str) -> str:
    """Six tokens, greedily."""
    idx = torch.tensor([tokenizer.encode(text)])
    return tokenizer.decode(generate(model, idx, 6, temperature=0)[0].tolist())


# ---- transformers


def test_a_run_of_ours_speaks_through_the_pipeline_of_transformers(exported, gpt2_tokenizer):
    from transformers import pipeline

    model, folder = exported
    speak = pipeline("text-generation", model=str(folder / "hf"))
    assert len(speak.model.transformer.wte.weight) == 50257  # padding removed
    (answer,) = speak("The capital of", max_new_tokens=6, do_sample=False)
    assert answer["generated_text"] == continuation(model, gpt2_tokenizer, "The capital of")


def test_a_run_with_characters_speaks_through_the_pipeline_too(tmp_path):
    from transformers import pipeline

    model = odd_model(vocab_size=CHARACTERS.vocab_size)
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), CHARACTERS)
    speak = pipeline("text-generation", model=str(tmp_path))
    (answer,) = speak("The cat", max_new_tokens=6, do_sample=False)
    assert answer["generated_text"] == continuation(model, CHARACTERS, "The cat")


@pytest.mark.parametrize("kind", ["gpt2", "char"])
def test_the_tokenizer_that_others_load_gives_our_ids_and_our_text(tmp_path, gpt2_tokenizer, kind):
    from transformers import AutoTokenizer

    ours = gpt2_tokenizer if kind == "gpt2" else CHARACTERS
    model = odd_model(vocab_size=ours.vocab_size)
    save_huggingface(tmp_path, vars(model.config), model.state_dict(), ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXT) == ours.encode(TEXT)
    assert theirs.decode(theirs.encode(TEXT)) == TEXT
    assert theirs.model_max_length == 32
    assert theirs.eos_token_id == ours.eot
    if kind == "gpt2":
        assert theirs.encode("a<|endoftext|>")[-1] == 50256


@pytest.mark.parametrize("size", GPT2_SIZES)
def test_every_size_makes_the_round_trip_through_transformers(size, tmp_path):
    from transformers import AutoModelForCausalLM

    model = odd_model(**{**GPT2_SIZES[size], "n_layer": 1})
    save_huggingface(tmp_path / "ours", vars(model.config), model.state_dict())
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = GPT.from_pretrained(str(tmp_path / "theirs")).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor[:61] if name.endswith(("wte.weight", "head.weight"))
                           else tensor), name  # fmt: skip


# ---- lm-eval


def test_lm_eval_measures_the_likelihoods_that_we_compute(exported, gpt2_tokenizer):
    pytest.importorskip("lm_eval.models.huggingface", reason="pip install lm-eval[hf]")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, folder = exported
    items = [("A man sits on", " the roof of a house."), ("Cats", " sat"), ("3 + 4 =", " 7")]
    harness = HFLM(pretrained=str(folder / "hf"), device="cpu", dtype="float32", batch_size=1)
    theirs = harness.loglikelihood([Instance("loglikelihood", {}, item, 0) for item in items])
    for (context, ending), (likelihood, _) in zip(items, theirs, strict=True):
        before, after = gpt2_tokenizer.encode(context), gpt2_tokenizer.encode(ending)
        with torch.no_grad():
            hidden = model.transformer(torch.tensor([before + after]))[0, len(before) - 1 : -1]
        ours = (
            next_token_logits(model, hidden).log_softmax(-1)[range(len(after)), after].sum().item()
        )
        assert likelihood == pytest.approx(ours, abs=1e-4)


# ---- the files


def test_the_vocabulary_files_are_openais_byte_for_byte():
    files = gpt2_files()
    for ours, theirs in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        assert hashlib.sha256(files[ours].encode()).hexdigest() == GPT2_FILES[theirs]


def test_a_merge_is_found_by_the_order_of_learning():
    ids = {bytes([b]): b for b in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258}
    assert merge_of(b"abc", ids) == (b"a", b"bc")
    assert merge_of(b"abc", {**ids, b"ab": 256, b"bc": 257}) == (b"ab", b"c")


def test_without_a_tokenizer_only_the_model_is_written(tmp_path):
    model = odd_model()
    save_huggingface(tmp_path, vars(model.config), model.state_dict())
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_run_is_never_overwritten_by_its_own_export(exported, gpt2_tokenizer):
    model, folder = exported
    (folder / "config.json").write_text("mine")
    with pytest.raises(UserError, match="holds a run, whose config.json is needed"):
        save_huggingface(folder, vars(model.config), model.state_dict(), gpt2_tokenizer)
    assert (folder / "config.json").read_text() == "mine"


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    model = odd_model()
    with pytest.raises(UserError, match="the tokenizer has .* tokens; the model has 61"):
        save_huggingface(tmp_path / "hf", vars(model.config), model.state_dict(), CHARACTERS)
    assert not (tmp_path / "hf").exists()
