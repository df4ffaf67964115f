"""Keeps the reward of a rollout actor at the newest M step of variational EM."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from actors.adapter_follower import fetch_unless_pruned
from posteriori.errors import CorruptPayload, StorageFull
from posteriori.fitted_reward import FittedReward
from posteriori.seams import AdapterStore

log = logging.getLogger(__name__)


class RewardFollower:
    """Puts newer versions of the reward's adapter in force between two groups that are scored.

    What was scored before stays in the replay buffer with its version; the learner re-scores it.

    Args:
        reward: of the actor's problems.
        store: where M steps publish, see ``fitted_reward.store_name``.
        directory: the follower's own; versions are written below it and deleted again.
    """

    def __init__(self, reward: FittedReward, store: AdapterStore, directory: Path) -> None:
        self._reward = reward
        self._store = store
        self._directory = directory

    def poll(self) -> bool:
        """Take up the newest version if it is newer; returns whether the reward changed.

        Raises:
            UserError: the newest version is no adapter of the reward LM.
            StorageUnreachable: from the store.

        A version that is damaged or has no room on the disk is logged and left: the learner scores
        again what comes with an older one.
        """
        latest = self._store.latest()
        if latest <= self._reward.version:
            return False
        try:
            path = fetch_unless_pruned(self._store, latest, self._directory)
        except (CorruptPayload, StorageFull) as cause:
            log.error("REWARD VERSION %d CANNOT BE USED: %s", latest, cause)
            return False
        if path is None:
            return False
        self._reward.use(path, latest)
        shutil.rmtree(path, ignore_errors=True)  # the weights are in memory
        return True
