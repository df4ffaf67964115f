"""Fixtures shared by all rooms: a tiny random language model with a word-level tokenizer."""

from __future__ import annotations

import os

# Before anything imports torch, vLLM or Ray.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers the least of a core, and the other half of the tests would take the rest.
os.environ.setdefault("RAY_worker_niceness", "0")

import copy
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from posteriori.lm import LanguageModel
from tests.tiny import write_tiny_lm

torch.set_num_threads(1)

# No test looks at a clock: the other half of the tests may have the core for a while. The same examples every time, so
# that whoever changes something is not told of another's fault; `--hypothesis-profile search` looks for new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("repeatable")

TOGETHER = {"cluster": ("ray",), "faults": ("faults",), "engine": ("vllm", "page")}
"""Files with tests of these kinds go to one worker: clusters one after another, since Ray gives a node thirty
seconds to start, which cannot be set; faults without Ray, mostly waits for processes, beside them; one engine
for all."""


@cache
def _scope(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    for scope, kinds in TOGETHER.items():
        if any(f"mark.{kind}" in text for kind in kinds):
            return scope
    return str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay whole, and those of a kind together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(config.rootpath / nodeid.split("::")[0])

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_lm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random two-layer Llama over forty words."""
    return write_tiny_lm(tmp_path_factory.mktemp("tiny-lm"))


@pytest.fixture(scope="session")
def tiny_lm(tiny_lm_path: Path) -> LanguageModel:
    """The tiny model, loaded."""
    return LanguageModel.load(str(tiny_lm_path))


@pytest.fixture(scope="session")
def soft_lm(tiny_lm: LanguageModel) -> LanguageModel:
    """The tiny model with a smaller head: its posteriors do not hang on one string."""
    model = copy.deepcopy(tiny_lm.model)
    model.lm_head.weight.data *= 0.4
    return LanguageModel(model, tiny_lm.tokenizer, "soft")
