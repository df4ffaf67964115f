"""Sampling with vLLM, in this process.

vLLM's own loop is driven directly (``add_request``, ``step``, ``abort_request``): requests join and
leave between steps, and adapters are loaded between steps without a pause. One engine per process.

Where a tool answers inside Z, each sample is a request of its own that ends at a trigger and goes on as
a new one with the answer in its prompt, most of which the prefix cache still holds.

What is used of vLLM is kept narrow: ``EngineArgs``, ``LLMEngine``, ``SamplingParams`` (with
``logprob_token_ids``), ``LoRARequest`` and one logits processor of the V1 model runner.
"""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.adapter_files import check_adapter, check_slot, engine_rank
from posteriori.draft import Draft
from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.seams import SampledGroup, SampleRequest

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput

_ENVIRONMENT = {
    # The engine's core runs in this process: ready in half the time, and the logits processor can
    # look up legal moves in this process's memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Logits processors of the V1 interface are refused by the V2 model runner.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

BLOCK_TOKENS = 32
"""KV block on CPU. Whole blocks of a prompt are shared; vLLM's default of 128 shares few prompts."""

DEFAULT_MODEL_TOKENS = 1024

STEP_TOKENS = 2048
"""Prompt tokens read in one step on CPU; whole prompts that exceed it wait for the next one."""

_MIN_KV_CACHE_BYTES = 64 * 2**20


class VllmEngine:
    """A vLLM engine behind :class:`posteriori.seams.Engine`.

    Args:
        model_path: Hugging Face model directory or id; head_dim must be one vLLM serves (64 is).
        lora_rank: largest rank of the adapters to come.
        max_adapters: adapter versions held at once; at least 2, so that requests in flight finish
            under their own version while the next one is loaded.
        dtype: ``float32`` (on CPU only), ``bfloat16`` or ``float16``.
        quantization: vLLM's name of the method by which the base's weights are quantised.
        tensor_parallel: GPUs (on CPU: processes) that hold the base together.
        prefix_caching: keep what was computed for prompts, for requests that begin alike.
        max_model_tokens: prompt and Z together; None: the model's context, at most
            ``DEFAULT_MODEL_TOKENS``.
        seed: of requests without a seed of their own.
        max_sequences: sequences decoded together.
        kv_cache_bytes: None: room for ``max_sequences`` of full length (CPU), or what
            ``gpu_memory_utilization`` leaves (GPU).
        gpu_memory_utilization: share of the GPU's memory to use; ignored on CPU.

    Raises:
        UserError: the model cannot be loaded or served.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        lora_rank: int = 16,
        max_adapters: int = 3,
        dtype: str = "float32",
        quantization: str | None = None,
        tensor_parallel: int = 1,
        prefix_caching: bool = True,
        max_model_tokens: int | None = None,
        seed: int = 0,
        max_sequences: int = 128,
        kv_cache_bytes: int | None = None,
        gpu_memory_utilization: float = 0.5,
    ) -> None:
        if max_adapters < 2:
            raise UserError(
                f"max_adapters is {max_adapters}: every new adapter would drain the engine.",
                "Give at least 2.",
            )
        os.environ.update(_ENVIRONMENT)
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.platforms import current_platform
        except ImportError as cause:
            raise UserError(
                f"vLLM cannot be imported: {cause}.",
                "Install the extra `cpu` or `gpu`, or set `sampling.engine: transformers`.",
            ) from cause
        from actors.moves_processor import MovesProcessor

        on_cpu = current_platform.is_cpu()
        if not on_cpu and dtype == "float32":
            raise UserError(
                "vLLM's kernels for adapters on a GPU take float16 and bfloat16, not float32.",
                "Give dtype bfloat16, or use the transformers engine.",
            )
        self._max_rank = engine_rank(lora_rank)
        self._max_adapters = max_adapters
        model_config = _model_config(str(model_path))
        check_parallel(model_config, tensor_parallel, str(model_path))
        context = int(model_config.max_position_embeddings)
        max_model_tokens = min(max_model_tokens or DEFAULT_MODEL_TOKENS, context)
        self._max_model_tokens = max_model_tokens
        if kv_cache_bytes is None and on_cpu:
            kv_cache_bytes = _kv_cache_bytes(model_config, dtype, max_model_tokens, max_sequences)
        arguments: dict[str, Any] = {
            "model": str(model_path),
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "quantization": quantization,
            "tensor_parallel_size": tensor_parallel,
            "seed": seed,
            "max_model_len": max_model_tokens,
            "max_num_seqs": max_sequences,
            "enable_lora": True,
            "max_loras": max_adapters,
            "max_cpu_loras": max_adapters,
            "max_lora_rank": self._max_rank,
            "enable_prefix_caching": prefix_caching,
            "logprobs_mode": "processed_logprobs",
            "logits_processors": [MovesProcessor],
            # With steps in flight a processor would see the last token too late.
            "async_scheduling": False,
            "disable_log_stats": True,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_memory_bytes": kv_cache_bytes,
        }
        if on_cpu:
            arguments |= {
                "block_size": BLOCK_TOKENS,
                "enforce_eager": True,
                # vLLM rewinds the generator of a seeded request whose prompt was read in part; CPU
                # generators cannot be rewound and the engine would die.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(STEP_TOKENS, max_model_tokens),
                # vLLM's CPU kernels give rows without an adapter slot −1, which is the last one. Slots are
                # taken from the first free one on, so one more than adapters leaves the last one empty.
                "max_loras": max_adapters + 1,
                "max_cpu_loras": max_adapters + 1,
            }
        try:
            self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments))
        # An assertion fails where another process frees GPU memory while vLLM measures what is free.
        except (ValueError, RuntimeError, OSError, AssertionError) as cause:
            raise UserError(
                f"vLLM cannot serve {model_path}: {cause}",
                "Check the path, `dtype` and memory; head_dim 64 or 128 is always served.",
            ) from cause
        self._ids = itertools.count(1)
        self._adapters: dict[int, LoRARequest] = {}
        self._requests: dict[str, SampleRequest] = {}
        self._drafts: dict[str, list[Draft]] = {}
        self._parts: dict[str, tuple[str, int]] = {}
        self._move_keys: dict[LegalMoves, int] = {}
        self._move_uses: dict[LegalMoves, int] = {}
        # Several processes hold the model, and their logits processors do not share this memory.
        self._move_files = TemporaryDirectory(prefix="moves-") if tensor_parallel > 1 else None

    # ------------------------------------------------------------------------------- adapters

    def add_adapter(self, version: int, directory: Path) -> None:
        """Load ``directory`` as ``version``; see :class:`posteriori.seams.Engine`.

        Raises:
            UserError: the files cannot be served, the version is loaded already, or all slots
                are taken.
        """
        from vllm.lora.request import LoRARequest

        # vLLM would evict the least recently used one, perhaps under requests in flight.
        check_slot(version, self._adapters, self._max_adapters)
        check_adapter(directory, self._max_rank)
        # vLLM knows an adapter by name, by integer and by path in different places: all are new.
        number = next(self._ids)
        request = LoRARequest(f"version-{version}-{number}", number, str(directory))
        try:
            loaded = self._engine.add_lora(request)
        except (ValueError, RuntimeError, OSError, KeyError, AssertionError) as cause:
            self._engine.remove_lora(number)
            raise UserError(
                f"vLLM cannot serve the adapter {directory}: {cause}",
                "Check that it was trained on this model, on its attention and MLP projections.",
            ) from cause
        if not loaded:
            raise UserError(f"vLLM did not load the adapter {directory}.", "Check its files.")
        self._adapters[version] = request

    def remove_adapter(self, version: int) -> None:
        """Free a version.

        Raises:
            ValueError: requests in flight use it, or it is not loaded.
        """
        if version not in self._adapters:
            raise ValueError(f"adapter version {version} is not loaded")
        if any(request.adapter_version == version for request in self._requests.values()):
            raise ValueError(f"adapter version {version} is used by requests in flight")
        self._engine.remove_lora(self._adapters.pop(version).lora_int_id)

    @property
    def adapter_versions(self) -> tuple[int, ...]:
        """Loaded versions, ascending, without 0."""
        return tuple(sorted(self._adapters))

    # ------------------------------------------------------------------------------- requests

    def submit(self, request: SampleRequest) -> None:
        """Queue a request.

        Raises:
            UserError: prompt and longest Z exceed ``max_model_tokens``, or the prompt is empty.
            ValueError: the id is in flight or the adapter version is not loaded.
        """
        if request.id in self._requests:
            raise ValueError(f"request {request.id} is in flight already")
        if request.adapter_version and request.adapter_version not in self._adapters:
            raise ValueError(f"adapter version {request.adapter_version} is not loaded")
        tokens = len(request.prompt_ids) + max(request.moves.longest, 1)
        if not request.prompt_ids or tokens > self._max_model_tokens:
            raise UserError(
                f"The prompt has {len(request.prompt_ids)} tokens and Z up to "
                f"{request.moves.longest}; together 1 to {self._max_model_tokens} are served.",
                "Shorten the prompt, lower max_tokens or raise max_model_tokens.",
            )
        self._requests[request.id] = request
        self._retain(request.moves)
        if request.moves.tool is None:
            self._add(request, request.id, Draft(request.moves), request.n, request.seed)
            return
        self._drafts[request.id] = [Draft(request.moves) for _ in range(request.n)]
        for place in range(request.n):
            self._add_part(request, place)

    def _add_part(self, request: SampleRequest, place: int) -> None:
        """Sample one draft of a request up to its next trigger."""
        draft = self._drafts[request.id][place]
        part = f"{request.id}/{place}/{draft.actions}"
        self._parts[part] = (request.id, place)
        seed = None if request.seed is None else _spread(request.seed, place, draft.actions)
        self._add(request, part, draft, 1, seed)

    def _add(
        self, request: SampleRequest, name: str, draft: Draft, n: int, seed: int | None
    ) -> None:
        """Give vLLM a request for ``n`` continuations of ``draft``."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from actors.moves_processor import EXTRA_ARGS_KEY

        moves = request.moves
        triggers = moves.tool.triggers if moves.tool is not None else ()
        params = SamplingParams(
            n=n,
            seed=None if seed is None else _spread(seed),
            # At the cap ⊤ is certain and costs no step; a Z of no tokens takes one step for ⊤.
            max_tokens=max(moves.max_tokens - draft.actions, 1),
            stop_token_ids=[moves.stop, *triggers],
            ignore_eos=True,
            logprobs=1,
            logprob_token_ids=[moves.stop],
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={
                EXTRA_ARGS_KEY: {
                    "moves": self._move_keys[moves],
                    "moves_directory": self._move_files.name if self._move_files else "",
                    "actions": draft.actions,
                    "state": draft.state,
                    "temperature": request.behaviour.temperature,
                    "epsilon": request.behaviour.epsilon,
                }
            },
        )
        self._engine.add_request(
            name,
            {"prompt_token_ids": [*map(int, request.prompt_ids), *draft.tokens]},
            params,
            lora_request=self._adapters.get(request.adapter_version),
        )

    def cancel(self, request_id: str) -> None:
        """Drop a request; unknown ids are ignored."""
        if request_id in self._requests:
            parts = [part for part, (owner, _) in self._parts.items() if owner == request_id]
            for part in parts:
                del self._parts[part]
            self._drafts.pop(request_id, None)
            self._engine.abort_request(parts or [request_id])
            self._release(self._requests.pop(request_id).moves)

    def step(self) -> list[SampledGroup]:
        """One forward of every running sequence; the groups that finished."""
        if not self._requests:
            return []
        groups = []
        for output in self._engine.step():
            owner, place = self._parts.get(output.request_id, (output.request_id, None))
            request = self._requests.get(owner)
            if request is None or not output.finished:
                continue
            if place is None:
                drafts = [Draft(request.moves) for _ in output.outputs]
                for draft, drawn in zip(drafts, output.outputs, strict=True):
                    _extend(draft, drawn)
            else:
                del self._parts[output.request_id]
                drafts = self._drafts[owner]
                _extend(drafts[place], output.outputs[0])
                if not drafts[place].finished:
                    self._add_part(request, place)
            if all(draft.finished for draft in drafts):
                self._drafts.pop(owner, None)
                del self._requests[owner]
                self._release(request.moves)
                groups.append(SampledGroup(request, [draft.sample() for draft in drafts]))
        return groups

    @property
    def unfinished(self) -> int:
        """Requests queued or running."""
        return len(self._requests)

    def close(self) -> None:
        """Free the engine's memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        for request_id in list(self._requests):
            self.cancel(request_id)
        self._engine.engine_core.shutdown()
        del self._engine
        if self._move_files is not None:
            self._move_files.cleanup()
        gc.collect()
        cleanup_dist_env_and_memory()

    # ---------------------------------------------------------------------------- legal moves

    def _retain(self, moves: LegalMoves) -> None:
        """Let the logits processor find ``moves`` under its key while requests in flight use it."""
        from actors.behaviour import MoveTable
        from actors.moves_processor import TABLES, write_moves

        if moves not in self._move_keys:
            self._move_keys[moves] = next(self._ids)
            self._move_uses[moves] = 0
            TABLES[self._move_keys[moves]] = MoveTable(moves)
            if self._move_files is not None:
                write_moves(Path(self._move_files.name), self._move_keys[moves], moves)
        self._move_uses[moves] += 1

    def _release(self, moves: LegalMoves) -> None:
        from actors.moves_processor import TABLES

        self._move_uses[moves] -= 1
        if self._move_uses[moves] == 0:
            # A file stays: keys are never used again, and a worker may be a step behind.
            del self._move_uses[moves], TABLES[self._move_keys.pop(moves)]


def _spread(*seeds: int) -> int:
    """A 62-bit seed from small ones.

    vLLM seeds sample i of a request with ``seed + i``: neighbouring seeds would share samples.
    """
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(2))


def _extend(draft: Draft, output: CompletionOutput) -> None:
    """Take the moves vLLM drew, [steps, 2] log-probabilities of each and of ⊤, and a tool's answer.

    Raises:
        RuntimeError: vLLM ended before ⊤, a trigger or the cap.
    """
    steps = np.asarray(output.logprobs.logprobs, dtype=np.float32).reshape(-1, 2)
    answered = len(draft.spans)
    for token, (log_q, log_q_stop) in zip(output.token_ids, steps.tolist(), strict=True):
        draft.act(int(token), log_q, log_q_stop)
    if not draft.finished and len(draft.spans) == answered:
        raise RuntimeError(
            f"vLLM ended a sequence after {draft.actions} of up to {draft.moves.max_tokens} tokens: "
            f"{output.finish_reason}"
        )


def _model_config(model: str) -> Any:
    """The language model's part of a Hugging Face configuration.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as cause:
        raise UserError(
            f"Cannot read the configuration of model {model}: {cause}.", "Check the path or id."
        ) from cause


def check_parallel(config: Any, tensor_parallel: int, model: str) -> None:
    """Can this model be split over so many GPUs?

    Raises:
        UserError: its attention heads cannot.
    """
    heads = config.num_attention_heads
    if heads % tensor_parallel:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UserError(
            f"sampling.vllm.tensor_parallel is {tensor_parallel}, and {model} has {heads} attention heads, which "
            "cannot be split evenly.",
            f"Choose one of {', '.join(map(str, fitting))}.",
        )


def _kv_cache_bytes(config: Any, dtype: str, max_model_tokens: int, max_sequences: int) -> int:
    """KV memory for ``max_sequences`` of full length."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_value = 4 if dtype == "float32" else 2
    token_bytes: int = 2 * config.num_hidden_layers * heads * head_dim * bytes_per_value
    blocks = -(-max_model_tokens // BLOCK_TOKENS) * max_sequences
    return max(_MIN_KV_CACHE_BYTES, blocks * BLOCK_TOKENS * token_bytes)
