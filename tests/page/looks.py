"""What a person does with the page, and what axe-core finds wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LOOK_MILLISECONDS = 60_000
"""Charts and tables of an answer may be a while on a machine with other work."""


def look_for(page: Page, what: Locator) -> None:
    """Wait until it is to be seen; says what the page shows instead."""
    try:
        what.first.wait_for(state="visible", timeout=LOOK_MILLISECONDS)
    except Exception as cause:
        cause.add_note(page.locator("body").inner_text()[-2000:])
        raise


def choose(page: Page, label: str) -> None:
    """Press one of several radio buttons that look like a control."""
    page.locator("fieldset.choice label").get_by_text(label, exact=True).click()


def violations(page: Page, *rules: str) -> list[str]:
    """What the page breaks of these rules of axe-core (default: WCAG 2 A and AA, best practices), and where."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": list(rules)} if rules else None
    found = Axe().run(page, options=options).response["violations"]
    return [f"{rule['id']}: {[node['html'][:160] for node in rule['nodes'][:5]]}" for rule in found]
