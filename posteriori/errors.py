"""Errors a user can act on: what is wrong, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a condition the user can mend.

    The command line prints it as one paragraph and exits with status 2; it never shows a traceback.

    Args:
        problem: what is wrong, with the offending value.
        fix: what to do about it, in the imperative.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem} {fix}".strip())
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # Exceptions travel between processes; the default would call __init__ with one argument.
        return (type(self), (self.problem, self.fix))


class RewardError(UserError):
    """A reward returned NaN, +inf or the wrong shape; the message names the trajectory."""


class WaitTimeout(UserError):
    """A wait outlived its deadline; the message names what was waited for and why."""


class StorageFull(UserError):
    """Redis or the disk has no room; nothing was half-written."""


class StorageUnreachable(UserError):
    """Redis does not answer; the message names the address without its password."""


class ProducerQuarantined(UserError):
    """The buffer takes nothing more from this producer; the message says for what."""


class CorruptPayload(UserError):
    """Bytes from the wire or the disk are not what they claim to be; the message names their producer."""
