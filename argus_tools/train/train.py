"""Trains argus-nano from nothing on rendered scenes, on a CPU: a plain PyTorch loop with a wall-clock budget.

    python -m argus_tools.train.train --out runs/nano --minutes 80

One process renders ahead; `--workers` Python threads each take a part of the batch with one core of arithmetic (bf16),
and their gradients meet in the shared parameters. That needs no barrier in each operator, which is what makes it fast
where other work shares the cores. Every few minutes a checkpoint is written (started again, the same command goes on
from it) and every few steps a line of `log.jsonl`. The learning rate follows the time that is left.

With glibc, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment keep freed tensors
in the process; without them much of the time goes into zeroing pages.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from .batches import IGNORED, BatchPlan, SceneBatches, attention_pattern
from .nano import build_nano
from .tokenizer import save_tokenizer, train_tokenizer


@dataclasses.dataclass
class TrainState:
    """Everything that a step changes besides weights and optimizer: the number of steps done and what they took."""

    step: int = 0
    scenes: int = 0
    exchanges: int = 0
    seconds: float = 0.0


def batch_losses(model, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
    """The losses of a part of a batch, as shares of the whole batch's means, `totals` being `batch_totals` of that.

    batch: as `make_batch` returns it. Only positions with a label go through the output head.
    Returns "answers" (Equation 1, each token by its weight), "loss" (Equation 1 as it stands, to look at), and "cells"
    (naming, at each visual token, what lies there; 0 where the batch has no such labels).
    """
    mask = attention_pattern(batch["segments"])
    if model.config.text_config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    hidden = model.model(
        input_ids=batch["input_ids"],
        pixel_values=batch["pixel_values"],
        attention_mask=mask,
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state

    def tokens(labels):
        wanted = labels != IGNORED
        return wanted, F.cross_entropy(model.lm_head(hidden[wanted]).float(), labels[wanted], reduction="none")

    wanted, answers = tokens(batch["labels"])
    return {
        "answers": (answers * batch["weights"][wanted]).sum() / totals["weights"],
        "loss": answers.detach().sum() / totals["labels"],
        "cells": tokens(batch["cells"])[1].sum() / totals["cells"],
    }


def batch_totals(batch: dict) -> dict[str, float]:
    """What the means of `batch_losses` divide by."""
    labels, cells = (int((batch[name] != IGNORED).sum()) for name in ("labels", "cells"))
    return {"labels": labels, "weights": float(batch["weights"].sum()), "cells": max(1, cells)}


def split_batch(batch: dict, parts: int) -> list[dict]:
    """Cuts a batch by rows into at most `parts` batches; the flat tiles go with their rows."""
    rows = batch["input_ids"].shape[0]
    tiles = batch["pixel_values"].shape[0] // rows
    edges = [rows * i // parts for i in range(parts + 1)]
    spans = [(a, b) for a, b in pairwise(edges) if b > a]
    return [
        {k: v[a * tiles : b * tiles] if k == "pixel_values" else v[a:b] for k, v in batch.items()} for a, b in spans
    ]


def train_step(
    model, optimizer, batch, learning_rate, *, pool=None, workers=1, bf16=True, cell_weight=0.0, max_norm=1.0
) -> dict:
    """One optimizer step on one batch; returns {"loss", "cell_loss", "grad_norm"}; the loss is Equation 1.

    The gradients of the parts are summed: with one or two workers the order cannot change the result.
    """
    totals = batch_totals(batch)

    def part(piece):
        # Autocast is a property of the thread.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = batch_losses(model, piece, totals)
        (losses["answers"] + cell_weight * losses["cells"]).backward()
        return losses["loss"].item(), losses["cells"].item()

    pieces = split_batch(batch, workers)
    losses = list(pool.map(part, pieces)) if pool else [part(piece) for piece in pieces]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss, cells = (sum(values) for values in zip(*losses))
    return {"loss": loss, "cell_loss": cells, "grad_norm": float(norm)}


def make_optimizer(model, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=True)


def learning_rate_at(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine in `progress` (0..1 of the budget) down to 2% of the peak."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * cosine * min(1.0, (step + 1) / warmup)


def cell_weight_at(progress: float) -> float:
    """The weight of naming at the visual tokens: 1 at first, 0 from six tenths of the budget on.

    It is what makes an hour enough. Answers alone teach the vision tower through a decoder that does not look at it
    yet; a name at every visual token teaches it directly, and needs nothing that an Argus does not have.
    """
    return max(0.0, 1.0 - progress / 0.6)


CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(folder: Path, model, optimizer, state: TrainState, plan: BatchPlan) -> None:
    """Writes weights and optimizer state as tensors, `state` and `plan` as JSON in the header: whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}  # each tied weight once
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    header = {"state": json.dumps(dataclasses.asdict(state)), "plan": json.dumps(dataclasses.asdict(plan))}
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "checkpoint.tmp", header)
    os.replace(folder / "checkpoint.tmp", folder / CHECKPOINT)


def read_checkpoint(folder: Path) -> tuple[dict, dict, dict, dict] | None:
    """(weights by name, optimizer state by parameter number, state, plan) of a run's checkpoint; None without one."""
    if not (folder / CHECKPOINT).is_file():
        return None
    weights, moments = {}, {}
    with safe_open(folder / CHECKPOINT, framework="pt") as file:
        for key in file.keys():
            part, _, name = key.partition(".")
            if part == "model":
                weights[name] = file.get_tensor(key)
            else:
                number, name = name.split(".")
                moments.setdefault(int(number), {})[name] = file.get_tensor(key)
        header = file.metadata()
    return weights, moments, json.loads(header["state"]), json.loads(header["plan"])


def load_weights(model, weights: dict) -> None:
    """Copies a checkpoint's weights into the model. Raises ValueError where they are not the model's."""
    own = dict(model.named_parameters())
    if own.keys() != weights.keys():
        raise ValueError(f"the checkpoint is of another model: {sorted(own.keys() ^ weights.keys())[:5]} differ")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def load_checkpoint(folder: Path, model, optimizer) -> TrainState | None:
    """Reads a run's checkpoint into model and optimizer; None where there is none."""
    found = read_checkpoint(folder)
    if found is None:
        return None
    weights, moments, state, _ = found
    load_weights(model, weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return TrainState(**state)


def train(
    folder: Path,
    *,
    minutes: float | None = None,
    max_steps: int | None = None,
    plan: BatchPlan | None = None,
    config=None,
    peak_lr: float = 1e-3,
    warmup: int = 100,
    workers: int = 2,
    bf16: bool = True,
    loader_processes: int = 1,
    checkpoint_seconds: float = 240.0,
    log_every: int = 20,
    stop_after: int | None = None,
) -> TrainState:
    """Trains until the budget of `minutes` (earlier runs of the same folder counted in) or of `max_steps` is spent.

    stop_after: stop this call early, after so many of its own steps, as an interruption would.
    Raises ValueError without a budget.
    """
    if minutes is None and max_steps is None:
        raise ValueError("say how long to train: minutes, max_steps or both")
    folder, plan = Path(folder), plan or BatchPlan()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(num_location_bins=plan.bins)
    save_tokenizer(tokenizer, folder)
    model = build_nano(tokenizer, config, seed=plan.seed)
    model.config.save_pretrained(folder)
    # Eager: at this size on a CPU, batched matrix products beat the fused kernel's backward by a quarter.
    model.set_attn_implementation("eager")
    model.train()
    plan = dataclasses.replace(
        plan, tile_size=model.config.vision_config.image_size, tokens_per_tile=model.config.image_seq_length
    )
    optimizer = make_optimizer(model)
    state = load_checkpoint(folder, model, optimizer) or TrainState()
    settings = {"minutes": minutes, "max_steps": max_steps, "peak_lr": peak_lr, "warmup": warmup, "bf16": bf16}
    (folder / "run.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    batches = SceneBatches(plan, tokenizer, state.step, 10**7 if max_steps is None else max(0, max_steps - state.step))
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=loader_processes, prefetch_factor=8 if loader_processes else None
    )
    pool = ThreadPoolExecutor(workers) if workers > 1 else None
    last = saved = time.monotonic()
    losses: list[float] = []
    for done, batch in enumerate(loader):
        progress = max(state.seconds / (minutes * 60) if minutes else 0.0, state.step / max_steps if max_steps else 0.0)
        if progress >= 1 or done == stop_after:
            break
        rate = learning_rate_at(progress, state.step, peak_lr, warmup)
        weight = cell_weight_at(progress)
        result = train_step(model, optimizer, batch, rate, pool=pool, workers=workers, bf16=bf16, cell_weight=weight)
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        state.step += 1
        state.scenes += batch["input_ids"].shape[0]
        state.exchanges += int(batch["segments"].amax(1).sum())
        losses.append(result["loss"])
        if state.step % log_every == 0:
            line = {
                **dataclasses.asdict(state),
                "loss": sum(losses) / len(losses),
                "cell_loss": result["cell_loss"],
                "cell_weight": weight,
                "lr": rate,
                "grad_norm": result["grad_norm"],
            }
            losses.clear()
            with (folder / "log.jsonl").open("a") as log:
                log.write(
                    json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}) + "\n"
                )
        if now - saved > checkpoint_seconds:
            save_checkpoint(folder, model, optimizer, state, plan)
            saved = now
    save_checkpoint(folder, model, optimizer, state, plan)
    if pool:
        pool.shutdown()
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; started again, the run goes on")
    parser.add_argument("--minutes", type=float, help="stop after so much training time")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--batch", type=int, default=16, help="scenes a step, seven exchanges about each")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="threads of arithmetic")
    parser.add_argument("--multi-tile-every", type=int, default=10, help="every n-th batch has several tiles (0: none)")
    parser.add_argument("--multi-tile-from", type=int, default=3000, help="from this step on")
    parser.add_argument(
        "--curriculum",
        default="0:2,600:3,1500:5",
        help="STEP:COUNT,...: from that step on, scenes hold at most so many objects",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # the workers are the parallelism
    plan = BatchPlan(
        scenes=args.batch,
        seed=args.seed,
        multi_tile_every=args.multi_tile_every,
        multi_tile_from=args.multi_tile_from,
        curriculum=tuple(tuple(int(n) for n in stage.split(":")) for stage in args.curriculum.split(",")),
    )
    state = train(
        args.out, minutes=args.minutes, max_steps=args.max_steps, plan=plan, peak_lr=args.lr, workers=args.workers
    )
    print(json.dumps(dataclasses.asdict(state)))


if __name__ == "__main__":
    main()
