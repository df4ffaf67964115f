"""Write the losses of released torchgfn on bit sequences to JSON, to be compared with our objectives.

torchgfn needs numpy < 2 and cannot live beside vLLM, so this runs in an environment of its own:

    python3.11 -m venv torchgfn-env && torchgfn-env/bin/pip install torchgfn==2.4.1 "numpy<2"
    torchgfn-env/bin/python benchmarks/torchgfn_fixtures.py tests/fixtures/torchgfn.json

Two environments: torchgfn's own ``BitSequence``, where a sequence ends at full length only (TB and
log-partition variance), and the same with the exit legal at every prefix, as our Z may stop anywhere
(SubTB as well). There log F(s) is set to r(s) − t(s), the log reward of stopping at s less the
log-probability of stopping: the flow that our SubTB eliminates. A random tabular policy; torchgfn's own
reward at full length and a random one at every prefix; float64. Recorded are ℓ, t and r, computed here
from the tables without torchgfn, and the losses, computed by torchgfn from its own states, masks and
policies.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
from gfn.gflownet import LogPartitionVarianceGFlowNet, SubTBGFlowNet, TBGFlowNet
from gfn.gym.bitSequence import BitSequence, BitSequenceStates
from gfn.preprocessors import IdentityPreprocessor
from torch import Tensor, nn

TRAJECTORIES = 8
LOG_Z = -1.25
LAMBDAS = (0.5, 0.9)


class StoppableStates(BitSequenceStates):
    """Bit sequences that may end at any length."""

    def _compute_forward_masks(self) -> Tensor:
        masks = torch.ones((*self.batch_shape, self.n_actions), dtype=torch.bool)
        masks[self.length == self.words_per_seq, :-1] = False
        return masks


class StoppableBitSequence(BitSequence):
    """``BitSequence`` whose exit action is legal at every prefix, the empty one included."""

    def make_states_class(self) -> type[BitSequenceStates]:
        base: Any = super().make_states_class()
        return type("StoppableBitSequenceStates", (StoppableStates,), dict(base.__dict__))


class Table(nn.Module):
    """Rows of a random table by the words of a state.

    Args:
        values: [states, columns], row = Σ (word + 1) (words + 1)^place.
        base: words + 1.
    """

    def __init__(self, values: Tensor, base: int) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.base = base
        self.input_dim = self.output_dim = None

    def forward(self, states: Tensor) -> Tensor:
        """States [n, places], -1 where empty → [n, columns]."""
        powers = self.base ** torch.arange(states.shape[-1])
        return self.values[((states + 1) * powers).sum(dim=-1)]


def case(word_size: int, words: int, stoppable: bool, seed: int) -> dict[str, Any]:
    """One batch of trajectories and torchgfn's losses of it."""
    torch.manual_seed(seed)
    kind = StoppableBitSequence if stoppable else BitSequence
    env = kind(word_size=word_size, seq_size=word_size * words, n_modes=2, seed=seed)
    base = 2**word_size + 1
    states = base**words
    logits = Table(1.5 * torch.randn(states, env.n_actions), base)
    rewards = Table(2.0 * torch.randn(states, 1) - 3.0, base)
    policy = DiscretePolicyEstimator(logits, env.n_actions, IdentityPreprocessor(words))
    trajectories = TBGFlowNet(policy, None, constant_pb=True).sample_trajectories(
        env, n=TRAJECTORIES
    )
    lengths = (trajectories.terminating_idx - 1).tolist()
    full = trajectories.terminating_states.tensor
    log_q, log_stop, log_reward, tokens = [], [], [], []
    for row, length in zip(full, lengths, strict=True):
        prefixes = torch.full((length + 1, words), -1)
        for i in range(length + 1):
            prefixes[i, :i] = row[:i]
        legal = torch.ones(length + 1, env.n_actions, dtype=torch.bool)
        if length == words:
            legal[words, :-1] = False
        if not stoppable:
            legal[:words, -1] = False
        conditional = logits(prefixes).masked_fill(~legal, -torch.inf).log_softmax(dim=-1)
        tokens.append(row[:length].tolist())
        log_q.append(conditional[torch.arange(length), row[:length]].tolist())
        # JSON has no -inf: null where the exit is illegal.
        log_stop.append([t if t > -torch.inf else None for t in conditional[:, -1].tolist()])
        log_reward.append(rewards(prefixes)[:, 0].tolist() if stoppable else [None] * words)

    def losses_of(gflownet: Any) -> list[float]:
        """The loss of each trajectory, as a batch of one."""
        return [
            gflownet.loss(env, trajectories[k : k + 1], log_rewards=ends[k : k + 1]).item()
            for k in range(TRAJECTORIES)
        ]

    if not stoppable:
        for row, end in zip(
            log_reward, env.log_reward(trajectories.terminating_states), strict=True
        ):
            row.append(float(end))
    ends = torch.tensor([row[-1] for row in log_reward])
    tb = TBGFlowNet(policy, None, constant_pb=True)
    nn.init.constant_(tb.logZ, LOG_Z)
    variance = LogPartitionVarianceGFlowNet(policy, None, constant_pb=True)
    found: dict[str, Any] = {
        "word_size": word_size,
        "stoppable": stoppable,
        "log_z": LOG_Z,
        "tokens": tokens,
        "log_q": log_q,
        "log_q_stop": log_stop,
        "log_reward": log_reward,
        "tb": losses_of(tb),
        "log_partition_variance": variance.loss(env, trajectories, log_rewards=ends).item(),
    }
    if stoppable:
        legal = torch.ones(states, env.n_actions, dtype=torch.bool)
        places = torch.arange(states)
        # A state is full where its last place is filled.
        legal[places // base ** (words - 1) > 0, :-1] = False
        stop = logits.values.masked_fill(~legal, -torch.inf).log_softmax(dim=-1)[:, -1:]
        flow = ScalarEstimator(
            Table((rewards.values - stop).detach(), base), IdentityPreprocessor(words)
        )
        weightings = [("ModifiedDB", 1.0), ("TB", 1.0), ("equal_within", 1.0)]
        weightings += [("geometric_within", value) for value in LAMBDAS]
        found["subtb"] = [
            {
                "weighting": weighting,
                "lambda": value,
                "losses": losses_of(
                    SubTBGFlowNet(
                        policy, None, flow, weighting=weighting, lamda=value, constant_pb=True
                    )
                ),
            }
            for weighting, value in weightings
        ]
    return found


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    cases = [
        case(word_size=1, words=8, stoppable=False, seed=0),
        case(word_size=2, words=4, stoppable=False, seed=1),
        case(word_size=1, words=8, stoppable=True, seed=2),
        case(word_size=2, words=4, stoppable=True, seed=3),
    ]
    data = {"torchgfn": version("torchgfn"), "cases": cases}
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_text(json.dumps(data) + "\n", encoding="utf-8")
    print(f"{arguments.file}: {len(cases)} cases of torchgfn {data['torchgfn']}")


if __name__ == "__main__":
    main()
