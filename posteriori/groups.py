"""From drawn trajectories to what one forward pass of the policy needs.

A group is packed as one prefix tree: its prompt once, each distinct prefix once. Every trajectory
is checked against the problem it claims to belong to before it may touch a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posteriori.errors import CorruptPayload
from posteriori.lm import prefix_tree
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory
from posteriori.tree import TokenTree

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Group:
    """K trajectories of one X, of up to N tokens, with the tree that scores them.

    Attributes:
        problem: name of the problem.
        prompt: id of X.
        trajectories: as drawn, [K].
        tree: prompt and all prefixes.
        states: tree nodes at which the policy decides, int64 [U].
        column_tokens: token id of each column, ⊤ last, int64 [V + 1].
        legal: legal moves at each state, bool [U, V + 1].
        promises: what a lookahead adds to each legal move's logit, float32 [U, V + 1]; None without one.
        state_of: row of ``states`` for each prefix, int64 [K, N + 1]; 0 where nothing is read.
        column_of: column of each token, int64 [K, N]; 0 where it is not an action.
        action: tokens that are actions, bool [K, N]; False at padding.
        stop_legal: prefixes that have a D, bool [K, N + 1]; False at padding.
        lengths: n, int64 [K].
    """

    problem: str
    prompt: str
    trajectories: Sequence[Trajectory]
    tree: TokenTree
    states: IntArray
    column_tokens: IntArray
    legal: BoolArray
    promises: NDArray[np.float32] | None
    state_of: IntArray
    column_of: IntArray
    action: BoolArray
    stop_legal: BoolArray
    lengths: IntArray

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def decides(self) -> BoolArray:
        """Prefixes at which the policy moves: before each action, and at the end; bool [K, N + 1]."""
        decides: BoolArray = np.pad(self.action, ((0, 0), (0, 1)))
        decides[np.arange(len(self)), self.lengths] = True
        return decides

    def log_rewards(self) -> NDArray[np.float32]:
        """log R at temperature 1, 0 at padding; [K, N + 1]."""
        rewards = np.zeros(self.stop_legal.shape, dtype=np.float32)
        for row, trajectory in enumerate(self.trajectories):
            rewards[row, : len(trajectory) + 1] = trajectory.log_reward
        return rewards


def _refuse(trajectory: Trajectory, what: str) -> CorruptPayload:
    return CorruptPayload(
        f"Trajectory of group {trajectory.group} for {trajectory.problem!r}, prompt "
        f"{trajectory.prompt!r}, from producer {trajectory.actor} "
        f"({trajectory.behaviour}, adapter {trajectory.adapter_version}): {what}.",
        "It is dropped; check that the producer runs this version with this run file.",
    )


def legal_rows(trajectory: Trajectory, moves: LegalMoves) -> BoolArray:
    """Legal moves at every prefix, none before a tool output; bool [n + 1, V + 1].

    The stored tool outputs are taken as they are, and for the tool's answers from now on.

    Raises:
        CorruptPayload: an action is illegal, or ⊤ is recorded as legal where it is not or the
            other way round. ⊤ is never legal before a token that is a tool output.
    """
    try:
        rows = moves.masks(trajectory.tokens.astype(np.int64), trajectory.action)
    except ValueError as cause:
        raise _refuse(trajectory, str(cause)) from cause
    if moves.tool is not None:
        moves.tool.learn(trajectory.tokens.tolist(), trajectory.action)
    wrong = np.flatnonzero(rows[:, -1] != trajectory.stop_legal)
    if len(wrong):
        raise _refuse(
            trajectory,
            f"stopping after {int(wrong[0])} tokens is recorded as "
            f"{'legal' if trajectory.stop_legal[wrong[0]] else 'illegal'}, but it is not",
        )
    return rows


def check(
    trajectory: Trajectory, problems: Mapping[str, Problem], newest_version: int | None = None
) -> None:
    """Verify that a trajectory is one of these problems.

    Args:
        trajectory: from anywhere.
        problems: of the run, by name.
        newest_version: of the run's adapters; None: not looked at.

    Raises:
        CorruptPayload: names the producer and what is wrong: shape, unknown problem or prompt,
            illegal move, an adapter version that this run never published.
    """
    trajectory.check()
    if newest_version is not None and trajectory.adapter_version > newest_version:
        raise _refuse(trajectory, f"this run has published no version above {newest_version}")
    problem = problems.get(trajectory.problem)
    if problem is None:
        raise _refuse(trajectory, f"unknown problem; this run has {', '.join(sorted(problems))}")
    if trajectory.prompt not in problem.by_id:
        raise _refuse(trajectory, "unknown prompt")
    legal_rows(trajectory, problem.moves(problem.by_id[trajectory.prompt]))


def prepare(trajectories: Sequence[Trajectory], problem: Problem) -> Group:
    """Pack trajectories of one X.

    Raises:
        CorruptPayload: a trajectory is not one of this problem.
    """
    first = trajectories[0]
    prompt = problem.by_id[first.prompt]
    moves = problem.moves(prompt)
    tree, paths = prefix_tree(
        problem.policy_ids(prompt), [trajectory.tokens.tolist() for trajectory in trajectories]
    )
    size, longest = len(trajectories), max(len(trajectory) for trajectory in trajectories)
    state_of = np.zeros((size, longest + 1), dtype=np.int64)
    column_of = np.zeros((size, longest), dtype=np.int64)
    action = np.zeros((size, longest), dtype=np.bool_)
    stop_legal = np.zeros((size, longest + 1), dtype=np.bool_)
    states: dict[int, int] = {}
    legal: list[BoolArray] = []
    promises: list[NDArray[np.float64]] = []
    for row, (trajectory, path) in enumerate(zip(trajectories, paths, strict=True)):
        n = len(trajectory)
        rows = legal_rows(trajectory, moves)
        promised = moves.path_promises(trajectory.tokens.astype(np.int64), trajectory.action)
        action[row, :n] = trajectory.action
        stop_legal[row, : n + 1] = trajectory.stop_legal
        for i, node in enumerate(path.tolist()):
            if i < n and not trajectory.action[i]:
                continue  # a tool speaks here: the policy decides nothing
            if node not in states:
                states[node] = len(states)
                legal.append(rows[i])
                if promised is not None:
                    promises.append(promised[i])
            state_of[row, i] = states[node]
            if i < n:
                column_of[row, i] = moves.columns[int(trajectory.tokens[i])]
    return Group(
        problem=problem.name,
        prompt=first.prompt,
        trajectories=trajectories,
        tree=tree,
        states=np.fromiter(states, dtype=np.int64, count=len(states)),
        column_tokens=moves.column_tokens,
        legal=np.stack(legal),
        promises=np.stack(promises).astype(np.float32) if promises else None,
        state_of=state_of,
        column_of=column_of,
        action=action,
        stop_legal=stop_legal,
        lengths=np.asarray([len(trajectory) for trajectory in trajectories], dtype=np.int64),
    )
