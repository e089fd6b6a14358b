"""A real browser without a window, and autoheal's page in it."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from testbed.autoheal import Autoheal
from testbed.deadlines import ORDINARY_SECONDS, scaled

TOKEN = "a-token-of-the-tests"
WIDE, PHONE = (1280, 900), (390, 844)


@contextmanager
def chromium(inside: Sequence[str] = ()) -> Iterator[Browser]:
    """A Chromium; while it is there, this thread has an event loop.

    Args:
        inside: the words before its command, such as those of a network.

    Raises:
        RuntimeError: there is none on this machine.
    """
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise RuntimeError("no Chromium on this machine: `make test` installs one")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        program = Path(directory, "chromium")
        program.write_text(f'#!/bin/sh\nexec {shlex.join([*inside, path])} "$@"\n')
        program.chmod(0o755)
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=milliseconds()
        )
        yield browser
        browser.close()


def milliseconds() -> float:
    """How long the browser may take for anything."""
    return scaled(ORDINARY_SECONDS) * 1000


class Site:
    """Autoheal's page, and a browser that opens it.

    Attributes:
        requests: every address that the browser asked for.
        complaints: errors and warnings of the browser.
    """

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
        page.set_default_timeout(milliseconds())
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
