"""A real browser for tests: Chromium without a window, what it requested, what it complained of."""

import functools
import json
import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--no-proxy-server"
).split()


@functools.cache
def why_not() -> str:
    """Why there is no browser here, or an empty string."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install -c constraints.txt selenium"
    if not (CHROMIUM and CHROMEDRIVER):
        return "no Chromium here; on Debian: apt-get install chromium chromium-driver"
    return ""


class Browser:
    """Chromium by selenium: `open` a file or address, `run` a script, look at `requests`."""

    def __init__(self):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.ChromeService(CHROMEDRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(120)

    def open(self, where: str | Path, width: int = 1200, height: int = 900) -> None:
        """Load a page and forget what earlier ones requested and complained of."""
        self.driver.get_log("performance"), self.driver.get_log("browser")
        self.resize(width, height)
        self.driver.get(where.resolve().as_uri() if isinstance(where, Path) else where)

    def resize(self, width: int, height: int) -> None:
        """The size of the viewport; a window cannot be as narrow as a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """Set what the reader's system prefers: "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script: str, *arguments):
        """The value of a function body; a promise is waited for, an exception raised here."""
        body = "(async function () {" + script + "}).apply(null, given)"
        return self.driver.execute_async_script(
            "const given = [...arguments], done = given.pop();" + body + ".then((value) => "
            "done([true, value]), (error) => done([false, String(error && error.stack)]));",
            *arguments,
        )

    def value(self, script: str, *arguments):
        """As `run`, without the wrapper: fails the test if the script throws."""
        fine, value = self.run(script, *arguments)
        assert fine, value
        return value

    def requests(self) -> list[str]:
        """Addresses requested since `open`; what a page holds itself (data:, blob:) is none."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        addresses = [p["request"]["url"] for p in sent]
        return [a for a in addresses if not a.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since `open`."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests that look at pages; without one they skip."""
    if why_not():
        pytest.skip(why_not())
    browser = Browser()
    yield browser
    browser.driver.quit()
