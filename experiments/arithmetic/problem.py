"""Sums of single digits, the calculator, and the reward that has seen worked examples.

The policy sees X alone, the reward LM three worked sums before it: log R = log p(Z Y | shots X). The paper's R is
this to the power 2; pocket's posterior is as good as a single chain without it. Pocket was trained on chains behind
"Question: … = ? Answer:", so behind these words there is nothing to learn but where to stop; the policy's prompt leaves
the first of them out.
Z is made of digits, signs, commas and ``=``; ⊤ is the end of the text, which the base LM never writes
there, so where to stop has to be learnt (paper, section 4.4 and its released configuration).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from posteriori.config import RunConfig, parse
from posteriori.data.formats import read
from posteriori.data.generated import write_data

SHOTS: Final = (
    "Question: 6 - 0 - 4 - 8 = ? Answer: 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6. The answer is -6. "
    "Question: 5 + 9 - 3 + 8 = ? Answer: 5 + 9 = 14, 14 - 3 = 11, 11 + 8 = 19. The answer is 19. "
    "Question: 9 + 4 - 8 = ? Answer: 9 + 4 = 13, 13 - 8 = 5. The answer is 5."
)
"""Worked sums with results, as the reward LM and chain-of-thought prompting see them."""

OPERANDS: Final = (3, 4, 5)
"""Tested; the first two are trained."""

TRAINED_ACTIONS: Final = 18
"""Longest Z in training (the paper's M): the longest right chain of four operands has 17 actions."""

TESTED_ACTIONS: Final = 26
"""Longest Z at test: room for five operands."""

WORKED: Final = f"{SHOTS} {{x}}"
MISSPECIFIED: Final = "{sum}"
"""What the reward LM sees before Z: worked sums and the question, or the bare sum. Behind the latter the question
repeated is likelier than the right chain by some 30 nats (in the paper: 14)."""

POLICY_PROMPT: Final = "{sum} = ? Answer:"
"""Half as familiar as what pocket has read: it takes the chain for granted and miscopies the operands."""

REWARD_LM: Final = "pocket"
"""Also of policies that begin at other weights."""

ALPHABET: Final = (*(f"{space}{mark}" for mark in "0123456789+-=" for space in ("", " ")), ",")


def write_items(directory: Path, *, train: int, test: int, demonstrations: int, seed: int) -> None:
    """Write the files of one seed, in the paper's format; test items occur nowhere else."""
    write_data(
        "arithmetic", directory, train=train, test=test, rationales=demonstrations, seed=seed
    )


def prompts(file: Path, name: str) -> list[dict[str, str]]:
    """X's of a file, with ids that tell files apart and the bare ``sum``."""
    records = read(file, "arithmetic")
    return [
        {"id": f"{name}-{i}", **record.fields, "sum": bare_sum(record.fields["x"])}
        for i, record in enumerate(records)
    ]


def bare_sum(question: str) -> str:
    """What is asked: ``6 - 0 - 4``."""
    return question.removeprefix("Question: ").removesuffix(" = ? Answer:")


def training_prompts(directory: Path) -> list[dict[str, str]]:
    """Demonstrations, whose ``gold`` is the actions of their chain, then (X, Y) alone."""
    demonstrations = [
        {**row, "gold": f" {row['rationale']}"}
        for row in prompts(directory / "train_with_rationale.json", "demonstration")
    ]
    return demonstrations + prompts(directory / "train_without_rationale.json", "train")


def held_out(directory: Path, operands: int) -> list[dict[str, str]]:
    """Held-out X's of that many operands."""
    return prompts(directory / f"test_{operands}_operands.json", f"test-{operands}")


def problem(
    rows: Sequence[dict[str, str]], max_tokens: int, reward_context: str = WORKED
) -> dict[str, Any]:
    """The problem section of a run file."""
    return {
        "name": "arithmetic",
        "kind": "product",
        "prompts": list(rows),
        "alphabet": list(ALPHABET),
        "min_tokens": 5,
        "max_tokens": max_tokens,
        "policy_prompt": POLICY_PROMPT,
        "terms": [{"context": reward_context, "target": "{z}{y}", "model": REWARD_LM}],
        "tool": {"use": "calculator", "max_operands": 2},
    }


def run_config(
    directory: Path,
    *,
    seed: int,
    steps: int,
    gold: bool,
    start: str = REWARD_LM,
    reward_context: str = WORKED,
) -> RunConfig:
    """The run file of a GFlowNet policy that begins at the LM ``start``.

    Its test X's are named in it, so that leaks are refused.
    """
    section = problem(training_prompts(directory), TRAINED_ACTIONS, reward_context)
    section["test_prompts"] = [row for k in OPERANDS for row in held_out(directory, k)]
    if gold:
        section["gold"] = {"template": "{gold}"}
    return parse(
        {
            "run": "arithmetic",
            "model": start,
            "seed": seed,
            "oracle_max_strings": 0,
            "problems": [section],
            "sampling": {
                "group_size": 8,
                "groups_in_flight": 8,
                # pocket never stops: draws of a base that is not SFT all end at the cap.
                "base_share": 0.0,
                "tempered_share": 0.25,
                "uniform_share": 0.0,
            },
            "replay": {
                "recent_share": 0.5,
                "prioritised_share": 0.3,
                # As often as PPO, in four epochs.
                "samples_per_insert": 4.0,
            },
            "learner": {
                "steps": steps,
                "learning_rate": 0.001,
                "prompts_per_step": 8,
                "trajectories_per_prompt": 8,
                # A chain that goes on past its end is a hundred nats worse than the right one.
                "huber_delta_nats": 4.0,
                "publish_every_steps": 8,
                "evaluate_every_steps": steps,
            },
        },
        "experiment arithmetic",
    )
