"""How the service is run: what it serves, where it listens, and how much it takes on."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from posteriori.config import Section
from posteriori.errors import UserError


class ServeSettings(Section):
    """Everything an operator decides.

    ``runs_directory`` holds the runs that are served and those that are launched. ``files_folder`` is the
    only folder that run files from HTTP may read prompts from; None: none. ``allow_imports`` lets them
    name functions, URLs, other models and other Redis servers, which is as much as running any program here.
    With ``ray`` the engine is a Ray Serve deployment of ``replicas``, each with ``replica_gpus``, that grows
    to ``max_replicas`` under load.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    runs_directory: Path = Path("runs")
    model: str = "pocket"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    engine: Literal["vllm", "transformers"] = "vllm"
    lora_rank: int = Field(default=16, ge=1)
    adapter_slots: int = Field(default=4, ge=2)
    max_sequences: int = Field(default=256, ge=1)
    threads: int = Field(default=1, ge=1)
    ray: bool = False
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    replica_gpus: float = Field(default=0.0, ge=0)
    keys_file: Path | None = None
    files_folder: Path | None = None
    allow_imports: bool = False
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    max_request_bytes: int = Field(default=2**20, ge=1024)
    max_request_tokens: int = Field(default=2**18, ge=1)
    max_requests_in_flight: int = Field(default=256, ge=1)
    timeout_seconds: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _replicas(self) -> ServeSettings:
        if not self.ray and (self.replicas > 1 or self.max_replicas or self.replica_gpus):
            raise UserError(
                "Replicas without --ray: the engine is then one, in this process.",
                "Give --ray, or leave the replicas out.",
            )
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise UserError(
                f"--max-replicas is {self.max_replicas}, below --replicas {self.replicas}.",
                "Choose replicas <= max-replicas.",
            )
        return self

    @property
    def on_loopback(self) -> bool:
        """Can only programs of this machine connect?"""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Is this address, or name, this machine's own?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
