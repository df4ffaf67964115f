"""The fidelity ladder's own parts: measures against exact values, constraint, results, run files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.ladder import constraint, log_z, markov, report, rivals
from benchmarks.ladder.ground import HELD_OUT, Known, averaged
from benchmarks.ladder.results import Results
from benchmarks.ladder.rows import BY_NAME, ROWS, Target
from posteriori import metrics
from posteriori.lm import LanguageModel
from posteriori.markov_model import markov_model, markov_tokenizer
from posteriori.moves import LegalMoves
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.markov import MarkovTable
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import Problem
from posteriori.rewards import ProductReward
from posteriori.seams import Prompt

LENGTH = 5


@pytest.fixture(scope="module")
def reward_lm() -> LanguageModel:
    return LanguageModel(markov_model(seed=0, window=1, hidden=16), markov_tokenizer(), "markov")


@pytest.fixture(scope="module")
def known(reward_lm: LanguageModel) -> Known:
    """p(z | x)^{1/0.7}, five words exactly."""
    moves = LegalMoves.free(range(32), 32, LENGTH, LENGTH)
    prompt = Prompt("0", {"x": "so ma"})
    problem = Problem(
        "short",
        [prompt],
        ProductReward([], [], lambda _: moves),
        reward_lm,
        lambda _: reward_lm.context("so ma"),
        lambda _: moves,
    )
    table = MarkovTable.from_model(reward_lm.model)
    exact = MarkovPosterior(
        table, moves, tuple(reward_lm.context("so ma")), 1 / 0.7, np.zeros(len(table.log_p))
    )
    return Known(problem, prompt, False, exact.log_z, exact.length_marginal(), exact)


def exact_of(known: Known) -> MarkovPosterior:
    assert isinstance(known.exact, MarkovPosterior)
    return known.exact


def test_sampled_divergences_agree_with_the_exact_ones(
    known: Known, reward_lm: LanguageModel
) -> None:
    exact = exact_of(known)
    found = markov.distances(known, reward_lm, 1500, seed=0)
    sampler = exact.local_sampler()
    for metric, value in (
        ("kl_posterior_q", exact.kl_posterior_q(sampler)),
        ("kl_q_posterior", exact.kl_q_posterior(sampler)),
    ):
        assert value > 0.2, "a sampler that is right would not test much"
        assert abs(found[metric] - value) < 4 * found[f"{metric} error"]
    ess = exact.ess_fraction(sampler)
    assert found["ess_fraction"] == pytest.approx(ess, rel=0.25)
    assert found["forward ess_fraction"] == pytest.approx(ess, rel=0.25)
    assert found["validity"] == 1.0


def test_token_tempering_is_the_local_sampler(known: Known, reward_lm: LanguageModel) -> None:
    exact = exact_of(known)
    strings = exact.sample(20, seed=1)
    tempered = reward_lm.at_temperature(0.7)
    found = sequence_log_q(tempered, exact.prompt_ids, exact.moves, strings)
    np.testing.assert_allclose(found, exact.log_q(exact.local_sampler(0.7), strings), atol=1e-4)
    # The untempered model is left as it was.
    plain = sequence_log_q(reward_lm, exact.prompt_ids, exact.moves, strings)
    np.testing.assert_allclose(plain, exact.log_q(exact.local_sampler(), strings), atol=1e-4)


def test_walks_have_the_weights_of_their_strings(known: Known) -> None:
    exact = exact_of(known)
    sampler = exact.local_sampler()
    rng = np.random.default_rng(0)
    of_q = log_z.Walk(exact, sampler, sampler).log_weights(40_000, rng)
    estimate = metrics.log_z_estimate(of_q)
    assert abs(estimate.value - exact.log_z) < 4 * estimate.standard_error
    gap = metrics.mean_estimate(exact.log_z - of_q)
    assert abs(gap.value - exact.kl_q_posterior(sampler)) < 4 * gap.standard_error
    of_sigma = log_z.Walk(exact, sampler, exact.conditional).log_weights(40_000, rng)
    gap = metrics.mean_estimate(of_sigma - exact.log_z)
    assert abs(gap.value - exact.kl_posterior_q(sampler)) < 4 * gap.standard_error


def test_ordered_keywords_accept_what_the_definition_does() -> None:
    keywords, alphabet = [3, 1], [0, 1, 2, 3]
    next_state, accepting = constraint.ordered_keywords(keywords, alphabet, modulus=3, residue=2)
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(300):
        z = rng.integers(0, 4, rng.integers(0, 7)).tolist()
        state = 0
        for token in z:
            state = int(next_state[state, token])
        rest = iter(z)
        expected = all(word in rest for word in keywords) and sum(z) % 3 == 2
        assert accepting[state] == expected
        verdicts.add(expected)
    assert verdicts == {True, False}


def constrained(known: Known) -> MarkovPosterior:
    exact = exact_of(known)
    next_state, accepting = constraint.ordered_keywords([4, 9], range(32))
    moves = LegalMoves(np.arange(32), 32, LENGTH, LENGTH, next_state, accepting)
    return MarkovPosterior(exact.table, moves, exact.prompt_ids, 1.0, exact.final)


def test_probability_of_the_constraint_by_plain_draws(known: Known) -> None:
    exact = constrained(known)
    free = constraint.unconstrained(exact)
    # Of draws from the unconstrained posterior, P(c) satisfy the constraint.
    drawn = free.sample(15_000, seed=0)
    share = float(np.isfinite(exact.log_reward(drawn)).mean())
    expected = np.exp(constraint.log_probability(exact))
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / 15_000))


def test_viability_filter_is_unbiased_and_can_fail(known: Known) -> None:
    exact = constrained(known)
    relative = np.exp(constraint.viability_filter(exact, 64, 400, seed=0) - exact.log_z)
    assert relative.mean() == pytest.approx(1.0, abs=4 * relative.std() / 20)
    assert np.isneginf(constraint.viability_filter(exact, 2, 100, seed=0)).any()


def test_means_keep_held_out_prompts_apart() -> None:
    found = averaged(
        [
            (False, {"kl_posterior_q": 1.0, "kl_posterior_q error": 0.3}),
            (False, {"kl_posterior_q": 2.0, "kl_posterior_q error": 0.4}),
            (True, {"kl_posterior_q": 7.0, "kl_posterior_q error": 0.1}),
        ]
    )
    assert found["kl_posterior_q"] == 1.5
    assert found["kl_posterior_q error"] == pytest.approx(0.25)
    assert found["worst kl_posterior_q"] == 2.0
    assert found[HELD_OUT + "kl_posterior_q"] == 7.0


def test_particle_equivalent_and_break_even() -> None:
    gaps = {1: 4.0, 4: 2.0, 16: 1.0}
    assert rivals.particle_equivalent(2.0, gaps) == pytest.approx(4.0)
    assert rivals.particle_equivalent(np.sqrt(2.0), gaps) == pytest.approx(8.0)
    assert rivals.particle_equivalent(0.5, gaps) is None
    assert rivals.break_even(1000.0, 10.0, 30.0) == 50.0
    assert rivals.break_even(1000.0, 10.0, 10.0) is None


def test_results_accumulate_and_are_judged(tmp_path: Path) -> None:
    row = BY_NAME["tempered"]
    file = tmp_path / "fidelity-tempered.json"
    first = Results(file)
    first.add("q", 0, {"total_variation": 0.01, "kl_posterior_q": 0.2}, 1.0, 1.0)
    first.add("local", 0, {"total_variation": 0.5}, 1.0, 1.0)
    again, beside = Results(file), Results(file)
    beside.add("sft", 0, {"total_variation": 0.4}, 1.0, 1.0)
    assert again.has("q", 0)
    assert not again.has("q", 1)
    again.add("base", 0, {"total_variation": 0.9, "kl_posterior_q": 3.0}, 1.0, 1.0)
    again.add("q", 1, {"total_variation": 0.03, "kl_posterior_q": 0.1}, 1.0, 1.0)
    assert Results(file).has("sft", 0), "an entry of another process was lost"
    text = report.markdown([(row, Results(file)), (BY_NAME["tool"], Results(tmp_path / "none"))])
    assert "- total_variation ≤ 0.05: 0.020 ± 0.014, met (2 seeds)" in text
    assert "- kl_posterior_q ≤ 0.05: 0.150 ± 0.071, **missed** (2 seeds)" in text
    assert "Not measured yet: tool." in text
    assert text.index("| q |") < text.index("| base |")


def test_a_gap_below_every_filter_is_worth_more_than_the_largest(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    for method, gap in (("smc-4", 1.0), ("smc-16", 0.5)):
        results.add(method, 0, {"log_z gap": gap}, 1.0, 1.0)
    q = {"kl_q_posterior": 0.1, "training forwards": 3000.0, "forwards per sample": 10.0}
    results.add("q", 0, q, 1.0, 1.0)
    text = report.markdown([(BY_NAME["infilling"], results)])
    assert "particle equivalent: more than 16" in text
    assert "break-even with such a filter: at most 20 samples" in text


def test_targets_bound_from_the_right_side() -> None:
    assert Target("ess_fraction", 0.8, at_least=True).met(0.9)
    assert not Target("ess_fraction", 0.8, at_least=True).met(0.7)
    assert Target("kl_posterior_q", 0.1).met(0.05)


@pytest.mark.slow
def test_a_changed_row_has_another_oracle(tmp_path: Path) -> None:
    from benchmarks import fidelity

    config = BY_NAME["tempered"].config(False, 0)
    (problem,) = config.problems
    colder = config.model_copy(
        update={"problems": (problem.model_copy(update={"temperature": 0.6}),)}
    )
    place = fidelity.oracle_directory(config, tmp_path)
    assert fidelity.oracle_directory(BY_NAME["tempered"].config(False, 1), tmp_path) == place
    assert fidelity.oracle_directory(colder, tmp_path) != place


def test_the_quick_form_measures_q_and_a_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import fidelity

    arguments = ["fidelity", "--quick", "--only", "infilling", "--seeds", "1"]
    arguments += ["--methods", "q", "base", "smc-4", "--work", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    fidelity.main()
    results = Results(tmp_path / "quick" / "fidelity-infilling.json")
    assert results.methods() == ["q", "base", "smc-4"]
    # Four steps move q away from its base, not yet to σ.
    assert results.values("q", "kl_posterior_q") != results.values("base", "kl_posterior_q")
    assert results.values("q", "training trajectories")[0] > 0
    assert "### infilling" in capsys.readouterr().out


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind != "log_z"], ids=lambda r: r.name)
def test_run_files_are_valid_and_within_the_budget(row: object) -> None:
    from benchmarks.ladder.rows import Row

    assert isinstance(row, Row)
    config = row.config(quick=False, seed=2)
    assert config.seed == 2
    assert config.problems[0].test_prompts
    learner = config.learner
    drawn = learner.steps * learner.prompts_per_step * learner.trajectories_per_prompt
    assert drawn / config.replay.samples_per_insert <= 200_000
    assert set(row.rivals) <= set(rivals.RIVALS)


def test_the_profile_of_the_error_adds_up(known: Known, reward_lm: LanguageModel) -> None:
    exact = exact_of(known)
    sampler = reward_lm.at_temperature(0.7)
    profile, error = markov.kl_by_position(known, sampler, 400, seed=0)
    total = exact.kl_posterior_q(exact.local_sampler(0.7))
    assert profile.shape == (LENGTH + 1,) and (profile >= -1e-6).all()
    assert abs(profile.sum() - total) < 4 * error < 0.5 * total
    # token tempering is right where nothing follows: at the last word, and where ⊤ is forced
    assert profile[LENGTH - 1] < 1e-6 and profile[LENGTH] < 1e-6 < profile[0]
