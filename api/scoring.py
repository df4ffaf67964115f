"""log q and log R of given Z's, as a route answers them."""

from __future__ import annotations

from collections.abc import Sequence

from api.catalogue import Resolved
from api.errors import wrong
from api.service import Service
from posteriori.commands.score import scored, tokens_of
from posteriori.errors import UserError
from posteriori.messages import ScoreResponse


def score_given(
    service: Service, resolved: Resolved, given: Sequence[str | list[int]]
) -> ScoreResponse:
    """Score Z's in the order given; in the ``filters`` thread.

    Raises:
        ApiError: a Z is not a path of legal moves; names its place and its first illegal token.
    """
    problem, prompt = resolved.problem, resolved.prompt
    sequences = []
    for index, z in enumerate(given):
        try:
            sequences.append(tokens_of(problem, prompt, z))
        except UserError as cause:
            raise wrong("illegal_z", cause.problem, cause.fix, f"z.{index}") from cause
    policy = service.policy(resolved.adapter)
    known = resolved.reward_known
    return ScoreResponse(
        run=resolved.run,
        problem=problem.name,
        prompt=prompt.id,
        fields=dict(prompt.fields),
        version=resolved.version,
        scores=scored(problem, prompt, policy, sequences, reward_known=known),
    )
