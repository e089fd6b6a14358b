"""A real browser without a window, for the page's tests, its pictures and its benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from scripts.say import FailedError
from scripts.test_tools import browser_path


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium; while it is there, this thread has an event loop.

    Raises:
        FailedError: there is none on this machine.
    """
    path = browser_path()
    if path is None:
        raise FailedError("no Chromium: `make test` installs one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
