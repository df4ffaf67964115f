"""Short forms of `make chaos` and `make soak`, and of what they conclude from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.faults import chaos, soak

pytestmark = pytest.mark.faults


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_half_a_minute_of_chaos(tmp_path: Path) -> None:
    """May be lost: what each kill may cost (docs/faults.md). Without Ray, which test_processes.py harms;
    the long form also compares the curves."""
    directory = tmp_path / "chaos"
    code = chaos.main(
        f"--plain --seconds 30 --kills 6 --seed 3 --skip-undisturbed --directory {directory}".split()
    )
    result = json.loads((directory / "chaos.json").read_text())
    assert code == 0, result["problems"]
    assert sum(result["kills"].values()) >= 6
    assert result["inside"] >= 1
    assert result["acknowledged"] > 500 and result["missing"] == 0


def test_curves_apart_are_told_from_curves_alike() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 400))
    assert chaos.apart(list(1 + noise[0]), list(1 + noise[1])) < 3
    assert chaos.apart(list(1 + noise[0]), list(1.5 + noise[1])) > 3
    # The first half, where both still learn, is left out.
    assert chaos.apart([9.0] * 400 + list(noise[0]), [0.0] * 400 + list(noise[1])) < 3


def test_a_process_that_grows_is_told_from_one_that_does_not() -> None:
    seconds = np.arange(600.0)
    noise = np.random.default_rng(0).normal(size=600) * 2**18
    flat, leak = (
        soak.growth(seconds, 2**28 + noise),
        soak.growth(seconds, 2**28 + noise + seconds * 2**14),
    )
    assert not flat.grows()
    assert leak.grows()
    found = {"raylet 1": leak, "learner 2": leak, "idle raylet 3": leak, "idle gcs 4": leak}
    assert soak.growing(found) == ["learner 2"]
    assert soak.growing(found | {"idle raylet 3": flat}) == ["raylet 1", "learner 2"]
    assert leak.bytes_per_hour == pytest.approx(3600 * 2**14, abs=5 * leak.error_bytes_per_hour)
    slow = soak.growth(seconds, 2**28 + seconds * 2**10)  # certain, and too little to mind
    assert slow.bytes_per_hour > 3 * slow.error_bytes_per_hour and not slow.grows()
