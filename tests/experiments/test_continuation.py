"""Continuation: disjoint beginnings, the enumerated plot, diversity by hand, the frontier, a quick trial."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.continuation import EXPERIMENT, claims, dominated_by
from experiments.continuation.diversity import Embedder, distinct, diversity
from experiments.continuation.stories import JOB, beginnings, problem_config
from experiments.continuation.trial import BEAM, DIVERSE_5, gfn, tempering
from experiments.harness import Cell, Results, Summary, Trial
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import build_problem


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket")


@pytest.mark.parametrize("plot", [None, JOB])
def test_beginnings_are_different_and_go_on(pocket: LanguageModel, plot: object) -> None:
    """No X twice; the sentence that followed is a legal Z of the problem."""
    stories = beginnings(3, 30, 20, JOB if plot else None)
    both = [*stories.train, *stories.test]
    assert len({story["x"] for story in both}) == 50
    problem = build_problem(problem_config(both, 0.5, enumerable=plot is not None), pocket)
    for prompt, story in zip(problem.prompts, both, strict=True):
        moves = problem.moves(prompt)
        assert moves.stop_legal(pocket.encode(story["next"]))[-1]
    if plot:
        names, days, colors, clothes = 24, 5, 8, 6
        assert moves.count() == names * 2 * days + 2 * colors * clothes * names == 2544


def test_diversity_by_hand() -> None:
    assert distinct([[1, 2, 3], [1, 2]], 2) == 2 / 3
    assert distinct([[1]], 2) == 0
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert diversity(vectors) == pytest.approx(1 - (0 + 0 - 1) / 3)
    assert diversity(np.ones((4, 3))) == pytest.approx(0)


def test_embeddings_are_centred_on_the_references(
    pocket: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    references = [" She was sad", " He was sad", " The sky was dark"]
    embed = Embedder(pocket, references)
    np.testing.assert_allclose(embed(references).mean(axis=0), 0, atol=1e-9)
    near, far = embed([*references[:2]]), embed([references[0], references[2]])
    assert diversity(near) < diversity(far)
    monkeypatch.setenv("POSTERIORI_ENCODER", str(tmp_path / "none"))
    with pytest.raises(UserError, match="POSTERIORI_ENCODER"):
        Embedder(pocket, references)


def summary(rows: dict[str, tuple[float, float, float, float]]) -> Summary:
    names = ("max_log_p", "diversity", "exact_kl", "kl_q_posterior")
    return {
        method: {
            "mean_log_p": Cell(values[0] - 1, 0, 3),
            **{name: Cell(value, 0, 3) for name, value in zip(names, values, strict=True)},
        }
        for method, values in rows.items()
    }


def test_the_frontier_and_the_claims() -> None:
    """Better in one and no worse in the other dominates; five times the samples do not count."""
    rows = {
        gfn(0.8): (-4.0, 0.5, 0.1, 0.1),
        gfn(0.5): (-3.0, 0.3, 0.1, 0.1),
        tempering(0.8): (-4.5, 0.4, 0.2, 0.2),
        tempering(0.5): (-3.02, 0.3, 0.2, 0.05),
        BEAM: (-2.0, 0.1, 0.0, 0.0),
        DIVERSE_5: (-1.0, 0.9, 0.0, 0.0),
    }
    found = summary(rows)
    assert dominated_by(found, tempering(0.8), [gfn(0.8), BEAM]) == [gfn(0.8)]
    assert dominated_by(found, gfn(0.5), [tempering(0.5), BEAM]) == []
    verdicts = [claim.holds for claim in claims(found)]
    assert verdicts == [True, True, True, True, True, True, True, False]
    rows[BEAM] = (-2.0, 0.6, 0.0, 0.0)
    beaten = claims(summary(rows))
    assert [claim.holds for claim in beaten[:2]] == [False, False]
    assert BEAM in beaten[0].text


@pytest.mark.slow
def test_a_quick_trial_runs_all_methods(tmp_path: Path) -> None:
    rows = EXPERIMENT.run(Trial(0, True, tmp_path, Console(quiet=True)))
    results = Results("continuation", True, {0: rows}, {0: 1.0}, ["a machine"])
    found = results.summary()
    assert len(found) == 11
    for name in (gfn(0.8), tempering(0.5)):
        assert all(math.isfinite(found[name][c.metric].mean) for c in EXPERIMENT.columns)
    assert found[tempering(0.5)]["exact_kl"].mean > 1
    assert EXPERIMENT.plot is not None
    EXPERIMENT.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
