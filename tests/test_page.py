"""What page.py promises: one file that computes in a browser what the model computes here."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import program
from nanogpt_lib import page, webpage
from nanogpt_lib.answering import recent, reply
from nanogpt_lib.conversations import encode_conversation, roles_of, with_roles
from nanogpt_lib.load import RECORDED, recorded_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.sampling import generate
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, encode_prompt
from nanogpt_lib.webpage import WEB, make_page, pack, rise, round_int8

ODD_TEXTS = [
    "Hello, I'm a language model, aren't you? We'll see; they've said it's ours.",
    "  two spaces,\ttabs\t\tand\n\n\nnewlines \r\n at the end   ",
    "naïve café — “quotes” … 日本語のテキスト 한국어 Ελληνικά עברית",
    "emoji 👩‍👩‍👧‍👦 flags 🇩🇪 and a combining e\u0301; zero\u200bwidth, no-break\u00a0space",
    "next line\u0085here, ogham\u1680space, ideographic\u3000space, \ufeffbyte order mark",
    "\x1c\x1d\x1e\x1f control \x00 characters \x7f and ²³¼ Ⅷ ٣٤٥ numbers 12345 3.14",
    "<|endoftext|>After the end<|endoftext|>", "'S 'T 'RE don'T '' 'll'd'm", " ", "\n", "a" * 600,
]  # fmt: skip


def random_model(tokenizer, **shape) -> GPT:
    """A small model with random weights, larger than at the start so that logits differ."""
    torch.manual_seed(0)
    shape = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 12, **shape}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.dim() == 1))
    return model.eval()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The recorded model's page, the model that it runs, and the tokenizer."""
    model, tokenizer = recorded_model()
    text, rounded, _ = make_page(model, tokenizer, prompt="Return ")
    file = tmp_path_factory.mktemp("page") / "recorded.html"
    file.write_text(text, encoding="utf-8")
    return file, rounded.eval(), tokenizer


IDLE = (
    "while (document.getElementById('more').disabled) await new Promise((r) => setTimeout(r, 20));"
)
STOP = "document.getElementById('stop').click();"


def write(browser, prompt: str, **settings) -> str:
    """Let the page write from a prompt; the text that it shows at the end."""
    return browser.value(
        STOP + "const [prompt, settings] = given;"
        "for (const [id, value] of Object.entries({ prompt, ...settings })) {"
        "  document.getElementById(id).value = value; }"
        "document.getElementById('write').click();" + IDLE + "return spans.map((s) => "
        "s.textContent).join('');",
        prompt,
        settings,
    )


# ---- the model -----------------------------------------------------------------------------------


def logits_of(browser, prompts: list[list[int]]) -> list[np.ndarray]:
    """What model.js says after each prompt: half of it fed at once, the rest token by token."""
    script = """return given[0].map((ids) => {
        const cache = new_cache(model.config), half = ids.length >> 1;
        if (half) model.forward(ids.slice(0, half), cache);
        let logits;
        for (const id of ids.slice(half)) logits = model.forward([id], cache);
        return [...logits];
    });"""
    return [np.array(row) for row in browser.value(script, prompts)]


def prompts_of(vocab_size: int, block_size: int, count: int) -> list[list[int]]:
    """Random prompts of up to 24 tokens."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, min(block_size, 24) + 1, count)
    return [rng.integers(0, vocab_size, n).tolist() for n in lengths]


def test_logits_equal_pytorchs_on_200_prompts(browser, recorded):
    file, model, tokenizer = recorded
    browser.open(file)
    browser.value(STOP)
    prompts = prompts_of(tokenizer.vocab_size, 256, 200)
    ours = logits_of(browser, prompts)
    with torch.no_grad():
        theirs = [model(torch.tensor([ids]))[0][0, -1].numpy() for ids in prompts]
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) < 1e-3


MUTATIONS = {
    "another head": "window.attention_weights = ((f) => (cache, at, head, H, D) => "
    "f(cache, at, H - 1 - head, H, D))(attention_weights)",
    "no gelu": "window.gelu = (x) => x.map((u) => Math.max(0, u))",
    "a cache that forgets": "LayerCache.prototype.append = ((f) => function (q, k, v) {"
    "f.call(this, q, k, v); this.v.fill(0, 0, v.length); })(LayerCache.prototype.append)",
}


@pytest.mark.parametrize("wrong", MUTATIONS)
def test_a_wrong_model_is_noticed(browser, recorded, wrong):
    file, model, tokenizer = recorded
    browser.open(file)
    browser.value(STOP + MUTATIONS[wrong])
    prompts = prompts_of(tokenizer.vocab_size, 256, 3)
    with torch.no_grad():
        theirs = [model(torch.tensor([ids]))[0][0, -1].numpy() for ids in prompts]
    ours = logits_of(browser, prompts)
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) > 1e-2


def test_500_greedy_characters_equal_pytorchs(browser, recorded):
    """Longer than the context of 256, so that the cache is rebuilt."""
    file, model, tokenizer = recorded
    browser.open(file)
    text = write(browser, "The list ", temperature=0, length=500)
    idx = torch.tensor([tokenizer.encode("The list ")])
    assert text == tokenizer.decode(generate(model, idx, 500, temperature=0)[0].tolist())
    assert len(text) == 509


def test_biases_odd_sizes_and_gpt2s_tokens(browser, tmp_path):
    """50,257 rows do not divide by four; 12 channels in 3 heads; padded rows stay behind."""
    tokenizer = GPT2Tokenizer()
    model = random_model(tokenizer, n_head=3, vocab_multiple=64)
    text, rounded, _ = make_page(model, tokenizer, prompt="Hi", dtype="bfloat16")
    (tmp_path / "bpe.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "bpe.html")
    browser.value(STOP)
    prompts = prompts_of(tokenizer.vocab_size, 32, 4)
    with torch.no_grad():
        theirs = [rounded(torch.tensor([ids]))[0][0, -1].numpy() for ids in prompts]
    for a, b in zip(logits_of(browser, prompts), theirs, strict=True):
        assert a.shape == b.shape and np.abs(a - b).max() < 1e-3
    ids = browser.value("return given[0].map((text) => tokenizer.encode(text));", ODD_TEXTS)
    assert ids == [encode_prompt(tokenizer, text) for text in ODD_TEXTS]
    back = browser.value(
        "return given[0].map((ids) => new TextDecoder('utf-8', { ignoreBOM: true }).decode("
        "Uint8Array.from(ids.flatMap((id) => [...tokenizer.bytes(id)]))));",
        ids,
    )
    assert back == ODD_TEXTS
    assert browser.complaints() == []


# ---- the page ------------------------------------------------------------------------------------


def test_it_writes_at_once_and_requests_nothing(browser, recorded):
    file, _, _ = recorded
    browser.open(file)
    shown = browser.value(IDLE + "return [spans.length, $('status').textContent];")
    assert shown[0] == len("Return ") + 400 and "per second" in shown[1]
    assert browser.requests() == [file.resolve().as_uri()] and browser.complaints() == []
    for attempt in ("fetch('https://example.org')", "fetch(location)", "import('data:text/js,1')"):
        went = f"try {{ await {attempt}; return true; }} catch {{ return false; }}"
        assert not browser.value(went), attempt
    assert file.stat().st_size < 5_000_000


def test_a_seed_repeats_a_text_and_stop_and_continue_do_what_they_say(browser, recorded):
    file, _, _ = recorded
    browser.open(file)
    first = write(browser, "The ", seed=1, length=40, temperature=1)
    assert first == write(browser, "The ", seed=1) != write(browser, "The ", seed=2)
    longer = browser.value("$('more').click();" + IDLE + "return spans.length;")
    assert longer == 4 + 40 + 40
    wait = "await new Promise((r) => setTimeout(r, 200));"
    stopped = browser.value(
        f"$('length').value = 5000; $('write').click(); {wait} $('stop').click();"
        f"const n = spans.length; {wait} return [n, spans.length, $('stop').disabled];"
    )
    assert stopped[0] == stopped[1] < 5000 and stopped[2]


def test_losses_bars_and_attention_are_the_models(browser, recorded):
    file, model, tokenizer = recorded
    text = "Return the number of items in the list."
    browser.open(file)
    browser.value(STOP + "$('prompt').value = given[0]; $('read').click();" + IDLE, text)
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logits, _ = model(ids)
    logs = logits[0].double().log_softmax(-1)
    losses = -logs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    shown = browser.value("return seen.slice(0, -1).map((s) => s.loss);")
    assert np.abs(np.array(shown) - losses.numpy()).max() < 1e-4
    assert f"{losses.mean():.3f} nats" in browser.value("return $('summary').textContent;")
    colours = browser.value("return spans.map((s) => s.style.background);")
    assert "color-mix" in colours[int(losses.argmax()) + 1]
    browser.value("spans[20].click();")
    bars = browser.value("return [...$('bars').children].map((b) => [+b.dataset.token, "
                         "+b.dataset.value]);")  # fmt: skip
    best = logs[20].exp().topk(10)
    assert [b[0] for b in bars] == best.indices.tolist()
    assert np.allclose([b[1] for b in bars], best.values.numpy(), atol=1e-5)
    weights = browser.value("return [...weights({ layer: 0, head: 3 })];")
    block = model.transformer.h[0]
    with torch.no_grad():
        x = block.ln_1(model.transformer.wte(ids) + model.transformer.wpe.weight[: ids.size(1)])
        q, k, _ = block.attn.c_attn(x).view(1, -1, 3, 4, 64).permute(2, 0, 3, 1, 4)
    ours = (q[0, 3, 20] @ k[0, 3, :21].T / 8).softmax(-1)
    assert np.abs(np.array(weights) - ours.numpy()).max() < 1e-5


def test_a_token_that_left_the_context_can_still_be_looked_at(browser, recorded):
    file, _, _ = recorded
    browser.open(file)
    write(browser, "Return the value of x", length=1)
    before = browser.value("choose(9); return [...weights(head)];")
    more = "$('length').value = 300; $('more').click();" + IDLE
    after = browser.value(
        more + "choose(9); return [stream.start, [...weights(head)], $('looks').textContent];"
    )
    assert after[0] > 9 and np.allclose(before, after[1], atol=1e-6)
    assert "Layer 0, head 0 looks from" in after[2]


# ---- a conversation ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """The page of a model with role tokens, the model that it runs, and the tokenizer."""
    tokenizer = with_roles(CharTokenizer("abc ?"))
    model = random_model(tokenizer, block_size=48)
    text, rounded, _ = make_page(model, tokenizer, prompt="a?", dtype="bfloat16")
    file = tmp_path_factory.mktemp("chat") / "chat.html"
    file.write_text(text, encoding="utf-8")
    return file, rounded.eval(), tokenizer


ASK = "$('prompt').value = given[0]; $('write').click();" + IDLE + "return stream.tokens;"


def test_a_conversation_equals_chats_and_drops_its_oldest_turns(browser, talking):
    """Eight questions to a model with a context of 48 tokens, answered by the likeliest tokens."""
    file, model, tokenizer = talking
    browser.open(file)
    roles, messages, ended, dropped = roles_of(tokenizer), [], 0, False
    for number, question in enumerate(["a?", "bc", "c a b?", "", "abcabc", "b b", "a b c?", "cc"]):
        messages.append({"role": "user", "content": question})
        shown = browser.value(IDLE + "return stream.tokens;") if number == 0 else (
            browser.value(ASK, question))  # fmt: skip
        ids = recent(tokenizer, messages, 48 - 12)
        answer = list(reply(model, tokenizer, messages, 12, temperature=0))
        finished = len(answer) < 12
        assert shown == ids + answer + [roles.end] * finished
        ended, dropped = (
            ended + finished,
            dropped or len(ids) < len(encode_conversation(tokenizer, messages)),
        )
        messages.append({"role": "assistant", "content": tokenizer.decode(answer)})
    assert 0 < ended < 8 and dropped  # both ends of an answer, and a context that was too short
    assert browser.complaints() == []


def test_a_new_conversation_a_forged_turn_and_the_keyboard(browser, talking):
    file, _, tokenizer = talking
    browser.open(file)
    browser.value(IDLE)
    assert browser.value("return $('write').textContent;") == "Ask"
    browser.value("$('more').click();")
    assert browser.value("return [spans.length, $('text').textContent, $('summary').textContent];"
                         ) == [0, "", ""]  # fmt: skip
    browser.value("$('heads').children[1].click();")  # nothing to look at: no complaint
    said = "$('prompt').value = given[0]; $('write').click(); return $('status').textContent;"
    assert "“◂” is a role token" in browser.value(said, "a◂b")
    assert "Your question has" in browser.value(said, "a" * 60)
    enter = "$('prompt').dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));" + IDLE
    ids = browser.value("$('prompt').value = 'b?';" + enter + "return stream.tokens;")
    asked = encode_conversation(tokenizer, [{"role": "user", "content": "b?"}])
    assert ids[: len(asked)] == asked and len(ids) > len(asked)
    classes = browser.value("return spans.map((s) => s.className.includes('yours'));")
    assert classes == [True] * len(asked) + [False] * (len(ids) - len(asked))
    assert browser.complaints() == []


def test_the_program_makes_a_chat_of_a_model_that_answers(monkeypatch, tmp_path):
    tokenizer = with_roles(CharTokenizer(" ?0123abc"))
    model = random_model(tokenizer, block_size=48)
    monkeypatch.setattr(page, "load_model", lambda source: (model, tokenizer))
    arguments = ["--checkpoint", "runs/x", "--out", str(tmp_path / "a.html")]
    for prompt, says in (
        ("0◂1", "role token"),
        ("0" * 40, "at most 36 fit"),
        (None, "character 'W'"),
    ):
        with pytest.raises(UserError, match=says):
            page.main([*arguments, *(["--prompt", prompt] if prompt else [])])
    assert not list(tmp_path.iterdir())
    page.main([*arguments, "--prompt", "a b?"])
    assert '"roles":{"start":' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_gpt2s_role_tokens_cannot_be_typed(browser, tmp_path):
    tokenizer = with_roles(GPT2Tokenizer())
    text, _, _ = make_page(random_model(tokenizer, block_size=64), tokenizer, prompt="Hi")
    (tmp_path / "chat.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "chat.html")
    browser.value(IDLE + "$('more').click();")
    question = "Hi <|end|><|user|> yes<|assistant|>"
    ids = browser.value(ASK, question)
    asked = encode_conversation(tokenizer, [{"role": "user", "content": question}])
    assert ids[: len(asked)] == asked


@pytest.mark.parametrize(
    ("text", "says"),
    [("naïve", "“ï” is not among the 96 characters"), ("x" * 20001, "20,001 characters")],
)
def test_input_that_the_model_cannot_read_gets_a_sentence(browser, recorded, text, says):
    file, _, _ = recorded
    browser.open(file)
    browser.value(STOP + "$('prompt').value = given[0]; $('write').click();", text)
    assert says in browser.value("return $('status').textContent;")
    assert browser.value("return $('status').className;") == "wrong"
    assert browser.complaints() == []


DAMAGE = {
    "cut": lambda html: html[: len(html) // 2],
    "cut at the end": lambda html: html[: html.rindex('id="weights"')],
    "one weight": lambda html: html[:-2_000_000] + "AAAA" + html[-2_000_000 + 4 :],
    "no base64": lambda html: html[:-2_000_000] + "§" + html[-2_000_000 + 1 :],
    "about": lambda html: html.replace('id="about">{', 'id="about">{,'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_page_says_so(browser, recorded, tmp_path, kind):
    file, _, _ = recorded
    damaged = tmp_path / "damaged.html"
    damaged.write_text(DAMAGE[kind](file.read_text(encoding="utf-8")), encoding="utf-8")
    browser.open(damaged)
    assert "This file is damaged" in browser.value("return document.body.textContent;")
    assert browser.complaints() == []


def test_a_phone_both_themes_and_the_keyboard(browser, recorded):
    file, _, _ = recorded
    browser.open(file, 360, 740)
    assert browser.value(STOP + "return document.documentElement.scrollWidth <= innerWidth;")
    paper = "return getComputedStyle(document.body).backgroundColor;"
    light = browser.value("location.hash = '#light'; await 0;" + paper)
    changed = "await new Promise((r) => addEventListener('hashchange', r, { once: true }));"
    dark = browser.value("setTimeout(() => { location.hash = '#dark'; });" + changed + paper)
    assert light != dark
    browser.prefer("dark")
    assert browser.value("setTimeout(() => { location.hash = ''; });" + changed + paper) == dark
    browser.prefer("light")
    keys = "$('text').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }));"
    before, after = browser.value(f"const a = looking(); {keys} return [a, looking()];")
    assert after == before - 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(browser, recorded, scheme):
    axe = pytest.importorskip("axe_core_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.prefer(scheme)
    browser.open(recorded[0])
    browser.value(STOP + "document.querySelector('[value=attention]').click(); choose(5);")
    browser.driver.execute_script(script)
    found = browser.value("return (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) =>"
                          " n.html.slice(0, 90))]);")  # fmt: skip
    browser.prefer("light")
    assert found == []


# ---- rounding and the program --------------------------------------------------------------------


def test_int8_loses_next_to_nothing_and_is_chosen(recorded):
    model, tokenizer = recorded_model()
    _, data, rounded = pack(model.eval(), "int8")
    assert 0 < rise(model, rounded, 0) < 0.001
    assert len(data) < 3_300_000
    _, _, line = make_page(model, tokenizer, prompt="")
    assert line.startswith("int8: rounding raises the loss by 0.0")


def test_bfloat16_is_chosen_where_int8_loses_too_much():
    """One large weight in every row leaves few of the 255 steps for the others."""
    tokenizer = CharTokenizer("abcdefgh")
    model = random_model(tokenizer)
    with torch.no_grad():
        for block in model.transformer.h:  # a channel that is always zero: its weights are free
            for norm, linear in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight[0] = norm.bias[0] = 0
                linear.weight[:, 0] = 300
    _, rounded, line = make_page(model, tokenizer, prompt="a")
    assert line.startswith("bfloat16: ")
    assert torch.equal(rounded.lm_head.weight, model.lm_head.weight.bfloat16().float())


def test_int8_rounds_to_the_nearest_of_255_steps_in_a_row():
    weight = torch.randn(5, 40)
    whole, scales = round_int8(weight)
    assert whole.abs().amax(dim=1).tolist() == [127] * 5
    assert ((whole * scales - weight).abs() <= scales / 2 * (1 + 1e-5)).all()


def test_the_program_writes_one_file_with_a_strict_policy(tiny_run, tmp_path):
    done = program("page.py", "--checkpoint", tiny_run, "--out", tmp_path / "my.html", "--title",
                   "Fish & {{style}} <b>", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["my.html"]
    text = (tmp_path / "my.html").read_text(encoding="utf-8")
    assert "<title>Fish &amp; {{style}} &lt;b&gt;</title>" in text
    assert "default-src 'none'" in text and "unsafe" not in text and "http" not in re.sub(
        r"http-equiv|http://www.w3.org", "", text
    )  # fmt: skip


def test_train_says_how_to_make_the_page(tiny_run):
    last = (tiny_run / "stdout.txt").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert f"python nanogpt_lib/page.py --checkpoint {tiny_run} --out my-gpt.html" in last


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--out", "gpt.txt"], "must end in .html"),
        (["--checkpoint", "no/such/run"], "no/such/run"),
        (["--prompt", "ß"], "character 'ß' is not in the alphabet"),
        (["--out", "{file}/gpt.html"], "a file is in the way"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, flags, says):
    (tmp_path / "file").write_text("x")
    flags = [f.format(file=tmp_path / "file") for f in flags]
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        page.main(["--checkpoint", str(RECORDED), "--out", str(tmp_path / "gpt.html"), *flags])
    assert "\n" not in str(caught.value)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file"]


def test_models_that_a_page_cannot_run_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "LARGEST_PAGE", 1_000_000)
    with pytest.raises(UserError, match="3,238,144 parameters; a page is for at most 1,000,000"):
        page.main(["--checkpoint", str(RECORDED), "--out", str(tmp_path / "a.html")])
    tokenizer = CharTokenizer("ab")
    model = random_model(tokenizer)
    assert webpage.fits_page(model)
    monkeypatch.setattr(webpage, "LARGEST_PAGE", 100)
    assert not webpage.fits_page(model)
    with pytest.raises(UserError, match="GPT-2's architecture only"):
        page.check(type("Modern", (GPT,), {})(model.config), tokenizer, "runs/modern")
    with pytest.raises(UserError, match="no tokenizer"):
        page.check(model, None, "runs/x")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        make_page(model, tokenizer, prompt="a")


def test_the_lesson_stays_a_lesson():
    """The model's JavaScript is read in a chapter: at most 200 lines, and names as in model.py."""
    lines = (WEB / "model.js").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and sum("//" in line for line in lines) >= 40
    for name in ("c_attn", "c_proj", "c_fc", "ln_1", "ln_2", "ln_f", "wte", "wpe", "n_head",
                 "class CausalSelfAttention", "class MLP", "class Block", "class GPT", "gelu",
                 "attention_by_hand", "class LayerCache"):  # fmt: skip
        assert any(name in line for line in lines), name
    for file in WEB.iterdir():
        text = file.read_text(encoding="utf-8").splitlines()
        assert len(text) <= 300 and max(map(len, text)) <= 100, file
