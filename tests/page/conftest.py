"""Chromium of the system on the page of a real service. What the browser complains of fails the test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.api.conftest import adapters, client, run_folder, service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["adapters", "client", "run_folder", "service"]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAIT_MILLISECONDS = 120_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One headless browser a file: while it is open, an event loop runs in this thread, and no other can."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers lack; it only ever sees our own page.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh tab that tolerates no complaint but those a test expects, in ``expected_complaints``."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(WAIT_MILLISECONDS)
    tab.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    tab.on(
        "console",
        lambda said: (
            complaints.append(f"{said.type}: {said.text}")
            if said.type in ("error", "warning")
            else None
        ),
    )
    tab.on(
        "request",
        lambda request: (
            complaints.append(f"request to {request.url}")
            if urlsplit(request.url).hostname not in ("127.0.0.1", None)
            else None
        ),
    )
    tab.expected_complaints = ()  # type: ignore[attr-defined]
    yield tab
    context.close()
    expected: tuple[str, ...] = tab.expected_complaints  # type: ignore[attr-defined]
    assert [c for c in complaints if not any(part in c for part in expected)] == []
