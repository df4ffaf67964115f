"""Infilling: disjoint stories, the reward's text, overlap figures, judges, weights of the posterior row."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.harness import Results, Row, Trial
from experiments.infilling import EXPERIMENT, claims, judges, overlap
from experiments.infilling.assess import POSTERIOR, Sampler, assess
from experiments.infilling.stories import joint_samples, problem_config, split
from experiments.infilling.trial import GFN, PROMPTING, SFT_AMPLE, SFT_FEW
from posteriori import metrics
from posteriori.errors import UserError
from posteriori.lm import LanguageModel, prefix_tree
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.pocket.judge import judge
from posteriori.problems import build_problem
from tests.learner.helpers import tiny_problem


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket")


def test_no_beginning_is_in_two_parts_and_every_story_is_whole() -> None:
    parts = split(seed=3, train=40, unlabelled=60, test=30)
    assert [len(p) for p in (parts.train, parts.unlabelled, parts.test)] == [40, 60, 30]
    beginnings = [s["x"] for s in (*parts.train, *parts.unlabelled, *parts.test)]
    assert len(set(beginnings)) == 130
    for story in (*parts.train, *parts.test):
        assert judge(f"{story['x']}{story['middle']}.{story['y']}")
        assert judges.consistent(story["x"], story["middle"], story["y"])
    assert split(3, 40, 60, 30) == parts
    assert split(4, 40, 60, 30).test != parts.test


def test_a_held_out_story_in_training_is_refused(pocket: LanguageModel) -> None:
    parts = split(0, 4, 1, 2)
    with pytest.raises(UserError, match="found in training"):
        build_problem(problem_config([*parts.train, parts.test[0]], parts.test), pocket)


def test_log_reward_is_that_of_the_whole_story(pocket: LanguageModel) -> None:
    """log p(Z . Y | X) by one plain scoring of the story's text, and every gold Z is legal."""
    parts = split(1, 20, 0, 2)
    problem = build_problem(problem_config(parts.train, parts.test), pocket)
    for prompt in problem.prompts:
        tokens = pocket.encode(prompt.fields["middle"])
        assert problem.moves(prompt).stop_legal(tokens)[-1]
    x, middle, y = (problem.prompts[0].fields[k] for k in ("x", "middle", "y"))
    head, rest = pocket.context(x), pocket.encode(f"{middle}.{y}")
    tree, nodes = prefix_tree(head, [rest])
    expected = pocket.edge_log_probs([tree])[0][nodes[0][1:]].sum()
    found = problem.reward.log_reward(problem.prompts[0], [pocket.encode(middle)])[0][-1]
    assert found == pytest.approx(expected, abs=1e-4)


def test_joint_samples_are_two_sentences(pocket: LanguageModel) -> None:
    parts = split(2, 1, 3, 1)
    beginnings = [story["x"] for story in parts.unlabelled]
    drawn = joint_samples(pocket, beginnings, each=3, seed=0)
    assert len(drawn) > 4
    assert {story["x"] for story in drawn} <= set(beginnings)
    for story in drawn:
        assert "." not in story["middle"]
        assert story["y"].count(".") == 1 and story["y"].endswith(".")
    build_problem(problem_config(drawn, parts.test), pocket)


def test_overlap_by_hand() -> None:
    """Four words of five shared in order: 4/5, 3/4, 2/3, 1/2 for BLEU; 10/14 for GLEU."""
    ours, gold = "Mia fixed the red robot", "Tom fixed the red robot."
    assert overlap.bleu(ours, gold) == pytest.approx(100 * (0.8 * 0.75 * 2 / 3 * 0.5) ** 0.25)
    assert overlap.gleu(ours, gold) == pytest.approx(100 * 10 / 14)
    assert overlap.bleu(gold, gold) == overlap.gleu(gold, gold) == pytest.approx(100)
    # Half as long, all of it right: brevity e^(1 − 2), precision 1; recall 3/10.
    assert overlap.bleu("a b", "a b c d") == pytest.approx(100 * np.exp(-1))
    assert overlap.gleu("a b", "a b c d") == pytest.approx(100 * 3 / 10)
    # No common pair: zero counts become 0.1, of 3 pairs, 2 triples and 1 quadruple.
    smoothed = (0.5 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25
    assert overlap.bleu("a x b y", "b a c d") == pytest.approx(100 * smoothed)
    assert overlap.bleu("x", "a") == overlap.gleu("", "a") == 0


class _Chat(BaseHTTPRequestHandler):
    """Says 4 to stories with Mia, nothing of use to others."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        story = asked["messages"][0]["content"]
        assert asked["model"] == "any" and self.headers["Authorization"] == "Bearer k"
        answer = "I say 4." if "Mia" in story else "no idea"
        body = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        self.send_response(200 if "crash" not in story else 500)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Chat)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_the_llm_judge_rates_or_says_why_not(chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judges.llm_judge() is None
    monkeypatch.setenv("POSTERIORI_JUDGE_URL", chat)
    with pytest.raises(UserError, match="POSTERIORI_JUDGE_MODEL"):
        judges.llm_judge()
    monkeypatch.setenv("POSTERIORI_JUDGE_MODEL", "any")
    monkeypatch.setenv("POSTERIORI_JUDGE_KEY", "k")
    rater = judges.llm_judge()
    assert rater is not None
    assert rater.rate("Mia found a key.") == 4
    assert rater.rate("Tom found a key.") is None
    with pytest.raises(UserError, match="500"):
        rater.rate("crash")


def test_bertscore_with_a_local_encoder(
    tiny_lm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judges.encoder() is None
    monkeypatch.setenv("POSTERIORI_ENCODER", str(tiny_lm_path))
    encoder = judges.encoder()
    assert encoder is not None
    assert encoder.f1(" the cat sat", " the cat sat") == pytest.approx(1, abs=1e-5)
    near, far = encoder.f1(" the cat ran", " the cat sat"), encoder.f1(" in", " the cat sat")
    assert far < near < 1
    monkeypatch.setenv("POSTERIORI_ENCODER", "/nowhere")
    with pytest.raises(UserError, match="encoder"):
        judges.encoder()


def test_kl_and_the_posteriors_row_against_enumeration(tiny_lm: LanguageModel) -> None:
    """One story whose Z can be enumerated: KL(q‖σ) and E_σ[log R] to within sampling error."""
    plain = tiny_problem(tiny_lm, max_tokens=2)
    prompt = replace(plain.prompts[0], fields={"x": " the", "middle": " cat", "y": " sat."})
    problem = replace(plain, prompts=(), test_prompts=(prompt,))
    moves = problem.moves(prompt)
    exact = enumerate_posterior("tiny", prompt, moves, problem.reward, 1000)
    ids = problem.policy_ids(prompt)
    log_q = exact_log_q(exact.tree, tiny_lm, ids)
    samplers = {
        "base": Sampler(tiny_lm, problem.policy_ids),
        "other": Sampler(tiny_lm, lambda prompt: [*problem.policy_ids(prompt), 5]),
    }
    rows = {
        row.method: row.metrics for row in assess(problem, samplers, ["base", "other"], 600, 600, 0)
    }
    gap = log_q - exact.log_sigma
    divergence = float(np.exp(log_q) @ gap)
    error = float(np.sqrt(np.exp(log_q) @ (gap - divergence) ** 2 / 600))
    assert rows["base"]["kl"] == pytest.approx(divergence, abs=4 * error)
    assert error < 0.2 < divergence
    expected = float(np.exp(exact.log_sigma) @ exact.log_reward)
    assert rows[POSTERIOR]["log_reward"] == pytest.approx(expected, abs=0.2)
    assert rows["base"]["ess"] == pytest.approx(
        metrics.exact_ess_fraction(exact.log_sigma, log_q), abs=0.15
    )


def test_claims_follow_the_means() -> None:
    def summary(gfn: float, few: float, prompting: float, ample: float):
        rows = [
            Row(name, {"consistent": value, "gleu": 10 * value})
            for name, value in (
                (GFN, gfn),
                (SFT_FEW, few),
                (PROMPTING, prompting),
                (SFT_AMPLE, ample),
            )
        ]
        return Results("infilling", False, {0: rows}, {0: 1.0}, ["a machine"]).summary()

    assert [c.holds for c in claims(summary(0.7, 0.5, 0.1, 0.66))] == [True, True, True]
    assert [c.holds for c in claims(summary(0.4, 0.5, 0.1, 0.3))] == [False, False, False]


@pytest.mark.slow
def test_quick_trial_runs_all_methods(tmp_path: Path) -> None:
    rows = EXPERIMENT.run(Trial(0, True, tmp_path, Console(quiet=True)))
    assert len(rows) == 7
    for row in rows:
        assert all(np.isfinite(value) for value in row.metrics.values()), row.method
        assert {"bleu", "gleu", "consistent", "log_reward"} <= set(row.metrics)
    assert EXPERIMENT.plot is not None
    EXPERIMENT.plot(
        Results("infilling", True, {0: rows}, {0: 1.0}, ["a machine"]), tmp_path / "plot.png"
    )
    assert (tmp_path / "plot.png").stat().st_size > 1000
