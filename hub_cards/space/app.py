"""ArgusVLM's demo: describe an image, ask about it, find phrases in it, box and caption everything in it.

One file for a Hub Space (ZeroGPU too) and for a machine of your own. The model is the repository or folder that the
environment variable ARGUS_MODEL names, else the folder `model` beside this file. Users share nothing but the model:
each session keeps the image it has encoded, so that a second question is cheap, and lets go of the one before.
"""

try:
    import spaces  # before torch: on ZeroGPU it stands in for CUDA
except ImportError:
    spaces = None

import html
import json
import logging
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

HERE = Path(__file__).resolve().parent
MODEL = os.environ.get("ARGUS_MODEL") or str(HERE / "model")
MAX_FILE_MB, MAX_PIXELS, MAX_TILES, MAX_CHARACTERS = 10, 40_000_000, 24, 500
SHOWN = 1280  # pixels of the longest side in the browser
SECONDS = 120  # without a token, before an answer is given up

ROLES = ("user", "assistant")
ON_ZERO = spaces is not None and bool(os.environ.get("SPACES_ZERO_GPU"))
on_gpu = spaces.GPU(duration=60) if spaces is not None else lambda function: function

if "ARGUS_MODEL" not in os.environ and not Path(MODEL).is_dir():
    raise SystemExit(f"Name a model repository or an exported folder in ARGUS_MODEL, or put one into {MODEL}.")
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(MODEL, trust_remote_code=True, dtype="auto").eval()
model = model.to("cuda" if torch.cuda.is_available() else "cpu")
NAME = Path(MODEL).resolve().name if Path(MODEL).is_dir() else MODEL


class Seen(NamedTuple):
    """A session's image: what it was made from, the model's view of it, and the browser's."""

    key: tuple
    encoded: Any
    picture: Image.Image
    tiles: int


# --- the work ---------------------------------------------------------------------------------------------------------


def look(seen: Seen | None, path: str | None, max_tiles: float, max_upscale: float) -> Seen:
    """Reads and encodes the image, unless `seen` is of it already. Raises gr.Error for what cannot be read."""
    if not path:
        raise gr.Error("Choose an image first.", print_exception=False)
    budget = {"max_tiles": min(int(max_tiles), MAX_TILES), "max_upscale": max_upscale or None}
    key = (path, *budget.values())
    if seen is not None and seen.key == key:
        return seen
    try:
        if os.path.getsize(path) > MAX_FILE_MB * 2**20:
            raise gr.Error(f"The file is too large: at most {MAX_FILE_MB} MB are taken.", print_exception=False)
        with Image.open(path) as image:  # the header alone
            width, height = image.size
    except FileNotFoundError as error:  # `delete_cache` of `build`
        raise gr.Error("The image is kept for an hour only: upload it again.", print_exception=False) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise gr.Error("This file is not an image that can be read.", print_exception=False) from error
    except Image.DecompressionBombError:
        width = height = MAX_PIXELS
    if width * height > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS // 1_000_000} megapixels are taken: make it smaller first."
        raise gr.Error(f"The image is too large; {limit}", print_exception=False)
    data = Path(path).read_bytes()
    (encoded,) = model.encode_images(data, processor=processor, **budget)
    picture = processor.draw_regions(data, {"boxes": [], "captions": [], "scores": []})  # upright, RGB
    picture.thumbnail((SHOWN, SHOWN))
    return Seen(key, encoded, picture, encoded.num_patches)


class Stream(TextIteratorStreamer):
    """A streamer that knows when the first token came, counts, and ends generation once nobody listens."""

    def __init__(self):
        super().__init__(processor.tokenizer, skip_prompt=True, timeout=SECONDS, skip_special_tokens=True)
        self.started, self.first, self.tokens, self.left = time.perf_counter(), None, -1, False  # the prompt is put too

    def put(self, value):
        if self.left:
            raise InterruptedError("nobody listens any more")
        self.tokens += 1
        if self.tokens == 1:
            self.first = time.perf_counter()
        super().put(value)


def run(task: str, words, seen, path, max_tiles, max_upscale, max_new_tokens, temperature, top_p):
    """Yields (seen, text so far, latency, None) and at last (seen, text, latency, what the model's call gave).

    Args:
        task: "caption", "detect", "dense_caption" or "converse".
        words: nothing, phrases or the turns of a talk.
        others: the session's image, the path of the one to look at, and the settings as the page has them.
    """
    if None in (max_tiles, max_upscale, max_new_tokens, temperature, top_p):
        raise gr.Error("A number under 'Tiles and decoding' is missing.", print_exception=False)
    stream, text, before = Stream(), "", seen
    seen = look(before, path, max_tiles, max_upscale)
    kept = seen is before
    encoded = seen.encoded.to(model.device)
    options = {"streamer": stream, "max_new_tokens": int(max_new_tokens)}
    options |= {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}

    def work():
        try:
            if task == "converse":
                return converse(encoded, words, **options)
            return getattr(model, task)(encoded, *([] if words is None else [words]), processor=processor, **options)[0]
        finally:
            stream.end()  # whatever happened: the loop below waits for it

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            for piece in stream:
                text += piece
                yield seen, text.strip(), latency(stream, seen, kept), None  # an answer begins with a space
            result = future.result()
        except queue.Empty as error:
            raise gr.Error(f"No token within {SECONDS} seconds: take fewer tiles.", print_exception=False) from error
        finally:
            stream.left = True
    if ON_ZERO:  # another process will go on with it
        seen = seen._replace(encoded=seen.encoded.to("cpu"))
    yield seen, text.strip(), latency(stream, seen, kept, time.perf_counter()), result


def converse(encoded, turns: list[str], **options) -> None:
    """The next answer of a talk about one image; the prompt's beginning, the image, is read by the decoder once."""
    messages = [{"role": ROLES[i % 2], "content": [{"type": "text", "text": turn}]} for i, turn in enumerate(turns)]
    messages[0]["content"].insert(0, {"type": "image", "image": encoded})
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    model.generate(**model.with_prefix(inputs, [encoded]), **options)


def latency(stream: Stream, seen: Seen, kept: bool, end: float | None = None) -> str:
    if stream.first is None:
        return ""
    height, width = seen.encoded.image_size
    image = f"{width} x {height}, {seen.tiles} tile{'s' if seen.tiles > 1 else ''}, {'kept' if kept else 'read now'}"
    total = f" · total **{end - stream.started:.2f} s**" if end else ""
    return f"first token **{stream.first - stream.started:.2f} s**{total} · {stream.tokens} tokens · image {image}"


def explained(function):
    """Turns what goes wrong into a message on the page: no traceback, no path of this machine."""

    def wrapped(*args):
        try:
            yield from function(*args)
        except gr.Error:
            raise
        except torch.OutOfMemoryError as error:
            raise gr.Error("Not enough memory: take fewer tiles.", print_exception=False) from error
        except (ValueError, TypeError) as error:  # the model's own words on bad input
            words = str(error).replace("images[0]", "The image")
            raise gr.Error(html.escape(words), print_exception=False) from error
        except Exception as error:
            logging.exception("unforeseen")
            raise gr.Error("Something went wrong here; it has been logged.", print_exception=False) from error

    return wrapped


# --- what the buttons do: (seen, path, settings...) come last ---------------------------------------------------------


@on_gpu
@explained
def caption(*shared):
    for seen, text, speed, _ in run("caption", None, *shared):
        yield seen, text, speed


@on_gpu
@explained
def ask(question: str, remember: bool, turns: list[str], *shared):
    question = checked(question, "Type a question first.")
    turns = turns if turns[:1] == [shared[1]] else [shared[1]]  # a talk is about one image, whose path it begins with
    history = turns[1:] if remember else []
    for seen, text, speed, _ in run("converse", [*history, question], *shared):
        talk = [*turns, question, text or "..."]
        shown = [{"role": ROLES[i % 2], "content": html.escape(turn)} for i, turn in enumerate(talk[1:])]
        yield seen, talk, shown, "", speed


@on_gpu
@explained
def detect(phrases: str, *shared):
    missing = "Name what to look for first."
    listed = [phrase.strip() for phrase in checked(phrases, missing).split(",") if phrase.strip()]
    checked(",".join(listed), missing)  # commas alone name nothing
    yield from boxes("detect", listed, *shared)


@on_gpu
@explained
def dense_caption(*shared):
    yield from boxes("dense_caption", None, *shared)


def boxes(task: str, words, *shared):
    """Yields (seen, annotated image, labelled image, rows, latency): all but latency when the answer is whole."""
    for seen, _, speed, regions in run(task, words, *shared):
        if regions is None:
            yield seen, gr.skip(), gr.skip(), gr.skip(), speed
    captions = regions["captions" if "captions" in regions else "labels"]
    scale = seen.picture.width / seen.encoded.image_size[1]
    places = [tuple(round(value * scale) for value in box) for box in regions["boxes"].tolist()]
    colors = dict(zip(captions, processor.region_colors(captions)))
    annotated = gr.AnnotatedImage((seen.picture, list(zip(places, captions))), color_map=colors)
    drawn = processor.draw_regions(seen.picture, regions | {"boxes": regions["boxes"] * scale})
    found = zip(captions, regions["scores"].tolist(), regions["boxes"].tolist())
    rows = [[caption, round(score, 2), *map(round, box)] for caption, score, box in found]
    if not rows:
        gr.Info("Nothing was found.")
    yield seen, annotated, drawn, rows, speed


def checked(text: str | None, missing: str) -> str:
    text = (text or "").strip()
    if not text:
        raise gr.Error(missing, print_exception=False)
    if len(text) > MAX_CHARACTERS:
        raise gr.Error(f"At most {MAX_CHARACTERS} characters, please.", print_exception=False)
    return text


# --- the page ---------------------------------------------------------------------------------------------------------


COLUMNS = ["what", "score", "x1", "y1", "x2", "y2"]
NO_ROWS = json.dumps({"headers": COLUMNS, "data": [], "metadata": None})
CLEARED = f"() => ['', [], {', '.join(2 * ['null', 'null', NO_ROWS])}, '']"


def build() -> gr.Blocks:
    with gr.Blocks(title="ArgusVLM", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            f"# ArgusVLM\nDescribes an image, answers questions about it and boxes what it names. Model: **{NAME}**"
        )
        seen, turns = gr.State(time_to_live=1800), gr.State([])
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                image = gr.Image(label="Image", sources=["upload", "clipboard"], height=340, elem_id="image")
                # Its path alone: `look` reads it, with words of its own for what is no image.
                image.preprocess = lambda payload: payload.path if payload is not None else None
                image.async_move_resource_to_block_cache = uploads_alone(image.async_move_resource_to_block_cache)
                gr.Examples(sorted(map(str, (HERE / "examples").glob("*.png"))), image, cache_examples=False)
                with gr.Accordion("Tiles and decoding", open=False):
                    settings = controls()
            with gr.Column(scale=7, min_width=380):
                with gr.Tab("Describe"):
                    describe = gr.Button("Describe the image", variant="primary")
                    described = gr.Textbox(label="Caption", lines=4, interactive=False, elem_id="caption")
                with gr.Tab("Ask"):
                    talk = gr.Chatbot(show_label=False, height=330, buttons=[], elem_id="talk")
                    with gr.Row():
                        question = gr.Textbox(
                            show_label=False, placeholder="What is in the picture?", scale=5, elem_id="question"
                        )
                        send = gr.Button("Ask", variant="primary", scale=1, min_width=90)
                    remember = gr.Checkbox(False, label="Show the model the turns before")
                with gr.Tab("Find"):
                    phrases = gr.Textbox(label="What to look for, with commas between", elem_id="phrases")
                    find = gr.Button("Find", variant="primary")
                    found = box_outputs("found")
                with gr.Tab("Everything"):
                    locate = gr.Button("Box and caption everything", variant="primary")
                    located = box_outputs("located")
                with gr.Row():
                    speed = gr.Markdown(elem_id="speed")
                    stop = gr.Button("Stop", size="sm", scale=0, min_width=80)
        shared = [seen, image, *settings]
        limits = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        events = [
            describe.click(caption, shared, [seen, described, speed], api_name="caption", **limits),
            find.click(detect, [phrases, *shared], [seen, *found, speed], api_name="detect", **limits),
            phrases.submit(detect, [phrases, *shared], [seen, *found, speed], api_name=False, **limits),
            locate.click(dense_caption, shared, [seen, *located, speed], api_name="dense_caption", **limits),
        ]
        asked = [question, remember, turns, *shared], [seen, turns, talk, question, speed]
        events += [
            send.click(ask, *asked, api_name="ask", **limits),
            question.submit(ask, *asked, api_name=False, **limits),
        ]
        stop.click(None, cancels=events, queue=False)
        talk.clear(lambda: [], None, turns, queue=False)
        image.clear(lambda: None, None, seen, queue=False)
        # Another image: what still runs is of the old one and ends first, then nothing of that stays on the page. The
        # browser does it, so that no answer is overtaken.
        image.change(None, cancels=events, queue=False)
        image.change(None, None, [described, talk, *found, *located, speed], js=CLEARED)
        image.change(lambda: [], None, turns, queue=False)
    return page.queue(max_size=32)


def uploads_alone(move):
    """What brings a component's files in, for all but addresses: of those, gradio downloads any number of bytes."""

    async def moved(path):
        if str(path).lower().startswith(("http://", "https://")):
            raise gr.Error("Upload the image: addresses are not fetched here.", print_exception=False)
        return await move(path)

    return moved


def controls() -> list:
    default = processor.image_processor
    return [
        gr.Slider(
            1, MAX_TILES, min(default.max_tiles or 12, MAX_TILES), step=1, label="Tiles at most", elem_id="tiles"
        ),
        gr.Slider(0, 8, default.max_upscale or 0, step=0.5, label="Enlarge at most (0: as the tiles need)"),
        gr.Slider(8, 1024, 256, step=8, label="New tokens at most"),
        gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: the likeliest token each time)"),
        gr.Slider(0.1, 1, 1, step=0.05, label="Top p"),
    ]


def box_outputs(name: str) -> list:
    with gr.Tab("Boxes"):
        annotated = gr.AnnotatedImage(show_label=False, height=430, elem_id=name)
    with gr.Tab("Labels"):
        drawn = gr.Image(show_label=False, format="png", interactive=False, height=430, elem_id=f"{name}-drawn")
    with gr.Tab("Table"):
        table = gr.Dataframe(headers=COLUMNS, interactive=False, elem_id=f"{name}-table")
    return [annotated, drawn, table]


def options() -> dict:
    """For `launch()`: limits, and a look that asks no other server for fonts."""
    theme = gr.themes.Soft(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return {"max_file_size": f"{MAX_FILE_MB}mb", "state_session_capacity": 100, "theme": theme, "show_error": False}


demo = build()

if __name__ == "__main__":
    demo.launch(**options())
