"""Where a tool spoke in the text of a sample."""

from __future__ import annotations

import numpy as np

from api import sampling
from api.catalogue import Resolved
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.strings import StringTree
from posteriori.seams import Sample
from tests.api.conftest import PROBLEM
from tests.tools.problem import parrot_problem


def test_a_span_s_characters_are_what_the_tool_wrote(tiny_lm: LanguageModel) -> None:
    problem = parrot_problem(tiny_lm, 1, 3)
    resolved = Resolved(
        run=None,
        config=ProblemConfig(**PROBLEM),
        problem=problem,
        prompt=problem.prompts[0],
        version=0,
        adapter=None,
        reward_known=False,
        log_z_learned=None,
    )
    moves = problem.moves(problem.prompts[0])
    tree = StringTree.of(moves, 1000)
    written = set()
    for index in range(tree.count):
        tokens = list(tree.tokens(index))
        log_q, log_q_stop = np.zeros(len(tokens), np.float32), np.zeros(len(tokens) + 1, np.float32)
        drawn = sampling.Drawn({0: Sample(tokens, log_q, log_q_stop, moves.spans(tokens))})
        row = sampling.row(resolved, drawn, 0, None)
        assert row.text == problem.text(tokens)
        for span in row.spans:
            said = row.text[span.text_start : span.text_stop]
            assert said == problem.text(tokens[span.start : span.stop])
            written.add((said, span.failed))
    assert written == {(" cat cat", False), (" dog dog", False), (" sad", True)}
