"""Gold Z's reach the buffer once a run, whoever starts, restarts or dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.adapter_follower import ADAPTER_SLOTS
from actors.gold import Claim, GoldSupply
from actors.rollout import RolloutWorker
from actors.transformers_engine import TransformersEngine
from posteriori.config import ProblemConfig, ReplayConfig, SamplingConfig
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem
from posteriori.seams import InsertReceipt
from posteriori.trajectory import Trajectory
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer
from tests.actors.conftest import RANK

SAMPLING = SamplingConfig(engine="transformers", group_size=2, groups_in_flight=1)


class Noticeboard:
    """The registry's claim, without a server."""

    def __init__(self) -> None:
        self.holder: str | None = None

    def supply(self, actor: str, problems: list[Problem]) -> GoldSupply:
        def claim() -> Claim:
            if self.holder is None:
                self.holder = actor
            return {actor: "yours", "done": "done"}.get(self.holder, "taken")  # type: ignore[return-value]

        def settle() -> None:
            self.holder = "done"

        return GoldSupply(problems, claim, settle)


class RecordingBuffer(MemoryBuffer):
    """Remembers the gold it took; takes nothing while ``shut``."""

    def __init__(self) -> None:
        super().__init__(ReplayConfig(), seed=0)
        self.gold: list[Trajectory] = []
        self.shut = False

    def insert(self, trajectories: object) -> InsertReceipt:
        if self.shut:
            return InsertReceipt(wait="shut")
        assert isinstance(trajectories, list)
        self.gold += [t for t in trajectories if t.behaviour == "gold"]
        return super().insert(trajectories)


@pytest.fixture
def problem(tiny_lm: LanguageModel) -> Problem:
    return build_problem(
        ProblemConfig.model_validate(
            {
                "name": "p",
                "kind": "tempered",
                "prompts": [{"x": " the cat", "g": " sat ran"}, {"x": " a dog", "g": " ran"}],
                "gold": {"template": "{g}"},
                "alphabet": [" sat", " ran"],
                "stop": ".",
                "max_tokens": 3,
            }
        ),
        tiny_lm,
    )


def test_gold_is_stored_once_a_run(problem: Problem, tiny_lm_path: Path, tmp_path: Path) -> None:
    board, buffer = Noticeboard(), RecordingBuffer()

    def worker(name: str, gold: bool = True) -> RolloutWorker:
        return RolloutWorker(
            name,
            TransformersEngine(
                tiny_lm_path, lora_rank=RANK, max_adapters=ADAPTER_SLOTS, device="cpu"
            ),
            buffer,
            MemoryAdapters("r"),
            [problem],
            SAMPLING,
            seed=0,
            adapter_directory=tmp_path / name,
            poll_seconds=0.0,
            gold=board.supply(name, [problem]) if gold else None,
        )

    def stored() -> list[str]:
        return [problem.text(t.tokens.tolist()) for t in buffer.gold]

    buffer.shut = True
    first, second = worker("first"), worker("second")
    first.turn()
    second.turn()
    assert board.holder == "first" and not stored()
    # The claimant dies before the buffer took anything, and its lease runs out.
    board.holder, buffer.shut = None, False
    second.turn()
    second.turn()
    assert stored() == [" sat ran", " ran"] and board.holder == "done"
    third = worker("restarted")
    for _ in range(3):
        third.turn()
        second.turn()
    assert stored() == [" sat ran", " ran"]
    # Without a noticeboard there is one worker, and the gold is its own.
    buffer.gold.clear()
    alone = worker("alone", gold=False)
    for _ in range(3):
        alone.turn()
    assert stored() == [" sat ran", " ran"]
