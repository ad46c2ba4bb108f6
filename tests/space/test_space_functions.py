"""What the Space's buttons do, without a browser: streams, kept images, limits, messages for what goes wrong."""

import asyncio
import copy
import pickle
import threading

import pytest
import torch
from browsing import EXAMPLES, SPACE
from huggingface_hub import SpaceCard
from PIL import Image

SCENE = str(EXAMPLES / "scene.png")
SETTINGS = (1, 0, 64, 0, 1)  # tiles, enlargement, new tokens, temperature, top p

gradio = pytest.importorskip("gradio")


def last(generator):
    *_, result = generator
    return result


def refused(function, *arguments) -> str:
    with pytest.raises(gradio.Error) as error:
        list(function(*arguments))
    return error.value.message


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_caption_is_streamed_and_is_the_models(app):
    steps = list(app.caption(None, SCENE, *SETTINGS))
    texts = [text for _, text, _ in steps]
    assert len(set(texts)) > 2 and all(texts[-1].startswith(text.strip()) for text in texts)
    assert [texts[-1]] == app.model.caption([SCENE], processor=app.processor)
    speed = steps[-1][2]
    assert "first token" in speed and "total" in speed and "288 x 288" in speed and "read now" in speed
    assert "total" not in steps[0][2]


def test_a_second_question_uses_the_kept_image(app, monkeypatch):
    seen, turns, shown, box, speed = last(app.ask("How many objects are there?", False, [], None, SCENE, *SETTINGS))
    assert box == "" and turns[0] == SCENE and [each["role"] for each in shown] == ["user", "assistant"]
    assert turns[2] == app.model.answer([SCENE], turns[1], processor=app.processor)[0]
    monkeypatch.setattr(app.model, "encode_images", lambda *_, **__: pytest.fail("the image was encoded again"))
    before = seen.encoded.nbytes
    again, turns, *_, speed = last(app.ask("What is the background?", False, turns, seen, SCENE, *SETTINGS))
    assert again is seen and len(turns) == 5 and "kept" in speed
    assert seen.encoded.nbytes == before  # the prompt's beginning, image and all, was kept too
    assert turns[4] == app.model.answer([SCENE], turns[3], processor=app.processor)[0]


def test_earlier_turns_are_in_the_prompt_where_they_are_wanted(app, monkeypatch):
    prompts = []
    template = app.processor.apply_chat_template
    monkeypatch.setattr(
        app.processor,
        "apply_chat_template",
        lambda messages, **how: prompts.append(messages) or template(messages, **how),
    )
    turns = [SCENE, "How many objects are there?", "Four."]
    other = str(EXAMPLES / "overlap.png")
    for remember, image, expected in ((True, SCENE, 3), (False, SCENE, 1), (True, other, 1)):  # of this image alone
        last(app.ask("What is the background?", remember, turns, None, image, *SETTINGS))
        assert len(prompts[-1]) == expected
        kinds = [part["type"] for message in prompts[-1] for part in message["content"]]
        assert kinds == ["image", *["text"] * expected]


@pytest.mark.parametrize("task", ["dense_caption", "detect"])
def test_boxes_are_the_models_in_the_colours_of_the_drawing(app, task):
    words = ["cat, red circle, "] if task == "detect" else []
    _, annotated, drawn, rows, speed = last(getattr(app, task)(*words, None, SCENE, *SETTINGS))
    expected = getattr(app.model, task)([SCENE], *([["cat", "red circle"]] if words else []), processor=app.processor)[
        0
    ]
    captions = expected.get("captions", expected.get("labels"))
    picture, places = annotated.value["image"], annotated.value["annotations"]
    assert picture and [each["label"] for each in places] == captions == [row[0] for row in rows]
    assert annotated.color_map == dict(zip(captions, app.processor.region_colors(captions)))
    assert [row[2:] for row in rows] == [[round(value) for value in box] for box in expected["boxes"].tolist()]
    assert drawn.tobytes() == app.processor.draw_regions(SCENE, expected).tobytes()
    assert "total" in speed


def test_decoding_is_set_by_hand(app):
    assert "3 tokens" in last(app.caption(None, SCENE, 1, 0, 3, 0, 1))[2]
    torch.manual_seed(0)
    hot = {last(app.caption(None, SCENE, 1, 0, 24, 1.5, 1))[1] for _ in range(4)}
    assert len(hot) > 1
    seen = last(app.caption(None, SCENE, 4, 0, 8, 0, 1))[0]
    assert seen.tiles > 1
    changed = last(app.caption(seen, SCENE, 1, 0, 8, 0, 1))[0]
    assert changed.tiles == 1 and changed is not seen


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_another_image_takes_the_place_of_the_kept_one(app):
    seen = last(app.caption(None, SCENE, *SETTINGS))[0]
    other = last(app.caption(seen, str(EXAMPLES / "overlap.png"), *SETTINGS))[0]
    assert other.encoded.image_size == (240, 320) and other.key != seen.key
    assert last(app.caption(other, SCENE, *SETTINGS))[0].encoded.image_size == (288, 288)


def test_what_a_session_keeps_can_go_to_another_process(app):
    """ZeroGPU runs each call in one of its own."""
    seen, text, _ = last(app.caption(None, SCENE, *SETTINGS))
    carried = pickle.loads(pickle.dumps(seen))
    assert last(app.caption(carried, SCENE, *SETTINGS))[1] == text
    assert copy.deepcopy(seen).key == seen.key


def test_generation_ends_when_nobody_listens(app, monkeypatch):
    put, calls, caption = app.Stream.put, [], app.model.caption
    monkeypatch.setattr(app.Stream, "put", lambda self, value: calls.append(1) or put(self, value))
    # Left alone, it would write all of them.
    monkeypatch.setattr(app.model, "caption", lambda *a, **options: caption(*a, **options, min_new_tokens=1024))
    threads = threading.active_count()
    running = app.caption(None, SCENE, 1, 0, 1024, 0, 1)
    next(running)
    running.close()
    assert threading.active_count() == threads and 1 < len(calls) < 256


# --- limits and messages ----------------------------------------------------------------------------------------------


def test_missing_input_is_asked_for(app):
    assert "image first" in refused(app.caption, None, None, *SETTINGS)
    assert "question first" in refused(app.ask, "  ", False, [], None, SCENE, *SETTINGS)
    assert "look for" in refused(app.detect, None, None, SCENE, *SETTINGS)
    for commas in (" , ,", "\t,\t"):
        assert "look for" in refused(app.detect, commas, None, SCENE, *SETTINGS)
    assert "500 characters" in refused(app.ask, "x" * 501, False, [], None, SCENE, *SETTINGS)
    for place in range(len(SETTINGS)):  # a slider's number was deleted
        settings = [None if place == i else value for i, value in enumerate(SETTINGS)]
        assert "number" in refused(app.caption, None, SCENE, *settings)


def test_files_that_are_no_images_are_refused_without_their_path(app, tmp_path):
    good = (EXAMPLES / "scene.png").read_bytes()
    for name, data in {"a.png": b"no image", "b.png": b"", "c.svg": b"<svg/>", "d.png": good[:3000]}.items():
        (tmp_path / name).write_bytes(data)
        message = refused(app.caption, None, str(tmp_path / name), *SETTINGS)
        assert "\n" not in message and str(tmp_path) not in message and "Traceback" not in message
    assert "not an image" in refused(app.caption, None, str(tmp_path / "a.png"), *SETTINGS)
    assert refused(app.caption, None, str(tmp_path / "d.png"), *SETTINGS).startswith("The image could not be decoded")


def test_too_many_pixels_are_refused_from_the_header(app, tmp_path, monkeypatch):
    Image.new("1", (9000, 5000)).save(tmp_path / "large.png")
    monkeypatch.setattr(app.model, "encode_images", lambda *_, **__: pytest.fail("it was read"))
    assert "40 megapixels" in refused(app.caption, None, str(tmp_path / "large.png"), *SETTINGS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # Pillow's own limit comes first
    assert "40 megapixels" in refused(app.caption, None, str(tmp_path / "large.png"), *SETTINGS)


def test_files_are_uploads_of_a_limited_size_that_are_still_there(app, tmp_path, monkeypatch):
    (tmp_path / "heavy.png").write_bytes((EXAMPLES / "scene.png").read_bytes() + bytes(app.MAX_FILE_MB * 2**20))
    assert "10 MB" in refused(app.caption, None, str(tmp_path / "heavy.png"), *SETTINGS)
    assert "upload it again" in refused(app.caption, None, str(tmp_path / "gone.png"), *SETTINGS)

    async def download(*_, **__):
        pytest.fail("it was fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", download)
    function = next(each for each in app.demo.fns.values() if each.api_name == "caption")
    for address in ("http://127.0.0.1:9/large.png", "HTTPS://example.org/large.png"):
        payload = {"path": address, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(gradio.Error, match="not fetched"):
            asyncio.run(app.demo.preprocess_data(function, [None, payload, *SETTINGS], None))


def test_turned_and_transparent_images_are_shown_as_the_model_reads_them(app, tmp_path):
    image = Image.open(SCENE).convert("RGB").crop((0, 0, 288, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (100, 50)).save(tmp_path / "clear.png")
    turned = app.look(None, str(tmp_path / "turned.png"), 1, 0)
    assert turned.encoded.image_size == (288, 200) and turned.picture.height > turned.picture.width
    assert app.look(None, str(tmp_path / "clear.png"), 1, 0).picture.getpixel((5, 5)) == (255, 255, 255)


def test_what_nobody_foresaw_is_logged_and_not_shown(app, monkeypatch, caplog):
    def fails(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(app.model, "caption", fails)
    message = refused(app.caption, None, SCENE, *SETTINGS)
    assert "secret" not in message and "secret detail" in caplog.text
    monkeypatch.setattr(app.model, "caption", lambda *_, **__: (_ for _ in ()).throw(ValueError("a <b>bad</b> value")))
    assert refused(app.caption, None, SCENE, *SETTINGS) == "a &lt;b&gt;bad&lt;/b&gt; value"
    out_of_memory = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(app.model, "caption", lambda *_, **__: (_ for _ in ()).throw(out_of_memory))
    assert "fewer tiles" in refused(app.caption, None, SCENE, *SETTINGS)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_page_works_one_request_at_a_time_from_a_short_queue(app):
    at_work = [each for each in app.demo.fns.values() if each.concurrency_id == "model"]
    assert len(at_work) == 6 and {each.concurrency_limit for each in at_work} == {1}
    assert app.demo._queue.max_size == 32
    assert app.options()["max_file_size"] == "10mb" and not app.options()["show_error"]


def test_the_card_is_a_spaces(app):
    card = SpaceCard.load(SPACE / "README.md").data
    assert card.sdk == "gradio" and card.app_file == "app.py" and (SPACE / card.app_file).is_file() and card.models
    assert int(card.sdk_version.split(".")[0]) == int(gradio.__version__.split(".")[0])
    assert len(card.short_description) <= 60 and {card.colorFrom, card.colorTo} <= {"indigo", "blue"}
    required = (SPACE / "requirements.txt").read_text().split()
    assert not any(line.startswith("gradio") for line in (SPACE / "requirements.txt").read_text().splitlines())
    assert {"torch>=2.6", "transformers>=5.0"} <= set(required)


def test_the_app_imports_nothing_of_the_project():
    source = (SPACE / "app.py").read_text(encoding="utf-8")
    assert not any(name in source for name in ("argus_tools", "modeling_argus", "processing_argus"))
