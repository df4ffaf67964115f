"""Recipes: everything that decides what pre-training yields, frozen and by name."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Final

from transformers import LlamaConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Recipe:
    """Shape of the model, amount and order of the text, optimiser: all that decides the weights."""

    name: str
    hidden: int
    heads: int
    layers: int
    intermediate: int
    steps: int
    batch_rows: int
    row_tokens: int = 256
    learning_rate: float = 2.5e-3
    final_learning_rate: float = 5e-5
    warmup_steps: int = 100
    decay_steps: int = 800
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    seed: int = 1
    dtype: str = "float32"
    checkpoint_steps: int = 100

    HEAD_DIM: ClassVar[int] = 64
    MAX_POSITIONS: ClassVar[int] = 512

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then a cosine down to the final rate; a function of the step,
        never of the clock.

        Only the last `decay_steps` depend on the length of the run, so a run can be made longer or
        shorter on its way and is still the run that its final recipe describes.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return self.learning_rate
        progress = (step - self.decay_start) / self.decay_steps
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + cos(pi * progress))

    @property
    def decay_start(self) -> int:
        """The first step whose learning rate depends on the length of the run."""
        return self.steps - self.decay_steps

    def model_config(self, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
        """The Llama configuration for this shape and `tokenizer`."""
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.HEAD_DIM,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.MAX_POSITIONS,
            tie_word_embeddings=True,
            attention_bias=False,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


#: `pocket` is what ships, made on two CPU cores; `pocket-large` wants a GPU; `pocket-tiny` is for
#: tests.
RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "pocket", hidden=192, heads=3, layers=4, intermediate=640, steps=3400, batch_rows=12
        ),
        Recipe(
            "pocket-large", hidden=512, heads=8, layers=8, intermediate=1408, steps=20_000,
            batch_rows=128, learning_rate=1e-3, warmup_steps=500, decay_steps=4000,
            dtype="bfloat16", checkpoint_steps=1000,
        ),
        Recipe(
            "pocket-tiny", hidden=64, heads=1, layers=1, intermediate=128, steps=20, batch_rows=4,
            row_tokens=64, warmup_steps=4, decay_steps=8, checkpoint_steps=10,
        ),
    )
}  # fmt: skip
