"""The distribution every engine samples from: q over the legal moves, tempered or mixed with uniform.

    q(a | s) = (1 − ε) · softmax over legal moves of (scores / T) + ε / |legal moves|

with the scores of ``LegalMoves``: logits, and what a lookahead adds.

Both engines call the one function here, so that a behaviour means the same on each of them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from posteriori.moves import LegalMoves


class MoveTable:
    """What one :class:`LegalMoves` adds to logits, as rows of one tensor: promises, -inf where illegal.

    Without a lookahead the rows are masks, a quarter of the memory.

    Prefixes with equal rows share one: a free problem has three rows however long Z may be, so a step
    selects its rows on the device and copies only one small index.

    Attributes:
        moves: the legal moves.
    """

    def __init__(self, moves: LegalMoves) -> None:
        self.moves = moves
        self._row_of_prefix: dict[tuple[int, int], int] = {}
        self._row_of_content: dict[bytes, int] = {}
        self._rows: list[torch.Tensor] = []
        self._columns: torch.Tensor | None = None
        self._added: torch.Tensor | None = None

    def row(self, length: int, state: int) -> int:
        """Index of the row after a prefix of ``length`` tokens in automaton ``state``."""
        known = self._row_of_prefix.get((length, state))
        if known is not None:
            return known
        added = self.moves.row(length, state)
        if self.moves.lookahead is not None:
            promises = self.moves.promises(length, state).astype(np.float32)
            added = np.where(added, promises, np.float32(-np.inf))
        content = hashlib.blake2b(added.tobytes()).digest()
        row = self._row_of_content.setdefault(content, len(self._rows))
        if row == len(self._rows):
            self._rows.append(torch.from_numpy(added))
            self._added = None
        self._row_of_prefix[(length, state)] = row
        return row

    def columns(self, device: torch.device) -> torch.Tensor:
        """Token id of each column, int64 [V + 1]."""
        if self._columns is None or self._columns.device != device:
            self._columns = torch.from_numpy(self.moves.column_tokens).to(device)
        return self._columns

    def scores(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Logits [R, V + 1] with what the given rows add, float32, -inf where illegal."""
        if self._added is None or self._added.device != logits.device:
            self._added = torch.stack(self._rows).to(logits.device)
        added = self._added[torch.tensor(rows, device=logits.device)]
        if added.dtype == torch.bool:
            return logits.float().masked_fill(~added, -torch.inf)
        return logits.float() + added


def behaviour_log_q(
    scores: torch.Tensor, temperature: torch.Tensor, epsilon: torch.Tensor
) -> torch.Tensor:
    """log q of every move under the behaviour.

    Args:
        scores: of the alphabet's columns and ⊤, -inf where illegal, [R, V + 1]; at least one legal move
            in every row.
        temperature: T of each row, [R, 1].
        epsilon: ε of each row, [R, 1].

    Returns:
        float32 [R, V + 1], normalised over the legal moves and -inf elsewhere.
    """
    legal = scores > -torch.inf
    log_q = (scores.float() / temperature).log_softmax(dim=-1)
    uniform = -legal.sum(dim=-1, keepdim=True).float().log()
    mixed = torch.logaddexp(log_q + torch.log1p(-epsilon), uniform + epsilon.log())
    # Rows with ε = 0 keep the softmax to the last bit.
    return torch.where(epsilon > 0, mixed, log_q).masked_fill(~legal, -torch.inf)
