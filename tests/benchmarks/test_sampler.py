"""The benchmarks of the sampler's side run and write what they are to write; never a figure's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.transformers_engine import TransformersEngine
from benchmarks import measure, sampler_efficiency
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
    assert row["pairs"] == 2 and row["median"] > 0 and row["target"] == "≥ 0.95"
    facts = found["settings"]["tiny"]
    assert facts["scores found"] > 0 and facts["tokens/s alone"] > 0
