"""Tools that speak inside Z: a calculator, or any function of the text so far.

When the policy writes a trigger token, the tool reads the text of Z up to and including it, and what it
answers is appended to Z as a *tool span*. A span is part of the state: the policy conditions on it and
the reward scores it, but it has no policy log-probability, ⊤ is illegal before it, and lengths count
policy tokens only (paper, section 4.4). A tool is deterministic; where it has no answer, raises, answers
too much or takes too long, the span is one fixed text, which is never a number.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from posteriori.errors import UserError

if TYPE_CHECKING:
    from posteriori.lm import LanguageModel

log = logging.getLogger(__name__)

FAILURE = " ?"
"""Text of a failed span."""

MAX_DIGITS = 9
"""Longer operands are refused: no text may make the calculator work without bound."""

REMEMBERED_SPANS = 2**16
"""Answers kept for each tool; the oldest go first."""

MAX_STUCK_THREADS = 8
"""Calls that may hang at once. Each keeps a thread that cannot be ended."""

_LEXEME = re.compile(r"[0-9]+|\S")


@runtime_checkable
class Tool(Protocol):
    """A deterministic function of the text of Z so far.

    Attributes:
        triggers: texts, each one token, that call the tool when the policy writes them.
    """

    triggers: Sequence[str]

    def run(self, text: str) -> str | None:
        """The text to append, leading space included, or None where there is no answer.

        Args:
            text: Z up to and including the trigger, earlier tool outputs included.
        """
        ...


class Calculator:
    """Sums and differences of integers, of limited capability (paper, section 4.4).

    At ``=`` the expression behind the last comma or full stop is read from left to right: operands are
    shifted onto a stack that holds ``max_operands`` of them, and the oldest falls off, with its operator,
    when one more is shifted. What remains is reduced from the left. So a calculator of two operands
    answers the last binary operation: ``1 - 9 - 8 =`` is 9 − 8 = 1. (The released code of the paper drops
    one operand more and answers −8.) A sign in front of an operand belongs to it: ``-8 - 8 =`` is −16.
    Nothing is evaluated but what this grammar accepts; all else has no answer.

    Args:
        max_operands: at least 1.

    Raises:
        UserError: fewer.
    """

    triggers: Sequence[str] = ("=", " =")

    def __init__(self, max_operands: int = 2) -> None:
        if max_operands < 1:
            raise UserError(f"The calculator's max_operands is {max_operands}.", "Give at least 1.")
        self.max_operands = max_operands

    def run(self, text: str) -> str | None:
        """See :class:`Tool`; never raises."""
        body, equals, after = text.rpartition("=")
        if not equals or after.strip():
            return None
        terms = self._terms(_LEXEME.findall(re.split(r"[,.]", body)[-1]))
        if not terms:
            return None
        (_, total), *rest = terms
        return f" {total + sum(operator * value for operator, value in rest)}"

    def _terms(self, lexemes: Sequence[str]) -> list[tuple[int, int]]:
        """(operator before it as ±1, operand) of the operands that are left; empty: not a sum."""
        stack: list[tuple[int, int]] = []
        operator, sign, expecting = 1, 0, True
        for lexeme in lexemes:
            if lexeme in ("+", "-"):
                if expecting and sign:
                    return []
                value = 1 if lexeme == "+" else -1
                if expecting:
                    sign = value
                else:
                    operator, expecting = value, True
            elif expecting and lexeme.isascii() and lexeme.isdigit() and len(lexeme) <= MAX_DIGITS:
                stack.append((operator, (sign or 1) * int(lexeme)))
                sign, expecting = 0, False
                if len(stack) > self.max_operands:
                    del stack[0]
            else:
                return []
        return [] if expecting else stack


@dataclass(frozen=True)
class ToolSpan:
    """Where a tool spoke: tokens ``start`` to ``stop`` of Z, ``stop`` excluded.

    ``failed`` spans hold the fixed text of failures and never a number.
    """

    start: int
    stop: int
    failed: bool


def action_mask(length: int, spans: Sequence[ToolSpan]) -> NDArray[np.bool_]:
    """False inside the spans of a Z of ``length`` tokens; bool [length]."""
    mask = np.ones(length, dtype=np.bool_)
    for span in spans:
        mask[span.start : span.stop] = False
    return mask


class BoundTool:
    """A tool in terms of one language model's tokens; answers are remembered.

    Args:
        tool: what is called.
        lm: whose tokenizer reads and writes.
        max_output_tokens: a longer answer is a failure.
        timeout_seconds: a later answer is a failure; None for tools that are bounded by construction,
            which are called without a thread of their own.
        failure: text of a failed span.

    Attributes:
        triggers: token ids that call the tool.
        failure: token ids of a failed span.
        max_output_tokens: bound on the length of every span.

    Raises:
        UserError: no trigger is one token, or ``failure`` cannot be written.
    """

    def __init__(
        self,
        tool: Tool,
        lm: LanguageModel,
        *,
        max_output_tokens: int = 8,
        timeout_seconds: float | None = None,
        failure: str = FAILURE,
    ) -> None:
        self._tool = tool
        self._lm = lm
        self._timeout_seconds = timeout_seconds
        self._remembered: OrderedDict[tuple[int, ...], tuple[int, ...]] = OrderedDict()
        self._stuck = 0
        unknown = lm.tokenizer.unk_token_id
        encoded = [lm.encode(text) for text in tool.triggers]
        self.triggers = frozenset(ids[0] for ids in encoded if len(ids) == 1 and ids[0] != unknown)
        if not self.triggers:
            raise UserError(
                f"No trigger of the tool is one token of {lm.name}: "
                f"{', '.join(map(repr, tool.triggers)) or 'it has none'}.",
                "Choose triggers that are one token each, leading space included.",
            )
        self.failure = tuple(lm.encode(failure))
        if not self.failure or unknown in self.failure:
            raise UserError(
                f"{lm.name} cannot write {failure!r}, the text of a failed tool span.",
                "Choose another `failure` text for the tool.",
            )
        self.max_output_tokens = max(max_output_tokens, len(self.failure))

    def output(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Token ids that follow Z so far, whose last token is a trigger; at least one."""
        key = tuple(map(int, tokens))
        known = self._remembered.get(key)
        return self._remember(key, self._call(key)) if known is None else known

    def read(self, tokens: Sequence[int], place: int) -> ToolSpan:
        """The span that begins at ``place`` of a stored Z, behind a trigger.

        Raises:
            ValueError: what stands there is neither the tool's answer nor a failure.
        """
        for expected in (self.output(tokens[:place]), self.failure):
            stop = place + len(expected)
            if tuple(map(int, tokens[place:stop])) == expected:
                return ToolSpan(place, stop, expected == self.failure)
        raise ValueError(f"the tokens from position {place} on are not what the tool answers")

    def learn(self, tokens: Sequence[int], action: NDArray[np.bool_]) -> None:
        """Take the spans of a stored Z for the tool's answers: replay is verbatim, whatever it says now."""
        starts = np.flatnonzero(~action & np.append(True, action)[:-1])
        for start in starts.tolist():
            behind = np.flatnonzero(action[start:])
            stop = start + int(behind[0]) if len(behind) else len(tokens)
            self._remember(tuple(map(int, tokens[:start])), tuple(map(int, tokens[start:stop])))

    def _remember(self, key: tuple[int, ...], answer: tuple[int, ...]) -> tuple[int, ...]:
        self._remembered[key] = answer
        while len(self._remembered) > REMEMBERED_SPANS:
            self._remembered.popitem(last=False)
        return answer

    def _call(self, tokens: Sequence[int]) -> tuple[int, ...]:
        text = self._lm.text(tokens)
        if self._timeout_seconds is None:
            answer = _attempt(self._tool, text)
        else:
            answer = self._attempt_within(text, self._timeout_seconds)
        if not isinstance(answer, str):
            return self.failure
        ids = tuple(self._lm.encode(answer))
        return ids if 0 < len(ids) <= self.max_output_tokens else self.failure

    def _attempt_within(self, text: str, seconds: float) -> object:
        """The answer, or None after ``seconds``.

        Raises:
            UserError: too many calls hang.
        """
        answers: list[object] = []
        thread = threading.Thread(
            target=lambda: answers.append(_attempt(self._tool, text)), daemon=True
        )
        thread.start()
        thread.join(seconds)
        if answers:
            return answers[0]
        self._stuck += 1
        log.warning("tool did not answer %r within %g s: a failed span", text, seconds)
        if self._stuck >= MAX_STUCK_THREADS:
            raise UserError(
                f"The tool did not answer within {seconds:g} s {self._stuck} times.",
                "Give it a deadline of its own, or raise the tool's timeout_seconds.",
            )
        return None


def _attempt(tool: Tool, text: str) -> object:
    try:
        return tool.run(text)
    except Exception:  # a user's tool may raise anything; the span is recorded as failed
        log.warning("tool raised on %r: a failed span", text, exc_info=True)
        return None
