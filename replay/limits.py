"""When actors and learner have to wait for each other: a pure function of seven numbers.

Let I be the trajectories received (stored, merged or dropped: all of them cost sampling), D those
drawn, ρ = samples_per_insert and s = slack_trajectories.

- The learner waits for data when the buffer is empty, has not yet received min(one step, s), or
  holds nothing younger than ``max_staleness_versions``; and when D − ρ·I > s.
- An actor waits when I − D/ρ > s, unless the learner waits for data.

Both never wait at once, whatever the sizes of groups and steps: an actor that waits has
I > D/ρ + s, hence D < ρ·I + s, and I > s, and the buffer has data the learner may draw. The
exception for a learner that waits for data is what makes the staleness bound safe: without it,
actors holding groups of an old version wait for draws that wait for a newer version.

A bound is checked before an operation and may be overshot by that one operation.

Redis evaluates the same conditions in ``lua/common.lua``; the reasons are worded only here.
"""

from __future__ import annotations

from dataclasses import dataclass

from posteriori.config import ReplayConfig


@dataclass(frozen=True)
class Flow:
    """What the limiter looks at; counts of trajectories since the run began.

    Attributes:
        received: I.
        drawn: D.
        stored: held now.
        newest_version: version of the youngest one held, 0 if none.
        learner_version: the learner's newest published version.
    """

    received: int
    drawn: int
    stored: int
    newest_version: int
    learner_version: int


def why_data_are_missing(flow: Flow, config: ReplayConfig, step_trajectories: int) -> str | None:
    """Why the learner cannot draw whatever the limiter says, or None."""
    if flow.stored == 0:
        return "the buffer is empty"
    needed = min(step_trajectories, config.slack_trajectories)
    if flow.received < needed:
        return f"{flow.received} of the first {needed} trajectories have arrived"
    behind = flow.learner_version - flow.newest_version
    if behind > config.max_staleness_versions:
        return (
            f"the newest trajectory is of version {flow.newest_version}, {behind} behind the "
            f"learner (max_staleness_versions is {config.max_staleness_versions})"
        )
    return None


def why_draw_waits(flow: Flow, config: ReplayConfig, step_trajectories: int) -> str | None:
    """Why a draw of ``step_trajectories`` must wait, or None."""
    missing = why_data_are_missing(flow, config, step_trajectories)
    if missing is not None:
        return missing
    if flow.drawn - flow.received * config.samples_per_insert > config.slack_trajectories:
        return (
            f"the learner has drawn {flow.drawn} trajectories of {flow.received} received "
            f"(samples_per_insert {config.samples_per_insert:g}, "
            f"slack {config.slack_trajectories})"
        )
    return None


def why_insert_waits(flow: Flow, config: ReplayConfig) -> str | None:
    """Why an insert must wait, or None."""
    # What the learner needs at most before it draws: a step counts for no more than the slack.
    if why_data_are_missing(flow, config, config.slack_trajectories) is not None:
        return None
    if flow.received - flow.drawn / config.samples_per_insert > config.slack_trajectories:
        return (
            f"{flow.received} trajectories have arrived and {flow.drawn} were drawn "
            f"(samples_per_insert {config.samples_per_insert:g}, "
            f"slack {config.slack_trajectories})"
        )
    return None
