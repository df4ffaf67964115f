"""What every engine must do, whatever runs beneath it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from actors.self_test import random_adapter
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.lookahead import Lookahead
from posteriori.moves import DEAD, LegalMoves
from posteriori.oracle.enumeration import exact_log_q
from posteriori.oracle.strings import StringTree
from posteriori.seams import Behaviour, Engine, Sample, SampleRequest
from tests.actors.conftest import MAX_ADAPTERS, draw, naive_log_q, run
from tests.tools.parrot import parrot_moves

TOLERANCE_NATS = 1e-3

PROMPT = [0, 4, 5, 9]
LETTERS = [25, 26, 27, 28]
STOP = 1

BEHAVIOURS = {
    "policy": Behaviour(),
    "cool": Behaviour("tempered", temperature=0.5),
    "hot": Behaviour("tempered", temperature=3.0),
    "uniform": Behaviour("uniform", epsilon=0.3),
    "all-uniform": Behaviour("uniform", epsilon=1.0),
}

Adapters = dict[str, tuple[Path, torch.nn.Module]]


def free(min_tokens: int, max_tokens: int) -> LegalMoves:
    return LegalMoves.free(LETTERS, STOP, min_tokens, max_tokens)


def alternating(max_tokens: int) -> LegalMoves:
    """(ab)+ over four letters, of which c and d never fit."""
    return LegalMoves(
        alphabet=np.array(LETTERS),
        stop=STOP,
        min_tokens=0,
        max_tokens=max_tokens,
        next_state=np.array([[1, DEAD, DEAD, DEAD], [DEAD, 2, DEAD, DEAD], [1, DEAD, DEAD, DEAD]]),
        accepting=np.array([False, False, True]),
    )


def assert_log_q(
    sample: Sample,
    model: torch.nn.Module,
    moves: LegalMoves,
    behaviour: Behaviour | None = None,
    prompt: list[int] = PROMPT,
) -> None:
    log_q, log_q_stop = naive_log_q(model, prompt, sample.tokens, moves, behaviour)
    np.testing.assert_allclose(sample.log_q, log_q, rtol=0, atol=TOLERANCE_NATS)
    np.testing.assert_allclose(sample.log_q_stop, log_q_stop, rtol=0, atol=TOLERANCE_NATS)
    assert sample.log_q.dtype == sample.log_q_stop.dtype == np.float32


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_samples_follow_exact_q(engine: Engine, tiny_lm: LanguageModel, name: str) -> None:
    moves, behaviour = free(1, 3), BEHAVIOURS[name]
    samples = draw(engine, PROMPT, moves, 3000, behaviour=behaviour, seed=11)
    strings = [list(z) for n in range(1, 4) for z in itertools.product(LETTERS, repeat=n)]
    exact = {}
    for z in strings:
        log_q, log_q_stop = naive_log_q(tiny_lm.model, PROMPT, z, moves, behaviour)
        exact[tuple(z)] = np.exp(sum(log_q) + log_q_stop[-1])
    assert sum(exact.values()) == pytest.approx(1.0)
    counts = Counter(tuple(sample.tokens) for sample in samples)
    assert counts.keys() <= exact.keys()
    # Cells with few expected counts are pooled, as Pearson's approximation needs.
    large = [z for z, q in exact.items() if q * len(samples) >= 8]
    observed = [counts[z] for z in large]
    expected = [exact[z] * len(samples) for z in large]
    if len(large) < len(exact):
        observed.append(len(samples) - sum(observed))
        expected.append(len(samples) - sum(expected))
    assert len(large) >= 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_log_q_is_what_transformers_computes(
    engine: Engine, tiny_lm: LanguageModel, name: str
) -> None:
    moves, behaviour = free(2, 6), BEHAVIOURS[name]
    for sample in draw(engine, PROMPT, moves, 12, behaviour=behaviour):
        assert_log_q(sample, tiny_lm.model, moves, behaviour)


def test_log_q_under_an_adapter(
    engine: Engine,
    tiny_lm: LanguageModel,
    adapted_models: Adapters,
    fresh_version: Callable[[], int],
) -> None:
    directory, model = adapted_models["first"]
    version, moves = fresh_version(), free(0, 8)
    engine.add_adapter(version, directory)
    samples = draw(engine, PROMPT, moves, 16, version=version)
    for sample in samples:
        assert_log_q(sample, model, moves)
    base = [naive_log_q(tiny_lm.model, PROMPT, s.tokens, moves)[1][0] for s in samples]
    assert abs(samples[0].log_q_stop[0] - base[0]) > 50 * TOLERANCE_NATS


def test_the_whole_vocabulary_as_alphabet(engine: Engine, tiny_lm: LanguageModel) -> None:
    alphabet = [token for token in range(tiny_lm.vocabulary_size) if token != STOP]
    moves = LegalMoves.free(alphabet, STOP, 1, 5)
    for sample in draw(engine, PROMPT, moves, 8):
        assert_log_q(sample, tiny_lm.model, moves)


@pytest.mark.parametrize(("min_tokens", "max_tokens"), [(0, 4), (2, 4), (3, 3), (1, 1), (0, 0)])
def test_samples_obey_the_lengths(engine: Engine, min_tokens: int, max_tokens: int) -> None:
    moves = free(min_tokens, max_tokens)
    for sample in draw(engine, PROMPT, moves, 64, behaviour=Behaviour("uniform", epsilon=1.0)):
        n = len(sample.tokens)
        assert min_tokens <= n <= max_tokens
        assert set(sample.tokens) <= set(LETTERS)
        assert sample.log_q.shape == (n,)
        assert sample.log_q_stop.shape == (n + 1,)
        assert np.isneginf(sample.log_q_stop[:min_tokens][:n]).all()
        assert np.isfinite(sample.log_q_stop[min_tokens:]).all()
        if n == max_tokens:
            assert sample.log_q_stop[-1] == 0.0


def test_every_legal_length_occurs(engine: Engine) -> None:
    samples = draw(engine, PROMPT, free(0, 3), 200, behaviour=Behaviour("uniform", epsilon=1.0))
    assert {len(sample.tokens) for sample in samples} == {0, 1, 2, 3}


def test_samples_obey_an_automaton(engine: Engine, tiny_lm: LanguageModel) -> None:
    # Length 7 cannot be completed, so ⊤ is the one legal move at length 6, below the cap.
    moves = alternating(max_tokens=7)
    samples = draw(engine, PROMPT, moves, 32, behaviour=Behaviour("uniform", epsilon=0.5))
    a, b, *_ = LETTERS
    assert {tuple(s.tokens) for s in samples} == {(a, b), (a, b) * 2, (a, b) * 3}
    for sample in samples:
        assert_log_q(sample, tiny_lm.model, moves, Behaviour("uniform", epsilon=0.5))
        assert sample.log_q_stop[0] == -np.inf
        if len(sample.tokens) == 6:
            assert sample.log_q_stop[-1] == 0.0


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_lookahead_is_part_of_every_behaviour(
    engine: Engine, tiny_lm: LanguageModel, name: str
) -> None:
    """Z must hold a b; a trigram model says that b follows c alone, so that c is worth its while."""
    table = np.full((5, 4, 5), 0.05)
    table[:, 2, 1] = 0.9
    moves = LegalMoves(
        alphabet=np.array(LETTERS),
        stop=STOP,
        min_tokens=1,
        max_tokens=4,
        next_state=np.array([[0, 1, 0, 0], [1, 1, 1, 1]]),
        accepting=np.array([False, True]),
    ).looking_ahead(Lookahead(table))
    assert moves.promises(0, 0)[2] > moves.promises(0, 0)[0] + 1
    for sample in draw(engine, PROMPT, moves, 12, behaviour=BEHAVIOURS[name]):
        assert LETTERS[1] in sample.tokens
        assert_log_q(sample, tiny_lm.model, moves, BEHAVIOURS[name])


def test_requests_of_all_kinds_share_the_batch(
    engine: Engine,
    tiny_lm: LanguageModel,
    adapted_models: Adapters,
    fresh_version: Callable[[], int],
) -> None:
    directory, adapted = adapted_models["first"]
    version = fresh_version()
    engine.add_adapter(version, directory)
    requests = [
        SampleRequest("free", PROMPT, free(1, 9), 5, Behaviour(), 0, 1),
        SampleRequest("regex", [0, 7], alternating(10), 4, BEHAVIOURS["hot"], version, 2),
        SampleRequest("short", [0, 8, 9, 10, 11, 12], free(0, 2), 3, BEHAVIOURS["uniform"], 0, 3),
        SampleRequest("late", [0, 6, 6], free(2, 5), 6, Behaviour(), version, 4),
    ]
    finished = {}
    for request in requests:
        engine.submit(request)
        finished |= {group.request.id: group for group in engine.step()}
    finished |= run(engine)
    assert finished.keys() == {"free", "regex", "short", "late"}
    for request in requests:
        group = finished[request.id]
        assert group.request is request
        assert len(group.samples) == request.n
        model = adapted if request.adapter_version else tiny_lm.model
        for sample in group.samples:
            assert_log_q(sample, model, request.moves, request.behaviour, list(request.prompt_ids))


def test_requests_in_flight_keep_their_adapter(
    engine: Engine, adapted_models: Adapters, fresh_version: Callable[[], int]
) -> None:
    (first_directory, first), (second_directory, second) = adapted_models.values()
    old, new, moves = fresh_version(), fresh_version(), free(6, 12)
    engine.add_adapter(old, first_directory)
    engine.submit(SampleRequest("old", PROMPT, moves, 8, adapter_version=old, seed=5))
    engine.step()
    engine.step()
    engine.add_adapter(new, second_directory)
    assert engine.adapter_versions == (old, new)
    engine.submit(SampleRequest("new", PROMPT, moves, 8, adapter_version=new, seed=6))
    with pytest.raises(ValueError, match="in flight"):
        engine.remove_adapter(old)
    finished = run(engine)
    for name, model in (("old", first), ("new", second)):
        for sample in finished[name].samples:
            assert_log_q(sample, model, moves)
    engine.remove_adapter(old)
    assert engine.adapter_versions == (new,)


def test_many_versions_in_turn(
    engine: Engine, adapted_models: Adapters, fresh_version: Callable[[], int]
) -> None:
    moves = free(1, 3)
    for turn in range(2 * MAX_ADAPTERS):
        directory, model = list(adapted_models.values())[turn % 2]
        version = fresh_version()
        engine.add_adapter(version, directory)
        for sample in draw(engine, PROMPT, moves, 2, version=version, seed=turn):
            assert_log_q(sample, model, moves)
        engine.remove_adapter(version)


def test_versions_of_several_ranks_in_turn(
    engine: Engine,
    adapted_models: Adapters,
    tiny_lm_path: Path,
    tmp_path: Path,
    fresh_version: Callable[[], int],
) -> None:
    """An adapter may get the place of a removed one of its rank, or must make that of another free."""
    made = list(adapted_models.values())
    for rank in (2, 4, 5):
        lm = LanguageModel.load(str(tiny_lm_path))
        directory = tmp_path / f"rank-{rank}"
        made.append(
            (directory, random_adapter(lm.model, directory, rank=rank, scale=0.3, seed=rank))
        )
    moves = free(1, 3)
    loaded: list[tuple[int, torch.nn.Module]] = []
    for turn in range(12):
        directory, model = made[turn % len(made)]
        if len(loaded) == MAX_ADAPTERS:
            engine.remove_adapter(loaded.pop(turn % 2)[0])
        loaded.append((fresh_version(), model))
        engine.add_adapter(loaded[-1][0], directory)
        for version, model in loaded:
            for sample in draw(engine, PROMPT, moves, 2, version=version, seed=turn):
                assert_log_q(sample, model, moves)


def test_versions_that_are_also_layer_indices(
    transformers_engine: Engine, adapted_models: Adapters
) -> None:
    """PEFT once took adapter "1" of two for the keys of layer 1."""
    (first, _), (second, model) = adapted_models.values()
    transformers_engine.add_adapter(9001, first)
    transformers_engine.add_adapter(1, second)
    moves = free(1, 3)
    for sample in draw(transformers_engine, PROMPT, moves, 2, version=1):
        assert_log_q(sample, model, moves)
    for version in (1, 9001):
        transformers_engine.remove_adapter(version)


def test_seeds_reproduce_samples(engine: Engine) -> None:
    moves = free(3, 8)

    def tokens(seed: int | None) -> list[list[int]]:
        return [sample.tokens for sample in draw(engine, PROMPT, moves, 8, seed=seed)]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)
    assert tokens(None) != tokens(None)
    # Neighbouring seeds share nothing: sample i + 1 of one is not sample i of the next.
    assert tokens(3)[1:] != tokens(4)[:-1]
    assert len({tuple(z) for z in tokens(3)}) > 1


def test_cancel(engine: Engine, tiny_lm: LanguageModel) -> None:
    moves = free(5, 9)
    engine.submit(SampleRequest("kept", PROMPT, moves, 4, seed=0))
    engine.submit(SampleRequest("dropped", PROMPT, moves, 4, seed=1))
    engine.step()
    engine.submit(SampleRequest("never begun", PROMPT, moves, 4, seed=2))
    engine.cancel("never begun")
    engine.cancel("dropped")
    engine.cancel("unknown")
    assert engine.unfinished == 1
    finished = run(engine)
    assert finished.keys() == {"kept"}
    for sample in finished["kept"].samples:
        assert_log_q(sample, tiny_lm.model, moves)
    # The id may be used again.
    engine.submit(SampleRequest("dropped", PROMPT, moves, 2, seed=1))
    assert run(engine).keys() == {"dropped"}


def test_more_prompt_tokens_than_one_step_reads(engine: Engine, tiny_lm: LanguageModel) -> None:
    # 128 × 17 tokens behind a shared block: the last prompt of a step does not fit in whole.
    moves, prompt = free(1, 2), [0] + [4 + i % 20 for i in range(48)]
    samples = draw(engine, prompt, moves, 128)
    assert len(samples) == 128
    assert_log_q(samples[-1], tiny_lm.model, moves, prompt=prompt)


def test_an_idle_step_returns_nothing(engine: Engine) -> None:
    assert engine.step() == []


def test_an_id_in_flight_is_refused(engine: Engine) -> None:
    engine.submit(SampleRequest("twice", PROMPT, free(1, 2), 1, seed=0))
    with pytest.raises(ValueError, match="twice"):
        engine.submit(SampleRequest("twice", PROMPT, free(1, 2), 1, seed=0))
    run(engine)


@pytest.mark.parametrize("prompt", [[], [0] * 60])
def test_prompts_that_do_not_fit_are_refused(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(UserError, match=f"prompt has {len(prompt)} tokens"):
        engine.submit(SampleRequest("long", prompt, free(1, 8), 1))
    assert engine.unfinished == 0


def test_unknown_adapter_version_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="999"):
        engine.submit(SampleRequest("unknown", PROMPT, free(1, 2), 1, adapter_version=999))
    assert engine.unfinished == 0


@pytest.fixture
def broken(adapted_models: Adapters, tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoilt."""
    return Path(shutil.copytree(adapted_models["first"][0], tmp_path / "broken"))


def test_slots_versions_and_missing_files_are_refused(
    engine: Engine, adapted_models: Adapters, fresh_version: Callable[[], int], tmp_path: Path
) -> None:
    directory = adapted_models["first"][0]
    for _ in range(MAX_ADAPTERS):
        version = fresh_version()
        engine.add_adapter(version, directory)
    with pytest.raises(UserError, match="slots"):
        engine.add_adapter(fresh_version(), directory)
    engine.remove_adapter(version)
    with pytest.raises(UserError, match="version 0"):
        engine.add_adapter(0, directory)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        engine.add_adapter(version, tmp_path / "nowhere")


def test_an_adapter_of_too_high_rank_is_refused(
    engine: Engine, broken: Path, fresh_version: Callable[[], int]
) -> None:
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
    with pytest.raises(UserError, match="rank 64"):
        engine.add_adapter(fresh_version(), broken)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("modules_to_save", ["lm_head"]), ("target_modules", ["lm_head"])],
)
def test_adapters_beyond_plain_lora_are_refused(
    engine: Engine, broken: Path, fresh_version: Callable[[], int], key: str, value: object
) -> None:
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match="cannot be served"):
        engine.add_adapter(fresh_version(), broken)


def test_truncated_weights_are_refused_and_leave_the_slot_free(
    engine: Engine, broken: Path, adapted_models: Adapters, fresh_version: Callable[[], int]
) -> None:
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for _ in range(MAX_ADAPTERS + 1):
        with pytest.raises(UserError, match="adapter"):
            engine.add_adapter(fresh_version(), broken)
    assert engine.adapter_versions == ()
    version, moves = fresh_version(), free(1, 3)
    directory, model = adapted_models["first"]
    engine.add_adapter(version, directory)
    for sample in draw(engine, PROMPT, moves, 4, version=version):
        assert_log_q(sample, model, moves)


def test_an_adapter_of_another_model_is_refused(
    engine: Engine, broken: Path, fresh_version: Callable[[], int]
) -> None:
    from safetensors.torch import load_file, save_file

    weights = broken / "adapter_model.safetensors"
    wider = {
        name: torch.cat([w, w], dim=-1) if "lora_A" in name else w
        for name, w in load_file(weights).items()
    }
    save_file(wider, weights)
    with pytest.raises(UserError, match="adapter"):
        engine.add_adapter(fresh_version(), broken)
    assert engine.adapter_versions == ()


def test_an_adapter_without_some_weights_does_not_keep_those_before(
    transformers_engine: Engine,
    broken: Path,
    adapted_models: Adapters,
    fresh_version: Callable[[], int],
) -> None:
    from safetensors.torch import load_file, save_file

    (first, _), (_, model) = adapted_models.values()
    transformers_engine.add_adapter(version := fresh_version(), first)
    transformers_engine.remove_adapter(version)
    weights = broken / "adapter_model.safetensors"
    save_file({k: w for k, w in load_file(weights).items() if "layers.0" not in k}, weights)
    with pytest.raises(UserError, match=r"layers\.0"):
        transformers_engine.add_adapter(fresh_version(), broken)
    assert transformers_engine.adapter_versions == ()
    transformers_engine.add_adapter(version := fresh_version(), adapted_models["second"][0])
    moves = free(1, 3)
    for sample in draw(transformers_engine, PROMPT, moves, 2, version=version):
        assert_log_q(sample, model, moves)
    transformers_engine.remove_adapter(version)


# ------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_tool_outputs_stand_behind_triggers_and_cost_nothing(
    engine: Engine, tiny_lm: LanguageModel, name: str
) -> None:
    moves, behaviour = parrot_moves(tiny_lm, 2, 5), BEHAVIOURS[name]
    samples = draw(engine, PROMPT, moves, 24, behaviour=behaviour, seed=5)
    assert any(sample.spans for sample in samples)
    for sample in samples:
        assert_log_q(sample, tiny_lm.model, moves, behaviour)
        assert sample.spans == moves.spans(sample.tokens)
        assert 2 <= sample.action.sum() <= 5
        assert (sample.log_q[~sample.action] == 0.0).all()
        assert np.isneginf(sample.log_q_stop[:-1][~sample.action]).all()


def test_samples_with_a_tool_follow_exact_q(engine: Engine, tiny_lm: LanguageModel) -> None:
    moves = parrot_moves(tiny_lm, 1, 2)
    tree = StringTree.of(moves, 100)
    q = np.exp(exact_log_q(tree, tiny_lm, PROMPT))
    samples = draw(engine, PROMPT, moves, 1500, seed=13)
    counts = np.bincount([tree.index(s.tokens) for s in samples], minlength=tree.count)
    large = q * len(samples) >= 8
    observed = [*counts[large], counts[~large].sum()]
    expected = np.append(q[large], q[~large].sum()) * len(samples)
    assert large.sum() >= 5
    assert stats.chisquare(observed, expected * sum(observed) / expected.sum()).pvalue > 1e-3


def test_tools_and_plain_requests_share_the_batch_under_their_own_adapters(
    engine: Engine,
    tiny_lm: LanguageModel,
    adapted_models: Adapters,
    fresh_version: Callable[[], int],
) -> None:
    directory, adapted = adapted_models["first"]
    version = fresh_version()
    engine.add_adapter(version, directory)
    tooled = parrot_moves(tiny_lm, 1, 6)
    requests = [
        SampleRequest("plain", PROMPT, free(1, 9), 5, Behaviour(), 0, 1),
        SampleRequest("tool", PROMPT, tooled, 8, BEHAVIOURS["uniform"], version, 2),
        SampleRequest("dropped", [0, 7], tooled, 3, Behaviour(), version, 3),
        SampleRequest("again", [0, 7, 8], tooled, 6, Behaviour(), 0, 4),
    ]
    finished = {}
    for request in requests:
        engine.submit(request)
        finished |= {group.request.id: group for group in engine.step()}
    engine.cancel("dropped")
    finished |= run(engine)
    assert finished.keys() == {"plain", "tool", "again"}
    for group in finished.values():
        request = group.request
        assert len(group.samples) == request.n
        model = adapted if request.adapter_version else tiny_lm.model
        for sample in group.samples:
            assert_log_q(sample, model, request.moves, request.behaviour, list(request.prompt_ids))
    assert any(sample.spans for sample in finished["tool"].samples)


def test_seeded_samples_with_a_tool_repeat(engine: Engine, tiny_lm: LanguageModel) -> None:
    moves = parrot_moves(tiny_lm, 1, 5)
    first, again, other = (
        [tuple(s.tokens) for s in draw(engine, PROMPT, moves, 12, seed=seed)] for seed in (7, 7, 8)
    )
    assert first == again != other
    assert len(set(first)) > 4


def test_the_base_lm_stays_the_base_lm_beside_a_full_set_of_adapters(
    engine: Engine,
    tiny_lm: LanguageModel,
    adapted_models: Adapters,
    fresh_version: Callable[[], int],
) -> None:
    directory, adapted = adapted_models["first"]
    versions = [fresh_version() for _ in range(MAX_ADAPTERS)]
    for version in versions:
        engine.add_adapter(version, directory)
    moves = free(3, 6)
    for version in (0, *versions):
        engine.submit(SampleRequest(f"under-{version}", PROMPT, moves, 3, adapter_version=version))
    for group in run(engine).values():
        model = adapted if group.request.adapter_version else tiny_lm.model
        for sample in group.samples:
            assert_log_q(sample, model, moves)


def test_the_longest_z_with_a_tool_must_fit(engine: Engine, tiny_lm: LanguageModel) -> None:
    moves = parrot_moves(tiny_lm, 1, 20)  # up to 60 tokens, of 64
    with pytest.raises(UserError, match="Z up to 60"):
        engine.submit(SampleRequest("long", [0] * 5, moves, 1))
    assert engine.unfinished == 0
