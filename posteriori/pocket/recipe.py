"""Recipes: everything that decides what pre-training yields, frozen and by name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from typing import ClassVar, Final

from transformers import LlamaConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cycle:
    """A stretch of training: warm-up, constant rate, then a cosine down over the last `decay_steps`."""

    steps: int
    learning_rate: float
    decay_steps: int


@dataclass(frozen=True)
class Recipe:
    """Shape of the model, amount and order of the text, optimiser: all that decides the weights."""

    name: str
    hidden: int
    heads: int
    layers: int
    intermediate: int
    cycles: tuple[Cycle, ...]
    batch_rows: int
    row_tokens: int = 256
    final_learning_rate: float = 5e-5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    seed: int = 1
    dtype: str = "float32"
    checkpoint_steps: int = 100

    HEAD_DIM: ClassVar[int] = 64
    MAX_POSITIONS: ClassVar[int] = 512

    @property
    def steps(self) -> int:
        """Length of the whole run."""
        return sum(cycle.steps for cycle in self.cycles)

    def learning_rate_at(self, step: int) -> float:
        """The rate of step 0, 1, …; a function of the step alone, never of the clock."""
        cycle = self.cycles[0]
        for cycle in self.cycles:
            if step < cycle.steps:
                break
            step -= cycle.steps
        if step < self.warmup_steps:
            return cycle.learning_rate * (step + 1) / self.warmup_steps
        decayed = max(0, step - (cycle.steps - cycle.decay_steps)) / cycle.decay_steps
        span = cycle.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + cos(pi * decayed))

    def as_json(self) -> str:
        """All fields as one line, for a checkpoint."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Recipe:
        """The inverse of `as_json`."""
        fields = json.loads(text)
        return Recipe(**{**fields, "cycles": tuple(Cycle(**each) for each in fields["cycles"])})

    def goes_on(self, begun: Recipe, steps_done: int) -> bool:
        """Whether a run of `begun` is, after so many steps, where a run of this recipe would be.

        So a run may be given another end on its way, as long as its rates up to now stay the same.
        """
        same_rates = all(
            begun.learning_rate_at(step) == self.learning_rate_at(step)
            for step in range(steps_done)
        )
        return same_rates and replace(begun, cycles=self.cycles) == self

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


#: `pocket`, and from its weights `pocket-more`, made what ships, on two CPU cores; `pocket-large`
#: wants a GPU; `pocket-tiny` is for tests.
RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "pocket", hidden=192, heads=3, layers=4, intermediate=640, batch_rows=12,
            cycles=(
                Cycle(1400, 2.5e-3, decay_steps=700),
                Cycle(1400, 1.5e-3, decay_steps=1300),
                Cycle(1400, 1.5e-3, decay_steps=1300),
            ),
        ),
        Recipe(
            "pocket-more", hidden=192, heads=3, layers=4, intermediate=640, batch_rows=12, seed=2,
            cycles=(Cycle(2000, 1.5e-3, decay_steps=1900),),
        ),
        Recipe(
            "pocket-large", hidden=512, heads=8, layers=8, intermediate=1408, batch_rows=128,
            cycles=(Cycle(20_000, 1e-3, decay_steps=10_000),), warmup_steps=500,
            dtype="bfloat16", checkpoint_steps=1000,
        ),
        Recipe(
            "pocket-tiny", hidden=64, heads=1, layers=1, intermediate=128, batch_rows=4,
            cycles=(Cycle(20, 2.5e-3, decay_steps=8),), row_tokens=64, warmup_steps=4,
            checkpoint_steps=10,
        ),
    )
}  # fmt: skip
