"""A short load: nothing is lost or mixed up, who is told to wait waits, and the check can fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from posteriori.client import Client
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from tests.api.conftest import PROBLEM, served, settings_for

XS: dict[str, Any] = {
    **PROBLEM,
    "prompts": [{"x": x} for x in (" the cat", " a dog", " a bird", " the fish")],
}


@pytest.mark.slow
def test_a_short_load(tiny_lm: LanguageModel, tiny_lm_path: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_lm_path, tmp_path, max_requests_in_flight=8)
    with served(settings) as running:
        found = load.measure(running.url, tiny_lm, XS, clients=16, seconds=3.0, pid=os.getpid())
        assert found.lost == [] and found.mixed_up == 0 and found.other_samples == 0
        assert found.answered + found.told_to_wait == found.sent
        assert found.answered > 16 and found.told_to_wait > 0
        assert running.service.in_flight.count == 0
        figures = load.summary(found, 3.0)
        assert figures["lost"] == 0 and figures["memory at the end, MiB"] is not None

        checker = load.Checker(tiny_lm, XS)
        cat, dog = load.Asked(" the cat", "", 1), load.Asked(" a dog", "", 1)
        with Client(running.url) as client:
            asked = {"problem": ProblemConfig(**XS), "seed": 1, "n": load.SAMPLES}
            answer = client.samples(fields={"x": cat.x}, **asked)
            swapped = client.samples(fields={"x": dog.x}, **asked)
    assert checker.belongs(cat, answer) and not checker.belongs(dog, answer)
    mislabelled = answer.model_copy(update={"samples": swapped.samples})
    assert not checker.belongs(cat, mislabelled)
