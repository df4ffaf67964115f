"""The benchmark of a start runs; never a figure's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import measure, start_up
from tests.api.conftest import PROBLEM


@pytest.mark.slow
@pytest.mark.ray
def test_a_start_is_timed_to_its_first_step(tiny_lm_path: Path) -> None:
    report = start_up.measure_with(1, "transformers", str(tiny_lm_path), [dict(PROBLEM)])
    found = measure.document("start_up", report)
    [stages] = found["settings"]["seconds to each event"]
    assert 0 < stages["actor_started"] < stages["first step"]
    assert stages["published"] < stages["first step"]
