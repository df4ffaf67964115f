"""Templates over {x}, {y}, {z} and {stop}: splitting, filling and checking."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from posteriori.errors import UserError

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Filled:
    """A template with the prompt's fields filled in, cut at Z.

    Attributes:
        before: text before {z}, or all of it where there is no {z}.
        has_z: does {z} occur?
        after: text after {z}.
        stop: does {stop} follow {z} (and its preceding text) directly?
    """

    before: str
    has_z: bool
    after: str
    stop: bool


def fields(template: str) -> set[str]:
    """Names in braces."""
    return set(_FIELD.findall(template))


def check(template: str, known: Iterable[str], where: str) -> None:
    """Refuse unknown fields, {z} twice, and {stop} anywhere but at the end.

    Raises:
        UserError: names the template and the field.
    """
    known = set(known) | {"z", "stop"}
    for name in fields(template) - known:
        raise UserError(
            f"{where}: template {template!r} uses {{{name}}}, which the prompts do not have.",
            f"Known fields: {', '.join(sorted(known))}.",
        )
    if template.count("{z}") > 1:
        raise UserError(
            f"{where}: template {template!r} holds {{z}} twice.", "Use {z} once in a term."
        )
    if "{stop}" in template and not template.endswith("{z}{stop}"):
        raise UserError(
            f"{where}: in template {template!r} {{stop}} does not end `{{z}}{{stop}}`.",
            "The terminator is scored right behind Z, at the end of a target.",
        )


def fill(template: str, values: Mapping[str, str]) -> Filled:
    """Fill a checked template."""
    stop = template.endswith("{stop}")
    body = template.removesuffix("{stop}")
    before, separator, after = body.partition("{z}")

    def filled(text: str) -> str:
        return _FIELD.sub(lambda match: values[match.group(1)], text)

    return Filled(filled(before), bool(separator), filled(after), stop)
