"""Legal moves inside vLLM: the one logits processor the engine installs.

vLLM calls ``apply`` on the logits of a whole batch before it samples and before it computes
"processed" log-probabilities, so what is returned as log q is normalised over exactly the moves that
could be drawn. Native temperature stays 1: the behaviour is applied here, where ε is exact and T has
no upper bound.

The processor is built by vLLM, in the engine's own process; requests refer to their legal moves by a
key in ``TABLES``, because sampling parameters are copied and may hold only plain values. Where several
processes hold the model (tensor parallelism) each has a processor of its own, which reads the moves
from a file that the engine has written on the same node.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from actors.behaviour import MoveTable, behaviour_log_q
from posteriori.lookahead import Lookahead
from posteriori.moves import LegalMoves

if TYPE_CHECKING:
    from vllm.config import VllmConfig

EXTRA_ARGS_KEY = "posteriori"

TABLES: dict[int, MoveTable] = {}
"""Legal moves of the requests in flight in this process, by the key in their ``extra_args``."""


TABLES_READ = 256
"""Tables of other processes' requests kept in memory; another one is read again."""


def write_moves(directory: Path, key: int, moves: LegalMoves) -> None:
    """Leave legal moves for processors in other processes; a tool is the engine's business alone."""
    np.savez(
        directory / f"{key}.npz",
        alphabet=moves.alphabet,
        bounds=np.array([moves.stop, moves.min_tokens, moves.max_tokens]),
        next_state=moves.next_state,
        accepting=moves.accepting,
        table=np.zeros(0) if moves.lookahead is None else moves.lookahead.table,
    )


@lru_cache(maxsize=TABLES_READ)
def read_moves(directory: str, key: int) -> MoveTable:
    """The table of what :func:`write_moves` left."""
    with np.load(Path(directory) / f"{key}.npz", allow_pickle=False) as found:
        stop, least, most = (int(bound) for bound in found["bounds"])
        moves = LegalMoves(
            found["alphabet"],
            stop,
            least,
            most,
            found["next_state"],
            found["accepting"],
            lookahead=Lookahead(found["table"]) if found["table"].size else None,
        )
    return MoveTable(moves)


class _Row:
    """One sequence of the batch: where it is in its automaton."""

    def __init__(self, arguments: dict[str, float | str], output_ids: list[int]) -> None:
        key, directory = int(arguments["moves"]), str(arguments["moves_directory"])
        self.table = read_moves(directory, key) if directory else TABLES[key]
        self.temperature = float(arguments["temperature"])
        self.epsilon = float(arguments["epsilon"])
        # vLLM appends to this very list; a preempted sequence comes back with all of it.
        self.output_ids = output_ids
        self.consumed = 0
        # Where a request goes on behind a tool's answer, its actions so far are in the prompt.
        self.before = int(arguments["actions"])
        self.state = int(arguments["state"])

    def table_row(self) -> int:
        """Advance over the tokens sampled since the last call; current row of the table."""
        for token in self.output_ids[self.consumed :]:
            self.state = self.table.moves.step(self.state, token)
        self.consumed = len(self.output_ids)
        return self.table.row(self.before + self.consumed, self.state)


class MovesProcessor(LogitsProcessor):
    """Replaces each row of logits by log q over the legal moves of its sequence."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the sequences as vLLM adds, drops and moves them in its batch."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _prompt_ids, output_ids in batch_update.added:
            self._rows.pop(index, None)
            if isinstance(params, SamplingParams) and params.extra_args:
                arguments = params.extra_args.get(EXTRA_ARGS_KEY)
                if arguments is not None:
                    self._rows[index] = _Row(arguments, output_ids)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction is MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Write log q into ``logits`` [batch, vocabulary] in place."""
        indices_of_table: dict[MoveTable, list[int]] = {}
        for index, row in self._rows.items():
            indices_of_table.setdefault(row.table, []).append(index)
        for table, indices in indices_of_table.items():
            rows = [self._rows[index] for index in indices]
            at = torch.tensor(indices, device=logits.device).unsqueeze(1)
            columns = table.columns(logits.device)
            temperature = logits.new_tensor([[row.temperature] for row in rows])
            epsilon = logits.new_tensor([[row.epsilon] for row in rows])
            scores = table.scores(logits[at, columns], [row.table_row() for row in rows])
            log_q = behaviour_log_q(scores, temperature, epsilon)
            logits[at.squeeze(1)] = -torch.inf
            logits[at, columns] = log_q.to(logits.dtype)
        return logits
