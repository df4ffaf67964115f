"""How to explore, how to learn and where to run; and the run as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from posteriori.config.problem import ProblemConfig
from posteriori.config.section import Section

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks vLLM reserves adapter slots for; a smaller rank is padded, another one is refused."""


class VllmConfig(Section):
    """What the vLLM engine of a rollout actor is told.

    ``tensor_parallel`` GPUs of one node hold the base model together; ``sampling.gpus_per_actor`` is
    that number then. ``dtype``: of the engine's base, None: the run's. ``quantization``: the method by
    which the base is quantised while it is loaded (``fp8``), or was when it was saved; log q of such an
    engine is that of the quantised policy, and the learner recomputes its own. ``max_adapters``:
    versions held at once; a new one waits until requests in flight leave one free.
    """

    tensor_parallel: int = Field(default=1, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    quantization: Literal["fp8", "awq", "gptq", "compressed-tensors"] | None = None
    prefix_caching: bool = True
    max_adapters: int = Field(default=3, ge=2)

    @model_validator(mode="after")
    def _quantised_in_half_precision(self) -> VllmConfig:
        if self.quantization is not None and self.dtype == "float32":
            raise ValueError("quantised kernels compute in half precision: set dtype to bfloat16")
        return self


class SamplingConfig(Section):
    """Rollout actors. The shares are probabilities of a group's behaviour; the rest is on-policy.

    ``vllm`` holds what only that engine understands.
    """

    engine: Literal["vllm", "transformers"] = "vllm"
    actors: int = Field(default=1, ge=0)
    group_size: int = Field(default=16, ge=2)
    groups_in_flight: int = Field(default=8, ge=1)
    base_share: float = Field(default=0.25, ge=0, le=1)
    tempered_share: float = Field(default=0.25, ge=0, le=1)
    temperature_range: tuple[float, float] = (0.5, 2.0)
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    uniform_epsilon: float = Field(default=0.1, gt=0, le=1)
    threads: int = Field(default=1, ge=1)
    gpus_per_actor: float = Field(default=0.0, ge=0)
    vllm: VllmConfig = VllmConfig()

    @model_validator(mode="after")
    def _engine_options(self) -> SamplingConfig:
        if self.engine != "vllm" and self.vllm != VllmConfig():
            raise ValueError(f"`vllm` belongs to engine vllm, the engine is {self.engine}")
        gpus, parallel = self.gpus_per_actor, self.vllm.tensor_parallel
        if parallel > 1 and gpus not in (0, parallel):
            raise ValueError(
                f"vllm.tensor_parallel is {parallel} and gpus_per_actor {gpus:g}: an actor takes as many GPUs "
                "as its engine"
            )
        if gpus > 1 and gpus != parallel:
            raise ValueError(
                f"gpus_per_actor is {gpus:g}: only vllm.tensor_parallel uses more than one"
            )
        return self

    @model_validator(mode="after")
    def _shares(self) -> SamplingConfig:
        total = self.base_share + self.tempered_share + self.uniform_share
        if total > 1:
            raise ValueError(
                f"base_share + tempered_share + uniform_share is {total:g}, more than 1"
            )
        low, high = self.temperature_range
        if not 0 < low <= high:
            raise ValueError("temperature_range needs 0 < low <= high")
        return self


class ReplayConfig(Section):
    """The replay buffer. The draw shares are probabilities of each trajectory; the rest is drawn uniformly.

    ``samples_per_insert`` is the number of times a trajectory is drawn on average; actors wait when
    they are more than ``slack_trajectories`` ahead of it, the learner when it is as far behind.
    ``shard_urls`` are servers that share the trajectories, each prompt on one of them by its hash; their
    order belongs to the run. Adapters and the run's registry stay on ``redis_url``.
    """

    redis_url: str = "embedded"
    shard_urls: tuple[str, ...] = ()
    capacity_bytes: int = Field(default=256 * 2**20, ge=2**16)
    capacity_per_prompt: int = Field(default=4096, ge=2)
    recent_share: float = Field(default=0.5, ge=0, le=1)
    prioritised_share: float = Field(default=0.25, ge=0, le=1)
    near_duplicate_tolerance: float = Field(default=0.0, ge=0, lt=1)
    samples_per_insert: float = Field(default=1.0, gt=0)
    slack_trajectories: int = Field(default=2048, ge=1)
    max_staleness_versions: int = Field(default=8, ge=1)
    deadline_seconds: float = Field(default=120.0, gt=0)
    fsync: Literal["everysec", "always"] = "everysec"

    @model_validator(mode="after")
    def _several(self) -> ReplayConfig:
        if len(self.shard_urls) == 1 or len(set(self.shard_urls)) < len(self.shard_urls):
            raise ValueError("`shard_urls` names at least two servers, each once")
        return self

    @model_validator(mode="after")
    def _affordable(self) -> ReplayConfig:
        # Each trajectory is compared with all of its prompt while the server serves nobody else.
        if self.near_duplicate_tolerance > 0 and self.capacity_per_prompt > 512:
            raise ValueError(
                f"near_duplicate_tolerance needs capacity_per_prompt <= 512, "
                f"it is {self.capacity_per_prompt}"
            )
        return self

    @model_validator(mode="after")
    def _shares(self) -> ReplayConfig:
        if self.recent_share + self.prioritised_share > 1:
            raise ValueError("recent_share + prioritised_share is more than 1")
        return self


class LearnerConfig(Section):
    """The objective and the optimiser.

    ``objective``: ``subtb`` (root node included), ``vargrad``, ``tb`` (learned log Z(x)),
    ``contrastive`` (pairs of a group) or ``subtb+vargrad``. Residuals beyond ``huber_delta_nats``
    count linearly, which tames rewards with a floor. ``reward_temperature_start`` is annealed linearly
    to 1 over ``anneal_steps``, which may take at most half of ``steps``.

    ``processes`` share the groups of every step, one device each; ``shard_base`` leaves each of them a
    part of the frozen base model's layers. ``bfloat16`` computes the layers in bfloat16 while adapter,
    optimiser and loss stay float32. ``activation_checkpointing`` recomputes each layer in the backward
    pass instead of keeping what it saw. ``compile`` compiles the layers.
    """

    objective: Literal["subtb", "vargrad", "tb", "contrastive", "subtb+vargrad"] = "subtb+vargrad"
    subtb_lambda: float = Field(default=1.0, gt=0)
    anchor_weight: float = Field(default=1.0, ge=0)
    root: Literal["group", "learned"] = "group"
    huber_delta_nats: float | None = Field(default=None, gt=0)
    steps: int = Field(default=400, ge=1)
    prompts_per_step: int = Field(default=2, ge=1)
    trajectories_per_prompt: int = Field(default=32, ge=2)
    tokens_per_microbatch: int = Field(default=4096, ge=64)
    learning_rate: float = Field(default=1e-3, gt=0)
    log_z_learning_rate: float = Field(default=0.1, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    decay: Literal["constant", "cosine"] = "cosine"
    clip_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    lora_rank: int = 16
    lora_alpha: float = Field(default=16.0, gt=0)
    lora_targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    reward_temperature_start: float = Field(default=1.0, gt=0)
    anneal_steps: int = Field(default=0, ge=0)
    publish_every_steps: int = Field(default=5, ge=1)
    checkpoint_every_steps: int = Field(default=50, ge=1)
    evaluate_every_steps: int = Field(default=50, ge=1)
    device: str = "auto"
    threads: int = Field(default=1, ge=1)
    processes: int = Field(default=1, ge=1)
    shard_base: bool = False
    bfloat16: bool = False
    activation_checkpointing: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> LearnerConfig:
        if self.lora_rank not in VLLM_LORA_RANKS:
            nearest = min(VLLM_LORA_RANKS, key=lambda rank: abs(rank - self.lora_rank))
            raise ValueError(
                f"lora_rank {self.lora_rank} cannot be served by vLLM; the nearest rank it serves is {nearest}"
            )
        if self.reward_temperature_start != 1.0 and self.anneal_steps == 0:
            raise ValueError("reward_temperature_start other than 1 needs anneal_steps > 0")
        if self.anneal_steps > self.steps // 2:
            raise ValueError(
                "anneal_steps may take at most half of steps: the end value must be held"
            )
        if (
            self.objective != "subtb"
            and self.trajectories_per_prompt < 8
            and self.objective != "tb"
        ):
            raise ValueError("the VarGrad term needs trajectories_per_prompt >= 8")
        return self

    @model_validator(mode="after")
    def _shared_out(self) -> LearnerConfig:
        if self.processes > self.prompts_per_step:
            raise ValueError(
                f"processes is {self.processes} and prompts_per_step {self.prompts_per_step}: a group is never "
                "split between processes, so some would idle; raise prompts_per_step"
            )
        if self.shard_base and self.processes == 1:
            raise ValueError(
                "shard_base shares the base model out between processes: set processes"
            )
        if self.processes > 1 and ":" in self.device:
            raise ValueError(
                f"device {self.device!r} names one device and processes is {self.processes}: write auto, cuda or cpu"
            )
        return self


class EmConfig(Section):
    """Variational EM: between ``rounds`` + 1 equal E steps (``learner.steps`` in all) lies an M step each.

    An M step fits an adapter of the reward LM to chains Z drawn from q, by ``m_steps`` optimiser steps
    on ``prompts_per_step`` X's with ``chains_per_prompt`` chains each. ``objective`` says what of log R
    the adapter serves and maximises: ``y_given_xz``, the terms with {z} in their context, so that
    p(Z | X) stays the base LM's; or ``joint``, every term with {z}, which is p(Z, Y | X).
    """

    rounds: int = Field(ge=1)
    objective: Literal["y_given_xz", "joint"] = "y_given_xz"
    m_steps: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    lora_rank: int = Field(default=16, ge=1)
    chains_per_prompt: int = Field(default=64, ge=2)
    prompts_per_step: int = Field(default=32, ge=1)


class PlacementConfig(Section):
    """What the parts of a run take of a Ray cluster; checked before anything starts.

    The first ``gpu_actors`` rollout actors alive (None: all) take ``sampling.gpus_per_actor`` GPUs each,
    a fraction shares one; the others sample on the CPU. An actor takes ``actor_cpus`` (None:
    ``sampling.threads``), the learner ``learner_cpus`` and ``learner_gpus`` (None: 1 if
    ``learner.device`` says cuda, or says auto and the actors leave one) on one node, reserved for it.
    ``actors`` says whether Ray spreads them over nodes or packs them. A cluster that grows by itself
    gets ``wait_seconds`` to make room before the run is refused.
    """

    actors: Literal["spread", "pack"] = "spread"
    actor_cpus: float | None = Field(default=None, gt=0)
    gpu_actors: int | None = Field(default=None, ge=0)
    learner_cpus: float = Field(default=1.0, gt=0)
    learner_gpus: int | None = Field(default=None, ge=0)
    wait_seconds: float = Field(default=0.0, ge=0)


class AutoscaleConfig(Section):
    """Lets the run choose its number of rollout actors, ``sampling.actors`` at first.

    More while the learner is about to wait for ``replay.samples_per_insert`` or what it draws is older
    than ``staleness_versions`` on average (half of ``replay.max_staleness_versions`` unless given), fewer
    while actors are about to wait for it. A signal has to last ``hold_seconds``, and after a change nothing
    happens for ``settle_seconds``, which an engine should need less of to start. ``gpu_hours`` is the
    budget of all actors together over the run and its resumptions; when it is spent, the run ends as
    if stopped.
    """

    min_actors: int = Field(default=1, ge=1)
    max_actors: int = Field(ge=1, le=1024)
    staleness_versions: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)
    hold_seconds: float = Field(default=15.0, ge=0)
    settle_seconds: float = Field(default=90.0, ge=0)

    @model_validator(mode="after")
    def _bounds(self) -> AutoscaleConfig:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors is {self.min_actors} and max_actors {self.max_actors}")
        return self


class RunConfig(Section):
    """A whole run."""

    run: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    model: str = "pocket"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(default=0, ge=0)
    output_directory: Path = Path("runs")
    oracle_max_strings: int = Field(default=20_000, ge=0)
    wandb: bool = False
    problems: tuple[ProblemConfig, ...] = Field(min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    placement: PlacementConfig = PlacementConfig()
    em: EmConfig | None = None
    autoscale: AutoscaleConfig | None = None

    @model_validator(mode="after")
    def _autoscales(self) -> RunConfig:
        scale = self.autoscale
        if scale is None:
            return self
        if not scale.min_actors <= self.sampling.actors <= scale.max_actors:
            raise ValueError(
                f"sampling.actors is {self.sampling.actors}, outside autoscale's {scale.min_actors} … "
                f"{scale.max_actors}"
            )
        if scale.gpu_hours is not None and self.sampling.gpus_per_actor == 0:
            raise ValueError("autoscale.gpu_hours is a budget, but sampling.gpus_per_actor is 0")
        most = self.replay.max_staleness_versions
        if scale.staleness_versions is not None and scale.staleness_versions > most:
            raise ValueError(
                f"autoscale.staleness_versions is {scale.staleness_versions:g}, more than "
                f"replay.max_staleness_versions ({most})"
            )
        return self

    @model_validator(mode="after")
    def _e_steps(self) -> RunConfig:
        if self.em is not None:
            shortest = self.learner.steps // (self.em.rounds + 1)
            if shortest < max(1, 2 * self.learner.anneal_steps):
                raise ValueError(
                    f"em.rounds {self.em.rounds} leaves {shortest} of {self.learner.steps} learner.steps "
                    "to each E step: at least 1 is needed, and twice learner.anneal_steps, which the "
                    "first E step holds"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = [problem.name for problem in self.problems]
        if len(set(names)) != len(names):
            raise ValueError("two problems have the same name")
        floored = [problem.name for problem in self.problems if problem.has_floor]
        if floored and self.learner.huber_delta_nats is None:
            raise ValueError(
                f"log R of problem {floored[0]!r} falls by a step where its constraint fails, and squared "
                "residuals of such a step drown all others: set learner.huber_delta_nats, such as 5"
            )
        step = self.learner.prompts_per_step * self.learner.trajectories_per_prompt
        needed = max(step, self.sampling.group_size * self.sampling.groups_in_flight)
        if self.replay.slack_trajectories < needed:
            raise ValueError(
                f"replay.slack_trajectories is {self.replay.slack_trajectories}, but one learner step and the "
                f"groups in flight move {needed} trajectories at a time: actors and learner would wait "
                "for each other for ever"
            )
        return self

    @model_validator(mode="after")
    def _placed(self) -> RunConfig:
        if self.placement.gpu_actors and self.sampling.gpus_per_actor == 0:
            raise ValueError(
                f"placement.gpu_actors is {self.placement.gpu_actors}, but sampling.gpus_per_actor is 0"
            )
        if self.placement.learner_gpus == 0 and self.learner.device.startswith("cuda"):
            raise ValueError("learner.device is cuda, but placement.learner_gpus is 0")
        sampling = self.sampling
        on_gpu = sampling.engine == "vllm" and sampling.gpus_per_actor > 0
        if on_gpu and (sampling.vllm.dtype or self.dtype) == "float32":
            raise ValueError(
                "vLLM's kernels for adapters on a GPU take float16 and bfloat16, and this run is in float32: "
                "set sampling.vllm.dtype: bfloat16, or sampling.engine: transformers"
            )
        return self

    @property
    def directory(self) -> Path:
        """Where this run keeps its checkpoints, logs and report."""
        return self.output_directory / self.run
