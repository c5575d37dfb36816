"""The built web book: its files, its links, and its pages in a real browser."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import browser  # noqa: F401

from conftest import ROOT

pytest.importorskip("sphinx_book_theme", reason="the web book's packages: pip install .[site]")

CHAPTERS = sorted(p.stem for p in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = ["index", *(f"notebooks/{name}" for name in CHAPTERS), "notebooks/glossary"]
PAGES += ["library/index", "library/model", "library/support.guard", "search"]
CHAPTER_LIMIT = 1_500_000  # bytes of a chapter's page with its pictures


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The book, built once by the real program; all workers of one session share it."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "popen-gw" in base.name else base
    out = base / "book"
    with FileLock(f"{out}.lock"):
        if not (out / "said.txt").exists():
            command = [sys.executable, ROOT / "tools/site/build.py", "--out", out]
            done = subprocess.run(command, capture_output=True, text=True)
            (out / "said.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    said = (out / "said.txt").read_text(encoding="utf-8")
    assert said.count("\n") == 1 and "pages" in said, said  # a warning is an error, see build.py
    return out


@pytest.fixture(scope="session")
def home(book) -> str:
    """The book's address on the loopback interface."""
    handler = functools.partial(Quiet, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """The standard library's file server, without a log on stderr."""

    def log_message(self, *_):
        """Say nothing."""


class Page(HTMLParser):
    """What a page refers to, its anchors, its headings and its pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ids, self.links, self.loads = path, set(), [], []
        self.headings, self.pictures, self.in_article = [], [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key) and tag != "meta"}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") not in (
            "canonical",
            "search",
            "next",
            "prev",
            "index",
        ):
            self.loads.append(given["href"])
        self.in_article = self.in_article or tag == "article"
        if re.fullmatch("h[1-6]", tag) and self.in_article:  # before it, what only a printer sees
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.pictures.append((given["src"], given.get("alt")))


@pytest.fixture(scope="session")
def pages(book) -> dict[Path, Page]:
    """Every page of the book, read."""
    return {
        path: Page(path) for path in sorted(book.rglob("*.html")) if "_static" not in path.parts
    }


def chapter(pages, book, name) -> Page:
    return pages[book / f"notebooks/{name}.html"]


def test_it_has_a_page_for_every_chapter_and_every_module(book, pages):
    assert len(CHAPTERS) >= 10
    for name in CHAPTERS:
        assert (book / f"notebooks/{name}.html").exists()
    modules = [p for p in (ROOT / "nanogpt_lib").rglob("*.py") if not p.name.startswith("__")]
    library = [p for p in pages if p.parent.name == "library" and p.name != "index.html"]
    assert len(library) == len(modules)


def test_internal_links_and_anchors_all_resolve(book, pages):
    wrong = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                wrong.append((path.name, link))
            anchor = unquote(parts.fragment) if target in pages else ""
            if anchor and anchor not in pages[target].ids:
                wrong.append((path.name, link))
    assert not wrong, wrong[:20]


def test_nothing_is_loaded_from_another_host(book, pages):
    foreign = [(p.name, u) for p, page in pages.items() for u in page.loads if "//" in u]
    for file in book.rglob("*.css"):
        urls = re.findall(r"url\(\s*['\"]?([^'\")]+)", file.read_text(encoding="utf-8"))
        imports = re.findall(r"@import\s+['\"]([^'\"]+)", file.read_text(encoding="utf-8"))
        foreign += [(file.name, u) for u in urls + imports if re.match(r"(https?:)?//", u)]
    assert not foreign


def test_the_build_leaves_nothing_beside_the_book(book):
    assert not (book.parent / "jupyter_execute").exists()  # myst-nb's, beside Sphinx's output


def test_chapters_stay_small(book, pages):
    for name in CHAPTERS:
        page = chapter(pages, book, name)
        files = (
            src for src, _ in page.pictures if not src.startswith("data:")
        )  # else: in the page
        pictures = {(page.path.parent / src).resolve() for src in files}
        size = page.path.stat().st_size + sum(p.stat().st_size for p in pictures)
        assert size <= CHAPTER_LIMIT, (name, size)


def test_headings_are_in_order_and_pictures_have_texts(pages):
    for path, page in pages.items():
        if path.name in ("gpt.html", "search.html"):  # written by other programs
            continue
        assert page.headings.count(1) == 1, path
        steps = zip(page.headings, page.headings[1:], strict=False)
        assert all(b <= a + 1 for a, b in steps), (path, page.headings)
        for src, alt in page.pictures:
            assert alt and len(alt) > 20 and not alt.endswith(".png"), (path, src, alt)


def test_chapters_link_symbols_terms_and_the_video(book, pages):
    for name in CHAPTERS:
        links = chapter(pages, book, name).links
        assert sum("/library/" in link and "#" in link for link in links) >= 10, name
        assert any("youtube.com/watch?v=l8pRSuU81PU&t=" in link for link in links), name
        terms = [link for link in links if link.startswith("glossary.html#term-")]
        assert len(terms) >= 5 and len(terms) == len(set(terms)), name


def test_nothing_of_the_machinery_is_left(book, pages):
    for name in CHAPTERS:
        text = chapter(pages, book, name).path.read_text(encoding="utf-8")
        article = text[text.index("<article") : text.index("</article>")]
        cells = re.findall(r'<div class="cell_input.*?</pre>', article, flags=re.S)
        inputs = "\n".join(re.sub(r"<[^>]+>", "", cell) for cell in cells)
        assert len(cells) > 20 and not re.search(r"^\s*#\|", inputs, re.M), name
        prose = re.sub(r"<(pre|code|script)\b.*?</\1>", "", article, flags=re.S)
        assert not re.search(r"\$[^$<>\n]{1,60}\$", prose), name
        solved = re.sub(r"<[^>]+>", "", article).count("Solution of exercise ")
        assert solved >= 4, name


def test_no_button_opens_a_hosted_notebook_while_no_address_is_known(pages):
    assert not any(
        "colab" in link or "mybinder" in link for p in pages.values() for link in p.links
    )


# ---- in the browser ------------------------------------------------------------------------------


def open_page(browser, address: str, **size) -> None:  # noqa: F811
    browser.open(address, **size)
    browser.value("await document.fonts.ready")


def errors(browser) -> list[str]:  # noqa: F811
    log = browser.driver.get_log("browser")
    return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_errors_or_foreign_requests(browser, home, name):  # noqa: F811
    open_page(browser, f"{home}/{name}.html")
    assert errors(browser) == []
    asked = browser.requests()
    assert asked and all(url.startswith(home) for url in asked), asked
    formulas = browser.value(
        "return [...document.querySelectorAll('article math')].filter(m => !m.closest('details'))"
        ".map(m => m.getBoundingClientRect()).map(r => Math.min(r.width, r.height))"
    )
    assert all(size > 3 for size in formulas)
    if name in ("notebooks/02_module", "notebooks/03_sampling"):
        assert len(formulas) > 3
        assert browser.value("return document.fonts.check('16px \"STIX Two Math\"')")


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_nothing_scrolls_sideways(browser, home, name):  # noqa: F811
    open_page(browser, f"{home}/{name}.html", width=360, height=740)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    width = browser.value("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]


def test_code_is_never_cut(browser, home):  # noqa: F811
    for width in (1400, 360):
        open_page(browser, f"{home}/notebooks/02_module.html", width=width, height=900)
        cut = browser.value(
            "return [...document.querySelectorAll('article pre')]"
            ".filter(p => p.offsetParent && p.scrollWidth > p.clientWidth + 1).length"
        )
        assert cut == 0


def test_search_finds_residual(browser, home):  # noqa: F811
    open_page(browser, f"{home}/search.html?q=residual")
    found = browser.value(  # results are shown one by one
        "let links = [];"
        "for (let i = 0; i < 200; i++) {"
        " links = [...document.querySelectorAll('#search-results li a')]"
        "  .map(a => a.getAttribute('href'));"
        " if (['02_module', 'glossary'].every(page => links.some(link => link.includes(page))))"
        "  break;"
        " await new Promise(r => setTimeout(r, 100)); } return links"
    )
    assert any("02_module" in link for link in found), found
    assert any("glossary" in link for link in found), found


def test_dark_and_light(browser, home):  # noqa: F811
    def luminance() -> float:
        colour = browser.value("return getComputedStyle(document.body).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    seen = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        open_page(browser, f"{home}/notebooks/03_sampling.html")
        browser.value("localStorage.clear()")
        open_page(browser, f"{home}/notebooks/03_sampling.html")
        seen[scheme] = luminance()
        paper = browser.value(
            "return getComputedStyle(document.querySelector('.cell_output img')).backgroundColor"
        )
        assert paper == "rgb(255, 255, 255)"  # figures keep their white paper
    browser.prefer("light")
    assert seen["light"] > 200 > 60 > seen["dark"]


def axe(browser, *, code: bool, rules: str = "") -> list[str]:  # noqa: F811
    """What axe-core finds: "rule: element"; WCAG 2.1 A and AA, or only some rules; with `code`,
    also in the colours of code, which are the same on every page and slow to go through."""
    script = Path(pytest.importorskip("axe_core_python").__file__).with_name("axe.min.js")
    browser.driver.execute_script(script.read_text(encoding="utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    only = {"type": "rule", "values": [rules]} if rules else {"type": "tag", "values": tags}
    options = {"runOnly": only, "resultTypes": ["violations"], "iframes": False}
    found = browser.value(
        "document.querySelectorAll('details').forEach(d => d.open = true);"
        "await Promise.all(document.getAnimations().map((a) => a.finished));"
        "const found = await axe.run(arguments[0], arguments[1]); return found.violations",
        {"exclude": [] if code else [["article .highlight pre"]], "include": [["html"]]},
        options,
    )
    return [f"{v['id']}: {n['html'][:160]}" for v in found for n in v["nodes"]]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(browser, home, name):  # noqa: F811
    open_page(browser, f"{home}/{name}.html")
    assert axe(browser, code="02_" in name) == []


@pytest.mark.parametrize("name", ["index", "notebooks/02_module", "library/model"])
def test_contrast_in_the_dark(browser, home, name):  # noqa: F811
    browser.prefer("dark")
    open_page(browser, f"{home}/{name}.html")
    found = axe(browser, code=True, rules="color-contrast")
    browser.prefer("light")
    assert found == []


def test_code_is_copied_whole(browser, home):  # noqa: F811
    open_page(browser, f"{home}/notebooks/02_module.html")
    missing = browser.value(
        "return [...document.querySelectorAll('article div.cell_input pre')]"
        ".filter(p => !p.parentElement.querySelector('button.copybtn')).length"
    )
    assert missing == 0
    from selenium.webdriver import ActionChains

    pre, button = browser.driver.execute_script(
        "addEventListener('copy', () => { window.copied = document.activeElement.value; });"
        "const pre = [...document.querySelectorAll('article div.cell_input pre')]"
        ".find(p => p.offsetParent && p.textContent.includes('class GPTConfig'));"
        "pre.scrollIntoView({block: 'center'});"
        "return [pre, pre.parentElement.querySelector('button.copybtn')]"
    )
    ActionChains(browser.driver).move_to_element(pre).move_to_element(button).click().perform()
    copied = browser.value("return window.copied")
    assert copied.strip() == pre.get_attribute("textContent").strip()
    assert "n_embd: int = 768" in copied


def test_it_opens_from_a_file(browser, book):  # noqa: F811
    for name in ("index", "notebooks/02_module"):
        browser.open(book / f"{name}.html")
        assert errors(browser) == []
        assert all(url.startswith("file://") for url in browser.requests())


def test_the_keyboard_reaches_cards_and_content(browser, home):  # noqa: F811
    open_page(browser, f"{home}/notebooks/03_sampling.html")
    folded = browser.value(
        "const d = document.querySelector('details.solution'), s = d.querySelector('summary');"
        "s.focus(); return [d.open, document.activeElement === s]"
    )
    assert folded == [False, True]
    from selenium.webdriver.common.keys import Keys

    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.value("return document.querySelector('details.solution').open")


def test_the_first_page_runs_a_model(browser, book, home):  # noqa: F811
    assert (book / "gpt.html").stat().st_size < 5_000_000
    open_page(browser, f"{home}/index.html")
    browser.driver.switch_to.frame("model")
    try:
        said = browser.value(
            "for (let i = 0; i < 300; i++) {"
            " if (/[1-9]\\d* characters, \\d+ per second/.test(document.body.innerText)) break;"
            " await new Promise(r => setTimeout(r, 100)); } return document.body.innerText"
        )
    finally:
        browser.driver.switch_to.default_content()
    assert re.search(r"[1-9]\d* characters, \d+ per second", said), said[:300]


def test_what_the_build_says(book):
    said = (book / "said.txt").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d+ pages, [\d.]+ MB, \d+ s: open .*index\.html\n", said)
    assert json.loads((book / "nanogpt-site.json").read_text()) == {}
