"""The commands of a cluster: submit, and gc of what dead runs left on a shared Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posteriori.cli_service import console

cluster = typer.Typer()


@cluster.command()
def submit(
    run_file: Annotated[Path, typer.Argument(help="Run file, the same as for `train`.")],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's dashboard: http://HOST:8265."
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint and buffer.")
    ] = False,
    runs_directory: Annotated[
        str | None,
        typer.Option("--runs", help="Folder of runs on the cluster; default: its POSTERIORI_RUNS."),
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="File or folder to take along, such as a module; repeatable."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; else the log is followed.")
    ] = False,
) -> None:
    """Run a run file on a Ray cluster and follow its log; Ctrl-C leaves, the run goes on."""
    from posteriori.commands.submit import Cluster, JobFailed

    there = Cluster(address)
    job = there.submit(run_file, resume=resume, runs=runs_directory, extra=with_ or [])
    console.print(f"Submitted run {job.run} as job {job.id}.", highlight=False)
    if detach:
        return
    try:
        ended = there.follow(job, console)
    except KeyboardInterrupt:
        console.print(
            f"The run goes on. `posteriori logs {job.run} --address {address} -f` follows it again, "
            f"`posteriori stop {job.run} --address {address}` stops it.",
            highlight=False,
        )
        return
    if ended.status != "SUCCEEDED":
        raise JobFailed(f"The run has {ended.status.lower()}.", "Its log, above, says why.")


@cluster.command()
def gc(
    run: Annotated[
        list[str] | None, typer.Argument(help="Dead runs to remove; default: all of them.")
    ] = None,
    redis_url: Annotated[
        str, typer.Option("--redis", help="Of the server that runs share.")
    ] = "environment",
    yes: Annotated[bool, typer.Option("--yes", help="Remove, and do not only say so.")] = False,
) -> None:
    """Show the runs on a shared Redis and remove the dead ones; one that lives is never touched."""
    from posteriori.commands.gc import gc as command

    command(redis_url, run or [], yes, console)
