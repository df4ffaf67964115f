"""A tool over the tiny vocabulary, small enough to enumerate and to follow by eye."""

from __future__ import annotations

from collections.abc import Sequence

from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.tools import BoundTool

WORDS = (" cat", " dog", " fish", " then")
FAILURE = " sad"


class Parrot:
    """At " then" it says the word before it twice; it has no answer to itself, and raises at " fish"."""

    triggers: Sequence[str] = (" then",)

    def run(self, text: str) -> str | None:
        word = text.removesuffix(" then").rpartition(" ")[2]
        if word == "fish":
            raise RuntimeError("the parrot does not like fish")
        return f" {word} {word}" if word in ("cat", "dog") else None


def parrot_moves(lm: LanguageModel, min_tokens: int, max_tokens: int) -> LegalMoves:
    """Any of four words, one of which calls the parrot."""
    return LegalMoves.free(
        [lm.one_token(word, "word") for word in WORDS],
        lm.one_token(".", "stop"),
        min_tokens,
        max_tokens,
        BoundTool(Parrot(), lm, max_output_tokens=2, failure=FAILURE),
    )
