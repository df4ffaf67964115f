"""A real run on the page: watched, scaled up and down, sampled, stopped."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from posteriori import config as run_file
from posteriori.client import Client
from posteriori.config import RunConfig
from tests.api.conftest import run_config, until
from tests.api.test_serve import serving
from tests.page.looks import look_for, violations

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LONG_SECONDS = 280
"""Learner, engines and server start within it on a machine that has other work too."""
ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.page, pytest.mark.slow, pytest.mark.timeout(1200)]


@contextmanager
def running(config: RunConfig, folder: Path) -> Iterator[None]:
    """A run that trains meanwhile, and is stopped if nobody has."""
    file, log = folder / "run.yaml", folder / "run.log"
    file.write_text(run_file.dump(config), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.page.live_run", str(file)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
        assert process.wait(LONG_SECONDS) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()


def test_watch_scale_sample_stop(page: Page, tiny_lm_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    config = run_config(tiny_lm_path, folder, "live")
    learner = config.learner.model_copy(
        update={"steps": 100_000, "evaluate_every_steps": 10, "checkpoint_every_steps": 1000}
    )
    config = config.model_copy(update={"problems": config.problems[:1], "learner": learner})
    with serving(tiny_lm_path, folder, "transformers") as (url, _), Client(url) as client:
        until(lambda: httpx.get(f"{url}/ready").status_code == 200, LONG_SECONDS, 0.5)
        page.goto(url)
        look_for(page, page.get_by_text("There are no runs in this folder yet."))
        with running(config, tmp_path):
            page.get_by_role("link", name="live").click(timeout=LONG_SECONDS * 1000)
            _watched(page)
            _scaled(page, client)
            page.get_by_role("link", name="Explore samples").click()
            page.get_by_role("button", name="Draw").click()
            look_for(page, page.get_by_role("heading", name="distinct Z"))
            page.get_by_role("link", name="Runs").click()
            page.get_by_role("link", name="live").click()
            page.get_by_role("button", name="Stop").click()
        until(lambda: client.run("live").state == "stopped", LONG_SECONDS, 0.5)
        look_for(page, page.get_by_text("The run is not live"))
        assert page.get_by_role("button", name="Resume").is_enabled()
        page.goto("about:blank")  # before the service ends, which it would complain of


def _watched(page: Page) -> None:
    """Curves are drawn, and are drawn anew as the run goes on."""
    loss = _chart(page, "Loss")
    canvas = loss.locator("canvas")
    canvas.wait_for(timeout=LONG_SECONDS * 1000)
    look_for(page, _chart(page, "log Z").get_by_text("exact"))
    before, step = canvas.evaluate("c => c.toDataURL()"), _step(page)
    until(lambda: _step(page) > step + 5, LONG_SECONDS, 0.2)
    until(lambda: canvas.evaluate("c => c.toDataURL()") != before, LONG_SECONDS, 0.2)
    summary = loss.get_by_role("img").get_attribute("aria-label") or ""
    assert re.search(r"mean of 12: from \S+ to \S+", summary), summary
    for title in ("Total variation TV(σ, q)", "KL(σ‖q), nats", "Staleness, versions"):
        look_for(page, _chart(page, title).locator("canvas"))
    look_for(page, page.get_by_role("log").get_by_text("published"))
    assert violations(page) == []


def _scaled(page: Page, client: Client) -> None:
    """1 → 3 → 1 actors by the page's control; training goes on."""
    for press, number in (("One actor more", 3), ("One actor fewer", 1)):
        for _ in range(2):
            page.get_by_role("button", name=press).click()
        page.get_by_role("button", name="Scale", exact=True).click()
        wanted = page.get_by_text(f"{number} sampling, {number} wanted")
        wanted.wait_for(timeout=LONG_SECONDS * 1000)
        assert client.actors("live").desired == number
    step = _step(page)
    until(lambda: _step(page) > step, LONG_SECONDS, 0.2)
    throughput = _chart(page, "Trajectories per second").get_by_role("img")
    assert "sampled: from" in (throughput.get_attribute("aria-label") or "")


def _chart(page: Page, title: str) -> Locator:
    return page.locator("figure").filter(has=page.get_by_role("heading", name=title, exact=True))


def _step(page: Page) -> int:
    text = page.locator(".stats dd").first.inner_text()
    return int(re.sub(r"\D", "", text.split("of")[0]) or 0)
