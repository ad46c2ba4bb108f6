"""`argus caption`, `ask`, `detect` and `dense-caption`: images in, one result for each out, as they come.

Whatever can be wrong with the command is found before the model is loaded. Images are then read, a batch at a time,
once each: the same pixels go to the model and under the drawn boxes, and are encoded once for all questions about them.
"""

import argparse
import math
import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from . import cli_models
from .cli_support import (
    CommandError,
    json_line,
    one_line,
    printable,
    progress_bar,
    quiet_transformers,
    same_file,
    say,
    whole_file,
)

TEXT_KEYS = {"detect": "labels", "dense-caption": "captions"}


def run(arguments: argparse.Namespace) -> None:
    """One of the four commands. Raises CommandError, ValueError or OSError for bad input."""
    images, words = split_words(arguments)
    for text in [*words, getattr(arguments, "prompt", None) or ""]:
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python holds bytes that are no UTF-8
            raise CommandError(f"{text!a} is not UTF-8 text")
    check_images(images)
    questions = words if arguments.command == "ask" else [None]
    if arguments.stream and arguments.json:
        raise CommandError("--stream and --json exclude each other: an object is printed when it is whole")
    if arguments.stream and len(images) * len(questions) > 1:
        raise CommandError("--stream shows one answer: give one image and one question")
    name = cli_models.check_model(arguments.model, arguments.trust_remote_code)
    drawings = drawing_paths(arguments.draw, images) if arguments.draw is not None else None
    several = len(images) > 1, len(questions) > 1

    import torch
    from jinja2 import TemplateError

    with quiet_transformers(arguments.debug):
        device = cli_models.read_device(arguments.device)
        model, processor = cli_models.load(name, device, arguments.dtype, arguments.trust_remote_code)
        if arguments.command in TEXT_KEYS:
            _ = processor.locations  # a model that cannot write boxes says so before an image is read
        with progress_bar(len(images), arguments.command, "image") as bar:
            for start in range(0, len(images), arguments.batch_size):
                batch = images[start : start + arguments.batch_size]
                pixels = [_load_image(image) for image in batch]
                try:
                    results = _results(model, processor, pixels, words, arguments)
                except torch.OutOfMemoryError as error:
                    advice = "take a smaller --batch-size, --max-tiles or --max-upscale, or --dtype bfloat16"
                    raise CommandError(f"{device} has not enough memory: {advice}") from error
                except TemplateError as error:
                    raise CommandError(
                        f"the chat template (chat_template.jinja) of {name} fails: {one_line(error)}"
                    ) from error
                for i, image in enumerate(batch):
                    drawing = drawings[start + i] if drawings is not None else None
                    for result in results[i]:
                        _show(image, pixels[i], result, drawing, several, arguments)
                    bar.update()


# --- what was typed ---------------------------------------------------------------------------------------------------


def split_words(arguments) -> tuple[list[str], list[str]]:
    """Positional arguments -> (images, questions or phrases). Raises CommandError where one of them is missing."""
    given = arguments.images
    if arguments.command == "ask":
        words = arguments.questions
        if words is None:
            given, words = given[:-1], given[-1:]
        missing = "the question is missing: `argus ask IMAGE QUESTION`, or -q QUESTION after the images"
    elif arguments.command == "detect":
        words = arguments.phrases
        if words is None:
            given, words = given[:1], given[1:]
        missing = "what to look for is missing: `argus detect IMAGE PHRASE...`, or -p PHRASE after the images"
    else:
        return given, []
    option = arguments.questions if arguments.command == "ask" else arguments.phrases
    if not given or not words or (option is None and any(os.path.isfile(word) for word in words)):
        raise CommandError(missing)
    if not all(word.strip() for word in words):
        raise CommandError(f"{'a question' if arguments.command == 'ask' else 'a phrase'} is empty")
    return given, words


def is_url(image: str) -> bool:
    """Whether it is fetched or decoded rather than opened."""
    return image.startswith(("http://", "https://", "data:"))


def check_images(images: list[str]) -> None:
    """Refuses, before anything slow, files that are not there or that Pillow does not know."""
    from PIL import Image, UnidentifiedImageError

    for image in images:
        if is_url(image):
            continue
        if not os.path.isfile(image):
            raise CommandError(f"{image}: {'a folder, not an image' if os.path.isdir(image) else 'no such file'}")
        try:
            with Image.open(image):
                pass
        except UnidentifiedImageError as error:
            raise CommandError(f"{image}: not an image that can be read") from error
        except Exception as error:  # too large, damaged, not readable
            raise CommandError(f"{image}: {one_line(error)}") from error


def drawing_paths(out: str, images: list[str]) -> list[Path]:
    """Where each image's drawing goes.

    `out` is a file's name, with {stem} for the image's own name without suffix, or a folder (an existing one, or a
    name that ends in a slash), where drawings are named {stem}.png.

    Raises:
        CommandError: several images and one name, two images with one stem, a suffix of no format that is written, a
            place that cannot be written, an input that would be overwritten.
    """
    from .draw import drawable_suffix

    is_folder = os.path.isdir(out) or out.endswith(("/", os.sep))
    pattern = os.path.join(out, "{stem}.png") if is_folder else out
    if len(images) > 1 and "{stem}" not in pattern:
        raise CommandError(
            f"--draw {out}: one name for {len(images)} images; name a folder (DIR/) or put {{stem}} in it"
        )
    paths = [Path(pattern.replace("{stem}", image_stem(image))) for image in images]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            first = images[paths.index(path)]
            raise CommandError(f"--draw {out}: {first} and {images[i]} would both be drawn to {path}")
        if not drawable_suffix(path.suffix):
            reason = f"{path.suffix or 'no suffix'} is no image format that is written"
            raise CommandError(f"--draw {path}: {reason}; take .png or .jpg")
        if path.is_dir():
            raise CommandError(f"--draw {path}: a folder is in its place")
        if any(same_file(path, image) for image in images):
            raise CommandError(f"--draw {path}: that is an input; name another file")
    if is_folder:
        os.makedirs(out, exist_ok=True)
    for folder in {path.parent for path in paths}:
        if not folder.is_dir():
            raise CommandError(f"--draw {out}: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise CommandError(f"--draw {out}: the folder {folder} cannot be written")
    return paths


def image_stem(image: str) -> str:
    """The name without folders and suffix; "image" for a data URL or a URL without a name."""
    if image.startswith("data:"):
        return "image"
    if is_url(image):
        return PurePosixPath(unquote(urlsplit(image).path)).stem or "image"
    return Path(image).stem


# --- what the model says ----------------------------------------------------------------------------------------------


def _load_image(image: str):
    """uint8[3, H, W]. Raises ImageInputError, which names the image."""
    from processing_argus import load_image

    return load_image(image)


def _results(model, processor, pixels: list, words: list[str], arguments) -> list[list[dict]]:
    """For each image a list of results: several for `ask` with several questions, else one."""
    options = {name: getattr(arguments, name) for name in ("max_new_tokens", "max_tiles", "max_upscale")}
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"processor": processor, "batch_size": arguments.batch_size, "do_sample": False}
    if arguments.stream:
        options["streamer"] = _printer(processor.tokenizer)
    if arguments.command == "caption":
        return [[{"caption": text}] for text in model.caption(pixels, prompt=arguments.prompt, **options)]
    if arguments.command == "ask":
        pairs = [(image, question) for image in pixels for question in words]  # answer() encodes each image once
        answers = model.answer([image for image, _ in pairs], [question for _, question in pairs], **options)
        rows = [{"question": question, "answer": answer} for (_, question), answer in zip(pairs, answers)]
        return [rows[i : i + len(words)] for i in range(0, len(rows), len(words))]
    if arguments.command == "detect":
        regions = model.detect(pixels, words, **options)
    else:
        regions = model.dense_caption(pixels, **options)
    return [[_plain(each, TEXT_KEYS[arguments.command])] for each in regions]


def _plain(regions: dict, text_key: str) -> dict:
    """Tensors to lists; hundredths of a pixel are far below what a bin resolves."""
    return {
        "boxes": [[round(value, 2) for value in box] for box in regions["boxes"].tolist()],
        "scores": [round(score, 4) if math.isfinite(score) else 0.0 for score in regions["scores"].tolist()],
        text_key: list(regions[text_key]),
        "unparsed": list(regions["unparsed"]),
    }


def _printer(tokenizer):
    """A streamer that writes an answer to stdout as it comes, without special tokens or space before it."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False):
            text = printable(text, newlines=True)
            if not self.begun:
                text = text.lstrip()
                self.begun = bool(text)
            print(text, end="\n" if stream_end else "", flush=True)

    return Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(image: str, pixels, result: dict, drawing: Path | None, several: tuple[bool, bool], arguments) -> None:
    """Draws and prints one result; `several`: whether there is more than one image, and more than one question."""
    height, width = pixels.shape[1:]
    text_key = TEXT_KEYS.get(arguments.command)
    if drawing is not None:
        _draw(pixels, result, text_key, drawing)
    if arguments.json:
        line = {"image": image, "width": width, "height": height, **result}
        if drawing is not None:
            line["drawn"] = str(drawing)
        say(json_line(line))
    elif text_key is not None:
        say("\n".join(region_lines(image, (width, height), result, text_key)))
        if drawing is not None:
            say(f"drawn: {printable(str(drawing))}")
    elif not arguments.stream:
        heading = [_shown(image)] * several[0] + [result.get("question")] * several[1]
        text = result["answer" if "answer" in result else "caption"]
        say(_flat(": ".join([*heading, text])) if heading else printable(text, newlines=True))


def region_lines(image: str, size: tuple[int, int], result: dict, text_key: str) -> list[str]:
    """A heading, an aligned table of score, box and caption, and what the model wrote that is no region."""
    count = len(result["boxes"])
    lines = [f"{_flat(_shown(image))}  {size[0]}x{size[1]}  {count} region{'' if count == 1 else 's'}"]
    if count:
        rows = [("score", "x1", "y1", "x2", "y2", text_key.removesuffix("s"))]
        for box, score, text in zip(result["boxes"], result["scores"], result[text_key]):
            rows.append((f"{score:.2f}", *(f"{value:.1f}" for value in box), _flat(text)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        for row in rows:
            numbers = "  ".join(cell.rjust(width) for cell, width in zip(row, widths))
            lines.append(f"  {numbers}  {row[5]}".rstrip())
    for rest in result["unparsed"]:
        lines.append(f"  unparsed: {_flat(rest)}")
    return lines


def _flat(text: str) -> str:
    return " ".join(printable(text).split())


def _shown(image: str) -> str:
    return image if len(image) <= 200 else f"{image[:60]}... ({len(image)} characters)"


def _draw(pixels, result: dict, text_key: str, path: Path) -> None:
    from PIL import Image

    from .draw import draw_regions

    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    picture = draw_regions(picture, result["boxes"], result[text_key], result["scores"])
    with whole_file(path) as temporary:
        picture.save(temporary)
