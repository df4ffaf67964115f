"""log q and log R of given Z's."""

from __future__ import annotations

from collections.abc import Sequence

from api.catalogue import Resolved
from api.errors import wrong
from api.sampling import json_number, log_rewards
from api.service import Service
from posteriori.errors import UserError
from posteriori.messages import Scored, ScoreResponse
from posteriori.oracle.scoring import sequence_log_q


def score_given(
    service: Service, resolved: Resolved, given: Sequence[str | list[int]]
) -> ScoreResponse:
    """Score Z's in the order given; in the ``filters`` thread.

    Raises:
        ApiError: a Z is not a path of legal moves; names its place and its first illegal token.
    """
    problem, prompt = resolved.problem, resolved.prompt
    sequences = [_tokens(resolved, index, z) for index, z in enumerate(given)]
    log_q = sequence_log_q(
        service.policy(resolved.adapter),
        problem.policy_ids(prompt),
        problem.moves(prompt),
        sequences,
    )
    log_r = log_rewards(resolved, sequences) if resolved.reward_known else [None] * len(sequences)
    return ScoreResponse(
        run=resolved.run,
        problem=problem.name,
        prompt=prompt.id,
        fields=dict(prompt.fields),
        version=resolved.version,
        scores=[
            Scored(
                text=problem.text(tokens),
                tokens=tokens,
                log_q=float(q),
                log_reward=json_number(r),
                log_weight=None if r is None else json_number(r - float(q)),
            )
            for tokens, q, r in zip(sequences, log_q, log_r, strict=True)
        ],
    )


def _tokens(resolved: Resolved, index: int, z: str | list[int]) -> list[int]:
    field = f"z.{index}"
    moves = resolved.problem.moves(resolved.prompt)
    try:
        tokens = resolved.problem.lm.encode(z) if isinstance(z, str) else z
        complete = moves.masks(tokens)[-1, -1]
    except UserError as cause:
        raise wrong("illegal_z", cause.problem, cause.fix, field) from cause
    except ValueError as cause:
        fix = "GET /v1/problems says which tokens and lengths are legal."
        raise wrong("illegal_z", f"Z is illegal: {cause}.", fix, field) from cause
    if not complete:
        fix = f"Stopping needs {moves.min_tokens} to {moves.max_tokens} tokens and the constraint met."
        raise wrong("illegal_z", f"Z of {len(tokens)} tokens may not end there.", fix, field)
    return list(tokens)
