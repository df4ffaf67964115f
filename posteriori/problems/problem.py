"""What a problem is: X's, the moves Z may make, the policy's prompt and log R."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.seams import Prompt, Reward


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior over Z for each of several X.

    A problem of your own is a function ``factory(config, lm) -> Problem`` named in the run file; see
    ``docs/problems.md``.

    Attributes:
        name: unique within a run.
        prompts: the X's.
        reward: log R(z₁:ᵢ⊤ | X) at every prefix.
        lm: the policy's base model.
        policy_prompt: function from a prompt to the token ids the policy sees before Z.
        legal_moves: function from a prompt to the legal continuations.
        test_prompts: X's held out of training: assessed, never sampled for the learner.
        gold: known Z's without ⊤ by id of a training prompt, for the replay buffer.
    """

    name: str
    prompts: Sequence[Prompt]
    reward: Reward
    lm: LanguageModel
    policy_prompt: Callable[[Prompt], list[int]]
    legal_moves: Callable[[Prompt], LegalMoves]
    test_prompts: Sequence[Prompt] = ()
    gold: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> Mapping[str, Prompt]:
        """Training prompts by id."""
        return {prompt.id: prompt for prompt in self.prompts}

    @cached_property
    def _moves(self) -> dict[str, LegalMoves]:
        return {}

    def moves(self, prompt: Prompt) -> LegalMoves:
        """Legal continuations for X, computed once for each prompt."""
        if prompt.id not in self._moves:
            self._moves[prompt.id] = self.legal_moves(prompt)
        return self._moves[prompt.id]

    def policy_ids(self, prompt: Prompt) -> list[int]:
        """Token ids the policy conditions on."""
        return self.policy_prompt(prompt)

    def text(self, tokens: Sequence[int]) -> str:
        """Z as text."""
        return self.lm.text(tokens)
