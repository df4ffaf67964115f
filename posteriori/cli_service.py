"""The commands of the service: serve, score, and what runs are asked and told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from posteriori.errors import UserError

service = typer.Typer()
console = Console()

RunArgument = Annotated[str, typer.Argument(help="Run directory, or its name under runs/.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="POSTERIORI_URL", help="Of a service; default: this machine's folder `runs`."
    ),
]
AddressOption = Annotated[
    str | None, typer.Option(help="Of a Ray cluster's dashboard: runs that were submitted to it.")
]
L = TypeVar("L", bound=str)


def fields_of(given: list[str] | None) -> dict[str, str]:
    """``name=text`` items; raises UserError."""
    fields = {}
    for item in given or []:
        name, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"--field {item!r} has no `=`.", "Write --field x='Once upon a time'.")
        fields[name] = text
    return fields


def one_of(value: str, known: tuple[L, ...], option: str) -> L:
    """The choice that a value names; raises UserError."""
    for choice in known:
        if value == choice:
            return choice
    raise UserError(f"{option} {value!r} is unknown.", f"Choose among {', '.join(known)}.")


@service.command()
def score(
    run: RunArgument,
    z: Annotated[list[str], typer.Argument(help="Z's as text, leading space included.")],
    url: Annotated[str, typer.Option(help="Of a service.")] = "http://127.0.0.1:8000",
    problem: Annotated[str | None, typer.Option(help="Problem; default: the first.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Id of an X; default: the first.")] = None,
    field: Annotated[list[str] | None, typer.Option(help="A new X: name=text.")] = None,
) -> None:
    """Print log q, log R and log weight of given Z's, computed by a service."""
    from posteriori.calls import TargetOptions
    from posteriori.commands import score as command
    from posteriori.commands.runs import client

    asked = TargetOptions(run=run, fields=fields_of(field))
    if problem is not None:
        asked["problem"] = problem
    if prompt is not None:
        asked["prompt"] = prompt
    command.show(client(url).score(list(z), **asked), console)


@service.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address; beyond loopback it needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    runs_directory: Annotated[
        Path, typer.Option("--runs", help="Holds the runs that are served and launched.")
    ] = Path("runs"),
    model: Annotated[str, typer.Option(help="Base LM of the runs that are served.")] = "pocket",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = "vllm",
    lora_rank: Annotated[int, typer.Option(min=1, help="Largest rank served.")] = 16,
    ray: Annotated[
        bool, typer.Option("--ray", help="Engines as replicas of a Ray Serve deployment.")
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, help="Of the engine, with --ray.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Under load there are up to so many, with --ray.")
    ] = None,
    replica_gpus: Annotated[float, typer.Option(min=0, help="Of each, with --ray.")] = 0.0,
    keys: Annotated[Path | None, typer.Option(help="YAML of API keys and scopes.")] = None,
    files: Annotated[
        Path | None, typer.Option(help="Folder whose files run files from HTTP may read.")
    ] = None,
    allow_imports: Annotated[
        bool, typer.Option(help="Run files from HTTP may name functions, URLs and models.")
    ] = False,
    cors: Annotated[list[str] | None, typer.Option(help="Origin that browsers may use.")] = None,
    log_prompts: Annotated[bool, typer.Option(help="Log the bodies of requests.")] = False,
    most_in_flight: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 256,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="For one answer.")] = 300.0,
) -> None:
    """Serve samples, scores, runs and OpenAI completions over HTTP."""
    from api.settings import ServeSettings
    from posteriori.commands.serve import serve as command

    settings = ServeSettings(
        host=host,
        port=port,
        runs_directory=runs_directory,
        model=model,
        dtype=one_of(dtype, ("float32", "bfloat16", "float16"), "--dtype"),
        engine=one_of(engine, ("vllm", "transformers"), "--engine"),
        lora_rank=lora_rank,
        ray=ray,
        replicas=replicas,
        max_replicas=max_replicas,
        replica_gpus=replica_gpus,
        keys_file=keys,
        files_folder=files,
        allow_imports=allow_imports,
        cors_origins=tuple(cors or ()),
        log_prompts=log_prompts,
        max_requests_in_flight=most_in_flight,
        timeout_seconds=timeout_seconds,
    )
    command(settings, console)


@service.command()
def runs(url: UrlOption = None, address: AddressOption = None) -> None:
    """List runs: of the folder `runs`, of a service, or submitted to a cluster."""
    from posteriori.commands import runs as command
    from posteriori.commands import submit

    if address is not None:
        submit.show(submit.Cluster(address).jobs(), console)
        return
    command.show(command.of(url).runs().runs, console)


@service.command()
def top(
    run: RunArgument,
    url: UrlOption = None,
    once: Annotated[bool, typer.Option(help="Print once and end.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 1.0,
) -> None:
    """Watch a run: learner, buffer, actors and what happened last."""
    from posteriori.commands import runs as command
    from posteriori.commands.top import watch

    watch(command.of(url), run, console, once=once, seconds=seconds)


@service.command()
def scale(
    run: RunArgument,
    actors: Annotated[int, typer.Option(min=0, help="Rollout actors wanted.")],
    url: UrlOption = None,
) -> None:
    """Set the number of rollout actors of a running run."""
    from posteriori.commands import runs as command

    found = command.of(url).scale(run, actors)
    console.print(f"{found.desired} wanted, {len(found.actors)} alive.", highlight=False)


@service.command()
def stop(run: RunArgument, url: UrlOption = None, address: AddressOption = None) -> None:
    """Ask a run to finish its step, save a checkpoint and stop; on a cluster also wait for it."""
    from posteriori.commands import runs as command
    from posteriori.commands import submit

    if address is not None:
        submit.show([submit.Cluster(address).stop(run)], console)
        return
    command.show([command.of(url).stop(run)], console)


@service.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False,
    url: UrlOption = None,
    address: AddressOption = None,
) -> None:
    """Print what a run's driver printed, where a service launched it, and the run's events."""
    from posteriori.commands import runs as command
    from posteriori.commands import submit

    if address is not None:
        cluster = submit.Cluster(address)
        job = cluster.newest(run)
        if follow:
            cluster.follow(job, console)
        else:
            console.print(cluster.log(job), end="", highlight=False, markup=False)
        return
    command.show_log(command.of(url), run, follow, console)
