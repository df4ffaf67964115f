"""The part of Prometheus' configuration and rules that is used, strictly: promtool is no Python package."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _duration(text: str) -> str:
    assert re.fullmatch(r"(\d+(ms|[smhdwy]))+", text), f"{text} is no duration"
    return text


def _expression(text: str) -> str:
    """Balanced, and made of known functions: enough to catch a slip of the pen."""
    bare = re.sub(r'"[^"]*"', '""', text)
    for opening, closing in ("()", "[]", "{}"):
        assert bare.count(opening) == bare.count(closing), text
    called = set(re.findall(r"\b([a-z_]+)\s*\(", bare)) - {"by", "without", "and", "or", "on"}
    assert called <= {"sum", "rate", "increase", "histogram_quantile", "label_values"}, called
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Expression = Annotated[str, AfterValidator(_expression)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Global(Strict):
    scrape_interval: Duration
    scrape_timeout: Duration


class Authorization(Strict):
    type: str = "Bearer"
    credentials_file: str = Field(pattern=r"^/run/secrets/")


class Static(Strict):
    targets: list[Annotated[str, Field(pattern=r"^[\w.-]+:\d+$")]]


class Dns(Strict):
    names: list[str]
    type: str
    port: int


class Job(Strict):
    job_name: str
    metrics_path: str = "/metrics"
    authorization: Authorization | None = None
    static_configs: list[Static] = []
    dns_sd_configs: list[Dns] = []


class Configuration(Strict):
    global_: Global = Field(alias="global")
    rule_files: list[str]
    scrape_configs: list[Job]


class Rule(Strict):
    alert: str = Field(pattern=r"^[A-Z][A-Za-z]+$")
    expr: Expression
    for_: Duration = Field(alias="for")
    labels: dict[str, str]
    annotations: dict[str, str]

    @model_validator(mode="after")
    def _explained(self) -> Rule:
        assert self.annotations.get("summary") and self.labels.get("severity") in ("page", "ticket")
        return self


class RuleGroup(Strict):
    name: str
    rules: list[Rule]


class Rules(Strict):
    groups: list[RuleGroup]
