"""A language model small enough to enumerate: random weights, a word-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "sat",
    "ran",
    "slept",
    "ate",
    "on",
    "in",
    "under",
    "mat",
    "tree",
    "house",
    "and",
    "then",
    "happy",
    "sad",
    "big",
    "small",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words with their leading space are single tokens; so are letters and `.`."""
    pieces = [
        "<|bos|>",
        "<|eos|>",
        "<|unk|>",
        *(f"Ġ{word}" for word in WORDS),
        *"abcdefghijklmnop",
        ".",
        "Ġ",
    ]
    raw = Tokenizer(
        models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<|unk|>")
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split(r"\.", "isolated")]
    )
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|bos|>", eos_token="<|eos|>", unk_token="<|unk|>"
    )


def write_tiny_lm(
    directory: Path, seed: int = 0, layers: int = 2, heads: int = 1, spread: float = 0.25
) -> Path:
    """Write a loadable model directory; the weights are large enough for uneven distributions."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64 * heads,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=64,
            max_position_embeddings=128,
            initializer_range=spread,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
