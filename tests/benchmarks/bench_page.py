"""A run's page in Chromium: its size, tokens per second, and the loss before and after rounding.

python tests/benchmarks/bench_page.py runs/quickstart
python tests/benchmarks/bench_page.py notebooks/recorded/model --data data/pydocs --tokens 50000

For tokens per second on one core, put `taskset -c 0` before it, and let nothing else run.
"""

import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

from browser import Browser, why_not

from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.load import load_model
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.webpage import make_page, pack

WRITE = """document.getElementById('stop').click();
document.getElementById('length').value = given[0];
document.getElementById('write').click();
const began = performance.now();
while (document.getElementById('more').disabled) await new Promise((r) => setTimeout(r, 20));
return (stream.tokens.length - yours) * 1000 / (performance.now() - began);"""


def speeds(page: str, tokens: int, times: int) -> list[float]:
    """Tokens per second of several texts that the page writes, drawing itself meanwhile."""
    if why_not():
        sys.exit(f"bench_page.py: {why_not()}")
    browser = Browser()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page, encoding="utf-8")
        browser.open(file)
        found = [browser.value(WRITE, tokens) for _ in range(times)]
    browser.driver.quit()
    return found


def main() -> None:
    """Make the page, measure, print."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", help="a dataset for the loss on validation text")
    parser.add_argument("--tokens", type=int, default=50_000, help="of that text")
    parser.add_argument("--write", type=int, default=800, help="tokens of a text")
    args = parser.parse_args()
    model, tokenizer = load_model(args.checkpoint)
    page, _, line = make_page(model, tokenizer, prompt="The ")
    print(f"{len(page.encode('utf-8')):,} bytes; {line} (on its own text)")
    if args.data:
        stream, given = TokenStream(args.data, "val"), dict(tokens=args.tokens, batch_size=16)
        before = validation_loss(model, stream, **given)
        for dtype in ("int8", "bfloat16"):
            after = validation_loss(pack(model, dtype)[2], stream, **given)
            print(
                f"validation loss {before:.5f} → {after:.5f} in {dtype} ({after / before - 1:+.4%})"
            )
    found = speeds(page, args.write, 3)
    print("tokens per second:", ", ".join(f"{rate:.0f}" for rate in found))


if __name__ == "__main__":
    main()
