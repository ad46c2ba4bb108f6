"""One run: list, skip what is done, annotate, keep. Both engines give rows, this keeps them and shows how far it is."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..cli_support import CommandError, progress_bar
from .annotator import NO_MEMORY, Annotator, Request
from .batching import BatchBuffer
from .feeding import tasks
from .inputs import list_items
from .items import Item, in_shard
from .manifest import claim, located, lock
from .shards import ShardWriter, write_whole
from .workers import WorkerPool, default_workers


@dataclass(frozen=True)
class Job:
    """Where images come from and rows go. `inputs` as typed; `model` is what tells the model from others."""

    inputs: tuple[str, ...]
    out: Path
    model: dict
    file_format: str = "jsonl"
    rows_per_file: int = 1000
    shard: int = 0
    num_shards: int = 1
    image_column: str | None = None
    workers: int | None = None
    engine: str = "local"
    actors: int = 1
    restart: bool = False
    retry_failed: bool = False
    debug: bool = False

    def command(self, request: Request) -> dict:
        """What another run into the same folder must have in common with this one."""
        options = ("prompt", "max_tiles", "max_upscale", "max_new_tokens", "dtype", "trust_remote_code")
        return {
            "task": request.task,
            "words": list(request.words),
            "inputs": list(self.inputs),
            "located": located(self.inputs),
            "image_column": self.image_column,
            "model": self.model,
            "options": {name: getattr(request, name) for name in options},
            "format": self.file_format,
            "num_shards": self.num_shards,
        }


def annotate(job: Job, request: Request) -> dict:
    """Annotates all images of the job that have no row yet.

    Returns:
        {"images": of this shard, "failed": of these, those with an error, "new": rows made now, "seconds": of making
        them, "files": finished ones of this shard, "passed_by": {suffix: files in which no image was found}}.

    Raises:
        CommandError: inputs that hold no image, a folder of another command, a model that cannot be loaded, ...
        KeyboardInterrupt, SystemExit: interrupted; what is complete is kept, and the same command goes on.
    """
    passed_by: Counter = Counter()
    items = list_items(list(job.inputs), job.image_column, leave_out=str(job.out), passed_by=passed_by)
    items = [item for item in items if in_shard(item.id, job.shard, job.num_shards)]
    name = f"{job.shard:05d}-of-{job.num_shards:05d}"
    with lock(job.out, f"shard-{name}"):
        claim(job.out, job.command(request), job.restart, holding=f"shard-{name}")
        about = {"argus_annotate": json.dumps(job.command(request))}
        writer = ShardWriter(
            job.out, request.task, job.file_format, job.shard, job.num_shards, job.rows_per_file, about
        )
        summary = job.out / f"summary-{name}.json"
        if job.retry_failed and writer.failed:
            summary.unlink(missing_ok=True)
            writer.forget_failed()
        waiting = [item for item in items if item.id not in writer.done]
        seconds = 0.0
        if waiting:
            summary.unlink(missing_ok=True)
            seconds = _annotate(waiting, len(items), writer, job, request)
        writer.finish()
        counts = {"images": len(items), "failed": sum(item.id in writer.failed for item in items)}
        text = json.dumps({"shard": job.shard, "num_shards": job.num_shards, **counts}, indent=2) + "\n"
        write_whole(summary, lambda file: file.write_text(text, encoding="utf-8"))
    made = {"new": len(waiting), "seconds": round(seconds, 3), "files": len(writer.parts())}
    return {**counts, **made, "passed_by": dict(passed_by.most_common())}


def _annotate(waiting: list[Item], total: int, writer: ShardWriter, job: Job, request: Request) -> float:
    """Rows for these items. However it ends, what is complete is in finished files. Gives seconds, without loading."""
    if job.engine == "ray":
        from .ray_engine import annotate_on_ray

        batches = annotate_on_ray(waiting, request, job)
    else:
        batches = _local(waiting, request, job)
    done, failed, begun = total - len(waiting), 0, time.monotonic()
    try:
        with progress_bar(total, "annotate", "image") as bar:
            bar.initial = bar.n = done  # the rate is that of this run
            for rows in behind_an_answer(batches, answered=len(writer.done) > len(writer.failed)):
                writer.add(rows)
                done += len(rows)
                failed += sum(row["error"] is not None for row in rows)
                if failed:
                    bar.set_postfix(failed=failed, refresh=False)
                bar.update(len(rows))
        return time.monotonic() - begun
    except (KeyboardInterrupt, SystemExit):
        print(f"argus: {done} of {total} images are in {job.out}; the same command goes on", file=sys.stderr)
        raise
    finally:
        batches.close()
        writer.finish()


def behind_an_answer(batches: Iterable[list[dict]], answered: bool) -> Iterator[list[dict]]:
    """These batches, with the rows of images that did not fit into memory held back until some image was answered:
    where none ever is, it is the command that is wrong, and not the images.

    Raises:
        CommandError: memory suffices for no image at all.
    """
    held = []
    for rows in batches:
        answered = answered or any(row["error"] is None for row in rows)
        if answered:
            rows, held = held + rows, []
        else:
            held += [row for row in rows if NO_MEMORY in row["error"]]
            rows = [row for row in rows if NO_MEMORY not in row["error"]]
        yield rows
    if held:
        advice = "take a smaller --max-tiles or --max-upscale, or --dtype bfloat16"
        raise CommandError(f"there is not enough memory for a single image: {advice}")


def _local(waiting: list[Item], request: Request, job: Job) -> Iterator[list[dict]]:
    """Rows, a batch at a time: images are decoded in worker processes while the model, loaded now, runs in this one."""
    annotator = Annotator(request, job.debug)
    return _batches(annotator, waiting, request, job)


def _batches(annotator: Annotator, waiting: list[Item], request: Request, job: Job) -> Iterator[list[dict]]:
    buffer = BatchBuffer(request.batch_size, request.batch_tiles)
    count = min(job.workers or default_workers(), len(waiting))
    with WorkerPool(tasks(waiting), buffer, count, annotator.recipe, request.image_options) as pool:
        while (batch := buffer.take()) is not None:
            pool.wake()
            yield annotator(batch)


def unfinished_shards(folder: Path, num_shards: int) -> list[int]:
    """The shards that have not been annotated to the end."""
    names = {number: f"summary-{number:05d}-of-{num_shards:05d}.json" for number in range(num_shards)}
    return [number for number, name in names.items() if not (folder / name).is_file()]
