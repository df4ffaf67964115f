"""What takes two GPUs: an engine that is split between them.

vLLM's CPU workers exchange through spinning threads: on two shared cores they did not finish a first step
within vLLM's five minutes, so the test of tensor parallelism is here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason="this machine has fewer than two CUDA devices"
    ),
]


@pytest.mark.timeout(900)
def test_an_engine_on_two_gpus_equals_transformers(tmp_path: Path) -> None:
    """In a process of its own: vLLM keeps one set of parallel groups a process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.two_gpus", str(tmp_path / "model")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "largest gap" in done.stdout
