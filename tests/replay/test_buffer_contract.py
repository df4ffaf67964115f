"""What every replay buffer must do, whatever it is made of."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from posteriori.errors import CorruptPayload, ProducerQuarantined, StorageFull
from posteriori.seams import Buffer
from posteriori.trajectory import decode, encode
from tests.replay.build import config, tokens_of, trajectory
from tests.replay.conftest import Buffers


def test_is_a_buffer(buffers: Buffers) -> None:
    assert isinstance(buffers(config()), Buffer)


def test_an_empty_buffer_says_so(buffers: Buffers) -> None:
    draw = buffers(config()).draw(1, 2)
    assert draw.groups == []
    assert draw.wait == "the buffer is empty"


def test_what_goes_in_comes_out(buffers: Buffers) -> None:
    original = dataclasses.replace(
        trajectory([5, 6, 7], 1.5, prompt="ünï", version=3, reward_version=2),
        action=np.array([True, False, True]),
        log_q_stop=np.array([-np.inf, -1, -2, 0], dtype=np.float32),
        stop_legal=np.array([False, True, True, True]),
    )
    buffer = buffers(config())
    assert buffer.insert([original]).inserted == 1
    [[copy]] = buffer.draw(1, 1).groups
    assert encode(copy) == encode(original)
    assert decode(encode(copy)).digest == original.digest


def test_inserting_nothing_is_nothing(buffers: Buffers) -> None:
    receipt = buffers(config()).insert([])
    assert (receipt.inserted, receipt.merged, receipt.dropped, receipt.wait) == (0, 0, 0, None)


def test_a_malformed_trajectory_keeps_its_companions_out(buffers: Buffers) -> None:
    buffer = buffers(config())
    bad = dataclasses.replace(trajectory([2], actor="actor-7"), log_q=np.zeros(3, dtype=np.float32))
    with pytest.raises(CorruptPayload, match="actor-7"):
        buffer.insert([trajectory([1]), bad])
    with pytest.raises(CorruptPayload, match="adapter version 2097152"):
        buffer.insert([trajectory([1]), trajectory([2], version=2**21)])
    assert buffer.stats().trajectories == 0


class TestDuplicates:
    def test_a_newer_duplicate_replaces_and_refreshes(self, buffers: Buffers) -> None:
        buffer = buffers(config(recent_share=1.0))
        buffer.insert([trajectory([1], version=1, actor="old"), trajectory([2], version=1)])
        receipt = buffer.insert([trajectory([1], version=2, actor="new")])
        assert (receipt.inserted, receipt.merged) == (0, 1)
        [[newest]] = buffer.draw(1, 1).groups
        assert (newest.actor, newest.adapter_version) == ("new", 2)
        assert buffer.stats().trajectories == 2

    def test_an_older_duplicate_is_counted_and_changes_nothing(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([1], version=2, actor="new")])
        assert buffer.insert([trajectory([1], version=1, actor="old")]).merged == 1
        [[kept]] = buffer.draw(1, 1).groups
        assert kept.actor == "new"

    def test_a_newer_reward_counts_more_than_a_newer_policy(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([1], 1.0, version=5, reward_version=0)])
        buffer.insert([trajectory([1], 2.0, version=4, reward_version=1)])
        buffer.insert([trajectory([1], 3.0, version=9, reward_version=0)])
        [[kept]] = buffer.draw(1, 1).groups
        assert kept.terminal_log_reward == 2.0

    def test_equal_tokens_of_other_prompts_are_no_duplicates(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        receipt = buffer.insert(
            [
                trajectory([1], prompt="a"),
                trajectory([1], prompt="b"),
                trajectory([1], prompt="a", problem="other"),
            ]
        )
        assert (receipt.inserted, receipt.merged) == (3, 0)
        assert buffer.stats().prompts == 3

    def test_merging_keeps_the_bytes_right(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([1], actor="a")])
        short = buffer.stats().payload_bytes
        buffer.insert([trajectory([1], actor="a" * 11)])
        assert buffer.stats().payload_bytes == short + 10


class TestNearDuplicates:
    def test_the_better_one_stays(self, buffers: Buffers) -> None:
        buffer = buffers(config(near_duplicate_tolerance=0.2))
        stored = [1, 2, 3, 4, 5]
        buffer.insert([trajectory(stored, 1.0)])
        # Distance 1 < 0.2 * 10.
        assert buffer.insert([trajectory([1, 2, 9, 4, 5], 0.5)]).dropped == 1
        receipt = buffer.insert([trajectory([1, 2, 8, 4, 5], 1.5)])
        assert (receipt.inserted, receipt.evicted) == (1, 1)
        # Distance 2 is not below 0.2 * 10.
        assert buffer.insert([trajectory([7, 2, 7, 4, 5], 0.0)]).inserted == 1
        assert buffer.insert([trajectory(stored, 0.0, prompt="other")]).inserted == 1
        assert buffer.stats().trajectories == 3

    def test_off_by_default(self, buffers: Buffers) -> None:
        receipt = buffers(config()).insert([trajectory([1] * 50), trajectory([1] * 51)])
        assert receipt.inserted == 2

    def test_one_better_than_several_replaces_them_all(self, buffers: Buffers) -> None:
        buffer = buffers(config(near_duplicate_tolerance=0.2))
        buffer.insert([trajectory([1, 2, 3, 4, 5, 6], 0.0), trajectory([9, 2, 3, 4, 9, 9], 0.1)])
        receipt = buffer.insert([trajectory([1, 2, 3, 4, 9, 9], 1.0)])
        assert (receipt.inserted, receipt.evicted) == (1, 2)

    def test_kinds_of_buffer_agree_on_random_sequences(self, client: object) -> None:
        rng = np.random.default_rng(1)
        sequences = [rng.integers(0, 3, rng.integers(1, 9)).tolist() for _ in range(300)]
        rewards = rng.normal(size=300)
        settings = config(near_duplicate_tolerance=0.25, capacity_per_prompt=40)
        receipts = []
        for kind in (Buffers(None), Buffers(client)):  # type: ignore[arg-type]
            buffer = kind(settings)
            receipts.append(
                [
                    buffer.insert(
                        [
                            trajectory(sequences[i + k], float(rewards[i + k]), version=i)
                            for k in range(3)
                        ]
                    )
                    for i in range(0, 300, 3)
                ]
            )
        assert receipts[0] == receipts[1]
        assert sum(r.dropped for r in receipts[0]) > 50
        assert sum(r.merged for r in receipts[0]) > 10


class TestBounds:
    def test_the_prompt_gives_up_its_oldest_version(self, buffers: Buffers) -> None:
        buffer = buffers(config(capacity_per_prompt=2))
        buffer.insert([trajectory([1], version=2), trajectory([2], version=1)])
        receipt = buffer.insert([trajectory([3], version=3), trajectory([9], prompt="y")])
        assert (receipt.inserted, receipt.evicted) == (2, 1)
        buffer_tokens = {
            t for _ in range(20) for g in buffer.draw(2, 2).groups for t in tokens_of(g)
        }
        assert buffer_tokens == {(1,), (3,), (9,)}

    def test_bytes_are_bounded_oldest_version_first(self, buffers: Buffers) -> None:
        buffer = buffers(config(capacity_bytes=2**16))
        evicted = inserted = 0
        for version in range(40):
            receipt = buffer.insert(
                [trajectory([version, k] * 50, prompt=f"x{k}", version=version) for k in range(4)]
            )
            inserted += receipt.inserted
            evicted += receipt.evicted
            stats = buffer.stats()
            assert stats.payload_bytes <= stats.capacity_bytes == 2**16
        stats = buffer.stats()
        assert evicted > 0
        assert stats.trajectories == inserted - evicted == stats.inserted - stats.evicted
        versions = {
            t.adapter_version for _ in range(50) for g in buffer.draw(4, 4).groups for t in g
        }
        kept = -(-stats.trajectories // 4)
        assert versions == set(range(40 - kept, 40))

    def test_emptying_a_prompt_removes_it(self, buffers: Buffers) -> None:
        buffer = buffers(config(capacity_bytes=2**16))
        buffer.insert([trajectory([1], prompt="gone", version=0)])
        for version in range(1, 60):
            buffer.insert([trajectory([version] * 100, prompt="stays", version=version)])
        assert buffer.stats().prompts == 1
        assert {t.prompt for g in buffer.draw(3, 8).groups for t in g} == {"stays"}

    def test_what_can_never_fit_is_refused_at_once(self, buffers: Buffers) -> None:
        buffer = buffers(config(capacity_bytes=2**16))
        with pytest.raises(StorageFull, match=r"replay\.capacity_bytes"):
            buffer.insert([trajectory([i] * 1000) for i in range(5)])
        assert buffer.stats().trajectories == 0


class TestShapeOfADraw:
    def test_groups_are_of_one_prompt_each_and_prompts_differ(self, buffers: Buffers) -> None:
        shares = {"recent_share": 0.4, "prioritised_share": 0.3}
        buffer = buffers(config(**shares))
        buffer.insert([trajectory([i], float(i), prompt=f"x{i % 6}") for i in range(60)])
        for _ in range(30):
            groups = buffer.draw(4, 5).groups
            assert [len(group) for group in groups] == [5] * 4
            prompts = [{t.prompt for t in group} for group in groups]
            assert all(len(names) == 1 for names in prompts)
            assert len(set.union(*prompts)) == 4

    def test_prompts_repeat_only_when_there_are_too_few(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([i], prompt=f"x{i % 3}") for i in range(9)])
        counts = Counter(group[0].prompt for group in buffer.draw(7, 1).groups)
        assert sorted(counts.values()) == [2, 2, 3]

    def test_uniform_draws_repeat_only_when_there_are_too_few(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([i % 10]) for i in range(30)])
        [group] = buffer.draw(1, 10).groups
        assert sorted(tokens_of(group)) == [(i,) for i in range(10)]
        [group] = buffer.draw(1, 25).groups
        assert len(group) == 25

    def test_the_same_seed_draws_the_same(self, buffers: Buffers) -> None:
        def draws(seed: int) -> list[list[tuple[int, ...]]]:
            buffer = buffers(config(recent_share=0.3, prioritised_share=0.4), seed=seed)
            buffer.insert([trajectory([i], i / 10, prompt=f"x{i % 4}") for i in range(40)])
            return [tokens_of(g) for _ in range(5) for g in buffer.draw(3, 4).groups]

        assert draws(1) == draws(1)
        assert draws(1) != draws(2)


class TestRecent:
    def test_the_newest_come_first_and_second_groups_go_on(self, buffers: Buffers) -> None:
        buffer = buffers(config(recent_share=1.0))
        for version in range(6):
            buffer.insert([trajectory([version, k], version=version) for k in range(2)])
        buffer.set_learner_version(5)
        first, second = buffer.draw(2, 4).groups
        assert tokens_of(first) == [(5, 1), (5, 0), (4, 1), (4, 0)]
        assert tokens_of(second) == [(3, 1), (3, 0), (2, 1), (2, 0)]

    def test_too_old_ones_are_left_out(self, buffers: Buffers) -> None:
        buffer = buffers(config(recent_share=1.0, max_staleness_versions=2))
        buffer.insert([trajectory([version], version=version) for version in range(6)])
        buffer.set_learner_version(6)
        [group] = buffer.draw(1, 5).groups
        assert tokens_of(group) == [(5,), (4,), (5,), (4,), (5,)]

    def test_a_prompt_without_recent_ones_is_drawn_uniformly(self, buffers: Buffers) -> None:
        buffer = buffers(config(recent_share=1.0, max_staleness_versions=1))
        buffer.insert([trajectory([1], prompt="old", version=0)])
        buffer.insert([trajectory([2], prompt="new", version=9)])
        buffer.set_learner_version(9)
        drawn = sorted(tokens_of([t for g in buffer.draw(2, 1).groups for t in g]))
        assert drawn == [(1,), (2,)]

    @pytest.mark.parametrize("behaviour", ["base", "gold"])
    def test_what_does_not_follow_the_policy_is_as_old_as_its_arrival(
        self, buffers: Buffers, behaviour: str
    ) -> None:
        buffer = buffers(config(recent_share=1.0, max_staleness_versions=2))
        buffer.set_learner_version(7)
        buffer.insert([trajectory([1], version=7), trajectory([2], behaviour=behaviour)])
        assert buffer.stats().newest_version == 7
        [group] = buffer.draw(1, 2).groups
        assert tokens_of(group) == [(2,), (1,)]
        assert group[0].adapter_version == 0


class TestWaiting:
    def test_actors_wait_when_too_far_ahead(self, buffers: Buffers) -> None:
        buffer = buffers(config(slack_trajectories=4, samples_per_insert=2.0))
        assert buffer.insert([trajectory([i]) for i in range(5)]).wait is None
        receipt = buffer.insert([trajectory([9])])
        assert receipt.wait is not None and "5 trajectories have arrived" in receipt.wait
        assert (receipt.inserted, buffer.stats().trajectories) == (0, 5)
        assert buffer.draw(1, 2).wait is None
        assert buffer.insert([trajectory([9])]).wait is None

    def test_the_learner_waits_when_too_far_ahead(self, buffers: Buffers) -> None:
        buffer = buffers(config(slack_trajectories=4, samples_per_insert=2.0))
        buffer.insert([trajectory([i]) for i in range(4)])
        assert [buffer.draw(1, 4).wait for _ in range(4)] == [None] * 4
        wait = buffer.draw(1, 4).wait  # 16 drawn, more than 2 * 4 + 4
        assert wait is not None and "drawn 16 trajectories of 4 received" in wait
        assert buffer.stats().drawn == 16
        buffer.insert([trajectory([8]), trajectory([9])])
        assert buffer.draw(1, 4).wait is None

    def test_duplicates_count_as_received(self, buffers: Buffers) -> None:
        """A posterior of two strings must not starve the learner: sampling them again is work."""
        buffer = buffers(config(slack_trajectories=4, samples_per_insert=1.0))
        for _ in range(20):
            assert buffer.insert([trajectory([1]), trajectory([2])]).wait is None
            assert buffer.draw(1, 2).wait is None

    def test_the_first_step_waits_for_a_step_of_data(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([1])])
        assert buffer.draw(2, 2).wait == "1 of the first 4 trajectories have arrived"
        buffer.insert([trajectory([1])] * 3)
        assert buffer.draw(2, 2).wait is None

    def test_the_learner_waits_when_all_is_stale(self, buffers: Buffers) -> None:
        buffer = buffers(config(max_staleness_versions=3))
        buffer.insert([trajectory([1], version=2), trajectory([2], version=1)])
        buffer.set_learner_version(5)
        assert buffer.draw(1, 1).wait is None
        buffer.set_learner_version(6)
        wait = buffer.draw(1, 1).wait
        assert wait is not None and "of version 2, 4 behind the learner" in wait
        buffer.insert([trajectory([3], version=3)])
        assert buffer.draw(1, 1).wait is None

    def test_actors_go_on_while_the_learner_waits_for_younger_data(self, buffers: Buffers) -> None:
        buffer = buffers(config(slack_trajectories=2, max_staleness_versions=1))
        buffer.insert([trajectory([i]) for i in range(4)])
        assert buffer.insert([trajectory([5])]).wait is not None
        buffer.set_learner_version(2)
        assert buffer.draw(1, 1).wait is not None
        assert buffer.insert([trajectory([5])]).wait is None

    def test_actors_go_on_when_the_buffer_was_emptied(self, buffers: Buffers) -> None:
        buffer = buffers(config(slack_trajectories=2))
        buffer.insert([trajectory([i]) for i in range(4)])
        assert buffer.insert([trajectory([5])]).wait is not None
        buffer.drop_reward_versions_below(1)
        assert buffer.draw(1, 1).wait == "the buffer is empty"
        assert buffer.insert([trajectory([5], reward_version=1)]).wait is None


def test_void_rewards_are_dropped(buffers: Buffers) -> None:
    buffer = buffers(config(prioritised_share=1.0))
    buffer.insert([trajectory([i], 50.0 * (i == 0), reward_version=i // 3) for i in range(9)])
    assert buffer.drop_reward_versions_below(2) == 6
    stats = buffer.stats()
    assert (stats.trajectories, stats.evicted) == (3, 6)
    drawn = {t for _ in range(20) for g in buffer.draw(1, 4).groups for t in tokens_of(g)}
    assert drawn == {(6,), (7,), (8,)}


def test_counters_add_up(buffers: Buffers) -> None:
    rng = np.random.default_rng(0)
    buffer = buffers(config(capacity_per_prompt=5, near_duplicate_tolerance=0.2))
    offered = 0
    totals = Counter[str]()
    for version in range(30):
        batch = [
            trajectory(
                rng.integers(0, 3, rng.integers(1, 5)).tolist(),
                float(rng.normal()),
                prompt=f"x{rng.integers(3)}",
                version=version,
            )
            for _ in range(4)
        ]
        receipt = buffer.insert(batch)
        assert receipt.inserted + receipt.merged + receipt.dropped == 4
        totals.update({k: v for k, v in dataclasses.asdict(receipt).items() if k != "wait"})
        offered += 4
    buffer.draw(2, 3)
    buffer.set_learner_version(17)
    stats = buffer.stats()
    counted = {k: getattr(stats, k) for k in ("inserted", "merged", "dropped", "evicted")}
    assert counted == dict(totals)
    assert stats.trajectories == stats.inserted - stats.evicted
    assert sum(counted[k] for k in ("inserted", "merged", "dropped")) == offered
    assert (stats.drawn, stats.learner_version, stats.prompts) == (6, 17, 3)


class TestRefused:
    """What the learner refuses goes, and a producer may be shut out."""

    def test_discarded_ones_go_and_their_draw_is_taken_back(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        buffer.insert([trajectory([i]) for i in range(6)])
        [group] = buffer.draw(1, 4).groups
        assert buffer.discard([*group[:2], group[0], trajectory([99])]) == 2
        stats = buffer.stats()
        assert (stats.trajectories, stats.corrupt, stats.drawn) == (4, 2, 0)
        [rest] = buffer.draw(1, 4).groups
        assert not set(tokens_of(rest)) & set(tokens_of(group[:2]))

    def test_nothing_more_is_taken_from_a_producer_in_quarantine(self, buffers: Buffers) -> None:
        buffer = buffers(config())
        bad, good = trajectory([1], actor="bad"), trajectory([2], actor="good")
        buffer.insert([bad, good])
        buffer.quarantine("bad", "three were NaN")
        for offered in ([bad], [good, trajectory([3], actor="bad")]):
            with pytest.raises(ProducerQuarantined, match="producer bad: three were NaN"):
                buffer.insert(offered)
        assert buffer.insert([trajectory([4], actor="good")]).inserted == 1
        assert buffer.stats().trajectories == 3  # what it had stored before was sound
