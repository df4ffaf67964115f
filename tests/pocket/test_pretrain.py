"""Pre-training: it learns, goes on after a kill as if nothing had happened, and can be loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from posteriori.pocket import WEIGHTS
from posteriori.pocket.pretrain import document_inputs, pack_rows, pretrain
from posteriori.pocket.recipe import RECIPES, Cycle
from tests.pocket.conftest import Pocket

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
    longer = replace(TINY, cycles=(Cycle(22, 2.5e-3, decay_steps=6),))
    pretrain(TINY, _folder(tmp_path / "grown"), stop_after_steps=12)
    pretrain(longer, tmp_path / "grown", stop_after_steps=2)
    pretrain(longer, _folder(tmp_path / "long"), stop_after_steps=14)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / f) for f in ("grown", "long"))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_a_second_stage_begins_where_the_first_ended(tmp_path: Path) -> None:
    first = pretrain(TINY, _folder(tmp_path / "first"))
    second = replace(TINY, name="second", seed=2)
    report = pretrain(second, _folder(tmp_path / "second"), start_from=tmp_path / "first")
    assert report["before"] == json.loads((tmp_path / "first" / "curve.json").read_text())
    assert report["held_out_loss"] < first["held_out_loss"]
    assert report["curve"][0][1] < first["curve"][0][1] - 0.2


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pretrain(TINY, _folder(tmp_path), stop_after_steps=1)
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(replace(TINY, seed=2), tmp_path)


def test_packed_documents_do_not_see_each_other(pocket: Pocket) -> None:
    """Logits in a packed row equal those of each document alone."""
    model, tokenizer = pocket
    texts = ["Tom had a red key.", "Question: 6 - 4 = ? Answer:", "3, 17, 42."]
    each = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    positions, mask = document_inputs(torch.cat(each)[None], tokenizer.bos_token_id)
    with torch.no_grad():
        packed = model(
            input_ids=torch.cat(each)[None], position_ids=positions, attention_mask=mask
        ).logits[0]
        alone = torch.cat([model(input_ids=ids[None]).logits[0] for ids in each])
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_learning_rate() -> None:
    recipe = RECIPES["pocket"]
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    start = 0
    for cycle in recipe.cycles:
        own = rates[start : start + cycle.steps]
        assert own[0] == pytest.approx(cycle.learning_rate / recipe.warmup_steps)
        assert max(own) == own[recipe.warmup_steps] == pytest.approx(cycle.learning_rate)
        assert own[-1] == pytest.approx(recipe.final_learning_rate, rel=0.01)
        start += cycle.steps
    assert start == len(rates)


def test_rows_are_a_prefix_of_longer_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = (pack_rows(tokenizer, 1, rows, 64) for rows in (10, 20))
    assert (long[:10] == short).all()
    assert (long[:, 0] == tokenizer.bos_token_id).all()
