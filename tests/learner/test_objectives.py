"""The objectives against naive double loops, finite differences and path consistency."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.objectives import (
    Batch,
    GroupLogZ,
    contrastive_tb,
    flow_residuals,
    group_log_z,
    group_mean,
    losses,
    subtb,
    summarise,
    terminal,
)

LAMBDAS = (0.5, 0.9, 1.0, 1.1)


def random_batch(
    seed: int, groups: int = 3, per_group: int = 4, longest: int = 7, root_legal: bool | None = None
) -> Batch:
    """Random lengths (0 and 1 among them), random legal positions, -inf and junk where illegal."""
    rng = np.random.default_rng(seed)
    size = groups * per_group
    lengths = rng.integers(0, longest + 1, size)
    lengths[0], lengths[1] = 0, 1
    if root_legal is False:
        lengths = np.maximum(lengths, 1)
    legal = rng.random((size, longest + 1)) < 0.6
    legal[np.arange(size), lengths] = True
    if root_legal is not None:
        legal[:, 0] = root_legal
    action = rng.random((size, longest)) < 0.8
    inside = np.arange(longest) < lengths[:, None]
    log_q = np.where(action & inside, -rng.exponential(1.0, (size, longest)), 0.0)
    stop = np.where(legal, -rng.exponential(1.0, (size, longest + 1)), -np.inf)
    reward = np.where(legal, rng.normal(-3.0, 2.0, (size, longest + 1)), -np.inf)
    return Batch(
        log_q=torch.tensor(log_q),
        log_q_stop=torch.tensor(stop),
        log_reward=torch.tensor(reward),
        stop_legal=torch.tensor(legal),
        lengths=torch.tensor(lengths),
        group=torch.arange(groups).repeat_interleave(per_group),
        log_z=torch.tensor(rng.normal(size=groups)).repeat_interleave(per_group),
    )


def naive_nodes(batch: Batch, row: int, root: float | None) -> list[float]:
    """D at the legal positions of one trajectory by plain summation, the root node first."""
    nodes = []
    for i in range(int(batch.lengths[row]) + 1):
        if batch.stop_legal[row, i]:
            spent = sum(float(batch.log_q[row, k]) for k in range(i))
            nodes.append(float(batch.log_reward[row, i]) - float(batch.log_q_stop[row, i]) - spent)
    if root is not None and not batch.stop_legal[row, 0]:
        nodes.insert(0, root)
    return nodes


def naive_penalty(x: float, delta: float | None) -> float:
    if delta is None or abs(x) <= delta:
        return x * x
    return 2 * delta * abs(x) - delta * delta


def naive_subtb(nodes: list[float], lam: float, delta: float | None = None) -> float:
    total = weights = 0.0
    for i in range(len(nodes)):
        for j in range(i + 1, len(nodes)):
            weight = lam ** (j - i - 1)
            total += weight * naive_penalty(nodes[i] - nodes[j], delta)
            weights += weight
    return total / weights if weights else 0.0


def naive_log_z(batch: Batch) -> tuple[list[float], list[float]]:
    """Per trajectory: its group's mean of mean D, and its group's mean terminal D."""
    size = len(batch.lengths)
    nodes = [naive_nodes(batch, b, None) for b in range(size)]
    means = [sum(n) / len(n) for n in nodes]
    ends = [n[-1] for n in nodes]

    def over_group(values: list[float], b: int) -> float:
        peers = [values[c] for c in range(size) if batch.group[c] == batch.group[b]]
        return sum(peers) / len(peers)

    return [over_group(means, b) for b in range(size)], [over_group(ends, b) for b in range(size)]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    lam=st.sampled_from(LAMBDAS),
    root=st.sampled_from(["group", "learned", "none"]),
    delta=st.sampled_from([None, 0.5, 3.0]),
)
def test_subtb_equals_the_naive_double_loop(seed, lam, root, delta):
    batch = random_batch(seed)
    loss, _ = losses(batch, "subtb", subtb_lambda=lam, root=root, huber_delta=delta)
    means, _ = naive_log_z(batch)
    for b in range(len(loss)):
        stand_in = {"group": means[b], "learned": float(batch.log_z[b]), "none": None}[root]
        expected = naive_subtb(naive_nodes(batch, b, stand_in), lam, delta)
        assert float(loss[b]) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_trajectory_objectives_equal_their_formulas(seed):
    batch = random_batch(seed)
    _, ends = naive_log_z(batch)
    size = len(batch.lengths)
    last = [naive_nodes(batch, b, None)[-1] for b in range(size)]
    vargrad, _ = losses(batch, "vargrad")
    tb, _ = losses(batch, "tb")
    mixed, _ = losses(batch, "subtb+vargrad", anchor_weight=0.3)
    alone, _ = losses(batch, "subtb")
    contrastive, _ = losses(batch, "contrastive", huber_delta=1.5)
    for b in range(size):
        assert float(vargrad[b]) == pytest.approx((last[b] - ends[b]) ** 2, rel=1e-10, abs=1e-12)
        assert float(tb[b]) == pytest.approx((last[b] - float(batch.log_z[b])) ** 2, rel=1e-10)
        assert float(mixed[b]) == pytest.approx(float(alone[b] + 0.3 * vargrad[b]), rel=1e-10)
        peers = [c for c in range(size) if c != b and batch.group[c] == batch.group[b]]
        pairs = [naive_penalty(last[b] - last[c], 1.5) for c in peers]
        assert float(contrastive[b]) == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)


def test_subtb_is_path_consistency_of_maximum_entropy_rl():
    """Nachum et al. 2017: C(i→j) = −V(sᵢ) + Σ (reward − log π) + V(sⱼ), V from the stopping action.

    In maximum-entropy RL log π(a|s) = Q(s,a) − V(s), and stopping pays log R and ends the episode,
    so V(s) = log R(s⊤) − log π(⊤|s). Steps pay nothing.
    """
    batch = random_batch(7, root_legal=True)
    batch = replace(batch, stop_legal=torch.ones_like(batch.stop_legal))
    batch = replace(
        batch,
        log_reward=torch.randn(batch.log_reward.shape, dtype=torch.float64),
        log_q_stop=-torch.rand(batch.log_q_stop.shape, dtype=torch.float64),
    )
    loss, _ = losses(batch, "subtb", subtb_lambda=0.9)
    for b, n in enumerate(batch.lengths.tolist()):
        value = [float(batch.log_reward[b, i] - batch.log_q_stop[b, i]) for i in range(n + 1)]
        policy = batch.log_q[b].tolist()
        total = weights = 0.0
        for i, j in itertools.combinations(range(n + 1), 2):
            consistency = -value[i] + sum(0.0 - policy[k] for k in range(i, j)) + value[j]
            total += 0.9 ** (j - i - 1) * consistency**2
            weights += 0.9 ** (j - i - 1)
        assert float(loss[b]) == pytest.approx(total / weights if weights else 0.0, rel=1e-10)


@pytest.mark.parametrize("objective", ["subtb", "vargrad", "tb", "subtb+vargrad", "contrastive"])
@pytest.mark.parametrize(("lam", "delta"), [(1.0, None), (0.9, None), (1.0, 1.0)])
def test_gradients_equal_finite_differences(objective, lam, delta):
    batch = random_batch(11, root_legal=False)
    # The detached reference is a constant of the objective, so it is held while differencing.
    reference = group_log_z(summarise(batch, flow_residuals(batch)), batch.group)

    def mean_loss(log_q: torch.Tensor, stop: torch.Tensor, log_z: torch.Tensor) -> torch.Tensor:
        moved = replace(batch, log_q=log_q, log_q_stop=stop, log_z=log_z)
        return losses(
            moved,
            objective,
            subtb_lambda=lam,
            huber_delta=delta,
            root="learned",
            reference=reference,
        )[0].mean()

    leaves = [t.clone().requires_grad_() for t in (batch.log_q, batch.log_q_stop, batch.log_z)]
    gradients = torch.autograd.grad(mean_loss(*leaves), leaves, allow_unused=True)
    step = 1e-5
    for which, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        assert torch.isfinite(gradient).all()
        for index in itertools.product(*(range(size) for size in leaf.shape)):
            if not torch.isfinite(leaf[index]):
                continue
            values = []
            for sign in (1, -1):
                moved = [t.detach().clone() for t in leaves]
                moved[which][index] += sign * step
                values.append(float(mean_loss(*moved)))
            assert float(gradient[index]) == pytest.approx(
                (values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-7
            )


def test_gradients_flow_through_log_q_only():
    batch = random_batch(3, root_legal=False)
    reward = batch.log_reward.clone().requires_grad_()
    log_q = batch.log_q.clone().requires_grad_()
    stop = batch.log_q_stop.clone().requires_grad_()
    moved = replace(batch, log_reward=reward, log_q=log_q, log_q_stop=stop)
    loss, _ = losses(moved, "subtb+vargrad")
    loss.mean().backward()
    assert reward.grad is None
    assert log_q.grad.abs().sum() > 0
    assert stop.grad.abs().sum() > 0
    assert torch.isfinite(stop.grad).all()
    # The group's mean is detached: one trajectory's loss does not move another one's log q.
    log_q.grad = None
    losses(moved, "subtb+vargrad")[0][4].backward()
    assert log_q.grad[4].abs().sum() > 0
    assert log_q.grad[torch.arange(len(log_q)) != 4].abs().sum() == 0


@pytest.mark.parametrize("offset", [1e3, 1e4])
@pytest.mark.parametrize("lam", LAMBDAS)
def test_float32_stays_accurate_under_a_large_offset(offset, lam):
    """Values on a float32 grid, so that the offset itself rounds nothing away."""
    rng = np.random.default_rng(0)
    grid = rng.integers(-512, 512, (16, 24)) / 512.0
    nodes = torch.tensor(rng.random((16, 24)) < 0.7)
    exact = subtb(torch.tensor(grid, dtype=torch.float64), nodes, lam)
    shifted = subtb(torch.tensor(grid + offset, dtype=torch.float32), nodes, lam)
    assert shifted.dtype == torch.float32
    torch.testing.assert_close(shifted.double(), exact, rtol=1e-4, atol=1e-5)


def test_flow_residuals_of_float32_inputs_do_not_round_a_long_sum():
    """10,000 tokens of 0.1 nat: a float32 running sum is off by more than the tolerance here."""
    n = 10_000
    log_q = torch.full((1, n), -0.1)
    zeros = torch.zeros(1, n + 1)
    legal = torch.zeros(1, n + 1, dtype=torch.bool)
    legal[0, n] = True
    batch = Batch(log_q, zeros, zeros, legal, torch.tensor([n]), torch.tensor([0]))
    found = float(terminal(flow_residuals(batch), batch.lengths))
    assert found == pytest.approx(n * float(np.float32(0.1)), abs=1e-6)


def test_a_single_node_has_no_pairs():
    batch = random_batch(5, root_legal=True)
    only_end = torch.zeros_like(batch.stop_legal)
    only_end[torch.arange(len(batch.lengths)), batch.lengths] = True
    batch = replace(batch, stop_legal=only_end)
    for lam, delta in ((1.0, None), (0.9, None), (1.0, 1.0)):
        loss, _ = losses(batch, "subtb", subtb_lambda=lam, huber_delta=delta, root="none")
        assert torch.equal(loss, torch.zeros_like(loss))


def test_padding_does_not_count():
    batch = random_batch(9)
    wider = Batch(
        log_q=torch.nn.functional.pad(batch.log_q, (0, 3), value=-5.0),
        log_q_stop=torch.nn.functional.pad(batch.log_q_stop, (0, 3), value=-5.0),
        log_reward=torch.nn.functional.pad(batch.log_reward, (0, 3), value=9.0),
        stop_legal=torch.nn.functional.pad(batch.stop_legal, (0, 3), value=True),
        lengths=batch.lengths,
        group=batch.group,
        log_z=batch.log_z,
    )
    for lam in LAMBDAS:
        narrow, _ = losses(batch, "subtb+vargrad", subtb_lambda=lam)
        padded, _ = losses(wider, "subtb+vargrad", subtb_lambda=lam)
        torch.testing.assert_close(padded, narrow, rtol=1e-10, atol=1e-12)


def test_parts_of_a_group_with_its_reference_equal_the_whole():
    batch = random_batch(13, root_legal=False)
    whole, residuals = losses(batch, "subtb+vargrad", subtb_lambda=0.9)
    reference = group_log_z(summarise(batch, residuals), batch.group)
    for rows in (slice(0, 5), slice(5, 12)):
        part = Batch(
            *(
                getattr(batch, name)[rows]
                for name in (
                    "log_q",
                    "log_q_stop",
                    "log_reward",
                    "stop_legal",
                    "lengths",
                    "group",
                    "log_z",
                )
            )
        )
        rows_reference = GroupLogZ(reference.mean[rows], reference.terminal[rows])
        found, _ = losses(part, "subtb+vargrad", subtb_lambda=0.9, reference=rows_reference)
        torch.testing.assert_close(found, whole[rows], rtol=1e-10, atol=1e-12)


def test_contrastive_gradient_is_a_multiple_of_vargrad():
    ends = torch.randn(6, dtype=torch.float64, requires_grad=True)
    group = torch.zeros(6, dtype=torch.long)
    (contrastive,) = torch.autograd.grad(contrastive_tb(ends, group).mean(), ends)
    anchor = (ends - group_mean(ends, group).detach()).square().mean()
    (vargrad,) = torch.autograd.grad(anchor, ends)
    torch.testing.assert_close(contrastive, vargrad * 2 * 6 / 5)


def test_learned_log_z_is_required_where_it_is_used():
    batch = replace(random_batch(1), log_z=None)
    with pytest.raises(ValueError, match="learned log Z"):
        losses(batch, "tb")
    with pytest.raises(ValueError, match="learned log Z"):
        losses(batch, "subtb", root="learned")


def test_flows_vanish_at_the_optimum_and_name_log_z():
    batch = random_batch(17)
    log_z = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)[batch.group]
    spent = torch.nn.functional.pad(batch.log_q.cumsum(1), (1, 0))
    # Choose the reward so that D = log Z at every legal position.
    reward = log_z[:, None] + batch.log_q_stop + spent
    at_optimum = replace(batch, log_reward=reward, log_z=log_z)
    flows = summarise(at_optimum, flow_residuals(at_optimum))
    torch.testing.assert_close(flows.mean, log_z)
    torch.testing.assert_close(flows.terminal, log_z)
    assert float(flows.spread.max()) == pytest.approx(0.0, abs=1e-12)
    for objective in ("subtb", "vargrad", "tb", "subtb+vargrad", "contrastive"):
        loss, _ = losses(at_optimum, objective)
        assert float(loss.max()) == pytest.approx(0.0, abs=1e-20)


def test_flows_equal_their_formulas():
    batch = random_batch(19)
    flows = summarise(batch, flow_residuals(batch))
    for b in range(len(batch.lengths)):
        nodes = naive_nodes(batch, b, None)
        mean = sum(nodes) / len(nodes)
        assert float(flows.mean[b]) == pytest.approx(mean)
        assert float(flows.spread[b]) == pytest.approx(
            sum(abs(node - mean) for node in nodes) / len(nodes), abs=1e-12
        )
        assert float(flows.terminal[b]) == pytest.approx(nodes[-1])
