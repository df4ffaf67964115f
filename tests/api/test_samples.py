"""Posterior samples over HTTP are what was asked for: version, seed, weights, and honest warnings."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from posteriori import metrics, smc
from posteriori.client import AsyncClient, Client, ServiceError
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.messages import PosteriorSample, SamplesEnd, SamplesResponse
from posteriori.oracle.enumeration import enumerate_posterior
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import Problem, build_problem
from tests.api.conftest import PROBLEM, Running, until


@pytest.fixture(scope="module")
def problem(tiny_lm: LanguageModel) -> Problem:
    return build_problem(ProblemConfig(**PROBLEM), tiny_lm)


def exact_log_z(problem: Problem) -> float:
    prompt = problem.prompts[0]
    moves = problem.moves(prompt)
    return enumerate_posterior(problem.name, prompt, moves, problem.reward, 1000).log_z


def log_q_under(
    problem: Problem, lm: LanguageModel, found: SamplesResponse
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    prompt = problem.by_id[found.prompt]
    return sequence_log_q(
        lm, problem.policy_ids(prompt), problem.moves(prompt), [s.tokens for s in found.samples]
    )


def test_versions_served_at_once_are_the_versions_asked_for(
    service: Running, problem: Problem, tiny_lm: LanguageModel, adapters: dict[int, Path]
) -> None:
    """Four versions through two adapter slots, many clients: log q says which adapter drew a sample."""
    policies = {0: tiny_lm} | {v: tiny_lm.with_adapter(path) for v, path in adapters.items()}
    loads = service.service.host.adapter_loads

    def ask(k: int) -> SamplesResponse:
        with service.client(retry_seconds=30.0) as client:
            return client.samples(run="r", problem="sharp", n=16, seed=k, version=k % 4)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(8)))
    for k, response in enumerate(found):
        assert (response.version, response.seed) == (k % 4, k)
        log_q = np.array([sample.log_q for sample in response.samples])
        for version, policy in policies.items():
            gap = np.abs(log_q - log_q_under(problem, policy, response)).max()
            assert (gap < 1e-3) == (version == response.version), (k, version, gap)
    assert service.service.host.adapter_loads - loads >= 3
    assert service.service.host.adapters_loaded <= 2


def test_seed(client: Client) -> None:
    def texts(seed: int | None) -> list[str]:
        asked = {} if seed is None else {"seed": seed}
        return [s.text for s in client.samples(run="r", n=40, version=1, **asked).samples]

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)
    unseeded = client.samples(run="r", n=40, version=1)
    assert [s.text for s in unseeded.samples] == texts(unseeded.seed)


def test_numbers(client: Client, problem: Problem) -> None:
    found = client.samples(run="r", n=200, seed=3, version=0)
    log_weights = np.array([s.log_weight for s in found.samples])
    for sample in found.samples:
        assert sample.log_reward is not None
        assert sample.log_weight == pytest.approx(sample.log_reward - sample.log_q)
        assert sample.text == problem.text(sample.tokens)
    assert [s.index for s in found.samples] == list(range(200))
    weights = [s.weight for s in found.samples]
    np.testing.assert_allclose(weights, metrics.normalised_weights(log_weights))
    summary = found.summary
    assert summary.ess == pytest.approx(metrics.effective_sample_size(log_weights))
    assert summary.log_z is not None and summary.log_z_se is not None
    assert abs(summary.log_z - exact_log_z(problem)) < 5 * summary.log_z_se
    plain = client.samples(run="r", n=200, seed=3, version=0, correction="none")
    assert [s.tokens for s in plain.samples] == [s.tokens for s in found.samples]
    assert {s.weight for s in plain.samples} == {1 / 200}


def test_log_z_as_the_learner_has_it(client: Client) -> None:
    """Of the newest checkpoint; an X never drawn, and a new X, have none."""
    found = [
        client.samples(run="r", n=1, **x).summary.log_z_learned
        for x in ({"prompt": "0"}, {"prompt": "dog"}, {"x": " a bird"})
    ]
    assert found == [-3.0, None, None]


def test_the_asynchronous_client(service: Running, client: Client) -> None:
    async def ask() -> list[list[int]]:
        async with AsyncClient(service.url) as asking:
            rows = [row async for row in asking.stream(run="r", n=20, seed=2)]
            whole = await asking.samples(run="r", n=20, seed=2)
        samples = [row for row in rows if isinstance(row, PosteriorSample)]
        assert [s.tokens for s in sorted(samples, key=lambda row: row.index)] == [
            s.tokens for s in whole.samples
        ]
        assert isinstance(rows[-1], SamplesEnd)
        return [s.tokens for s in whole.samples]

    assert asyncio.run(ask()) == [s.tokens for s in client.samples(run="r", n=20, seed=2).samples]


def test_latest_is_the_newest_version(client: Client) -> None:
    assert client.samples(run="r", n=1).version == 3


def test_a_stream_is_the_same_samples(client: Client) -> None:
    whole = client.samples(run="r", n=40, seed=8, version=2)
    *rows, end = list(client.stream(run="r", n=40, seed=8, version=2))
    assert isinstance(end, SamplesEnd)
    samples = sorted((r for r in rows if isinstance(r, PosteriorSample)), key=lambda r: r.index)
    assert [s.tokens for s in samples] == [s.tokens for s in whole.samples]
    np.testing.assert_allclose(end.weights or [], [s.weight for s in whole.samples], rtol=1e-4)
    assert end.summary.log_z == pytest.approx(whole.summary.log_z, abs=1e-4)
    assert end.seed == 8 and all(sample.weight is None for sample in samples)


def test_smc(client: Client, problem: Problem) -> None:
    found = client.samples(run="r", n=256, seed=1, version=1, correction="smc")
    assert found.summary.log_z is not None and found.summary.log_z_se is not None
    assert abs(found.summary.log_z - exact_log_z(problem)) < 5 * found.summary.log_z_se + 0.01
    assert sum(s.weight or 0.0 for s in found.samples) == pytest.approx(1.0)
    *rows, end = list(client.stream(run="r", n=256, seed=1, version=1, correction="smc"))
    assert isinstance(end, SamplesEnd) and len(rows) == 256
    assert end.summary == found.summary


@pytest.mark.parametrize("stream", [False, True])
def test_a_particle_filter_stops_when_its_client_leaves(
    stream: bool, service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), list[type[BaseException] | None]()

    def watched(*arguments: Any, **options: Any) -> smc.Filtered:
        began.set()
        try:
            found = filters(*arguments, **options)
        except BaseException as cause:
            ended.append(type(cause))
            raise
        ended.append(None)
        return found

    filters = smc.sample
    monkeypatch.setattr(smc, "sample", watched)
    asked = {"run": "r", "problem": "long", "n": 3200, "correction": "smc", "stream": stream}

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            asking = asyncio.create_task(
                http.post(service.url + "/v1/posterior/samples", json=asked)
            )
            assert await asyncio.to_thread(began.wait, 60)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(leave())
    until(lambda: ended != [])
    assert ended == [smc.Cancelled]
    until(lambda: service.service.in_flight.count == 0 and service.service.filters.waiting == 0)


def test_unknown_y(client: Client) -> None:
    known = client.samples(run="r", problem="why", n=8, x=" the cat", y=" ran")
    assert known.summary.log_z is not None
    unknown = client.samples(run="r", problem="why", n=8, x=" the cat")
    assert {s.log_reward for s in unknown.samples} == {None}
    assert {s.weight for s in unknown.samples} == {None}
    assert unknown.summary.log_z is None and unknown.summary.ess is None
    assert [warning.code for warning in unknown.warnings] == ["reward_unknown"]
    with pytest.raises(ServiceError, match="log R") as refused:
        client.samples(run="r", problem="why", n=8, x=" the cat", correction="smc")
    assert refused.value.code == "reward_unknown" and refused.value.field == "correction"


def test_few_effective_samples_are_warned_of(client: Client) -> None:
    found = client.samples(run="r", n=8, version=1)
    assert "low_ess" in {warning.code for warning in found.warnings}


def test_score_is_what_samples_say(client: Client) -> None:
    drawn = client.samples(run="r", n=20, version=2)
    by_tokens = client.score([s.tokens for s in drawn.samples], run="r", version=2)
    by_text = client.score([s.text for s in drawn.samples], run="r", version=2)
    assert by_tokens.scores == by_text.scores
    for sample, scored in zip(drawn.samples, by_text.scores, strict=True):
        assert scored.log_q == pytest.approx(sample.log_q, abs=1e-3)
        assert scored.log_reward == pytest.approx(sample.log_reward, abs=1e-3)


def test_a_declared_problem_needs_no_run(client: Client) -> None:
    declared = ProblemConfig(**{**PROBLEM, "name": "mine"})
    found = client.samples(problem=declared, n=20, seed=1, x=" a bird")
    assert (found.run, found.version, found.problem, found.fields) == (
        None,
        0,
        "mine",
        {"x": " a bird"},
    )
    of_run = client.samples(run="r", n=20, seed=1, x=" a bird", version=0)
    assert [s.tokens for s in found.samples] == [s.tokens for s in of_run.samples]


@pytest.mark.parametrize("rule", ["mean", "bayes", "vote"])
def test_predictive(client: Client, rule: str) -> None:
    found = client.predictive(
        [" sat", " ran", " slept"], run="r", problem="why", x=" the cat", n=64, seed=1, rule=rule
    )
    assert sum(a.probability for a in found.answers) == pytest.approx(1.0)
    assert found.entropy is not None
    parts = (found.within_entropy or 0.0) + (found.mutual_information or 0.0)
    assert found.entropy == pytest.approx(parts)
    assert found.best == max(found.answers, key=lambda a: a.probability).answer
    assert found.chains == 64


def test_a_client_that_leaves_frees_the_engine(service: Running, client: Client) -> None:
    host = service.service.host
    before = host.samples
    stream = client.stream(run="r", problem="long", n=400, version=0, correction="none")
    assert isinstance(next(stream), PosteriorSample)
    stream.close()
    until(lambda: host.jobs == 0 and host.samples_in_flight == 0)
    assert host.samples - before < 400
    until(lambda: service.service.in_flight.count == 0)
    with pytest.raises(httpx.ReadTimeout):  # the same without a stream
        httpx.post(
            service.url + "/v1/posterior/samples",
            json={"run": "r", "problem": "long", "n": 1600, "version": 0},
            timeout=0.3,
        )
    until(lambda: host.jobs == 0 and host.samples_in_flight == 0)
    assert host.samples - before < 2000
    until(lambda: service.service.in_flight.count == 0)
