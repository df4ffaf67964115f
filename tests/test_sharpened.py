"""A sharpened model is its original at a lower temperature, to every reader of its directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.sharpened import write_sharpened
from tests.learner.helpers import tiny_problem


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logits_are_divided_and_the_original_stays(
    tiny_lm_path: Path, tmp_path: Path, temperature: float
) -> None:
    original = LanguageModel.load(str(tiny_lm_path))
    made = LanguageModel.load(str(write_sharpened(str(tiny_lm_path), temperature, tmp_path / "t")))
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = original.model(ids).logits / temperature
        torch.testing.assert_close(made.model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert made.encode(" the cat") == original.encode(" the cat")
    assert made.model.dtype == original.model.dtype
    assert made.fingerprint != original.fingerprint


def test_pocket_gets_a_head_of_its_own(tmp_path: Path) -> None:
    pocket = LanguageModel.load("pocket")
    assert pocket.model.config.tie_word_embeddings
    made = LanguageModel.load(str(write_sharpened("pocket", 0.5, tmp_path / "sharp")))
    embedding = made.model.get_input_embeddings().weight
    torch.testing.assert_close(embedding, pocket.model.get_input_embeddings().weight)
    torch.testing.assert_close(made.model.get_output_embeddings().weight, 2 * embedding)


def test_its_log_q_is_that_of_token_tempering(tiny_lm_path: Path, tmp_path: Path) -> None:
    original = LanguageModel.load(str(tiny_lm_path))
    made = LanguageModel.load(str(write_sharpened(str(tiny_lm_path), 0.7, tmp_path / "t")))
    problem = tiny_problem(original, max_tokens=3)
    prompt = problem.prompts[0]
    exact = enumerate_posterior("tiny", prompt, problem.moves(prompt), problem.reward, 1000)
    ids = problem.policy_ids(prompt)
    tempered = exact_log_q(exact.tree, original, ids, 0.7)
    np.testing.assert_allclose(exact_log_q(exact.tree, made, ids), tempered, atol=1e-4)


@pytest.mark.parametrize(("temperature", "words"), [(0.0, "above 0"), (-1.0, "above 0")])
def test_what_is_no_temperature_is_refused(
    tiny_lm_path: Path, tmp_path: Path, temperature: float, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        write_sharpened(str(tiny_lm_path), temperature, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_nothing_is_overwritten(tiny_lm_path: Path) -> None:
    with pytest.raises(UserError, match="new directory"):
        write_sharpened(str(tiny_lm_path), 0.5, tiny_lm_path)
