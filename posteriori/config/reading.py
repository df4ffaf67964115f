"""From YAML to a run and back, with errors that say what to write instead."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from posteriori.config.run import RunConfig
from posteriori.config.section import Section
from posteriori.errors import UserError


def _nearest_key(section: Any, key: str) -> str:
    known = list(section.model_fields) if section is not None else []
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}."


def _section_at(location: tuple[int | str, ...]) -> Any:
    """The Section class that holds the key at a pydantic error location."""
    current: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, int) or part in {"tuple[RewardTerm, ...]", "ConstraintConfig"}:
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return None
        current = _inner_section(field.annotation)
    return current


def _inner_section(annotation: Any) -> Any:
    """The Section class inside an annotation such as ``tuple[ProblemConfig, ...]`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _inner_section(argument)
        if inner is not None:
            return inner
    return None


def parse(data: Any, source: str = "run file") -> RunConfig:
    """Validate parsed YAML.

    Raises:
        UserError: names the first wrong key or value, and what to write instead.
    """
    if not isinstance(data, dict):
        raise UserError(f"{source} is not a mapping of keys.", "Start it with `run: NAME`.")
    try:
        return RunConfig.model_validate(data)
    except ValidationError as cause:
        # A misspelt key also makes the right key missing: name the misspelling.
        error = min(cause.errors(), key=lambda e: e["type"] != "extra_forbidden")
        location = error["loc"]
        where = ".".join(str(part) for part in location)
        if error["type"] == "extra_forbidden":
            fix = _nearest_key(_section_at(location), str(location[-1]))
            raise UserError(f"Unknown key `{where}` in {source}.", fix) from None
        message = error["msg"].removeprefix("Value error, ")
        prefix = f"`{where}`: " if where else ""
        raise UserError(f"{source}: {prefix}{message}.", "Correct it and submit again.") from None


def load(path: Path) -> RunConfig:
    """Read and validate a run file; relative paths in it are relative to the current directory.

    Raises:
        UserError: the file is missing, is not YAML or does not validate.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise UserError(
            f"Cannot read run file {path}: {cause.strerror}.", "Check the path."
        ) from cause
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise UserError(f"{path} is not valid YAML: {cause}", "Mend the line it names.") from cause
    return parse(data, str(path))


def dump(config: RunConfig) -> str:
    """The resolved run file as YAML, defaults included; ``parse(yaml.safe_load(dump(c))) == c``."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
