"""Pre-training: it learns, goes on after a kill as if nothing had happened, and can be loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from posteriori.pocket import WEIGHTS
from posteriori.pocket.pretrain import pack_rows, pretrain
from posteriori.pocket.recipe import RECIPES

TINY = RECIPES["pocket-tiny"]


def _folder(path: Path) -> Path:
    """A directory that has its tokenizer already: making one takes seconds."""
    path.mkdir(exist_ok=True)
    for file in WEIGHTS.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def test_it_learns_and_resumes_exactly(tmp_path: Path) -> None:
    whole = pretrain(TINY, _folder(tmp_path / "whole"))
    assert whole["held_out_loss"] < np.log(1024) - 0.3

    part = pretrain(TINY, _folder(tmp_path / "parts"), stop_after_steps=10)
    assert "held_out_loss" not in part
    rest = pretrain(TINY, tmp_path / "parts")
    assert rest["held_out_loss"] == whole["held_out_loss"]
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / f) for f in ("whole", "parts"))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert len(AutoTokenizer.from_pretrained(tmp_path / "parts")) == one.config.vocab_size


def test_a_longer_run_is_the_same_until_the_rate_decays(tmp_path: Path) -> None:
    longer = replace(TINY, steps=22)
    assert TINY.decay_start == 12
    pretrain(TINY, _folder(tmp_path / "grown"), stop_after_steps=12)
    pretrain(longer, tmp_path / "grown", stop_after_steps=2)
    pretrain(longer, _folder(tmp_path / "long"), stop_after_steps=14)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / f) for f in ("grown", "long"))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pretrain(TINY, _folder(tmp_path), stop_after_steps=1)
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(replace(TINY, seed=2), tmp_path)


def test_learning_rate() -> None:
    recipe = RECIPES["pocket"]
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(recipe.learning_rate / recipe.warmup_steps)
    assert max(rates) == recipe.learning_rate
    assert rates[-1] == pytest.approx(recipe.final_learning_rate, rel=0.01)


def test_rows_are_a_prefix_of_longer_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = (pack_rows(tokenizer, 1, rows, 64) for rows in (10, 20))
    assert (long[:10] == short).all()
    assert (long[:, 0] == tokenizer.bos_token_id).all()
