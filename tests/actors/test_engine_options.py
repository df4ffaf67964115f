"""What the run file tells a vLLM engine: refused before anything starts, or passed through."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.engines import coarsest_dtype
from posteriori.config import RunConfig, parse
from posteriori.errors import UserError
from posteriori.lookahead import Lookahead
from posteriori.moves import LegalMoves
from posteriori.placement import Room, asked, check_room


def run(**sampling: Any) -> RunConfig:
    problem = {"name": "t", "kind": "tempered", "prompts": [{"x": "hi"}], "max_tokens": 3}
    return parse({"run": "a", "problems": [problem], "sampling": sampling})


@pytest.mark.parametrize(
    "sampling, message",
    [
        ({"vllm": {"dtype": "float8"}}, r"sampling\.vllm\.dtype.*'bfloat16'"),
        ({"vllm": {"quantization": "int3"}}, r"sampling\.vllm\.quantization.*'awq'"),
        ({"vllm": {"quantization": "fp8", "dtype": "float32"}}, "half precision"),
        ({"vllm": {"tensor_paralel": 2}}, r"tensor_paralel.*`tensor_parallel`"),
        ({"vllm": {"max_adapters": 1}}, r"sampling\.vllm\.max_adapters"),
        ({"engine": "transformers", "vllm": {"prefix_caching": False}}, "belongs to engine vllm"),
        ({"vllm": {"tensor_parallel": 4}, "gpus_per_actor": 2}, "as many GPUs as its engine"),
        ({"gpus_per_actor": 2}, "only vllm.tensor_parallel uses more than one"),
        (
            {"gpus_per_actor": 1},
            r"on a GPU take float16 and bfloat16.*sampling\.vllm\.dtype: bfloat16",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_starts(sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**sampling)


def test_an_engine_larger_than_a_node_is_refused() -> None:
    config = run(vllm={"tensor_parallel": 4, "dtype": "bfloat16"}, gpus_per_actor=4)
    nodes = [Room(cpus=16, gpus=2)] * 3
    with pytest.raises(UserError, match=r"No node has room for rollout actor 1 .*4 GPUs"):
        check_room(asked(config, gpus_in_cluster=6), nodes)
    check_room(asked(config, gpus_in_cluster=6), [Room(cpus=16, gpus=4), Room(cpus=16, gpus=2)])


def test_heads_must_split_evenly() -> None:
    from actors.vllm_engine import check_parallel

    check_parallel(SimpleNamespace(num_attention_heads=12), 4, "m")
    with pytest.raises(UserError, match=r"has 12 attention heads.*1, 2, 3, 4, 6, 12"):
        check_parallel(SimpleNamespace(num_attention_heads=12), 5, "m")


def test_the_self_test_allows_what_the_coarser_side_rounds() -> None:
    assert coarsest_dtype(run()) == "float32"
    assert coarsest_dtype(run(vllm={"dtype": "bfloat16"})) == "bfloat16"
    assert coarsest_dtype(run(vllm={"quantization": "fp8"})) == "quantised"


@pytest.mark.parametrize("ahead", [False, True])
def test_moves_left_for_other_processes_are_the_same(tmp_path: Path, ahead: bool) -> None:
    pytest.importorskip("vllm")
    from actors.moves_processor import read_moves, write_moves

    step = np.array([[1, 0, -1], [-1, 1, 0]])
    moves = LegalMoves(np.array([4, 7, 9]), 2, 1, 5, step, np.array([False, True]))
    if ahead:
        table = np.random.default_rng(0).uniform(0.1, 0.9, (4, 3, 4))
        moves = moves.looking_ahead(Lookahead(table))
    write_moves(tmp_path, 3, moves)
    table = read_moves(str(tmp_path), 3)
    path = [4, 7, 7, 9, 4]
    for length, state in enumerate(moves.states(path)):
        row = table.row(length, state)
        found = table.scores(torch.zeros(1, 4), [row])[0].numpy()
        expected = moves.scores(np.zeros((1, 4)), [(length, state)])[0]
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        assert bool((found[np.isfinite(found)] == 0).all()) == (not ahead or length == 5)
    assert (table.moves.stop, table.moves.max_tokens) == (2, 5)
