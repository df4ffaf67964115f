"""A trained adapter as the base LM of the next stage."""

from __future__ import annotations

import copy
from pathlib import Path

from posteriori.lm import LanguageModel


def merged(trained: LanguageModel, directory: Path) -> LanguageModel:
    """The LM with its adapter merged into weights of its own, written to a directory and loaded.

    What trains from there gets a fresh adapter, and the reward has to name the LM it is to stay with.
    """
    model = copy.deepcopy(trained.model).merge_and_unload()
    model.save_pretrained(directory)
    trained.tokenizer.save_pretrained(directory)
    return LanguageModel.load(str(directory), device=str(trained.model.device))
