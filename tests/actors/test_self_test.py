"""The self-test passes on a sound engine and names the gap on one that samples another policy."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from actors.self_test import random_adapter, reference_log_q, self_test, unconstrained
from actors.transformers_engine import TransformersEngine
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.seams import Behaviour, Engine
from tests.actors.conftest import RANK, naive_log_q

PROMPT = [0, 4, 5]
MOVES = LegalMoves.free([25, 26, 27, 28], 1, 1, 3)


class IgnoresAdapters(TransformersEngine):
    """Loads an empty adapter in place of the one it is given: what a stale cache amounts to."""

    def add_adapter(self, version: int, directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = directory / "adapter_model.safetensors"
        save_file({name: torch.zeros_like(w) for name, w in load_file(weights).items()}, weights)
        super().add_adapter(version, directory)


def test_a_sound_engine_passes_and_is_left_as_it_was(
    engine: Engine, tiny_lm: LanguageModel
) -> None:
    before = copy.deepcopy(tiny_lm.model.state_dict())
    gap = self_test(engine, tiny_lm.model, PROMPT, MOVES, rank=RANK, dtype="float32")
    assert 0.0 <= gap < 1e-3
    assert engine.adapter_versions == ()
    assert engine.unfinished == 0
    after = tiny_lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_engine_that_ignores_adapters_fails(tiny_lm_path: Path, tiny_lm: LanguageModel) -> None:
    engine = IgnoresAdapters(tiny_lm_path, lora_rank=RANK, device="cpu")
    with pytest.raises(UserError, match=r"random adapter .* differs from transformers by 0\.\d+"):
        self_test(engine, tiny_lm.model, PROMPT, MOVES, rank=RANK, dtype="float32")


def test_an_engine_with_other_weights_fails(tiny_lm_path: Path, tiny_lm: LanguageModel) -> None:
    engine = TransformersEngine(tiny_lm_path, lora_rank=RANK, device="cpu")
    other = copy.deepcopy(tiny_lm.model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.05)
    with pytest.raises(UserError, match="base LM differs"):
        self_test(engine, other, PROMPT, MOVES, rank=RANK, dtype="float32")


def test_moves_without_a_choice_prove_nothing(engine: Engine, tiny_lm: LanguageModel) -> None:
    forced = LegalMoves.free([25], 1, 3, 3)
    with pytest.raises(UserError, match="too little"):
        self_test(engine, tiny_lm.model, PROMPT, forced, rank=RANK, dtype="float32")
    free = unconstrained(forced, tiny_lm.vocabulary_size)
    assert self_test(engine, tiny_lm.model, PROMPT, free, rank=RANK, dtype="float32") < 1e-3


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour("uniform", epsilon=0.2)])
def test_the_reference_is_the_naive_loop(tiny_lm: LanguageModel, behaviour: Behaviour) -> None:
    tokens = [25, 28]
    found = reference_log_q(tiny_lm.model, PROMPT, tokens, MOVES, behaviour)
    expected = naive_log_q(tiny_lm.model, PROMPT, tokens, MOVES, behaviour)
    for values, naive in zip(found, expected, strict=True):
        assert values == pytest.approx(naive, abs=1e-5)


def test_random_adapters_are_reproducible(tiny_lm_path: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        model = LanguageModel.load(str(tiny_lm_path)).model
        random_adapter(model, tmp_path / name, rank=RANK, scale=0.1, seed=3)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
