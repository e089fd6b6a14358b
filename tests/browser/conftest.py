"""A real browser, and autoheal with its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from testbed.autoheal import Autoheal
from testbed.browser import TOKEN, Site, chromium, milliseconds
from testbed.network import free_port
from testbed.quiet_network import QuietNetwork, quiet_network


@pytest.fixture(scope="module")
def network() -> Iterator[QuietNetwork]:
    with quiet_network() as one:
        yield one


@pytest.fixture(scope="module")
def browser(network: QuietNetwork) -> Iterator[Browser]:
    """While it is there, this thread has an event loop: no longer than for one file's tests."""
    with chromium(network.inside) as one:
        yield one


@pytest.fixture
def site(
    network: QuietNetwork, browser: Browser, autoheal: Callable[..., Autoheal]
) -> Iterator[Callable[..., Site]]:
    """Starts autoheal with its page."""
    sites: list[Site] = []
    expect.set_options(timeout=milliseconds())

    def begin(**env: str) -> Site:
        port = free_port()
        web = {"AUTOHEAL_WEB": f"127.0.0.1:{port}", "AUTOHEAL_WEB_TOKEN": TOKEN}
        healer = autoheal(**{**web, **env})
        healer.wait_line("the status page is at")
        healer.wait_healthy()
        network.let_through(port)
        sites.append(Site(browser, healer, f"http://127.0.0.1:{port}/"))
        return sites[-1]

    yield begin
    for one in sites:
        for context in browser.contexts:
            context.close()
        assert one.complaints == []
        assert [url for url in one.requests if not url.startswith(one.url)] == []
