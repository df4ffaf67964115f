"""The models that performance benchmarks measure: what ships, a larger one, and one that fits a GPU."""

from __future__ import annotations

from typing import Any

import torch

from posteriori.attention import attend_along_trees
from posteriori.lm import LanguageModel

TOY = "llama-toy"
"""Of no interest: what runs on it brings in all that is imported lazily."""

MEDIUM = "llama-42M"
"""Whose weights are more than what a process needs anyway."""

LARGE = "llama-1.1B"
"""For a CUDA device, in bfloat16."""

SHAPES = {
    TOY: {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 1, "num_key_value_heads": 1},
    MEDIUM: {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
                  "num_attention_heads": 8, "num_key_value_heads": 8},
    LARGE: {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
            "num_attention_heads": 32, "num_key_value_heads": 4},
}  # fmt: skip
"""Llamas with random weights and heads of 64."""


def named(name: str) -> LanguageModel:
    """Pocket or a Llama of ``SHAPES``; that has pocket's tokenizer, whose ids are the lowest of its vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    pocket = LanguageModel.load("pocket")
    if name == "pocket":
        return pocket
    config = LlamaConfig(
        **SHAPES[name],
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    if name == LARGE:
        model = model.to("cuda", torch.bfloat16)
    model = model.requires_grad_(False).eval()
    attend_along_trees(model)
    return LanguageModel(model, pocket.tokenizer, name)


def names(quick: bool) -> list[str]:
    """Pocket, or the largest on a CUDA device."""
    return [LARGE] if torch.cuda.is_available() and not quick else ["pocket"]


def models(quick: bool) -> list[LanguageModel]:
    """Those of :func:`names`."""
    return [named(name) for name in names(quick)]


def parameters(lm: LanguageModel) -> int:
    """Tied ones once."""
    return sum(parameter.numel() for parameter in lm.model.parameters())
