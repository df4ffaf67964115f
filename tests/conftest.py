"""Fixtures shared by all rooms: a tiny random language model with a word-level tokenizer."""

from __future__ import annotations

import os

# Before anything imports torch, vLLM or Ray.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import copy
from pathlib import Path

import pytest
import torch

from posteriori.lm import LanguageModel
from tests.tiny import write_tiny_lm

torch.set_num_threads(1)

SHARE_THE_MACHINE = ("vllm", "ray", "faults", "page")
"""Tests of these kinds run one at a time, in one process, which starts one engine for all of them."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(kind) for kind in SHARE_THE_MACHINE):
            item.add_marker(pytest.mark.xdist_group("machine"))


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
