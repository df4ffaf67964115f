"""The whole service as a Ray Serve application, for who starts it is Serve: KubeRay's RayService.

Each replica is the app with an engine of its own, behind Serve's proxies. ``posteriori serve --ray`` is the
other way round: one app, whose engines are replicas.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from api.access import read_keys
from api.settings import ServeSettings


class PosterioriService:
    """Holds the app in its replica; Serve passes requests on to it."""


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application; ``import_path: api.serve_app:build``.

    Args:
        arguments: keys of :class:`ServeSettings`; ``keys_file`` or the environment must give API keys,
            because a proxy listens for other machines.

    Raises:
        UserError: there are no keys.
    """
    settings = ServeSettings.model_validate({"host": "0.0.0.0", **arguments})
    read_keys(settings)

    def app() -> FastAPI:
        import torch

        from api.app import create_app
        from api.telemetry import configure_logs

        torch.set_num_threads(settings.threads)
        configure_logs()
        return create_app(settings)

    deployment = serve.deployment(name="posteriori")(serve.ingress(app)(PosterioriService))
    return deployment.bind()
