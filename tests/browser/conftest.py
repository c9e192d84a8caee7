"""A real browser for pages of this package: Chromium, driven by Playwright.

`tools/browser.py` installs both. Pictures of the pages are kept in `.check/browser/pictures/`.
"""

import functools
import http.server
import threading

import pytest

from tools.browser import FLAGS, PICTURES, find_chromium


@pytest.fixture(scope="session")
def chromium():
    """The browser, started once."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = find_chromium()
    if path is None:
        pytest.skip("Chromium is not installed: python3 tools/browser.py installs it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """A function that opens an address in a window of its own; options are Playwright's."""
    contexts = []

    def new_page(address, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.faults = []  # what no page of ours may have
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        # Chromium tells an open page after the fact that its requests are to be held, so the first
        # one after `page.route` may slip through: routes of tests come to a page that knows.
        page.route("**/nothing-that-is-asked-for", lambda route: route.abort())
        page.goto(address)
        return page

    yield new_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def serve():
    """A function that serves a folder on the loopback interface and gives its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def serve(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def photograph_of():
    """A function that keeps a picture of a page, for people to look at."""

    def photograph_of(page, name):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    return photograph_of
