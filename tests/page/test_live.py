"""What a live run's registry says is what the page shows, and what the page asks is what the registry holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from posteriori.lm import LanguageModel
from tests.api.conftest import Running, live_run, until
from tests.page.looks import look_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.page, pytest.mark.slow]


def test_curves_actors_events_and_wishes(
    page: Page,
    service: Running,
    tiny_lm: LanguageModel,
    tiny_lm_path: Path,
    run_folder: Path,
    adapters: dict[int, Path],
) -> None:
    with live_run(tiny_lm, tiny_lm_path, run_folder, adapters) as registry:
        registry.beat("learner", {"state": "learning", "step": 2.0, "version": 5.0})
        registry.beat("actor-1", {"state": "sampling", "version": 3, "samples_per_second": 4.5})
        for step in (1, 2):
            registry.record(step, {"loss": 4.0 / step, "log_z/sharp": -2.0, "staleness": 1.0})
        registry.record(2, {"log_z_exact/sharp": -2.5, "tv/sharp": 0.25})
        registry.event("published", "Adapter version 5 after step 2.")
        page.goto(f"{service.url}/#/runs/live")
        loss = page.locator("figure").filter(
            has=page.get_by_role("heading", name="Loss", exact=True)
        )
        picture = loss.get_by_role("img")
        look_for(page, loss.locator("canvas"))
        until(lambda: "from 4 to" in (picture.get_attribute("aria-label") or ""))
        stats = page.locator(".stats").inner_text()
        assert "0.250" in stats and "0.500" in stats  # TV, and |log Ẑ − log Z|
        row = page.get_by_role("row").filter(has_text="actor-1")
        assert all(text in row.inner_text() for text in ("sampling", "3 (−2)", "4.5"))
        look_for(page, page.get_by_role("log").get_by_text("Adapter version 5 after step 2."))
        before = loss.locator("canvas").evaluate("c => c.toDataURL()")
        registry.record(3, {"loss": 0.5})
        until(lambda: loss.locator("canvas").evaluate("c => c.toDataURL()") != before)
        page.get_by_role("button", name="One actor more").click()
        page.get_by_role("button", name="Scale", exact=True).click()
        look_for(page, page.get_by_text("1 sampling, 2 wanted"))
        assert registry.desired_actors() == 2
        page.get_by_role("button", name="Stop").click()
        look_for(page, page.get_by_text("stopping", exact=True))
        assert registry.stop_requested() is not None
