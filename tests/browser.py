"""A headless Chromium for the tests of pages: `pytest_plugins = ["browser"]`, then the fixture `visit`.

A visit records every request, console error, page error and dialog. All network but `file:` and the origin
that is being visited is cut, so that a page that asks for more shows it: `visit.requests`, `visit.blocked`.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
LOCAL = ("file", "data", "blob", "about")
PATIENCE = 15  # seconds that a page may take on a machine that does much else
HOW = (
    "no Chromium: install the package `chromium`, or run `python -m playwright install chromium`, "
    "or name a browser in CHROMIUM"
)


def find_chromium() -> str | None:
    """CHROMIUM, else a browser on the PATH; None leaves it to the one that Playwright installs."""
    named = os.environ.get("CHROMIUM")
    if named and not shutil.which(named):
        raise FileNotFoundError(f"CHROMIUM is {named}, which is no program: {HOW}")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    """An open page with all that it did so far."""

    page: object  # playwright's Page: tests that never open one need no Playwright
    requests: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def says_nothing_bad(self) -> None:
        """No console error, no exception, no dialog, no request beyond what was allowed."""
        assert (self.errors, self.dialogs, self.blocked) == ([], [], [])

    def overflows(self) -> int:
        """Pixels by which the page is wider than the screen, which has to be none."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """One browser a module: Playwright holds an event loop, which later modules want for themselves."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: run `make test`")
    playwright.expect.set_options(timeout=1000 * PATIENCE)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        except playwright.Error as error:
            if find_chromium() is None and "Executable doesn't exist" in str(error):
                pytest.skip(HOW)
            raise
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: object) -> Iterator[Callable[..., Visit]]:
    """`visit(url, width=390, dark=True)` opens a page in a fresh profile; see `open_visit`."""
    with ExitStack() as stack:
        yield lambda url, **options: open_visit(chromium, stack, url, **options)


def open_visit(
    chromium: object,
    stack: ExitStack,
    url: str,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    network: bool = False,
    seconds: float = PATIENCE,
    **context_options: object,
) -> Visit:
    """Open `url`; `network` lets every request through, more options are those of Playwright's context."""
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        service_workers="block",
        **context_options,
    )
    stack.callback(context.close)
    context.set_default_timeout(1000 * seconds)
    if origin(url):
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin(url))
    visit = Visit(context.new_page())
    listen(visit)
    if not network:
        context.route("**/*", lambda route: pass_or_block(visit, route, origin(url)))
    visit.page.goto(url)
    return visit


def origin(url: str) -> str | None:
    """Scheme, host and port; None for a file."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else None


def listen(visit: Visit) -> None:
    """Write down what a page does, dialogs (which are dismissed) and its frames and popups included."""

    def dismiss(dialog: object) -> None:
        visit.dialogs.append(dialog.message)
        dialog.dismiss()

    page = visit.page
    page.context.on("request", lambda request: visit.requests.append(request.url))
    page.on("console", lambda said: said.type == "error" and visit.errors.append(said.text))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on("dialog", dismiss)


def pass_or_block(visit: Visit, route: object, allowed: str | None) -> None:
    """Let through what is local or goes to the page's own server, and cut the rest."""
    url = route.request.url
    if urlsplit(url).scheme in LOCAL or (allowed and origin(url) == allowed):
        route.continue_()
    else:
        visit.blocked.append(url)
        route.abort()
