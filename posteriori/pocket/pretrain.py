"""Pre-train pocket from nothing: ``python -m posteriori.pocket.pretrain --recipe pocket --out
DIR``.

Left out on purpose: data loading workers, distributed training, dropout and gradient accumulation.
The text is written once, as rows of token ids; step s reads rows s·batch onwards and never one
twice. So a run that is killed and started again goes on from its last checkpoint exactly as if
nothing had happened.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from posteriori.pocket.corpus import documents
from posteriori.pocket.recipe import RECIPES, Recipe
from posteriori.pocket.tokenizer import save_tokenizer

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.uint16]

#: Seed of the held-out text; training seeds are small numbers.
HELD_OUT_SEED: Final = 900_001
HELD_OUT_ROWS: Final = 64
#: Loss that each point of the curve averages.
CURVE_STEPS: Final = 20


def pack_rows(tokenizer: PreTrainedTokenizerBase, seed: int, rows: int, row_tokens: int) -> Rows:
    """Token ids [rows, row_tokens]; every row begins with a document and cuts its last one off."""
    packed = np.empty((rows, row_tokens), dtype=np.uint16)
    stream = documents(seed)
    filled, row = 0, 0
    while row < rows:
        texts = [document.text for document in islice(stream, 512)]
        for ids in tokenizer(texts, return_attention_mask=False)["input_ids"]:
            document_ids = [*ids, tokenizer.eos_token_id][: row_tokens - filled]
            packed[row, filled : filled + len(document_ids)] = document_ids
            filled += len(document_ids)
            if filled == row_tokens:
                filled, row = 0, row + 1
                if row == rows:
                    break
    return packed


def document_inputs(ids: torch.Tensor, bos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [rows, tokens] and mask [rows, 1, tokens, tokens] that keep packed documents apart.

    Positions count from each `bos`; a token sees its own document up to itself, as it will when it
    is used. Without this the words of five other stories compete for every reference, and the model
    takes several times as many steps to learn who a story is about.
    """
    starts = ids == bos
    place = torch.arange(ids.shape[1], device=ids.device)
    positions = place - torch.where(starts, place, 0).cummax(dim=1).values
    document = starts.cumsum(dim=1)
    same = document[:, :, None] == document[:, None, :]
    return positions, (same & (place[:, None] >= place[None, :]))[:, None]


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of the tokens of packed documents but BOS; ids [rows, tokens]."""
    bos = model.config.bos_token_id
    positions, mask = document_inputs(ids[:, :-1], bos)
    logits = model(input_ids=ids[:, :-1], position_ids=positions, attention_mask=mask).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == bos, -100)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def held_out_loss(model: LlamaForCausalLM, rows: Rows, batch_rows: int = 16) -> float:
    """Mean loss in nats per token over `rows`."""
    device = model.device
    model.eval()
    with torch.no_grad():
        losses = [
            float(
                next_token_loss(
                    model, torch.from_numpy(rows[i : i + batch_rows].astype(np.int64)).to(device)
                )
            )
            for i in range(0, len(rows), batch_rows)
        ]
    model.train()
    return float(np.mean(losses))


def pretrain(
    recipe: Recipe,
    out_dir: Path,
    *,
    work_dir: Path | None = None,
    device: str = "cpu",
    start_from: Path | None = None,
    stop_after_steps: int | None = None,
) -> dict[str, Any]:
    """Train `recipe`, or go on with a run that `work_dir` holds, and write a loadable model into
    `out_dir`.

    `start_from` names a directory of pocket weights to begin with instead of from nothing (same
    shape and tokenizer); its ``curve.json`` then stands under ``before`` in the new one.
    `work_dir` (default ``out_dir/state``) keeps the packed text and the last checkpoint. At every
    checkpoint `out_dir` gets the model as it is, with its tokenizer and ``curve.json``.
    `stop_after_steps` ends this call early, as a kill would. Returns the content of ``curve.json``:
    losses in nats per token by step, seconds, and once the run is finished the held-out loss and
    perplexity. ValueError if `work_dir` belongs to another recipe.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    work_dir = work_dir or out_dir / "state"
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out_dir)
    rows = _cached_rows(work_dir / "rows.npy", tokenizer, recipe)

    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(recipe.model_config(tokenizer)).to(device)
    report: dict[str, Any] = {"recipe": recipe.name, "curve": [], "seconds": 0.0}
    if start_from:
        earlier = LlamaForCausalLM.from_pretrained(str(start_from), dtype=torch.float32)
        model.load_state_dict(earlier.state_dict())
        report["before"] = json.loads((start_from / "curve.json").read_text())
    model.train()
    optimizer = _optimizer(model, recipe)
    step = _restore(work_dir / "checkpoint.pt", recipe, model, optimizer, report)

    last = min(
        recipe.steps, step + stop_after_steps if stop_after_steps is not None else recipe.steps
    )
    recent: list[float] = []
    before, mark = report["seconds"], time.monotonic()
    while step < last:
        batch = rows[step * recipe.batch_rows : (step + 1) * recipe.batch_rows].astype(np.int64)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        with torch.autocast(
            torch.device(device).type, dtype=torch.bfloat16, enabled=recipe.dtype == "bfloat16"
        ):
            loss = next_token_loss(model, torch.from_numpy(batch).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        step += 1
        recent.append(float(loss.detach()))
        if len(recent) == CURVE_STEPS or step == last:
            report["curve"].append([step, round(float(np.mean(recent)), 4)])
            report["seconds"] = round(before + time.monotonic() - mark, 1)
            log.info("step %d loss %.4f %.0f s", *report["curve"][-1], report["seconds"])
            recent.clear()
        if step % recipe.checkpoint_steps == 0 or step == last:
            if step == recipe.steps:
                held_out = pack_rows(tokenizer, HELD_OUT_SEED, HELD_OUT_ROWS, recipe.row_tokens)
                report["held_out_loss"] = round(held_out_loss(model, held_out), 4)
                report["held_out_perplexity"] = round(float(np.exp(report["held_out_loss"])), 4)
            _checkpoint(work_dir / "checkpoint.pt", recipe, model, optimizer, report, step)
            _export(model, report, out_dir)
    return report


def _tokenizer(out_dir: Path) -> PreTrainedTokenizerBase:
    if not (out_dir / "tokenizer.json").exists():
        save_tokenizer(out_dir)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(out_dir))
    return tokenizer


def _cached_rows(path: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Rows:
    wanted = (recipe.steps * recipe.batch_rows, recipe.row_tokens)
    if path.exists():
        cached: Rows = np.load(path, mmap_mode="r")
        if cached.shape[1:] == wanted[1:] and len(cached) >= wanted[0]:
            return cached
    rows = pack_rows(tokenizer, recipe.seed, *wanted)
    np.save(path, rows)
    return rows


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)


def _restore(
    path: Path,
    recipe: Recipe,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    report: dict[str, Any],
) -> int:
    """Load a checkpoint if there is one; returns the number of steps done."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=model.device, weights_only=True)
    begun, done = Recipe.from_json(state["recipe"]), int(state["step"])
    if not recipe.goes_on(begun, done):
        raise ValueError(
            f"{path} belongs to another recipe, {begun}; give another directory or remove it"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    report.update(json.loads(state["report"]))
    return done


def _checkpoint(
    path: Path,
    recipe: Recipe,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    report: dict[str, Any],
    step: int,
) -> None:
    state = {
        "recipe": recipe.as_json(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "report": json.dumps(report),
        "step": step,
    }
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    os.replace(fresh, path)


def _export(model: LlamaForCausalLM, report: dict[str, Any], out_dir: Path) -> None:
    """Write model and curve aside, then move them in: readers never see half a file."""
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        model.save_pretrained(folder)
        (Path(folder) / "curve.json").write_text(json.dumps(report) + "\n")
        for file in Path(folder).iterdir():
            file.chmod(0o644)
            os.replace(file, out_dir / file.name)


def main() -> None:
    """Command line: train or go on with a recipe."""
    parser = argparse.ArgumentParser(
        description="Pre-train pocket; an interrupted run goes on where it was."
    )
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="pocket")
    parser.add_argument("--out", type=Path, required=True, help="directory of the finished model")
    parser.add_argument(
        "--work", type=Path, help="directory of text and checkpoint (default OUT/state)"
    )
    parser.add_argument(
        "--start-from", type=Path, help="directory of weights to begin with instead of from nothing"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    report = pretrain(
        RECIPES[arguments.recipe],
        arguments.out,
        work_dir=arguments.work,
        device=arguments.device,
        start_from=arguments.start_from,
    )
    sys.stdout.write(json.dumps({k: v for k, v in report.items() if k != "curve"}) + "\n")


if __name__ == "__main__":
    main()
