"""The model of an `argus annotate`: batches of prepared images in, rows out. The same here and in an actor of Ray.

Tiles go through vision once, all of a batch together, and stand for their images in the model's own task calls: several
questions about an image read it once.
"""

from dataclasses import dataclass

from .. import cli_models
from ..cli_support import CommandError, one_line, quiet_transformers
from .batching import cut_batches
from .preparing import Prepared, image_processor_recipe
from .schema import TEXT_COLUMNS, plain_regions, row

NO_MEMORY = "has not enough memory"  # in the error of an image that does not fit


@dataclass(frozen=True)
class Request:
    """What is asked, and of which model; plain values, so that it crosses to other machines.

    Attributes:
        model: as `cli_models.check_model` gave it.
        words: the questions or phrases.
        batch_size, batch_tiles: images and tiles of a batch at most.
    """

    task: str
    model: str
    trust_remote_code: bool = False
    device: str = "auto"
    dtype: str = "auto"
    words: tuple[str, ...] = ()
    prompt: str | None = None
    max_tiles: int | None = None
    max_upscale: float | None = None
    max_new_tokens: int | None = None
    batch_size: int = 32
    batch_tiles: int = 64

    @property
    def image_options(self) -> dict:
        """The image processor's options that were given."""
        options = {"max_tiles": self.max_tiles, "max_upscale": self.max_upscale}
        return {name: value for name, value in options.items() if value is not None}


class Annotator:
    """A loaded model. Raises CommandError where it cannot be loaded, ValueError where it cannot write the task's boxes
    or an option is out of range.

    `recipe` is how other processes make its image processor.
    """

    def __init__(self, request: Request, debug: bool = False):
        self.request, self.debug = request, debug
        with quiet_transformers(debug):
            device = cli_models.read_device(request.device)
            self.model, self.processor = cli_models.load(
                request.model, device, request.dtype, request.trust_remote_code
            )
            if request.task in TEXT_COLUMNS:
                _ = self.processor.locations  # a model that cannot write boxes says so before an image is read
        maker = self.processor.image_processor
        maker.get_tile_grid(64, 64, **request.image_options)  # what is wrong with them is wrong with every image
        trusted = request.model if request.trust_remote_code else None
        self.recipe = image_processor_recipe(maker, trusted)

    def __call__(self, batch: list[Prepared]) -> list[dict]:
        """Rows of one batch. Where memory does not suffice for it, of its halves; where it does not for a single image,
        a row whose error says NO_MEMORY.

        Raises:
            CommandError: the model's chat template fails.
        """
        images = [image for image in batch if image.error is None]
        rows = [row(image, self.request.task, None) for image in batch if image.error is not None]
        return rows + (self._rows(images) if images else [])

    def all(self, images: list[Prepared]) -> list[dict]:
        """Rows of any number of images, cut into batches of like tile counts."""
        batches = cut_batches(images, self.request.batch_size, self.request.batch_tiles)
        return [each for batch in batches for each in self(batch)]

    def _rows(self, images: list[Prepared]) -> list[dict]:
        import torch
        from jinja2 import TemplateError

        try:
            with quiet_transformers(self.debug):
                answers = self._answers(images)
            return [row(image, self.request.task, answer) for image, answer in zip(images, answers)]
        except torch.OutOfMemoryError:
            message = f"{self.model.device} {NO_MEMORY} for its {images[0].num_tiles} tiles"
        except TemplateError as error:
            template = f"the chat template (chat_template.jinja) of {self.request.model} fails"
            raise CommandError(f"{template}: {one_line(error)}") from error
        # Behind the handler, whose traceback held the tensors.
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(images) == 1:
            images[0].error = message
            return [row(images[0], self.request.task, None)]
        half = len(images) // 2
        return self._rows(images[:half]) + self._rows(images[half:])

    def _answers(self, images: list[Prepared]) -> list[dict]:
        request, model = self.request, self.model
        options = {"processor": self.processor, "batch_size": len(images), "do_sample": False}
        if request.max_new_tokens is not None:
            options["max_new_tokens"] = request.max_new_tokens
        encoded = self._encode(images)
        if request.task == "caption":
            return [{"caption": text} for text in model.caption(encoded, prompt=request.prompt, **options)]
        if request.task == "ask":
            count = len(request.words)
            shown = [image for image in encoded for _ in request.words]
            answers = model.answer(shown, list(request.words) * len(encoded), **options)
            parts = [answers[i : i + count] for i in range(0, len(answers), count)]
            return [{"questions": list(request.words), "answers": part} for part in parts]
        if request.task == "detect":
            found = model.detect(encoded, list(request.words), **options)
        else:
            found = model.dense_caption(encoded, **options)
        return [plain_regions(each, TEXT_COLUMNS[request.task]) for each in found]

    def _encode(self, images: list[Prepared]) -> list:
        """Vision and connector, once for all tiles: an EncodedImage of each image."""
        import numpy as np
        import torch

        from modeling_argus.encoded_argus import EncodedImage, sent
        from modeling_argus.prefix_argus import GEOMETRY

        maker, model = self.processor.image_processor, self.model
        options = {**{name: getattr(maker, name) for name in GEOMETRY}, **self.request.image_options}
        pixels = sent(torch.from_numpy(np.concatenate([image.tiles for image in images])), model.device)
        with torch.no_grad():
            features = model.get_image_features(pixels, return_dict=True).pooler_output.to(model.dtype)
        parts = features.split([image.num_tiles for image in images])
        return [EncodedImage(part.clone(), image.size, options) for part, image in zip(parts, images)]
