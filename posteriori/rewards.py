"""log R as a product of likelihoods and factors, scored at every prefix in one forward.

log R(Z | X) = Σₖ wₖ log p_LM(targetₖ | contextₖ) + Σ log c(Z), with targets and contexts written as
templates over {x}, {y}, {z} and {stop} (paper, section 3). A term that ends in Z needs one forward for
all prefixes; a term with text behind Z needs every prefix followed by its own copy of that text, which a
token tree gives in the same forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori import templates
from posteriori.config import RewardTerm
from posteriori.errors import RewardError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.seams import Prompt, Reward
from posteriori.tree import TokenTree, TreeBuilder

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

NODES_PER_TREE = 512
"""A tree is closed at about this size: attention inside a row costs its square."""

ROUNDING_NATS = 1e-6
"""Two forwards of one tree may differ by this much."""


@dataclass(frozen=True)
class _Layout:
    """Token ids of one term for one X: head, Z, tail; from ``scored_from`` on the head is target.

    The tail is the text behind Z, and ⊤ if it is scored; ``tail_scored`` marks its target tokens.
    """

    head: list[int]
    scored_from: int
    has_z: bool
    z_scored: bool
    stop_scored: bool
    tail: list[int]
    tail_scored: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ScoredText:
    """One term of log R at one complete Z: weight · Σ log p(token | tokens before) where scored.

    Attributes:
        weight: of the term.
        tokens: context and target, Z in its place, [L].
        scored: tokens of the target, bool [L].
    """

    weight: float
    tokens: list[int]
    scored: NDArray[np.bool_]


class ProductReward:
    """A product of likelihoods under frozen language models; implements ``Reward``.

    Args:
        terms: factors with their weights.
        models: language model of each term.
        moves: legal continuations of an X.

    Attributes:
        terms: factors with their language models. Whoever exchanges a model changes ``version``
            afterwards, so that no score carries a newer version than it has.

    Log-likelihoods are float32 forwards summed in float64, nats.
    """

    def __init__(
        self,
        terms: Sequence[RewardTerm],
        models: Sequence[LanguageModel],
        moves: Callable[[Prompt], LegalMoves],
    ) -> None:
        self.version = 0
        self.terms = list(zip(terms, models, strict=True))
        self._moves = moves

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See ``Reward.log_reward``. -inf where ⊤ is illegal."""
        moves = self._moves(prompt)
        legal = [moves.stop_legal(sequence) for sequence in sequences]
        totals = [np.where(mask, 0.0, -np.inf) for mask in legal]
        for term, lm in self.terms:
            layout = _layout(term, lm, prompt, moves.stop)
            found = _term_scores(lm, layout, sequences, legal, term.token_floor_nats)
            for index, scores in enumerate(found):
                if term.renormalise and layout.z_scored:
                    scores = scores + _renormalisation(lm, layout, sequences[index], moves)
                totals[index][legal[index]] += term.weight * scores[legal[index]]
        return totals

    def marks(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> dict[str, BoolArray]:
        """``clipped``: complete Z's with a token below a term's ``token_floor_nats``. See ``draw_marks``."""
        moves = self._moves(prompt)
        floored = [term for term in self.terms if term[0].token_floor_nats is not None]
        clipped = np.zeros(len(sequences), dtype=np.bool_)
        ends = [np.arange(len(sequence) + 1) == len(sequence) for sequence in sequences]
        for term, lm in floored:
            layout = _layout(term, lm, prompt, moves.stop)
            plain = _term_scores(lm, layout, sequences, ends)
            raised = _term_scores(lm, layout, sequences, ends, term.token_floor_nats)
            clipped |= [r[-1] > p[-1] + ROUNDING_NATS for r, p in zip(raised, plain, strict=True)]
        return {"clipped": clipped} if floored else {}

    def scored_text(self, term: int, prompt: Prompt, sequence: Sequence[int]) -> ScoredText:
        """What term number ``term`` scores at the complete Z ``sequence``; ``renormalise`` is left out."""
        factor, lm = self.terms[term]
        layout = _layout(factor, lm, prompt, self._moves(prompt).stop)
        head = np.arange(len(layout.head)) >= layout.scored_from
        z = [int(token) for token in sequence] if layout.has_z else []
        return ScoredText(
            weight=factor.weight,
            tokens=[*layout.head, *z, *layout.tail],
            scored=np.concatenate([head, np.full(len(z), layout.z_scored), layout.tail_scored]),
        )

    def alike(self, term: RewardTerm) -> ProductReward:
        """One likelihood under the language model of this product's first term."""
        return ProductReward([term], [self.terms[0][1]], self._moves)

    def longest(self, prompt: Prompt) -> int:
        """Tokens of the longest sequence scored for X."""
        moves = self._moves(prompt)
        layouts = [_layout(term, lm, prompt, moves.stop) for term, lm in self.terms]
        return max(len(item.head) + moves.longest + len(item.tail) for item in layouts)


def log_likelihood(
    term: RewardTerm,
    lm: LanguageModel,
    prompt: Prompt,
    sequences: Sequence[Sequence[int]],
    stop: int,
) -> FloatArray:
    """log p_LM(target | context) of one term at complete Z's, weight and ``renormalise`` left out.

    Args:
        term: its templates.
        lm: whose likelihood.
        prompt: X.
        sequences: Z's without ⊤, tool outputs included; N of them.
        stop: token id of ⊤.

    Returns:
        Nats, [N].
    """
    layout = _layout(term, lm, prompt, stop)
    ends = [np.arange(len(sequence) + 1) == len(sequence) for sequence in sequences]
    found = _term_scores(lm, layout, sequences, ends)
    return np.array([scores[-1] for scores in found])


def _layout(term: RewardTerm, lm: LanguageModel, prompt: Prompt, stop: int) -> _Layout:
    context = templates.fill(term.context, prompt.fields)
    target = templates.fill(term.target, prompt.fields)
    head = lm.context(context.before)
    scored_from = len(head)
    if context.has_z:
        between, after = lm.encode(context.after), lm.encode(target.before)
        return _Layout(
            head=head,
            scored_from=scored_from,
            has_z=True,
            z_scored=False,
            stop_scored=False,
            tail=between + after,
            tail_scored=np.repeat([False, True], [len(between), len(after)]),
        )
    head += lm.encode(target.before)
    tail = lm.encode(target.after) + ([stop] if target.stop else [])
    return _Layout(
        head=head,
        scored_from=scored_from,
        has_z=target.has_z,
        z_scored=target.has_z,
        stop_scored=target.stop,
        tail=tail,
        tail_scored=np.ones(len(tail), dtype=np.bool_),
    )


def _term_scores(
    lm: LanguageModel,
    layout: _Layout,
    sequences: Sequence[Sequence[int]],
    legal: Sequence[BoolArray],
    token_floor_nats: float | None = None,
) -> list[FloatArray]:
    """log p(target | context) with Z cut at every prefix; [n + 1] each, meaningful where legal."""
    trees: list[TokenTree] = []
    places: list[tuple[int, list[int], dict[int, range]]] = []
    builder = TreeBuilder()
    root = builder.path(-1, layout.head)[-1]
    tail = layout.tail
    for sequence, mask in zip(sequences, legal, strict=True):
        grown = len(sequence) + int(mask.sum()) * len(tail)
        if len(builder) > len(layout.head) and len(builder) + grown > NODES_PER_TREE:
            trees.append(builder.build())
            builder = TreeBuilder()
            root = builder.path(-1, layout.head)[-1]
        nodes = [root, *builder.path(root, sequence if layout.has_z else ())]
        ends = np.asarray(nodes) if layout.has_z else np.full(len(mask), root)
        prefixes = np.flatnonzero(mask).tolist()
        tails = {prefix: builder.chain(int(ends[prefix]), tail) for prefix in prefixes}
        places.append((len(trees), nodes, tails))
    trees.append(builder.build())
    wanted = [np.zeros(len(tree), dtype=np.bool_) for tree in trees]
    for index, nodes, tails in places:
        wanted[index][layout.scored_from : len(layout.head)] = True
        if layout.z_scored:
            wanted[index][nodes[1:]] = True
        for nodes_of_tail in tails.values():
            wanted[index][nodes_of_tail.start : nodes_of_tail.stop] = layout.tail_scored
    edges = lm.edge_log_probs(trees, wanted)
    if token_floor_nats is not None:
        edges = [np.maximum(edge, token_floor_nats) for edge in edges]

    results = []
    for (index, nodes, tails), sequence in zip(places, sequences, strict=True):
        edge = edges[index]
        scores = np.full(len(sequence) + 1, edge[layout.scored_from : len(layout.head)].sum())
        if layout.z_scored:
            scores[1:] += np.cumsum(edge[nodes[1:]])
        for prefix, chain in tails.items():
            scores[prefix] += edge[chain.start : chain.stop][layout.tail_scored].sum()
        results.append(scores)
    return results


def _renormalisation(
    lm: LanguageModel, layout: _Layout, sequence: Sequence[int], moves: LegalMoves
) -> FloatArray:
    """-Σ log of the mass p_LM puts on the legal moves, for Z and for ⊤ where it is scored; [n + 1].

    Tool outputs are no moves: p_LM of their tokens stays over the whole vocabulary.
    """
    builder = TreeBuilder()
    root = builder.path(-1, layout.head)[-1]
    nodes = [root, *builder.path(root, sequence)]
    tree = builder.build()
    everything = np.arange(lm.model.get_output_embeddings().weight.shape[0])
    ((_, logits),) = lm.node_logits([tree], [np.asarray(nodes)], everything)
    log_p = torch.log_softmax(logits.double(), dim=-1)[:, torch.from_numpy(moves.column_tokens)]
    legal = moves.masks(sequence)
    mask = torch.from_numpy(legal).to(log_p.device)
    log_mass = torch.logsumexp(log_p.masked_fill(~mask, -torch.inf), dim=-1).cpu().numpy()
    log_mass[~legal.any(axis=1)] = 0.0
    correction = np.zeros(len(sequence) + 1)
    correction[1:] = -np.cumsum(log_mass[:-1])
    if layout.stop_scored:
        correction -= log_mass
    return correction


def layers(reward: Reward) -> Iterator[Reward]:
    """A reward and what it is built on: factors keep what they multiply as ``base``."""
    layer: Reward | None = reward
    while layer is not None:
        yield layer
        layer = getattr(layer, "base", None)


def likelihoods(reward: Reward) -> ProductReward | None:
    """The product of likelihoods in a reward, below the factors that multiply it; None: it has none."""
    return next((layer for layer in layers(reward) if isinstance(layer, ProductReward)), None)


def draw_marks(
    reward: Reward, prompt: Prompt, sequences: Sequence[Sequence[int]]
) -> dict[str, BoolArray]:
    """Which complete Z's a reward treats specially, by name; {} for one that has no ``marks`` method.

    ``clipped``: a likelihood met its floor; ``violating``: an unmasked constraint fails; ``mislabelled``:
    the LM prefers another label. The share of marked draws says how much of q lies there.

    Returns:
        Boolean arrays [number of sequences].
    """
    marks: Callable[..., dict[str, BoolArray]] | None = getattr(reward, "marks", None)
    return marks(prompt, sequences) if marks is not None else {}


def checked_log_reward(
    reward: Reward,
    problem: str,
    prompt: Prompt,
    moves: LegalMoves,
    sequences: Sequence[Sequence[int]],
) -> list[FloatArray]:
    """``reward.log_reward`` with its contract verified.

    Raises:
        RewardError: wrong number or shape of arrays, NaN, +inf, or -inf where ⊤ is legal; names problem,
            prompt and Z.
    """
    found = reward.log_reward(prompt, sequences)
    if len(found) != len(sequences):
        raise RewardError(
            f"The reward of problem {problem!r} returned {len(found)} arrays for {len(sequences)} sequences.",
            "Return one array of length n + 1 for each sequence.",
        )
    for scores, sequence in zip(found, sequences, strict=True):
        legal = moves.stop_legal(sequence)
        where = f"The reward of problem {problem!r}, prompt {prompt.id!r}, Z = {list(map(int, sequence))}"
        if np.shape(scores) != (len(sequence) + 1,):
            raise RewardError(
                f"{where} has shape {np.shape(scores)}, expected ({len(sequence) + 1},).",
                "Return log R at every prefix, the empty one included.",
            )
        bad = np.flatnonzero(legal & ~np.isfinite(scores))
        if len(bad):
            raise RewardError(
                f"{where} is {scores[bad[0]]} at prefix {int(bad[0])}, where stopping is legal.",
                "Return finite log rewards: mask what is impossible by a constraint, or give it a finite floor.",
            )
    return found
