"""The explorer in a browser: samples and predictions as the API gives them, and its refusals in its own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from api.access import read_keys
from api.settings import ServeSettings
from posteriori.client import Client
from tests.api.conftest import Running, served, settings_for
from tests.page.looks import choose, look_for, violations

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.page, pytest.mark.slow]


def ask(page: Page, url: str, problem: str = "sharp", n: int = 64, seed: int = 1) -> None:
    page.goto(f"{url}/#/explore?run=r&problem={problem}")
    page.get_by_label("n", exact=True).fill(str(n))
    page.get_by_label("Seed").fill(str(seed))


def draw(page: Page) -> None:
    page.get_by_role("button", name="Draw").click()


def test_samples_are_those_of_the_api(page: Page, service: Running, client: Client) -> None:
    ask(page, service.url)
    page.get_by_label("Adapter version").select_option("2")
    draw(page)
    look_for(page, page.get_by_role("heading", name="distinct Z"))
    policy = client.samples(run="r", problem="sharp", version=2, n=64, seed=1)
    base = client.samples(run="r", problem="sharp", version=0, n=64, seed=1)
    texts = {sample.text for sample in (*policy.samples, *base.samples)}
    heading = page.get_by_role("heading", name="distinct Z").inner_text()
    assert heading == f"{len(texts)} distinct Z"
    weights: dict[str, float] = {}
    for sample in policy.samples:
        assert sample.weight is not None
        weights[sample.text] = weights.get(sample.text, 0.0) + sample.weight
    best = max(weights, key=weights.__getitem__)
    first = page.locator("table.ranking tbody tr").first
    assert first.locator("td.text").inner_text().lstrip("·") == best.lstrip(" ")
    shown = first.locator("td.share").first.inner_text()
    assert float(shown.removesuffix("%")) / 100 == pytest.approx(weights[best], abs=1e-3)
    diagnostics = page.locator("table.diagnostics tbody tr")
    assert policy.summary.log_z is not None and base.summary.log_z is not None
    for row, summary in enumerate((policy.summary, base.summary)):
        cell = diagnostics.nth(row).locator("td").nth(1).inner_text()
        assert float(cell.replace("−", "-")) == pytest.approx(summary.log_z, abs=1e-3)
    assert page.locator(".chart canvas").count() == 2
    # Sorting by another column: ascending at the second press.
    page.get_by_role("button", name="log R").click()
    page.get_by_role("button", name="log R").click()
    rewards = page.locator("table.ranking tbody tr td:nth-child(7)").all_inner_texts()
    values = [float(text.replace("−", "-")) for text in rewards]
    assert values == sorted(values) and len(values) == len(texts)


def test_what_is_copied_runs(page: Page, service: Running, client: Client) -> None:
    ask(page, service.url, n=8, seed=3)
    page.get_by_label("{x}").fill(" a dog")
    choose(page, "SMC")
    page.get_by_role("button", name="Copy Python").click()
    program = page.evaluate("navigator.clipboard.readText()")
    found = client.samples(run="r", problem="sharp", x=" a dog", n=8, seed=3, correction="smc")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.splitlines()[1:] == [f"{s.weight} {s.text!r}" for s in found.samples]
    page.get_by_role("button", name="Copy curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith(f"curl -s {service.url}/v1/posterior/samples")
    assert '"x":" a dog","n":8,"seed":3,"correction":"smc"' in command


def test_predictions_with_errors(page: Page, service: Running, client: Client) -> None:
    ask(page, service.url, "why", n=32)
    choose(page, "Predictive")
    choose(page, "Bayes")
    page.get_by_label("Answers Y").fill(" sat\n ran")
    draw(page)
    look_for(page, page.get_by_role("heading", name="p̂(y | x)"))
    found = client.predictive([" sat", " ran"], run="r", problem="why", n=32, seed=1, rule="bayes")
    for answer in found.answers:
        expected = f"{answer.probability:.1%} ± {answer.standard_error:.1%}".replace("%", " %")
        assert page.locator("dl.answers").first.get_by_text(expected, exact=True).count() >= 1
    assert violations(page) == []


def test_warnings_and_refusals_are_said_in_the_service_s_words(
    page: Page, service: Running
) -> None:
    page.expected_complaints = ("status of 4",)  # type: ignore[attr-defined]
    ask(page, service.url, n=8)
    draw(page)
    look_for(page, page.get_by_text("too few to aggregate").first)
    # Y is unknown: no weights, and it is said why.
    ask(page, service.url, "why", n=8)
    page.get_by_label("{y}").fill("")
    page.get_by_label("{x}").fill(" the cat")
    draw(page)
    look_for(page, page.get_by_text("log R needs a field that was not given").first)
    # A field that is wrong is marked; the refusal names problem and fix.
    page.get_by_label("{x}").fill(" the cat" * 300)
    draw(page)
    alert = page.get_by_role("alert")
    look_for(page, alert.get_by_text("X and Z take up to"))
    assert "Shorten X" in alert.inner_text() and "too_long" not in alert.inner_text()
    choose(page, "SMC")
    page.get_by_label("{x}").fill(" the cat")
    draw(page)
    look_for(page, alert.get_by_text("SMC needs log R."))
    assert page.locator("#ask-correction").get_attribute("aria-invalid") == "true"


def test_a_service_with_keys_is_asked_with_one(
    page: Page, tiny_lm_path: Path, run_folder: Path
) -> None:
    page.expected_complaints = ("status of 401",)  # type: ignore[attr-defined]
    secret = "a-secret-of-sixteen-characters"
    keys = read_keys(ServeSettings(), {"POSTERIORI_API_KEYS": f"ann:{secret}:sample"})
    with served(settings_for(tiny_lm_path, run_folder), keys=keys) as running:
        page.goto(running.url)
        dialog = page.get_by_role("dialog", name="API key")
        look_for(page, dialog)
        dialog.get_by_label("Key", exact=True).fill("not-the-secret-at-all")
        dialog.get_by_role("button", name="Use key").click()
        look_for(page, dialog.get_by_text("Unknown API key."))
        dialog.get_by_label("Key", exact=True).fill(secret)
        page.keyboard.press("Enter")
        look_for(page, page.get_by_role("link", name="r", exact=True))
        stored: dict[str, Any] = page.evaluate("({...sessionStorage})")
        assert stored == {"posteriori-api-key": secret}
        assert secret not in str(page.evaluate("({...localStorage})"))
        page.get_by_role("link", name="Explorer").click()
        look_for(page, page.get_by_role("button", name="Draw"))
        assert secret not in page.locator("pre").inner_text()


@pytest.mark.parametrize(
    ("scheme", "rules"), [("light", ()), ("dark", ("color-contrast",))], ids=["light", "dark"]
)
def test_accessible_by_keyboard_and_by_ear(
    page: Page, service: Running, scheme: Literal["light", "dark"], rules: tuple[str, ...]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(service.url)
    look_for(page, page.get_by_role("link", name="r", exact=True))
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert violations(page, *rules) == []
    page.get_by_role("link", name="r", exact=True).focus()
    page.keyboard.press("Enter")
    look_for(page, page.get_by_text("The run is not live"))
    assert violations(page, *rules) == []
    ask(page, service.url, n=32)
    page.get_by_label("n", exact=True).press("Enter")
    look_for(page, page.get_by_role("heading", name="distinct Z"))
    assert violations(page, *rules) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Use the").click()
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
