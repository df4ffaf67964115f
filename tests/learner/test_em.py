"""Variational EM against enumeration: the gradient, the bound, the evidence; kills; stale rewards."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import learner.learner as learner_module
from actors.reward_follower import RewardFollower
from learner.em import Chains, VariationalEm, bound_of, draw_chains
from learner.learner import Learner
from posteriori.config import ProblemConfig, parse
from posteriori.errors import UserError
from posteriori.fitted_reward import FittedReward, store_name
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import evaluator, exact_cases
from posteriori.policy import Policy
from posteriori.problems import Problem, build_problem, build_problems
from replay.memory_adapters import MemoryAdapters
from tests.learner.helpers import LengthReward, ScriptedBuffer, trajectory
from tests.tiny import write_tiny_lm

WORDS = [" cat", " dog", " ran"]
PROMPTS = [{"x": " the big", "y": " sat on"}, {"x": " a", "y": " slept."}]


@pytest.fixture(scope="module")
def small_lm(tmp_path_factory):
    """One layer: every test here runs several M steps."""
    path = write_tiny_lm(tmp_path_factory.mktemp("small-lm"), seed=1, layers=1)
    return LanguageModel.load(str(path))


def run_config(lm, em=None, problem=None, **learner_settings):
    problem = {"kind": "reasoning", "alphabet": WORDS, "stop": ".", "max_tokens": 2} | (
        problem or {}
    )
    return parse(
        {
            "run": "em",
            "model": lm.name,
            "problems": [{"name": "why", "prompts": PROMPTS} | problem],
            "replay": {"deadline_seconds": 0.2},
            "learner": {
                "steps": 6,
                "lora_rank": 8,
                "trajectories_per_prompt": 12,
                "warmup_steps": 2,
                "checkpoint_every_steps": 3,
            }
            | learner_settings,
            "em": {"rounds": 2, "m_steps": 4, "lora_rank": 8, "learning_rate": 3e-4} | (em or {}),
        }
    )


def em_on(config, problems, directory, adapters=None, events=None):
    return VariationalEm(
        config,
        problems,
        directory,
        adapters if adapters is not None else MemoryAdapters(store_name(config.run)),
        threading.Event(),
        lambda kind, message: events.append(message) if events is not None else None,
    )


def exact_chains(case, log_p):
    """All strings of one X with exact probabilities."""
    tree = case.exact.tree
    strings = [tree.tokens(k) for k in range(tree.count)]
    return Chains(case.problem, case.prompt, strings, np.exp(log_p), log_p, draws=1)


def log_evidence(problems):
    return float(np.mean([case.exact.log_z for case in exact_cases(problems, 100)]))


def naive_log_p(model, context, target):
    logits = model(torch.tensor([[*context, *target]])).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return sum(log_p[len(context) + i - 1, token] for i, token in enumerate(target))


@pytest.mark.parametrize("objective", ["y_given_xz", "joint"])
def test_gradient_is_that_of_the_enumerated_objective(small_lm, tmp_path, objective):
    """Σ_z q(z) ∇ log p over all strings, one plain forward each, in small micro-batches and large."""
    for budget in (64, 4096):
        config = run_config(small_lm, {"objective": objective}, tokens_per_microbatch=budget)
        problems = build_problems(config, small_lm)
        em = em_on(config, problems, tmp_path)
        model = Policy(small_lm, config.learner, seed=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02)
        cases = exact_cases(problems, 100)
        chains = [exact_chains(case, case.log_q(small_lm)) for case in cases]
        assert sum(len(drawn.tokens) for drawn in chains) == 2 * (3 + 9)
        em.accumulate(model, [em.pack(drawn) for drawn in chains])
        ours = [parameter.grad.clone() for parameter in model.parameters()]

        for parameter in model.parameters():
            parameter.grad = None
        value = 0.0
        for drawn in chains:
            fields = drawn.prompt.fields
            x, y = small_lm.context(fields["x"]), small_lm.encode(fields["y"])
            for z, probability in zip(drawn.tokens, drawn.shares, strict=True):
                value = value - probability * naive_log_p(model.model, [*x, *z], y) / 2
                if objective == "joint":
                    value = value - probability * naive_log_p(model.model, x, z) / 2
        value.backward()
        for mine, parameter in zip(ours, model.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=2e-4, atol=2e-5)


def test_splitting_p_of_z_and_y_leaves_the_reward_as_it_was(small_lm):
    config = run_config(small_lm)
    plain, split = build_problems(config, small_lm), build_problems(config, small_lm)
    FittedReward(split, "y_given_xz")
    assert len(split[0].reward.terms) == 2
    for before, after in zip(exact_cases(plain, 100), exact_cases(split, 100), strict=True):
        np.testing.assert_allclose(before.exact.log_reward, after.exact.log_reward, atol=1e-4)


def test_a_label_penalty_asks_the_fitted_lm(small_lm, tmp_path):
    """Which label a Z speaks for is a question to the LM in force, however the reward is wrapped."""
    labels = [" sat on", " slept."]
    config = run_config(small_lm, problem={"labels": labels}, huber_delta_nats=5)
    plain = build_problems(run_config(small_lm), small_lm)[0]
    (problem,) = build_problems(config, small_lm)
    model = Policy(small_lm, config.learner)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    for name, content in model.adapter_files().items():
        (tmp_path / name).write_bytes(content)
    fitted = FittedReward([problem], "joint")
    penalised = []
    for lm in (small_lm, model.language_model()):
        if lm is not small_lm:
            fitted.use(tmp_path, 1)
            FittedReward([plain], "joint").use(tmp_path, 1)
        wrong = []
        for prompt in problem.prompts:
            x = small_lm.context(prompt.fields["x"])
            for word in WORDS:
                z = [small_lm.one_token(word, "word")]
                (found,), (likelihood,) = (
                    p.reward.log_reward(prompt, [z]) for p in (problem, plain)
                )
                wrong.append(bool(found[1] < likelihood[1] - 40))
                scores = {y: naive_log_p(lm.model, [*x, *z], lm.encode(y)).item() for y in labels}
                assert wrong[-1] == (max(scores, key=scores.get) != prompt.fields["y"])
        penalised.append(wrong)
    assert penalised[0] != penalised[1]
    assert problem.reward.version == 1


@pytest.mark.parametrize("objective", ["y_given_xz", "joint"])
def test_exact_em_never_lowers_the_evidence(small_lm, tmp_path, objective):
    """With q = σ each round, the bound is log Z, and an M step that raises it raises log Z."""
    config = run_config(small_lm, {"objective": objective, "rounds": 4})
    problems = build_problems(config, small_lm)
    em = em_on(config, problems, tmp_path)
    evidence = [log_evidence(problems)]
    for _ in range(4):
        cases = exact_cases(problems, 100)
        before, after = em.maximise([exact_chains(case, case.exact.log_sigma) for case in cases])
        assert after > before
        evidence.append(log_evidence(problems))
        # The bound after the M step lies between the two evidences (Neal & Hinton 1998).
        assert evidence[-2] + (after - before) <= evidence[-1] + 1e-4
    assert evidence[-1] > evidence[0] + 2
    assert problems[0].reward.version == em.reward.version == 4


def test_an_m_step_that_would_lower_its_objective_is_not_taken(small_lm, tmp_path):
    """A leap from an adapter near its optimum; one from the untrained LM may land better by chance."""
    config = run_config(small_lm, {"learning_rate": 0.01, "m_steps": 60})
    problems = build_problems(config, small_lm)
    events: list[str] = []
    em = em_on(config, problems, tmp_path, events=events)
    cases = exact_cases(problems, 100)
    chains = [exact_chains(case, case.exact.log_sigma) for case in cases]
    _, reached = em.maximise(chains)
    assert reached > -1
    evidence = log_evidence(problems)
    em.settings = em.settings.model_copy(update={"learning_rate": 10.0})
    before, after = em.maximise(chains)
    assert before == after == pytest.approx(reached, abs=1e-4)
    assert em.round == 2 and "em.learning_rate" in events[-1]
    assert log_evidence(problems) == evidence
    assert problems[0].reward.version == 1


def test_the_bound_is_that_of_enumeration(small_lm):
    config = run_config(small_lm)
    problems = build_problems(config, small_lm)
    for case in exact_cases(problems, 100):
        log_q = case.log_q(small_lm)
        exact = float(np.exp(log_q) @ (case.exact.log_reward - log_q))
        chains = draw_chains(small_lm, case.problem, case.prompt, 4000, seed=3)
        assert chains.shares.sum() == pytest.approx(1)
        estimate = bound_of(chains)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error
        assert exact < case.exact.log_z
        # At q = σ every log weight is log Z: no spread.
        tight = bound_of(replace(chains, log_q=case.exact.log_sigma[_index(case, chains)]))
        assert tight.value == pytest.approx(case.exact.log_z, abs=1e-4)


def _index(case, chains):
    return [case.exact.tree.index(z) for z in chains.tokens]


# -------------------------------------------------------------------- in the learner's loop


def all_strings(problem: Problem, **changes: object):
    """One draw: for each X a group of all its strings, scored by the reward before any M step."""
    groups = []
    for prompt in problem.prompts:
        tree = next(c for c in exact_cases([problem], 100) if c.prompt is prompt).exact.tree
        groups.append(
            [
                trajectory(problem, prompt, tree.tokens(k), reward_version=0, **changes)
                for k in range(tree.count)
            ]
        )
    return groups


def em_learner(lm, directory, draws, start=0, adapters=None, rewards=None, config=None, **options):
    config = config or run_config(lm)
    problems = build_problems(config, lm)
    return Learner(
        config,
        lm,
        problems,
        ScriptedBuffer(draws, start=start),
        adapters if adapters is not None else MemoryAdapters("em"),
        directory,
        reward_adapters=rewards if rewards is not None else MemoryAdapters("em.reward"),
        **options,
    )


class Killed(Exception):
    """The process is gone."""


def outcome(learner):
    """What a run leaves behind: policy, reward adapter, how far it is."""
    return learner.policy.adapter_files(), learner.em._files, learner.step, learner.em.round


@pytest.mark.parametrize("kill", ["in the E step", "in the M step", "after the M step"])
def test_a_killed_run_resumes_to_the_same_end(small_lm, tmp_path, monkeypatch, kill):
    config = run_config(small_lm)
    draws = [all_strings(build_problems(config, small_lm)[0])] * 6
    rows: list[dict[str, float]] = []
    whole = em_learner(
        small_lm, tmp_path / "whole", draws, on_metrics=lambda step, row: rows.append(dict(row))
    )
    whole.run()
    assert whole.em.round == 2

    adapters, rewards = MemoryAdapters("em"), MemoryAdapters("em.reward")
    again: list[dict[str, float]] = []

    def watch(step, row):
        if kill == "in the E step" and step == 4 and "loss" in row:
            raise Killed
        if kill == "after the M step" and row.get("em_round") == 1:
            raise Killed

    first = em_learner(
        small_lm, tmp_path / "killed", draws, 0, adapters, rewards, on_metrics=watch
    )  # fmt: skip
    if kill == "in the M step":
        accumulate, calls = VariationalEm.accumulate, []

        def dies(self, model, packed):
            calls.append(1)
            if len(calls) == 3:
                raise Killed
            accumulate(self, model, packed)

        monkeypatch.setattr(VariationalEm, "accumulate", dies)
    with pytest.raises(Killed):
        first.run()
    monkeypatch.undo()
    resumed_at = {"in the E step": 3, "in the M step": 2, "after the M step": 2}[kill]
    second = em_learner(
        small_lm, tmp_path / "killed", draws, resumed_at, adapters, rewards, resume=True,
        on_metrics=lambda step, row: again.append(dict(row)),
    )  # fmt: skip
    assert second.step == resumed_at
    assert second.em.round == (0 if kill == "in the M step" else 1)
    second.run()
    assert outcome(second)[0] == outcome(whole)[0]
    assert outcome(second)[1:] == outcome(whole)[1:]
    bounds = [row["bound"] for row in rows if "bound" in row]
    assert [row["bound"] for row in again if "bound" in row] == bounds[second_bound(kill) :]
    assert len(bounds) == 3


def second_bound(kill):
    """Bounds logged before the kill: the M step's own row is, unless it was not reached."""
    return 0 if kill == "in the M step" else 1


def test_a_published_version_without_checkpoint_is_overruled(small_lm, tmp_path):
    """Actors may know an M step that the resumed run does not: it publishes what is in force."""
    config = run_config(small_lm)
    problems = build_problems(config, small_lm)
    rewards = MemoryAdapters("em.reward")
    lost = Policy(small_lm, config.learner, seed=5).adapter_files()
    rewards.publish(3, lost)
    em = em_on(config, problems, tmp_path, rewards)
    em.announce()
    assert rewards.latest() == problems[0].reward.version == 4
    other = build_problems(config, small_lm)
    follower = RewardFollower(FittedReward(other, "y_given_xz"), rewards, tmp_path / "actor")
    assert follower.poll() and not follower.poll()
    assert log_evidence(other) == pytest.approx(log_evidence(build_problems(config, small_lm)))


def test_stale_rewards_never_reach_a_gradient(small_lm, tmp_path, monkeypatch):
    """Scores of the version before arrive late and wrong: each is replaced by the one in force."""
    config = run_config(small_lm, {"learning_rate": 3e-3})
    draws = [all_strings(build_problems(config, small_lm)[0])] * 6
    learner = em_learner(small_lm, tmp_path, draws, config=config)
    problem = learner.problems["why"]
    seen = []
    accumulate = learner_module.accumulate

    def spy(policy, groups, *rest):
        for group in groups:
            prompt = problem.by_id[group.prompt]
            for t in group.trajectories:
                assert t.reward_version == problem.reward.version
                (exact,) = problem.reward.log_reward(prompt, [t.tokens.tolist()])
                np.testing.assert_allclose(t.log_reward[1:], exact[1:], atol=1e-4)
            seen.append(problem.reward.version)
        return accumulate(policy, groups, *rest)

    monkeypatch.setattr(learner_module, "accumulate", spy)
    learner.run()
    assert seen == [0] * 4 + [1] * 4 + [2] * 4
    assert learner.intake.rescored == 2 * 4 * 12  # two E steps of 2 steps, 2 X's of 12 strings
    first = all_strings(build_problems(config, small_lm)[0])[0][1]
    (now,) = problem.reward.log_reward(problem.prompts[0], [first.tokens.tolist()])
    assert abs(now[-1] - first.log_reward[-1]) > 0.1  # the stale score was another one


def test_every_e_step_has_its_own_warm_up_and_decay(small_lm, tmp_path):
    config = run_config(small_lm)
    draws = [all_strings(build_problems(config, small_lm)[0])] * 6
    rates = []
    em_learner(
        small_lm, tmp_path, draws, config=config,
        on_metrics=lambda step, row: rates.append(row.get("learning_rate")),
    ).run()  # fmt: skip
    rates = [rate for rate in rates if rate is not None]
    assert rates[:2] == rates[2:4] == rates[4:]
    assert max(rates) == config.learner.learning_rate


@pytest.mark.slow
def test_evidence_rises_and_the_bound_follows_it(small_lm, tmp_path):
    """The whole loop: E steps by subtrajectory balance, M steps on drawn chains; all exact metrics."""
    config = run_config(
        small_lm, {"rounds": 2, "chains_per_prompt": 256}, steps=90, learning_rate=1e-2,
        checkpoint_every_steps=1000, evaluate_every_steps=1000,
    )  # fmt: skip
    draws = [all_strings(build_problems(config, small_lm)[0])] * 90
    rows = []
    learner = em_learner(
        small_lm, tmp_path, draws, config=config,
        on_metrics=lambda step, row: rows.append(dict(row)),
    )  # fmt: skip
    learner._evaluate_policy = evaluator(list(learner.problems.values()), 100)
    learner.run()
    exact = [row for row in rows if "log_z_exact/why/0" in row]
    evidence = [(row["log_z_exact/why/0"] + row["log_z_exact/why/1"]) / 2 for row in exact]
    # Before the run, at the end of E step 1, after M 1, end of E 2, after M 2, end of E 3.
    assert evidence[0] == evidence[1] < evidence[2] == evidence[3] < evidence[4] == evidence[5]
    bounds = [row for row in rows if "bound" in row]
    for row, log_z in zip(bounds, (evidence[1], evidence[3], evidence[5]), strict=True):
        assert row["bound"] <= log_z + 4 * row["bound_se"]
        assert row["bound"] > log_z - 0.1
    for row, log_z in zip(bounds[:2], (evidence[2], evidence[4]), strict=True):
        assert row["bound"] < row["bound_after"] <= log_z + 4 * row["bound_after_se"]


# ------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_fitted_is_refused(small_lm):
    def fitted(objective="y_given_xz", **settings):
        defaults = {"name": "p", "kind": "product", "prompts": PROMPTS, "max_tokens": 2}
        config = ProblemConfig.model_validate(defaults | settings)
        return FittedReward([build_problem(config, small_lm)], objective)

    fitted("joint", kind="tempered")
    with pytest.raises(UserError, match="something given Z"):
        fitted(kind="tempered")
    answer = {"target": "{y}", "context": "{x}{z}"}
    with pytest.raises(UserError, match="weight -1"):
        fitted(terms=[answer | {"weight": -1}])
    with pytest.raises(UserError, match="renormalise"):
        fitted("joint", terms=[answer, {"renormalise": True}])
    plain = build_problem(
        ProblemConfig(name="p", kind="tempered", prompts=({"x": " a"},), max_tokens=2), small_lm
    )
    with pytest.raises(UserError, match="no product of likelihoods"):
        FittedReward([replace(plain, reward=LengthReward())], "joint")


def test_e_steps_need_steps(small_lm):
    with pytest.raises(UserError, match="leaves 0 of 6"):
        run_config(small_lm, {"rounds": 6})
    with pytest.raises(UserError, match="anneal_steps"):
        run_config(small_lm, reward_temperature_start=2.0, anneal_steps=2)
    with pytest.raises(UserError, match="Did you mean `rounds`"):
        run_config(small_lm, {"round": 1})
