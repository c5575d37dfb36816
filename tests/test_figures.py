"""The chapters' interactive figures: in a browser they show the notebook's numbers."""

import base64
import html
import json
import math
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from conftest import ROOT
from nanogpt_course import figures, interactive
from nanogpt_lib.config import TrainConfig, micro_batch
from nanogpt_lib.optimizer import learning_rate_at
from nanogpt_lib.sampling import next_token_probabilities
from nanogpt_lib.webpage import WEB

torch.manual_seed(0)
TOKENS = [*"a cat’s</script>\n "]
T = len(TOKENS)
SCORES = torch.randn(2, 3, T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
WEIGHTS = SCORES.softmax(-1)
LABELS = [chr(97 + i) for i in range(20)]
LOGITS = 3 * torch.randn(20)
TABLE = 3 * torch.randn(20, 20)
Q, K, V = torch.randn(3, 5, 4)
GRADIENTS = torch.randn(5, 5)
RATES = dict(max_lr=6e-4, min_lr=6e-5, warmup_steps=7, max_steps=90)
ITEMS = [
    dict(ctx="He <b>", endings=["a", "b", "c", "d"], label=2, losses=[9, 8, 6, 7.5]),
    dict(ctx="She", endings=["e", "f", "g", "h"], label=0, losses=[1, 2, 3, 4]),
]  # fmt: skip
FIGURES = {
    "attention": figures.attention(TOKENS, WEIGHTS),
    "sampling": figures.sampling(LABELS, LOGITS, "so ", top_k=7, temperature=0.7),
    "table": figures.sampling(LABELS, TABLE, "ab", length=60),
    "float_bits": figures.float_bits(0.1),
    "kv_cache": figures.kv_cache([*"abcde"], Q, K, V),
    "ring_all_reduce": figures.ring_all_reduce(GRADIENTS),
    "schedule": figures.schedule(**RATES, total_batch_size=6144, batch_size=7, block_size=64),
    "hellaswag_quiz": figures.hellaswag_quiz(ITEMS),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """All figures in one page."""
    file = tmp_path_factory.mktemp("figures") / "figures.html"
    body = "\n".join(f'<div id="{name}">{f.html()}</div>' for name, f in FIGURES.items())
    file.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>figures</title><body><main>'
        f"<h1>Figures</h1>{body}</main>",
        encoding="utf-8",
    )
    return file


TOOLS = """
const figure = document.getElementById(name), find = (css) => figure.querySelector(css);
const all = (css) => [...figure.querySelectorAll(css)];
const set = (i, value) => { const input = all('input, select')[i]; input.value = value;
  input.dispatchEvent(new Event(input.tagName === 'SELECT' ? 'change' : 'input')); };
const values = (css) => all(css).map((node) => JSON.parse(node.dataset.value));
"""


@pytest.fixture
def look(browser, page):
    """Run a script on a figure; the page is loaded anew, and nothing may complain."""
    browser.open(page)
    yield lambda name, script: browser.value(f"const name = '{name}';{TOOLS}{script}")
    assert browser.complaints() == [] and browser.requests() == [page.resolve().as_uri()]


def test_attention_shows_every_head_of_every_layer_and_query(look):
    shown = look("attention", """const out = [];
        for (let l = 0; l < 2; l++) for (let h = 0; h < 3; h++) { set(0, l); set(1, h);
          for (const chip of all('.line button')) { chip.click();
            out.push(values('.line button')); } }
        return out;""")  # fmt: skip
    assert np.abs(np.array(shown).reshape(2, 3, T, T) - WEIGHTS.numpy()).max() <= 1e-6


def test_attention_by_keyboard(look):
    pressed = look("attention", """all('.line button')[3].click();
        all('.line button')[3].dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }));
        return [all('.line button').findIndex((b) => b.getAttribute('aria-pressed') === 'true'),
                document.activeElement.getAttribute('aria-label')];""")  # fmt: skip
    assert pressed[0] == 2 and pressed[1].startswith("token 2 “c”: ")


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1, 20, 1), (0.7, 7, 1), (1.5, 20, 0.6), (0.3, 4, 0.9), (0, 5, 1)],
)
def test_sampling_shows_the_librarys_probabilities(look, temperature, top_k, top_p):
    shown = look(
        "sampling",
        f"set(0, {temperature}); set(1, {top_k}); set(2, {top_p});"
        "return all('rect[data-token]').map((r) => [+r.dataset.token, +r.dataset.value]);",
    )
    probs = next_token_probabilities(LOGITS[None], temperature, top_k, top_p)[0]
    assert [i for i, _ in shown] == LOGITS.argsort(descending=True)[:14].tolist()
    assert max(abs(p - probs[i].item()) for i, p in shown) <= 1e-6


def test_sampling_draws_a_text_from_a_table_of_rows(look):
    first, again, other, greedy = look("table", """const text = () => find('.text').textContent;
        const a = text(); set(3, 2); const c = text(); set(3, 1); const b = text(); set(0, 0);
        return [a, b, c, text()];""")  # fmt: skip
    assert first == again != other and len(first) == 2 + 60
    token, expected = 1, "ab"
    for _ in range(60):
        token = TABLE[token].argmax().item()
        expected += LABELS[token]
    assert greedy == expected


NUMBERS = [0.1, -1.5, 65504, 65520, 1e-7, 6e-8, 1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, 0, 255.5]


def test_float_bits_rounds_as_pytorch_does(look):
    shown = look("float_bits", f"""return {NUMBERS}.map((x) => [0, 1, 2].map((f) => {{ set(0, x);
        set(1, f); return [find('.text').dataset.value, all('.line button').map((b) =>
        b.textContent).join('')]; }}));""")  # fmt: skip
    for x, row in zip(NUMBERS, shown, strict=True):
        for (value, bits), (name, e, f) in zip(row, figures.FORMATS, strict=True):
            exact = torch.tensor(x, dtype=torch.float64).to(getattr(torch, name))
            assert float(value.replace("Infinity", "inf")) == exact.item(), (x, name)
            whole = exact.view(torch.int16 if e + f == 15 else torch.int32).item()
            assert int(bits, 2) == whole % 2 ** (1 + e + f), (x, name)


def test_a_flipped_bit_changes_the_number(look):
    value = look("float_bits", "all('.line button')[0].click(); all('.line button')[15].click();"
                 "return find('.text').dataset.value;")  # fmt: skip
    assert float(value) == -torch.tensor(0x3DCC, dtype=torch.int16).view(torch.bfloat16).item()


def test_kv_cache_weights_and_outputs(look):
    shown = look("kv_cache", """return [0, 1, 2, 3, 4].map((t) => { set(0, t);
        return [values('td[data-value]'), values('.text')[0]]; });""")  # fmt: skip
    for t, (weights, output) in enumerate(shown):
        ours = (Q[t].double() @ K[: t + 1].double().T / 2).softmax(-1)
        assert np.abs(np.array(weights) - ours.numpy()).max() <= 1e-6
        assert np.abs(np.array(output) - (ours @ V[: t + 1].double()).numpy()).max() <= 1e-6


def test_ring_all_reduce_ends_with_every_sum_on_every_rank(look):
    half, end = look("ring_all_reduce", """set(0, 4); const half = values('td');
        for (let i = 0; i < 4; i++) all('button')[1].click();
        return [half, values('td')];""")  # fmt: skip
    sums = GRADIENTS.double().sum(0).numpy()
    assert np.abs(np.array(end).reshape(5, 5) - sums).max() <= 1e-6
    owned = np.abs(np.array(half).reshape(5, 5) - sums) <= 1e-6
    assert owned.sum() == 5 and (owned.sum(0) == 1).all()  # after reduce-scatter, one chunk each


def test_schedule_is_the_librarys(look):
    steps = [0, 3, 6, 7, 40, 89, 90]
    rate = "(s) => { set(8, s); return +find('.note').dataset.value; }"
    shown = look("schedule", f"return {steps}.map({rate});")
    ours = [learning_rate_at(s, **RATES) for s in steps]
    assert np.allclose(shown, ours, rtol=1e-6, atol=0)
    for rows, world in ((7, 1), (5, 2), (64, 4), (1, 3)):
        split = look("schedule", f"set(6, {rows}); set(7, {world}); return values('.text')[0];")
        config = TrainConfig(total_batch_size=6144, block_size=64, batch_size=rows)
        assert (split["rows"], split["steps"]) == micro_batch(config, world)
    words = look("schedule", "set(7, 7); return find('.text').textContent;")
    assert words == "96 rows cannot be shared equally by the processes."


def test_hellaswag_quiz_counts_the_reader_and_the_model(look):
    said = look("hellaswag_quiz", """all('button')[4].click(); const first = values('[data-value]');
        all('button')[1].click(); all('button')[3].click();
        return [first, all('.note').map((n) => n.textContent)];""")  # fmt: skip
    assert said[0] == [9, 8, 6, 7.5]
    assert said[1][0].startswith("No:") and said[1][1].startswith("You: 1 of 2. The model: 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_accessible_and_fit_a_phone(browser, page, scheme):
    axe = pytest.importorskip("axe_core_python")
    browser.prefer(scheme)
    browser.open(page, 360, 740)
    browser.driver.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text("utf-8"))
    found = browser.value("return (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) =>"
                          " n.html.slice(0, 120))]);")  # fmt: skip
    browser.prefer("light")
    assert found == []
    assert browser.value("return document.documentElement.scrollWidth <= innerWidth;")


# ---- what is saved in a notebook -----------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_cell_saves_html_a_picture_and_a_title(name):
    figure = FIGURES[name]
    saved = figure._repr_mimebundle_()
    assert list(saved) == ["text/html", "image/svg+xml", "text/plain"]
    ElementTree.fromstring(saved["image/svg+xml"])
    pattern = r'<img class="still" alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"'
    picture = re.search(pattern, saved["text/html"])
    assert html.unescape(picture[1]) == figure.title
    assert base64.b64decode(picture[2]).decode("utf-8") == saved["image/svg+xml"]
    assert "<noscript>" in saved["text/html"] and saved["text/html"].count("</script>") == 1
    assert json.dumps(saved) == json.dumps(figure._repr_mimebundle_())
    assert "http://" not in saved["text/html"].replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("place", ["node.parentNode.replaceChild(copy, node)",
                                   "document.head.append(copy)"])  # fmt: skip
def test_figures_run_where_a_notebook_runs_their_scripts(browser, page, place):
    """JupyterLab replaces a script by a copy of it; others run the copy in the page's head."""
    browser.open(page)
    drawn = browser.value(
        """document.body.innerHTML = given[0];
        for (const node of document.body.querySelectorAll('script')) {
          const copy = document.createElement('script');
          copy.textContent = node.textContent;
          """ + place + """;
        }
        return [...document.querySelectorAll('.course-figure')].map((figure) =>
          [figure.querySelectorAll('.still').length, figure.querySelectorAll('.controls').length]);
        """,
        FIGURES["kv_cache"].html() + FIGURES["table"].html() + FIGURES["kv_cache"].html(),
    )  # fmt: skip
    assert drawn == [[0, 1]] * 3


def test_without_scripts_the_picture_stands_there(browser, page):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.open(page)
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    stills = browser.value("return [...document.querySelectorAll('.still')].map((i) => "
                           "[i.complete, i.naturalWidth > 100]);")  # fmt: skip
    assert stills == [[True, True]] * len(FIGURES)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError, match="layers, heads"):
        figures.attention(TOKENS, WEIGHTS[0])
    with pytest.raises(AssertionError, match=r"\(V,\)"):
        figures.sampling(LABELS, LOGITS[:-1])
    with pytest.raises(AssertionError, match="ranks, chunks"):
        figures.ring_all_reduce(GRADIENTS[:2])


def test_the_package_is_installed_with_its_scripts():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    assert "nanogpt_course" in tool["packages"]
    assert ROOT / tool["package-dir"]["nanogpt_course"] == Path(figures.__file__).parent
    for package, folder in (("nanogpt_course", interactive.SCRIPTS), ("nanogpt_lib", WEB)):
        assert tool["package-data"][package] == [f"{folder.name}/*"]
        assert all(file.is_file() for file in folder.iterdir())


def test_scripts_are_short_enough_to_read():
    for file in interactive.SCRIPTS.iterdir():
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 120 and max(map(len, lines)) <= 100, file
