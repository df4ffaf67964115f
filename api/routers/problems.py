"""Which posteriors there are, and how to declare another."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api import errors
from api.access import needs
from api.errors import ApiError
from api.routers.common import TheService
from api.service import Service
from posteriori.config import ProblemConfig
from posteriori.errors import UserError
from posteriori.messages import ProblemInfo, ProblemList
from posteriori.problems import needed_fields

router = APIRouter(
    prefix="/v1/problems",
    tags=["problems"],
    responses=errors.ERRORS,
    dependencies=[needs("sample")],
)

PROMPTS_LISTED = 100


@router.get("")
async def problems(service: TheService) -> ProblemList:
    """Problems of all runs that were trained on the base LM served here."""
    return await service.scoring.run(lambda: _list(service))


@router.get("/schema")
async def schema() -> dict[str, Any]:
    """JSON schema of a problem's declaration, as run files and `problem` of a request hold it."""
    return ProblemConfig.model_json_schema()


def _list(service: Service) -> ProblemList:
    found: list[ProblemInfo] = []
    for name in service.catalogue.names():
        try:
            run = service.catalogue.served(name)
        except (ApiError, UserError):  # of another base LM, or of files that are gone
            continue
        for config in run.config.problems:
            problem = run.problems[config.name]
            listed = problem.prompts[:PROMPTS_LISTED]
            first = listed[0]
            moves = problem.moves(first)
            seen, read = needed_fields(config, first.fields)
            found.append(
                ProblemInfo(
                    run=name,
                    problem=config.name,
                    kind=config.kind,
                    prompts=len(problem.prompts),
                    prompt_ids=[prompt.id for prompt in listed],
                    prompt_fields=[dict(prompt.fields) for prompt in listed],
                    test_prompts=len(problem.test_prompts),
                    policy_fields=sorted(seen),
                    reward_fields=sorted(read),
                    labels=list(config.labels),
                    alphabet_tokens=len(moves.alphabet),
                    stop=problem.text([moves.stop]),
                    min_tokens=moves.min_tokens,
                    max_tokens=moves.max_tokens,
                )
            )
    return ProblemList(problems=found)
