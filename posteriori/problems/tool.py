"""The tool that a problem's policy may call inside Z."""

from __future__ import annotations

from posteriori.config import ToolConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems.imports import imported
from posteriori.tools import BoundTool, Calculator, Tool


def bound_tool(config: ToolConfig, lm: LanguageModel, where: str) -> BoundTool:
    """The tool of a run file in terms of the policy's tokens.

    Raises:
        UserError: the import path leads to no tool, or the tokenizer cannot call it.
    """
    if config.use == "calculator":
        # Bounded by construction: it needs no thread of its own to be timed.
        return BoundTool(
            Calculator(config.max_operands),
            lm,
            max_output_tokens=config.max_output_tokens,
            failure=config.failure,
        )
    tool = imported(config.use, "tool", where)()
    if not isinstance(tool, Tool) or isinstance(tool.triggers, str) or not callable(tool.run):
        raise UserError(
            f"{where}: {config.use}() is not a tool, it is a {type(tool).__name__}.",
            "Give it `triggers`, a list of texts, and a method `run(text)` that returns a text or None.",
        )
    return BoundTool(
        tool,
        lm,
        max_output_tokens=config.max_output_tokens,
        timeout_seconds=config.timeout_seconds,
        failure=config.failure,
    )
