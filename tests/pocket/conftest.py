"""The shipped pocket, loaded once."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from posteriori.pocket import WEIGHTS
from posteriori.pocket.evaluate import load

Pocket = tuple[LlamaForCausalLM, PreTrainedTokenizerBase]


@pytest.fixture(scope="session")
def pocket() -> Pocket:
    """Model and tokenizer from the folder that ships."""
    return load(WEIGHTS)


@pytest.fixture(scope="session")
def tokenizer(pocket: Pocket) -> PreTrainedTokenizerBase:
    """The shipped tokenizer."""
    return pocket[1]
