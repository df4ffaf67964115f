"""The command line. Each command is a thin reading of its arguments; the work is in ``commands/``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posteriori import __version__
from posteriori.cli_cluster import cluster
from posteriori.cli_service import RunArgument, UrlOption, console, fields_of, one_of, service
from posteriori.errors import UserError

app = typer.Typer(
    name="posteriori",
    help="Fast, verified samples from intractable posteriors of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(service)
app.add_typer(cluster)

USER_ERROR_STATUS = 2

EngineOption = Annotated[
    str | None, typer.Option(help="vllm or transformers; default: the one of the run file.")
]


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check versions, engine, Redis, ports, memory and GPU, and say how to mend each failure."""
    from posteriori.doctor import doctor as run_doctor

    raise typer.Exit(run_doctor(json_output=as_json))


@app.command()
def train(
    run: Annotated[str, typer.Argument(help="Run file; with --resume also a run by name.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint and buffer.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Validate everything, print the resolved run file, start nothing.")
    ] = False,
    wandb: Annotated[bool, typer.Option(help="Also log to Weights & Biases.")] = False,
    runs_directory: Annotated[
        Path | None, typer.Option("--runs", help="Folder of runs; overrides output_directory.")
    ] = None,
) -> None:
    """Train a policy whose samples follow the posterior of a run file."""
    from posteriori.commands import train as command
    from posteriori.commands.run_directory import find
    from posteriori.config import load

    is_file = run.endswith((".yaml", ".yml"))
    config = load(Path(run)) if is_file or not resume else find(run).load()
    if wandb:
        config = config.model_copy(update={"wandb": True})
    if runs_directory is not None:
        config = config.model_copy(update={"output_directory": runs_directory})
    if dry_run:
        command.dry_run(config, console)
    elif resume:
        command.resume(config, console)
    else:
        command.start(config, console)


@app.command()
def sample(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", "--samples", min=1, help="Number of samples.")] = 16,
    problem: Annotated[str | None, typer.Option(help="Problem; default: the first.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Id of an X of the run; default: the first.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(help="A new X: name=text, once for each template field.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    engine: EngineOption = None,
    base: Annotated[bool, typer.Option(help="Sample the base LM and not the policy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: UrlOption = None,
    version: Annotated[
        int | None, typer.Option(help="Adapter version; with --url. Default: the newest.")
    ] = None,
    correction: Annotated[str, typer.Option(help="none, snis or smc; with --url.")] = "snis",
) -> None:
    """Print posterior samples with log q, log R and weights."""
    from posteriori.commands import sample as command
    from posteriori.commands.run_directory import find

    fields = fields_of(field)
    if url is not None:
        from posteriori.commands.runs import client

        found = command.sample_remotely(
            client(url),
            run,
            n,
            problem_name=problem,
            prompt_id=prompt,
            fields=fields,
            seed=seed,
            base=base,
            version=version,
            correction=one_of(correction, ("none", "snis", "smc"), "--correction"),
        )
        command.show(found, console, as_json)
        return
    if version is not None or correction != "snis":
        raise UserError("--version and --correction need a service.", "Give its --url.")
    found = command.sample(
        find(run),
        n,
        problem_name=problem,
        prompt_id=prompt,
        fields=fields,
        seed=seed,
        engine_kind=engine,
        base=base,
    )
    command.show(found, console, as_json)


@app.command()
def verify(
    run: RunArgument,
    draws: Annotated[int, typer.Option(min=2, help="Draws for log Ẑ and ESS.")] = 4096,
    engine: EngineOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 1,
) -> None:
    """Recompute the fidelity table of a run: exact distances, log Z, ESS."""
    from posteriori.commands import verify as command
    from posteriori.commands.report import fidelity_table
    from posteriori.commands.run_directory import find

    header, rows = fidelity_table(command.verify(find(run), draws, engine, seed))
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs"),
) -> None:
    """Train two posteriors with exact oracles and show base LM and policy side by side."""
    from posteriori.commands.demo import demo as run_demo

    run_demo(output, console)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="Experiment; `list` names them all.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 … n − 1.")] = 3,
    quick: Annotated[bool, typer.Option(help="Seconds instead of minutes; for tests.")] = False,
    work: Annotated[
        Path, typer.Option(help="Keeps finished seeds; delete it to start over.")
    ] = Path("runs/experiments"),
    out: Annotated[
        Path | None, typer.Option(help="Gets table, JSON and plot; default: the work directory.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Run one of the paper's experiments and judge its table by what the paper's shows."""
    from experiments import harness

    if name == "list":
        console.print("\n".join(harness.names()), highlight=False)
        return
    from posteriori.device import resolve_device

    found = harness.find(name)
    home = work / (f"{name}-quick" if quick else name)
    results = harness.run(
        found,
        seeds=seeds,
        quick=quick,
        work=home,
        out=out or home,
        console=console,
        device=resolve_device(device, "--device"),
    )
    harness.show(found, results, console)


@app.command()
def baseline(
    name: Annotated[str, typer.Argument(help="Baseline; a wrong name lists them.")],
    run: Annotated[Path, typer.Argument(help="Run file.")],
    n: Annotated[int, typer.Option("-n", "--samples", min=1, help="Number of samples.")] = 64,
    problem: Annotated[str | None, typer.Option(help="Problem; default: the first.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Id of an X; default: the first.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the method: name=number, such as particles=64.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="New directory for the adapter of SFT, PPO, RLOO or GRPO.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sample a run's posterior by other means: beams, MCMC, SMC, rejection, SFT, PPO and others."""
    from posteriori.commands import baseline as command
    from posteriori.config import load

    options = {}
    for item in option or []:
        key, separator, value = item.partition("=")
        try:
            options[key] = float(value) if separator else float("nan")
        except ValueError:
            options[key] = float("nan")
        if options[key] != options[key]:
            raise UserError(
                f"--option {item!r} is not name=number.", "Write --option particles=64."
            )
    found = command.baseline(
        name,
        load(run),
        n,
        problem_name=problem,
        prompt_id=prompt,
        options=options,
        seed=seed,
        out=out,
    )
    command.show(found, console, as_json)


@app.command()
def lookahead(
    run: Annotated[Path, typer.Argument(help="Run file; nothing is trained.")],
    out: Annotated[Path, typer.Option(help="New .npz file, for the problem's `lookahead`.")],
    problem: Annotated[str | None, typer.Option(help="Problem; default: the first.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the base LM, in all.")] = 2048,
    order: Annotated[int, typer.Option(help="Last actions it looks back on: 1 or 2.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Fit what a constraint's prefixes promise, so that samplers walk towards legal ends early."""
    from posteriori.commands import lookahead as command
    from posteriori.config import load

    command.fit(
        load(run), out, problem_name=problem, draws=draws, order=order, seed=seed, console=console
    )


@app.command()
def gold(
    run: Annotated[Path, typer.Argument(help="Run file; nothing is trained.")],
    out: Annotated[Path, typer.Option(help="New .jsonl file, for the problem's `gold.file`.")],
    problem: Annotated[str | None, typer.Option(help="Problem; default: the first.")] = None,
    filters: Annotated[int, typer.Option(min=1, help="Independent filters of each X.")] = 4,
    particles: Annotated[int, typer.Option(min=2, help="Particles, and Z's, of a filter.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Draw gold Z's by particle filters of the base LM, for a replay buffer to begin with."""
    from posteriori.commands import gold as command
    from posteriori.config import load

    report = command.draw(
        load(run),
        out,
        problem_name=problem,
        filters=filters,
        particles=particles,
        seed=seed,
        console=console,
    )
    command.show(report, out, console)


@app.command("make-data")
def make_data(
    kind: Annotated[str, typer.Argument(help="arithmetic, reviews or stories.")],
    out: Annotated[Path, typer.Option(help="Directory of the files.")],
    train: Annotated[int, typer.Option(min=1, help="Training items.")] = 1000,
    test: Annotated[int, typer.Option(min=1, help="Test items in each test file.")] = 500,
    rationales: Annotated[int, typer.Option(min=0, help="Sums with a rationale besides.")] = 50,
    seed: Annotated[int, typer.Option(help="Another seed gives other items.")] = 0,
) -> None:
    """Write a data set of the project's own in the file formats of the paper's; no item twice."""
    from posteriori.data.generated import write_data

    files = write_data(kind, out, train=train, test=test, rationales=rationales, seed=seed)
    for name, items in files.items():
        console.print(f"{out / name}: {items} items", highlight=False)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Directory for weights, tokenizer and model card.")],
    recipe: Annotated[str, typer.Option(help="pocket, pocket-more or pocket-large.")] = "pocket",
    start_from: Annotated[
        Path | None, typer.Option(help="Weights to begin with instead of from nothing.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Pre-train the base model that ships, from text its own generator writes."""
    from posteriori.pocket.pretrain import pretrain as run_pretrain
    from posteriori.pocket.recipe import RECIPES

    if recipe not in RECIPES:
        raise UserError(f"No recipe {recipe!r}.", f"Choose among {', '.join(RECIPES)}.")
    report = run_pretrain(RECIPES[recipe], out, device=device, start_from=start_from)
    console.print_json(data={name: value for name, value in report.items() if name != "curve"})


@app.command()
def sharpen(
    model: Annotated[str, typer.Argument(help="pocket, a directory or a hub id.")],
    temperature: Annotated[float, typer.Option(help="Divides the logits; below 1 sharpens.")],
    out: Annotated[Path, typer.Option(help="New directory of the model.")],
) -> None:
    """Write a model with its logits divided by T, so that a policy begins at token tempering."""
    from posteriori.sharpened import write_sharpened

    write_sharpened(model, temperature, out)
    console.print(f"Wrote {out}: {model} at T = {temperature:g}.", highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(__version__)


def main() -> None:
    """Entry point: a user's mistake is one paragraph and status 2, never a traceback."""
    try:
        app()
    except UserError as error:
        text = f"[bold red]Error:[/bold red] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR_STATUS)


if __name__ == "__main__":
    main()
