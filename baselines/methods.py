"""Every inference-time baseline by name, under one signature: (problem, prompt, n, seed, …) → Draws.

Those that train an adapter are in ``baselines/trainers.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

from baselines import importance, local, mcmc, prompting, search, smc
from baselines.draws import Draws
from baselines.trainers import TRAINERS
from posteriori.errors import UserError
from posteriori.problems import Problem
from posteriori.seams import Prompt
from posteriori.smc import likelihood_twist

Run = TypeVar("Run", bound=Callable[..., Any])


class Method(Protocol):
    """A baseline that needs no training; further keyword options are its own."""

    def __call__(self, problem: Problem, prompt: Prompt, n: int, seed: int) -> Draws:
        """n samples for one X; a search that finds fewer distinct Z returns fewer."""
        ...


METHODS: Final[Mapping[str, Method]] = {
    "prompting": prompting.sample,
    "masking": local.sample,
    "tempering": partial(local.sample, temperature=0.7),
    "nucleus": partial(local.sample, top_p=0.95),
    "greedy": local.greedy,
    "beam": search.beam,
    "beam-x5": partial(search.beam, times=5),
    "diverse-beam": search.diverse_beam,
    "diverse-beam-x5": partial(search.diverse_beam, times=5),
    "best-of-n": importance.best_of_n,
    "rejection": importance.rejection,
    "snis": importance.snis,
    "sir": importance.sir,
    "mcmc": mcmc.sample,
    "smc": smc.sample,
    "smc-likelihood": partial(smc.sample, twist=likelihood_twist()),
    "smc-lookahead": smc.looking_ahead,
}
"""Local methods with the settings of the paper: nucleus .95, beams ×1 and ×5 (section 4.1)."""


def method(name: str) -> Method:
    """A baseline by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        known = ", ".join((*METHODS, *TRAINERS))
        raise UserError(f"No baseline {name!r}.", f"Choose among {known}.")
    return METHODS[name]


def with_options(run: Run, name: str, options: Mapping[str, float]) -> Run:
    """The method or trainer with numeric options set.

    Raises:
        UserError: it has no such option, or the option is a whole number and the value is not.
    """
    known = {
        parameter.name: str(parameter.annotation).removesuffix(" | None")
        for parameter in inspect.signature(run).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and str(parameter.annotation).removesuffix(" | None") in {"int", "float"}
    }
    given: dict[str, float] = {}
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"Baseline {name!r} has no option {option!r}.",
                f"It has {', '.join(sorted(known)) or 'none'}.",
            )
        whole = known[option] == "int"
        if whole and value != int(value):
            raise UserError(f"Option {option} is {value:g}.", "Give a whole number.")
        given[option] = int(value) if whole else value
    return cast(Run, partial(run, **given))
