"""The distribution every engine samples from: q over the legal moves, tempered or mixed with uniform.

    q(a | s) = (1 − ε) · softmax over legal moves of (logits / T) + ε / |legal moves|

Both engines call the one function here, so that a behaviour means the same on each of them.
"""

from __future__ import annotations

import numpy as np
import torch

from posteriori.moves import LegalMoves


class MoveTable:
    """The legal-move masks of one :class:`LegalMoves` as rows of one tensor.

    Prefixes with equal masks share a row: a free problem has three rows however long Z may be, so a
    step selects its masks on the device and copies only one small index.

    Attributes:
        moves: the legal moves.
    """

    def __init__(self, moves: LegalMoves) -> None:
        self.moves = moves
        self._row_of_prefix: dict[tuple[int, int], int] = {}
        self._row_of_content: dict[bytes, int] = {}
        self._rows: list[torch.Tensor] = []
        self._columns: torch.Tensor | None = None
        self._masks: torch.Tensor | None = None

    def row(self, length: int, state: int) -> int:
        """Index of the mask after a prefix of ``length`` tokens in automaton ``state``."""
        known = self._row_of_prefix.get((length, state))
        if known is not None:
            return known
        mask = self.moves.row(length, state)
        row = self._row_of_content.setdefault(np.packbits(mask).tobytes(), len(self._rows))
        if row == len(self._rows):
            self._rows.append(torch.from_numpy(mask))
            self._masks = None
        self._row_of_prefix[(length, state)] = row
        return row

    def columns(self, device: torch.device) -> torch.Tensor:
        """Token id of each mask column, int64 [V + 1]."""
        if self._columns is None or self._columns.device != device:
            self._columns = torch.from_numpy(self.moves.column_tokens).to(device)
        return self._columns

    def masks(self, rows: list[int], device: torch.device) -> torch.Tensor:
        """Masks of the given rows, bool [len(rows), V + 1]."""
        if self._masks is None or self._masks.device != device:
            self._masks = torch.stack(self._rows).to(device)
        return self._masks[torch.tensor(rows, device=device)]


def behaviour_log_q(
    logits: torch.Tensor, legal: torch.Tensor, temperature: torch.Tensor, epsilon: torch.Tensor
) -> torch.Tensor:
    """log q of every move under the behaviour.

    Args:
        logits: of the alphabet's columns and ⊤, [R, V + 1].
        legal: legal moves, bool [R, V + 1]; at least one in every row.
        temperature: T of each row, [R, 1].
        epsilon: ε of each row, [R, 1].

    Returns:
        float32 [R, V + 1], normalised over the legal moves and -inf elsewhere.
    """
    masked = (logits.float() / temperature).masked_fill(~legal, -torch.inf)
    log_q = masked.log_softmax(dim=-1)
    uniform = -legal.sum(dim=-1, keepdim=True).float().log()
    mixed = torch.logaddexp(log_q + torch.log1p(-epsilon), uniform + epsilon.log())
    # Rows with ε = 0 keep the softmax to the last bit.
    return torch.where(epsilon > 0, mixed, log_q).masked_fill(~legal, -torch.inf)
