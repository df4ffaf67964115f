"""The benchmarks of the sampler's side run and write what they are to write; never a figure's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.transformers_engine import TransformersEngine
from benchmarks import adapter_publish, crowd_run, measure, real_actors, sampler_efficiency
from tests.api.conftest import PROBLEM

RANK = 8


@pytest.mark.slow
def test_efficiency_compares_a_worker_with_its_engine(tiny_lm_path: Path) -> None:
    """With the engine that starts at once: what is measured does not know which one it is."""
    engine = TransformersEngine(
        tiny_lm_path, lora_rank=RANK, max_adapters=3, max_model_tokens=64, device="cpu"
    )
    report = sampler_efficiency.measure_with(
        engine, str(tiny_lm_path), "transformers", {"tiny": dict(PROBLEM)}, 2, 0.5, RANK
    )
    engine.close()
    found = measure.document("sampler_efficiency", report)
    [row] = found["rows"]
    assert row["median of CPU seconds"] > 0
    assert row["pairs"] == 2 and row["median"] > 0 and row["target"] == "≥ 0.95"
    facts = found["settings"]["tiny"]
    assert facts["scores found"] > 0 and facts["tokens/s alone"] > 0


@pytest.mark.slow
def test_publications_are_followed_and_timed(tiny_lm_path: Path) -> None:
    engine = TransformersEngine(
        tiny_lm_path, lora_rank=16, max_adapters=3, max_model_tokens=64, device="cpu"
    )
    report = adapter_publish.observe(
        engine, str(tiny_lm_path), "transformers", dict(PROBLEM), count=2
    )
    engine.close()
    found = measure.document("adapter_publish", report)
    assert 1 <= found["settings"]["taken up"] <= 2
    median, longest = found["rows"][:2]
    assert 0 < median["median"] <= longest["median"]
    assert all(row["median"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_two_actors_sample_alone_and_together() -> None:
    row = real_actors.compare("pocket", "transformers", pairs=1, seconds=0.5)
    assert row.median > 0 and row.subject is not None and row.subject > 0


@pytest.mark.slow
def test_a_crowd_stores_is_drawn_from_and_follows(tmp_path: Path) -> None:
    """A few actors whose commands were made beforehand: the server counts what they say they did."""
    run = crowd_run.crowd_run(tmp_path, actors=5, group_seconds=0.5, seconds=4.0)
    assert run.errors == [] and run.told_to_wait < 1
    assert 0 < run.efficiency < 1.5
    assert run.drawn > 0 and run.adapter_versions > 0 and run.adapter_lag_p50 >= 0
