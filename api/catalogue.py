"""What can be asked for: runs, their problems, their X's, and posteriors declared in the request itself."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from api.adapters import Adapters
from api.draws import Adapter
from api.errors import ApiError, as_api_error, unknown, wrong
from api.learned import learned_log_z
from api.settings import ServeSettings
from api.trust import checked_problem
from posteriori.commands.adapters import use_exported_reward
from posteriori.commands.run_control import LAUNCHED_NAME, RunControl
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import ProblemConfig, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.messages import Target
from posteriori.problems import Problem, RewardModels, build_problem, build_problems, needed_fields
from posteriori.rewards import likelihoods
from posteriori.seams import Prompt

DECLARED_KEPT = 32
NEW_PROMPT = "new"
"""Id of an X that came with the request."""


@dataclass(frozen=True, eq=False)
class ServedRun:
    """A run whose problems are built on the base LM served here."""

    control: RunControl
    config: RunConfig
    problems: dict[str, Problem]


@dataclass(frozen=True, eq=False)
class Resolved:
    """One posterior to sample: problem, X and adapter.

    ``reward_known`` is false where log R needs a field that was not given, such as a Y to be predicted.
    """

    run: str | None
    config: ProblemConfig
    problem: Problem
    prompt: Prompt
    version: int
    adapter: Adapter | None
    reward_known: bool
    log_z_learned: float | None


class Catalogue:
    """Runs of one folder on one base LM.

    Args:
        settings: names the folder.
        base: the base LM, for problems and rewards.
        adapters: of all runs.
    """

    def __init__(self, settings: ServeSettings, base: LanguageModel, adapters: Adapters) -> None:
        self.settings = settings
        self.base = base
        self.adapters = adapters
        self._served: dict[str, tuple[int, ServedRun]] = {}
        self._reward_models = RewardModels(base)
        self._declared: OrderedDict[str, Problem] = OrderedDict()

    def names(self) -> list[str]:
        """Runs in the folder."""
        folder = self.settings.runs_directory
        return sorted(
            {
                f.parent.name
                for name in ("run.yaml", LAUNCHED_NAME)
                for f in folder.glob(f"*/{name}")
            }
        )

    def control(self, name: str) -> RunControl:
        """A run by name.

        Raises:
            ApiError: there is none.
        """
        known = self.names()
        if name not in known:
            raise unknown("run", name, known, "run")
        return RunControl(RunDirectory(self.settings.runs_directory / name))

    def served(self, name: str) -> ServedRun:
        """A run with its problems.

        Raises:
            ApiError: there is none, or it was trained on another base LM than is served here.
        """
        control = self.control(name)
        if not control.directory.config_file.exists():
            fix = "Wait until it runs; GET /v1/runs says how it does."
            raise ApiError(409, "not_started", f"Run {name!r} has not started.", fix, "run")
        changed = control.directory.config_file.stat().st_mtime_ns
        known = self._served.get(name)
        if known is not None and known[0] == changed:
            return known[1]
        config = control.directory.load()
        try:
            control.directory.check_base(self.base)
        except UserError as cause:
            raise ApiError(
                409,
                "other_base_model",
                f"Run {name!r} was trained on {config.model}; {self.base.name} is served here, or the "
                "weights have changed.",
                f"Start a server with --model {config.model}.",
                "run",
            ) from cause
        problems = build_problems(config, self.base)
        use_exported_reward(control.directory, config, problems)
        run = ServedRun(control, config, {problem.name: problem for problem in problems})
        self._served[name] = (changed, run)
        return run

    def resolve(self, target: Target) -> Resolved:
        """What a request asks for.

        Raises:
            ApiError: unknown run, problem, prompt or version; missing or unknown fields; X too long; a
                declared problem that cannot be built.
        """
        run = self.served(target.run) if target.run is not None else None
        if isinstance(target.problem, ProblemConfig):
            config = checked_problem(target.problem, self.settings)
            problem = self._declaration(config)
        elif run is None:
            known = ", ".join(self.names()) or "none yet"
            fix = f"Name a run ({known}), or declare a whole problem."
            raise wrong("missing_run", "The request names neither run nor problem.", fix, "run")
        else:
            name = target.problem or next(iter(run.problems))
            if name not in run.problems:
                raise unknown("problem", name, list(run.problems), "problem")
            problem = run.problems[name]
            config = next(c for c in run.config.problems if c.name == name)
        version, adapter = self._adapter(run, target)
        prompt, known_reward = _prompt(problem, config, target)
        if prompt.id == NEW_PROMPT:
            problem = replace(problem, prompts=[prompt], test_prompts=(), gold={})
        self._check_length(problem, prompt, known_reward)
        learned = learned_log_z(run.control, config.name, prompt.id) if run else None
        return Resolved(
            run=target.run,
            config=config,
            problem=problem,
            prompt=prompt,
            version=version,
            adapter=adapter,
            reward_known=known_reward,
            log_z_learned=learned,
        )

    def _adapter(self, run: ServedRun | None, target: Target) -> tuple[int, Adapter | None]:
        if target.version == 0 or (run is None and target.version == "latest"):
            return 0, None
        if run is None:
            fix = "Name its run, or leave the version out for the base LM."
            raise wrong("missing_run", f"Version {target.version} of no run.", fix, "run")
        version = None if target.version == "latest" else int(target.version)
        return self.adapters.fetch(run.control, run.config, version)

    def _declaration(self, config: ProblemConfig) -> Problem:
        key = config.model_dump_json()
        if key not in self._declared:
            try:
                self._declared[key] = build_problem(config, self.base, self._reward_models)
            except UserError as cause:
                raise as_api_error(cause, "problem") from cause
            if len(self._declared) > DECLARED_KEPT:
                self._declared.popitem(last=False)
        self._declared.move_to_end(key)
        return self._declared[key]

    def _check_length(self, problem: Problem, prompt: Prompt, known_reward: bool) -> None:
        size = len(problem.policy_ids(prompt)) + max(problem.moves(prompt).longest, 1)
        product = likelihoods(problem.reward)
        if known_reward and product is not None:
            size = max(size, product.longest(prompt))
        if size > self.base.context_tokens:
            raise wrong(
                "too_long",
                f"X and Z take up to {size} tokens; {self.base.name} reads {self.base.context_tokens}.",
                "Shorten X, or lower max_tokens.",
                "fields",
            )


def _prompt(problem: Problem, config: ProblemConfig, target: Target) -> tuple[Prompt, bool]:
    """X, and whether log R can be read of it."""
    given = target.given_fields
    seen, read = needed_fields(config, problem.prompts[0].fields)
    if not given:
        known = {prompt.id: prompt for prompt in (*problem.prompts, *problem.test_prompts)}
        name = target.prompt if target.prompt is not None else problem.prompts[0].id
        if name not in known:
            raise unknown("prompt", name, list(known), "prompt")
        return known[name], read <= set(known[name].fields)
    if target.prompt is not None:
        fix = "Give one of the two."
        raise wrong("two_prompts", "Both a prompt's id and fields of a new X.", fix, "prompt")
    for name in sorted(seen - set(given)):
        fix = f"Add it; the policy sees {_names(seen)}."
        raise wrong("missing_field", f"X has no field {name!r}.", fix, f"fields.{name}")
    for name in sorted(set(given) - seen - read):
        fix = f"Leave it out; this problem reads {_names(seen | read)}."
        raise wrong("unknown_field", f"Nothing reads the field {name!r}.", fix, f"fields.{name}")
    if config.labels and "y" in given and given["y"] not in config.labels:
        fix = f"Choose among {', '.join(map(repr, config.labels))}, or leave y out."
        raise wrong("unknown_label", f"y is {given['y']!r}, which is no label.", fix, "fields.y")
    return Prompt(NEW_PROMPT, given), read <= set(given)


def _names(fields: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(fields)) or "none"
