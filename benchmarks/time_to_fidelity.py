"""What it costs to draw samples as near the posterior as TV ≤ 0.05: our objectives, PPO, MCMC, SMC, resampling.

    python -m benchmarks.time_to_fidelity            # what is missing is measured, in one thread
    python -m benchmarks.time_to_fidelity --quick

One problem with an enumerable posterior for each of 1,280 X's (``benchmarks/instead/verdict.py``); a policy is
trained on 1,080 of them and judged on the 200 others. The law of one returned sample is within TV 0.05 of the
posterior, on average over the held-out X's, for every method: TV is exact, by enumeration; only that of particle
filters, which have no closed form, is simulated. The job compared is S independent samples of each of the 200 X's.
One rule for all costs: ``benchmarks/instead/meter.py``.

What is measured accumulates in docs/results/time-to-fidelity.json: delete an entry to have it measured anew.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from baselines.ppo import PPOSettings
from benchmarks.instead import samplers, verdict
from benchmarks.instead.samplers import Draw, Sampler
from benchmarks.instead.trained import OBJECTIVES, Objective, Race, gflownet, ppo
from benchmarks.instead.verdict import Ground
from benchmarks.ladder.results import Results
from benchmarks.measure import RESULTS, Report, Row, Target, main
from posteriori.lm import LanguageModel

NAME = "time_to_fidelity"
FILE = "time-to-fidelity.json"
WORK = Path("runs/time-to-fidelity")

BOUND = 0.05
QUICK_BOUND = 0.58
"""Kept by a policy after one or two steps, and by samplers of a few candidates."""

OURS: Objective = "subtb+vargrad"
"""The default objective; the others are measured beside it."""

SAMPLERS = ("sir", "mcmc", "smc")
PPO_PATIENCE = 4.0
"""PPO may take so many times the token forwards of our default objective."""

PPO_SETTINGS = PPOSettings(
    target="posterior",
    steps=640,
    prompts_per_step=4,
    samples_per_prompt=32,
    epochs=2,
    prompts_per_update=2,
    learning_rate=0.0015,
    evaluate_every_steps=5,
)
"""As many draws a round as a step of ours takes, and the rate that came nearest in trials (docs/log.md)."""

PER_X = (1, 16, 64, 256)
"""S: samples of each X; at most 16 are asked for at once."""

AT_ONCE = 16

FEWER = Target(3.0, "at least")
FASTER = Target(1.0, "at least")
MORE_EFFECTIVE = Target(10.0, "at least")

PAIRS = 8
EFFECTIVE_AT_ONCE = 32
"""Samples asked for at once where effective samples a second are compared."""


def train(ground: Ground, method: str, bound: float, most_forwards: float, seed: int) -> Race:
    """Train by one method until its policy keeps the bound."""
    race = Race(ground, bound, most_forwards)
    if method == "ppo":
        ppo(race, PPO_SETTINGS, seed)
    else:
        (objective,) = (one for one in OBJECTIVES if one == method)
        WORK.mkdir(parents=True, exist_ok=True)
        gflownet(race, objective, seed, WORK)
    return race


def size(ground: Ground, name: str, bound: float, quick: bool) -> Sampler | None:
    """A sampler at the size at which it keeps the bound."""
    if name == "sir":
        return samplers.importance_resampling(ground, bound)
    if name == "mcmc":
        return samplers.markov_chain(ground, bound)
    particles = 2000 if quick else samplers.PARTICLES_SIMULATED
    return samplers.particle_filter(ground, bound, particles)


def _priced(ground: Ground, draw: Draw) -> dict[str, float]:
    found = {}
    for n in (1, AT_ONCE):
        cost = samplers.price(ground, draw, n)
        found[f"token forwards a sample, {n} at once"] = cost.token_forwards
        found[f"seconds a sample, {n} at once"] = cost.seconds
    return found


def measured_training(
    ground: Ground, method: str, bound: float, most_forwards: float, seed: int
) -> tuple[dict[str, float], Race]:
    """Metrics of a trained method, and its race."""
    race = train(ground, method, bound, most_forwards, seed)
    assert race.policy is not None
    spent = race.reached or race.meter.cost
    last = race.curve[-1]
    found = {
        "reached": float(race.reached is not None),
        "training token forwards": spent.token_forwards,
        "training reward evaluations": spent.reward_evaluations,
        "training seconds": spent.seconds,
        "steps": last["step"],
        "total_variation": last["total_variation"],
        "kl_posterior_q": last["kl_posterior_q"],
        "ess_fraction": last["ess_fraction"],
    }
    return found | _priced(ground, samplers.policy_draw(race.policy.language_model())), race


def measured_sampler(ground: Ground, name: str, bound: float, quick: bool) -> dict[str, float]:
    """Metrics of a sampler."""
    found = size(ground, name, bound, quick)
    if found is None:
        return {"reached": 0.0}
    metrics = {
        "reached": 1.0,
        "size": float(found.size),
        "total_variation": found.total_variation,
    }
    return metrics | _priced(ground, found.draw)


def total(metrics: Mapping[str, float], what: str, per_x: int, held_out: int) -> float:
    """Training and S samples of each X: ``token forwards`` or ``seconds``; infinite if it never gets there."""
    if not metrics["reached"]:
        return float("inf")
    each = metrics[f"{what} a sample, {min(per_x, AT_ONCE)} at once"]
    return metrics.get(f"training {what}", 0.0) + held_out * per_x * each


def break_even(
    ours: Mapping[str, float], other: Mapping[str, float], what: str, held_out: int
) -> float:
    """S from which on ours costs less in all, at the price of samples asked for ``AT_ONCE``; inf: never."""
    if not other["reached"]:
        return 0.0
    key = f"{what} a sample, {AT_ONCE} at once"
    saved = other[key] - ours[key]
    more = ours[f"training {what}"] - other.get(f"training {what}", 0.0)
    if more <= 0:
        return 0.0
    return more / (held_out * saved) if saved > 0 else float("inf")


def time_to_fidelity(found: Mapping[str, Mapping[str, float]], held_out: int) -> list[Row]:
    """Ratios of the best other to ours."""
    ours = found[OURS]
    others = {name: found[name] for name in ("ppo", *SAMPLERS) if name in found}
    rows = []
    for per_x in PER_X:
        for what, target in (("token forwards", FEWER), ("seconds", FASTER)):
            mine = total(ours, what, per_x, held_out)
            costs = {name: total(other, what, per_x, held_out) for name, other in others.items()}
            best = min(costs, key=lambda name: costs[name])
            rows.append(
                Row(
                    f"{what}, best other ({best}) ÷ ours: {per_x} samples of each of {held_out} X's",
                    [costs[best] / mine],
                    target,
                    costs[best],
                    mine,
                    what,
                )
            )
    return rows


def effective_samples(
    ground: Ground,
    policy: LanguageModel,
    ess_fraction: float,
    chosen: Sequence[Sampler],
    pairs: int,
    at_once: int,
) -> list[Row]:
    """Samples a CPU second times ESS fraction, ours ÷ each sampler's, timed in turn on one X after the other."""
    rows = []
    for rival in chosen:
        sides = (samplers.policy_draw(policy), rival.draw)
        taken = np.zeros((pairs, 2))
        for draw in sides:
            draw(ground.problem, ground.prompts[0], at_once, 0)  # not counted
        for pair in range(pairs):
            prompt = ground.prompts[pair % len(ground.prompts)]
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                began = time.process_time()
                sides[side](ground.problem, prompt, at_once, pair)
                taken[pair, side] = time.process_time() - began
        seconds = np.median(taken, axis=0) / at_once
        # Independent draws of a law as near as ours, of equal weight: their ESS fraction is 1.
        ratios = taken[:, 1] / taken[:, 0] * ess_fraction
        name = f"effective samples a second, ours ÷ {rival.name} ({rival.size}, {rival.note})"
        rows.append(
            Row(
                f"{name}, one of each",
                ratios.tolist(),
                MORE_EFFECTIVE,
                float(ess_fraction / seconds[0]),
                float(1 / seconds[1]),
                "effective samples a second",
            )
        )
        if rival.worth is not None:
            # Of a chain every state is used, so a sample's proposals are worth so many exact draws.
            worth = rival.worth * (rival.size if rival.name == "mcmc" else 1)
            rows.append(Row(f"{name}, all that it holds", (ratios / worth).tolist()))
    return rows


def markdown(found: Mapping[str, Mapping[str, float]], held_out: int) -> str:
    """What each method takes, as a table."""
    heads = ["method", "size", "TV", "training CPU s", "training forwards", "rewards", "a sample"]
    heads += [f"S = {per_x}" for per_x in PER_X] + ["break-even S"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, one in found.items():
        if not one["reached"]:
            spent = f"> {one['training token forwards']:,.0f}" if len(one) > 1 else ""
            seconds = f"> {one['training seconds']:.0f}" if len(one) > 1 else ""
            tv = f"{one['total_variation']:.3f}" if len(one) > 1 else ""
            lines.append(f"| {name} | | {tv} | {seconds} | {spent} | not reached" + " |" * 6)
            continue
        trained = "training seconds" in one
        cells = [
            name,
            f"{one['steps']:.0f} steps" if trained else f"{one['size']:.0f}",
            f"{one['total_variation']:.3f}",
            f"{one['training seconds']:.0f}" if trained else "0",
            f"{one.get('training token forwards', 0):,.0f}",
            f"{one.get('training reward evaluations', 0):,.0f}",
            f"{one[f'token forwards a sample, {AT_ONCE} at once']:,.1f}",
        ]
        cells += [f"{total(one, 'token forwards', per_x, held_out):,.0f}" for per_x in PER_X]
        even = break_even(found[OURS], one, "token forwards", held_out)
        cells.append("" if name in OBJECTIVES else f"{even:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(quick: bool) -> Report:
    """Measure what is missing."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) if quick else WORK
        results = Results((home if quick else RESULTS) / FILE)
        ground = verdict.ground(verdict.config(quick), home / "oracle.npy")
        return _measured(ground, results, home, quick)


def _measured(ground: Ground, results: Results, home: Path, quick: bool) -> Report:
    bound, held_out, seed = (QUICK_BOUND if quick else BOUND), len(ground.exact), ground.config.seed
    adapter = home / "adapter"

    def entry(method: str, found: Callable[[], dict[str, float]]) -> Mapping[str, float]:
        if not results.has(method, seed):
            began, cpu = time.monotonic(), time.process_time()
            metrics = found()
            results.add(method, seed, metrics, time.monotonic() - began, time.process_time() - cpu)
        return next(e.metrics for e in results.entries if (e.method, e.seed) == (method, seed))

    def trained(method: str, most_forwards: float) -> dict[str, float]:
        metrics, race = measured_training(ground, method, bound, most_forwards, seed)
        assert race.policy is not None
        if method == OURS:
            adapter.mkdir(parents=True, exist_ok=True)
            for name, content in race.policy.adapter_files().items():
                (adapter / name).write_bytes(content)
        return metrics

    found: dict[str, Mapping[str, float]] = {}
    for objective in OBJECTIVES[:1] if quick else OBJECTIVES:
        found[objective] = entry(objective, lambda o=objective: trained(o, float("inf")))  # type: ignore[misc]
    patience = PPO_PATIENCE * found[OURS]["training token forwards"]
    found["ppo"] = entry("ppo", lambda: trained("ppo", patience))
    for name in SAMPLERS:
        found[name] = entry(name, lambda n=name: measured_sampler(ground, n, bound, quick))  # type: ignore[misc]
    rows = time_to_fidelity(found, held_out)
    if not adapter.exists():  # its entry was there
        trained(OURS, float("inf"))
    policy = ground.lm.with_adapter(adapter)
    chosen = [size(ground, name, bound, quick) for name in ("smc", "mcmc")]
    rows += effective_samples(
        ground,
        policy,
        found[OURS]["ess_fraction"],
        [one for one in chosen if one is not None],
        2 if quick else PAIRS,
        4 if quick else EFFECTIVE_AT_ONCE,
    )
    print(markdown(found, held_out), "\n")
    return Report(
        rows,
        {
            "model": ground.config.model,
            "trained X's": len(ground.problem.prompts),
            "held-out X's": held_out,
            "strings of an X": ground.exact[0].count,
            "total variation": bound,
            "sized on X's": {"sir, mcmc": samplers.SIZED_ON, "smc": samplers.FILTERED_ON},
            "methods": {name: dict(metrics) for name, metrics in found.items()},
        },
    )


if __name__ == "__main__":
    main(NAME, __doc__ or "", measure)
