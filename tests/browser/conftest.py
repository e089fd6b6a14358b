"""A real browser, and autoheal with its page; the engine, images and helpers of the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from scripts.browser import chromium
from tests.e2e.conftest import *  # noqa: F403
from tests.e2e.conftest import Autoheal, free_port

TOKEN = "a-token-of-the-tests"
WIDE, PHONE = (1280, 900), (390, 844)
PATIENCE_MILLISECONDS = 20_000

expect.set_options(timeout=PATIENCE_MILLISECONDS)


class Site:
    """Autoheal's page, and a browser that looks at it."""

    def __init__(self, browser: Browser, healer: Autoheal, url: str) -> None:
        self.browser, self.healer, self.url = browser, healer, url
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def open(self, size: tuple[int, int] = WIDE, *, dark: bool = False) -> Page:
        """The page, once it shows containers."""
        context = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        page.goto(self.url)
        page.wait_for_selector("#container-table table")
        return page

    def unlock(self, page: Page, token: str = TOKEN) -> None:
        page.get_by_role("button", name="Unlock").click()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Unlock", exact=True).last.click()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not re.search(r"status of 40[13]", text):
            self.complaints.append(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """While it is there, this thread has an event loop: no longer than for one file's tests."""
    with chromium() as one:
        yield one


@pytest.fixture
def site(browser: Browser, autoheal: Callable[..., Autoheal]) -> Iterator[Callable[..., Site]]:
    """Starts autoheal with its page."""
    sites: list[Site] = []

    def begin(**env: Any) -> Site:
        port = free_port()
        web = {"AUTOHEAL_WEB": f"127.0.0.1:{port}", "AUTOHEAL_WEB_TOKEN": TOKEN}
        healer = autoheal(**{**web, **env})
        healer.wait_line("the status page is at")
        healer.wait_healthy()
        sites.append(Site(browser, healer, f"http://127.0.0.1:{port}/"))
        return sites[-1]

    yield begin
    for one in sites:
        for context in browser.contexts:
            context.close()
        assert one.complaints == []
        assert [url for url in one.requests if not url.startswith(one.url)] == []
