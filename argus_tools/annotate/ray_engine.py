"""`--engine ray`: the same run on the machines of a Ray cluster, by Ray Data.

Ray's tasks read, decode and tile; actors hold the model; rows come back here and are kept as those of the local
engine. What is lost with a machine or a process is tried once more, image by image, and then is a row with an error.
All machines need this package and see the inputs and the model under the same names.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, astuple, replace

from ..cli_support import CommandError, one_line
from .annotator import Annotator, Request
from .feeding import tasks
from .items import Item
from .preparing import Prepared, build_image_processor, image_processor_recipe, prepare
from .schema import row

ITEMS_AT_ONCE = 16  # consecutive ones, so that a table or a compressed tar is opened once for so many
MAX_FALSE_STARTS = 3  # of actors, one after the other; without it, one that is lost while it begins ends the run


def annotate_on_ray(items: list[Item], request: Request, job) -> Iterator[list[dict]]:
    """Rows of these items, as they come.

    Raises:
        CommandError: Ray is not installed, the model cannot be loaded or fails as a whole, a machine cannot decode,
            actors cannot begin, or nothing at all came back.
    """
    if os.path.isdir(request.model):
        request = replace(request, model=os.path.abspath(request.model))
    with _cluster(job.actors, job.debug) as ray, _Losses() as losses:
        left = {item.id: _placed(item) for item in items}
        for at_once in (ITEMS_AT_ONCE, 1):
            for rows in _pass(ray, list(left.values()), request, job, at_once) if left else ():
                yield [each for each in rows if left.pop(each["id"], None) is not None]
    if len(left) == len(items):
        advice = "all machines need this package with what it needs; --debug shows what Ray says"
        raise CommandError(f"Ray lost all of {len(items)} images, each twice{losses.last}: {advice}")
    lost = f"the process that it was given to was lost twice{losses.last}"
    yield [row(Prepared(item.id, item.source, item.key, error=lost), request.task, None) for item in left.values()]


class _Losses(logging.Handler):
    """Hears why Ray Data lost something: it goes on without, and says so in its log alone. `last` is the latest."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.last = ""

    def __enter__(self):
        logging.getLogger("ray.data").addHandler(self)
        return self

    def __exit__(self, *exception):
        logging.getLogger("ray.data").removeHandler(self)

    def emit(self, record):
        if record.exc_info and record.exc_info[1] is not None:
            self.last = f" (the last loss: {_reason(record.exc_info[1])})"


def _reason(error: BaseException) -> str:
    """Ray's errors hold a traceback of the other process, with its own error at the end, or a sentence and advice."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1] if "Traceback" in str(error) or "ray::" in lines[0] else lines[0]
    return f"{type(error).__name__}: {one_line(RuntimeError(line))}"


def _placed(item: Item) -> Item:
    """With a whole path: a cluster that was there before works in a folder of its own."""
    return replace(item, path=os.path.abspath(item.path)) if item.path and item.kind != "url" else item


def _pass(ray, items: list[Item], request: Request, job, at_once: int) -> Iterator[list[dict]]:
    """Items to tiles, in tasks; tiles to rows, in actors."""
    groups = [json.dumps([astuple(item) for item in group]) for group in _groups(items, at_once)]
    has_gpu = request.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) > 0
    rows = (
        ray.data.from_items([{"items": group} for group in groups], override_num_blocks=min(len(groups), 4096))
        # An option that the actors have not keeps Ray from fusing both: decoding would wait for the model.
        .map_batches(
            decode,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(_recipe(request), request.image_options),
            max_retries=1,
        )
        .map_batches(
            RayAnnotator,
            batch_size=request.batch_size,
            batch_format="pyarrow",
            fn_constructor_args=(asdict(request), job.debug),
            compute=ray.data.ActorPoolStrategy(size=job.actors),
            num_gpus=1 if has_gpu else 0,
        )
    )
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            told = [json.loads(text) for text in batch["row"].to_pylist()]
            if fatal := next((each["fatal"] for each in told if "fatal" in each), None):
                raise CommandError(fatal)
            yield told
    except ray.exceptions.RayError as error:
        raise CommandError(f"Ray cannot go on: {_reason(error)}; --debug shows what it says") from error


def _groups(items: list[Item], at_once: int) -> Iterator[list[Item]]:
    """Consecutive items that one task reads; all that a compressed tar holds, as it has to be read from its start."""
    for packed, run in itertools.groupby(items, key=lambda item: item.path if item.kind == "packed" else None):
        run = list(run)
        size = len(run) if packed and at_once > 1 else at_once
        yield from (run[i : i + size] for i in range(0, len(run), size))


def decode(table, recipe: str, options: dict) -> Iterator:
    """pyarrow Table of groups of items -> one of each image: its values as JSON, its tiles' bytes. A machine that
    cannot decode at all says so in place of them."""
    import pyarrow as pa

    try:
        import torch

        torch.set_num_threads(1)
        image_processor = build_image_processor(recipe)
    except Exception as error:
        fatal = {"fatal": f"a machine of the cluster cannot decode: {type(error).__name__}: {one_line(error)}"}
        yield pa.table({"told": [json.dumps(fatal)], "tiles": pa.array([b""], pa.large_binary())})
        return
    for group in table["items"].to_pylist():
        for task in tasks(Item(*values) for values in json.loads(group)):
            image = prepare(task, image_processor, options)
            told = {name: getattr(image, name) for name in ("id", "source", "key", "metadata", "size", "error")}
            tiles, image.tiles = image.tiles, None
            if tiles is not None:
                told |= {"shape": tiles.shape, "dtype": str(tiles.dtype)}
            content = b"" if tiles is None else tiles.tobytes()
            yield pa.table({"told": [json.dumps(told)], "tiles": pa.array([content], pa.large_binary())})


class RayAnnotator:
    """The actor: a model, loaded once. What fails as a whole is told in a row: lost blocks are not looked into."""

    def __init__(self, request: dict, debug: bool):
        self.annotator = self.failure = None
        try:
            self.annotator = Annotator(Request(**request), debug)
        except Exception as error:
            self.failure = one_line(error)

    def __call__(self, table):
        import numpy as np
        import pyarrow as pa

        images = []
        for text, content in zip(table["told"].to_pylist(), table["tiles"].to_pylist()):
            told = json.loads(text)
            if "fatal" in told:
                return pa.table({"row": [text]})
            shape, dtype = told.pop("shape", None), told.pop("dtype", None)
            tiles = None if shape is None else np.frombuffer(bytearray(content), dtype).reshape(shape)
            images.append(Prepared(**{**told, "size": told["size"] and tuple(told["size"])}, tiles=tiles))
        try:
            rows = [{"fatal": self.failure}] if self.failure else self.annotator.all(images)
        except Exception as error:
            rows = [{"fatal": f"{type(error).__name__}: {one_line(error)}"}]
        return pa.table({"row": [json.dumps(each) for each in rows]})


def _recipe(request: Request) -> str:
    if request.trust_remote_code:
        return image_processor_recipe(None, request.model)
    from processing_argus import ArgusProcessor

    try:
        return image_processor_recipe(ArgusProcessor.from_pretrained(request.model).image_processor)
    except Exception as error:  # damaged files raise many kinds
        raise CommandError(f"the processor in {request.model} could not be loaded: {one_line(error)}") from error


@contextlib.contextmanager
def _cluster(actors: int, debug: bool):
    """Ray with a cluster: that which RAY_ADDRESS names or which runs here, else one of its own for the meantime."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers of every cluster otherwise
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CommandError('--engine ray needs Ray Data: pip install "ray[data]"') from error
    mine = not ray.is_initialized()
    if mine:
        handler = signal.getsignal(signal.SIGTERM)
        options = {"log_to_driver": debug, "logging_level": "info" if debug else "error"}
        try:
            ray.init(num_cpus=max(os.cpu_count() or 1, actors + 1), **options)  # a place besides them, to decode
        except ValueError:  # there is a cluster, which has its own numbers
            ray.init(**options)
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
    context = ray.data.DataContext.get_current()
    ours = {"max_errored_blocks": -1, "enable_progress_bars": debug}  # what is lost is asked for again
    if hasattr(context, "max_consecutive_actor_init_deaths"):  # not in older ones
        ours["max_consecutive_actor_init_deaths"] = MAX_FALSE_STARTS
    before = {name: getattr(context, name) for name in ours}
    for name, value in ours.items():
        setattr(context, name, value)
    try:
        yield ray
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        if mine:
            ray.shutdown()
