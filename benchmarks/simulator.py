"""How many rollout actors do Redis, the learner's intake and the fan-out of adapters carry?

    python -m benchmarks.simulator                       # 1, 10, 100 and 1,000 actors, a minute each
    python -m benchmarks.simulator --actors 10 --seconds 5 --servers 2

Real: redis-server, replay buffer, outbox, adapter store, registry, the pool's state machine, the learner's
intake. Not real: engines, which only take time, and the learner's step, which sleeps. First what each
operation costs the server in CPU time, measured one at a time; then whole runs. CPU times, unlike rates,
do not depend on what else the machine does. Prints tables, writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from actors.pool import ActorPool
from benchmarks.simulated import Driver, SimulatedActor, SimulatedEngine, simulated_problem
from learner.intake import Intake
from posteriori.config import RunConfig, parse
from posteriori.errors import UserError
from posteriori.trajectory import Trajectory
from replay.buffers import open_buffer
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry
from replay.server import EmbeddedServer

GROUP = 16
PROMPTS = 256
CAPACITY_BYTES = 2**27
STARTS_PER_LOOK = 50
"""Actors started between two looks of the pool."""
DRIVERS = 4
"""Threads that take the actors' turns: while one waits for a server, another goes on."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Cost:
    """One operation: CPU microseconds of the servers, and seconds until the reply, mean."""

    operation: str
    server_cpu_microseconds: float
    reply_milliseconds: float


@dataclass(frozen=True)
class Run:
    """A run at its height; rates are a second, over ``seconds``."""

    actors: int
    servers: int
    seconds: float
    offered_trajectories: float
    stored_trajectories: float
    drawn_trajectories: float
    insert_p50_milliseconds: float
    insert_p99_milliseconds: float
    adapter_versions: int
    adapter_lag_p50_seconds: float
    adapter_lag_p99_seconds: float
    server_cpu_share: float
    client_cpu_share: float
    actors_waiting_share: float
    learner_waiting_share: float
    start_seconds: float
    stop_seconds: float
    failures: list[str]


def run_config(
    urls: list[str], actors: int, slack: int, capacity_bytes: int = CAPACITY_BYTES
) -> RunConfig:
    """The run file of a simulated run."""
    replay: dict[str, Any] = {
        "redis_url": urls[0],
        "capacity_bytes": capacity_bytes,
        "slack_trajectories": slack,
    }
    if len(urls) > 1:
        replay["shard_urls"] = urls
    problem = {"name": "simulated", "kind": "tempered", "prompts": [{"x": "-"}], "max_tokens": 12}
    return parse(
        {
            "run": "simulated",
            "problems": [problem],
            "replay": replay,
            "sampling": {"actors": actors, "group_size": GROUP, "groups_in_flight": 2},
            "learner": {"prompts_per_step": 8, "trajectories_per_prompt": 32},
        }
    )


class Servers:
    """Redis servers of a measurement, and the CPU time they have used."""

    def __init__(self, stack: ExitStack, directory: Path, count: int) -> None:
        self.urls = []
        for number in range(count):
            server = EmbeddedServer(directory / f"redis-{number}", CAPACITY_BYTES)
            self.urls.append(stack.enter_context(server).url)
        pids = [connect(url).info("server")["process_id"] for url in self.urls]
        self._processes = [psutil.Process(int(pid)) for pid in pids]

    def cpu_seconds(self) -> float:
        """Of all servers since they began."""
        times = [process.cpu_times() for process in self._processes]
        return sum(used.user + used.system for used in times)


def random_group(
    engine: SimulatedEngine, number: int, version: int, behaviour: str = "policy"
) -> list[Trajectory]:
    """A group as an actor offers it."""
    return [
        Trajectory(
            problem="simulated",
            prompt=str(number % PROMPTS),
            group=f"g{number}",
            actor="actor-0",
            behaviour=behaviour,
            adapter_version=version,
            reward_version=0,
            tokens=np.asarray(sample.tokens, dtype=np.int32),
            action=sample.action,
            log_q=sample.log_q,
            log_q_stop=sample.log_q_stop,
            log_reward=np.zeros(len(sample.tokens) + 1, dtype=np.float32),
            stop_legal=np.isfinite(sample.log_q_stop),
        )
        for sample in engine.take(GROUP)
    ]


def unit_costs(directory: Path, servers: int, repeats: int, adapter_bytes: int) -> list[Cost]:
    """What each operation costs the servers, one at a time."""
    with ExitStack() as stack:
        redis = Servers(stack, directory, servers)
        config = run_config(redis.urls, 1, slack=10**9)
        client = connect(redis.urls[0])
        buffer, adapters = open_buffer(client, config), RedisAdapters(client, config.run)
        registry = RunRegistry(client, config.run)
        engine = SimulatedEngine(1.0, seed=0)
        groups = [random_group(engine, n, version=n // 64) for n in range(repeats)]
        files = {"adapter_model.safetensors": secrets.token_bytes(adapter_bytes)}
        adapters.publish(1, files)
        fields: dict[str, str | float] = {
            "state": "sampling",
            **{f"counter_{k}": k * 1.5 for k in range(25)},
        }
        operations: list[tuple[str, Callable[[int], object]]] = [
            (f"insert a group of {GROUP}", lambda k: buffer.insert(groups[k])),
            ("draw 8 × 32", lambda k: buffer.draw(8, 32)),
            ("look for a newer adapter", lambda k: adapters.latest()),
            ("heartbeat", lambda k: registry.beat("actor-0", fields)),
            (f"fetch an adapter of {adapter_bytes:,} B", fetching(adapters, directory)),
        ]
        costs = []
        for name, operation in operations:
            before, began = redis.cpu_seconds(), time.perf_counter()
            for k in range(repeats):
                operation(k)
            wall = time.perf_counter() - began
            used = redis.cpu_seconds() - before
            costs.append(Cost(name, 1e6 * used / repeats, 1e3 * wall / repeats))
        return costs


def fetching(adapters: RedisAdapters, directory: Path) -> Callable[[int], object]:
    """Fetch version 1 anew each time."""
    return lambda k: adapters.fetch(1, directory / f"fetched-{k}")


class SimulatedLearner(threading.Thread):
    """The learner's side of a run: intake, publications, metrics; a step is a sleep.

    Attributes:
        published: (version, monotonic seconds) of each publication.
        waited_seconds, steps: so far.
    """

    def __init__(self, config: RunConfig, step_seconds: float, adapter_bytes: int) -> None:
        super().__init__(daemon=True, name="learner")
        self._config, self._step_seconds, self._bytes = config, step_seconds, adapter_bytes
        self.stopped = threading.Event()
        self.published: list[tuple[int, float]] = []
        self.failure: UserError | None = None
        self.steps = 0
        self.idle_seconds = 0.0

    def run(self) -> None:
        """Until stopped."""
        config = self._config
        try:
            client = connect(config.replay.redis_url)
            buffer, adapters = open_buffer(client, config), RedisAdapters(client, config.run)
            registry = RunRegistry(client, config.run)
            problem = simulated_problem(PROMPTS)
            intake = Intake(
                config,
                {problem.name: problem},
                buffer,
                self.stopped,
                registry.event,
                lambda: len(self.published),
            )
            files = {"adapter_model.safetensors": secrets.token_bytes(self._bytes)}
            while not self.stopped.is_set():
                if self.steps % config.learner.publish_every_steps == 0:
                    version = len(self.published) + 1
                    adapters.publish(version, files)
                    adapters.prune(8)
                    buffer.set_learner_version(version)
                    self.published.append((version, time.monotonic()))
                intake.draw()
                self.idle_seconds = intake.idle_seconds
                self.stopped.wait(self._step_seconds)
                self.steps += 1
                registry.record(self.steps, {"loss": 0.0, "staleness": 0.0})
        except UserError as cause:  # carried to the thread that reports it
            self.failure = cause


def simulate(
    directory: Path,
    actors: int,
    servers: int,
    seconds: float,
    group_seconds: float,
    step_seconds: float,
    adapter_bytes: int,
) -> Run:
    """0 → ``actors`` → 0, measured for ``seconds`` at the top."""
    with ExitStack() as stack:
        redis = Servers(stack, directory, servers)
        in_flight = actors * 2 * GROUP
        config = run_config(redis.urls, actors, slack=max(8192, 2 * in_flight))
        learner = SimulatedLearner(config, step_seconds, adapter_bytes)
        learner.start()
        problem = simulated_problem(PROMPTS)
        pool = ActorPool(0)
        alive: dict[str, SimulatedActor] = {}
        fetched = directory / "adapters"
        fetched.mkdir()
        drivers = [Driver() for _ in range(min(DRIVERS, actors))]
        for driver in drivers:
            driver.start()
        began = time.monotonic()
        while len(alive) < actors:
            pool.scale(min(actors, len(alive) + STARTS_PER_LOOK))
            for actor_id in pool.plan(time.monotonic()).start:
                number = int(actor_id.rpartition("-")[2])
                alive[actor_id] = SimulatedActor(number, config, problem, group_seconds, fetched)
                drivers[number % len(drivers)].incoming.put(alive[actor_id])
        started = time.monotonic() - began

        buffer = open_buffer(connect(redis.urls[0]), config)
        marks = {actor_id: len(a.buffer.insert_seconds) for actor_id, a in alive.items()}
        before, cpu, client_cpu = buffer.stats(), redis.cpu_seconds(), time.process_time()
        idle, first = learner.idle_seconds, len(learner.published)
        began = time.monotonic()
        lags = watch_versions(alive, learner, first, began + seconds)
        wall = time.monotonic() - began
        after = buffer.stats()
        cpu, client_cpu = redis.cpu_seconds() - cpu, time.process_time() - client_cpu
        idle = learner.idle_seconds - idle
        inserts = [t for id_, a in alive.items() for t in a.buffer.insert_seconds[marks[id_] :]]
        waiting = [bool(actor.worker.status()["waiting_for"]) for actor in alive.values()]
        versions = len(learner.published) - first

        began = time.monotonic()
        pool.scale(0)
        leaving = pool.plan(time.monotonic()).stop
        for driver in drivers:
            driver.stopped.set()
        for driver in drivers:
            driver.join(60.0)
        for actor_id in leaving:
            pool.ended(actor_id)
        learner.stopped.set()
        learner.join(60.0)
        stopped = time.monotonic() - began

    def received(stats: Any) -> int:
        return int(stats.inserted + stats.merged + stats.dropped)

    failures = [learner.failure, *(driver.failure for driver in drivers)]
    causes = [str(failure) for failure in failures if failure is not None]
    quantiles = np.quantile(inserts or [np.nan], [0.5, 0.99]) * 1e3
    lag = np.quantile(lags or [np.nan], [0.5, 0.99])
    return Run(
        actors=actors,
        servers=servers,
        seconds=wall,
        offered_trajectories=actors * 2 * GROUP / group_seconds,
        stored_trajectories=(received(after) - received(before)) / wall,
        drawn_trajectories=(after.drawn - before.drawn) / wall,
        insert_p50_milliseconds=float(quantiles[0]),
        insert_p99_milliseconds=float(quantiles[1]),
        adapter_versions=versions,
        adapter_lag_p50_seconds=float(lag[0]),
        adapter_lag_p99_seconds=float(lag[1]),
        server_cpu_share=cpu / wall,
        client_cpu_share=client_cpu / wall,
        actors_waiting_share=float(np.mean(waiting)),
        learner_waiting_share=idle / wall,
        start_seconds=started,
        stop_seconds=stopped,
        failures=causes[:5],
    )


def watch_versions(
    alive: dict[str, SimulatedActor], learner: SimulatedLearner, first: int, until: float
) -> list[float]:
    """Seconds from a publication to each actor's taking it up, or a newer one."""
    lags: list[float] = []
    pending: dict[int, set[str]] = {}
    known = first
    while time.monotonic() < until:
        for version, _ in learner.published[known:]:
            pending[version] = set(alive)
        known = len(learner.published)
        now = time.monotonic()
        for version, waiting in list(pending.items()):
            when = learner.published[version - 1][1]
            done = {id_ for id_ in waiting if int(alive[id_].worker.status()["version"]) >= version}
            lags += [now - when] * len(done)
            waiting -= done
            if not waiting:
                del pending[version]
        time.sleep(LOOK_SECONDS)
    return lags


def plot(runs: list[Run], path: Path) -> None:
    """Rates and latencies against the number of actors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rates, times) = pyplot.subplots(1, 2, figsize=(10, 4))
    counts = [run.actors for run in runs]
    rates.loglog(counts, [r.offered_trajectories for r in runs], "k--", label="offered")
    rates.loglog(counts, [r.stored_trajectories for r in runs], "o-", label="stored")
    rates.loglog(counts, [r.drawn_trajectories for r in runs], "s-", label="drawn")
    rates.set(xlabel="actors", ylabel="trajectories a second")
    times.loglog(counts, [r.insert_p99_milliseconds / 1e3 for r in runs], "o-", label="insert, p99")
    times.loglog(counts, [r.adapter_lag_p99_seconds for r in runs], "s-", label="adapter lag, p99")
    times.set(xlabel="actors", ylabel="seconds")
    for axes in (rates, times):
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def show(costs: list[Cost], runs: list[Run], console: Console) -> None:
    """Both tables."""
    table = Table("operation", "server CPU, µs", "reply, ms", title="One operation")
    for cost in costs:
        table.add_row(
            cost.operation, f"{cost.server_cpu_microseconds:.0f}", f"{cost.reply_milliseconds:.2f}"
        )
    console.print(table)
    table = Table(
        "actors", "offered/s", "stored/s", "drawn/s", "insert p50, p99 ms", "adapter lag p50, p99 s",
        "CPU: servers, simulator", "waiting: actors, learner", title="Runs",
    )  # fmt: skip
    for run in runs:
        table.add_row(
            str(run.actors),
            f"{run.offered_trajectories:.0f}",
            f"{run.stored_trajectories:.0f}",
            f"{run.drawn_trajectories:.0f}",
            f"{run.insert_p50_milliseconds:.1f}, {run.insert_p99_milliseconds:.0f}",
            f"{run.adapter_lag_p50_seconds:.1f}, {run.adapter_lag_p99_seconds:.1f}",
            f"{run.server_cpu_share:.2f}, {run.client_cpu_share:.2f}",
            f"{run.actors_waiting_share:.2f}, {run.learner_waiting_share:.2f}",
        )
    console.print(table)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--group-seconds", type=float, default=10.0)
    parser.add_argument("--step-seconds", type=float, default=1.0)
    parser.add_argument("--adapter-bytes", type=int, default=2**18)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/simulator"))
    options = parser.parse_args()
    console = Console()
    with TemporaryDirectory(prefix="simulator-") as parent:
        (Path(parent) / "costs").mkdir()
        costs = unit_costs(
            Path(parent) / "costs", options.servers, options.repeats, options.adapter_bytes
        )
        runs = []
        for actors in options.actors:
            directory = Path(parent) / f"{actors}"
            directory.mkdir()
            runs.append(
                simulate(
                    directory,
                    actors,
                    options.servers,
                    options.seconds,
                    options.group_seconds,
                    options.step_seconds,
                    options.adapter_bytes,
                )
            )
            console.print(f"{actors} actors: {runs[-1].stored_trajectories:.0f} stored/s")
            found = {"costs": [asdict(cost) for cost in costs], "runs": [asdict(r) for r in runs]}
            options.out.mkdir(parents=True, exist_ok=True)
            target = options.out / f"servers-{options.servers}.json"
            target.write_text(json.dumps(found, indent=2))
    show(costs, runs, console)
    plot(runs, options.out / f"servers-{options.servers}.png")


if __name__ == "__main__":
    main()
