"""The vLLM engine on one GPU, and split between two.

vLLM's CPU workers exchange through spinning threads: on two shared cores they did not finish a first step
within vLLM's five minutes, so the test of tensor parallelism is here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("gpus", [1, 2])
def test_an_engine_on_gpus_equals_transformers(gpus: int, tmp_path: Path) -> None:
    """In a process of its own: vLLM keeps one set of parallel groups a process."""
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"this machine has fewer than {gpus} CUDA devices")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.vllm_on_gpus", str(tmp_path / "model"), str(gpus)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "largest gap" in done.stdout
