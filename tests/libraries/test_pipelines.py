"""transformers' pipelines: every form of input, alone, batched and streamed, gives what `generate()` gives."""

import base64
import json
import threading

import pytest
import torch
import transformers
from asking import chat
from transformers import TextIteratorStreamer, pipeline

OLD = transformers.__version__.startswith("4.")


@pytest.fixture(scope="module")
def pipe(hub_folder):
    return pipeline(
        "image-text-to-text", model=hub_folder, trust_remote_code=True, dtype=torch.float32, device="cpu", batch_size=1
    )


@pytest.fixture(scope="module")
def answer(pipe):
    """answer(messages, **image options): what README's snippet, apply_chat_template and generate(), answers."""

    def answer(messages, new_tokens=16, **options):
        inputs = pipe.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        ids = pipe.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        return pipe.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]

    return answer


NEW = {"max_new_tokens": 16, "return_full_text": False}


def texts(results) -> list[str]:
    return [(result[0] if isinstance(result, list) else result)["generated_text"] for result in results]


def sources(picture, image) -> dict:
    encoded = base64.b64encode(picture.read_bytes()).decode()
    url = f"data:image/png;base64,{encoded}"
    return {
        "PIL": {"type": "image", "image": image},
        "path as image": {"type": "image", "image": str(picture)},
        "path as url": {"type": "image", "url": str(picture)},
        "Path": {"type": "image", "path": picture},
        "base64": {"type": "image", "base64": encoded},
        "data URL": {"type": "image", "url": url},
        "OpenAI's": {"type": "image_url", "image_url": {"url": url}},
    }


@pytest.mark.parametrize("form", ["PIL", "path as image", "path as url", "Path", "base64", "data URL", "OpenAI's"])
def test_a_chat_in_every_form(pipe, answer, picture, image, form):
    result = pipe(text=chat(sources(picture, image)[form]), **NEW)
    assert texts(result) == [answer(chat(picture))] and texts(result)[0].strip()


def test_a_positional_chat_and_the_whole_conversation(pipe, answer, picture):
    (result,) = pipe(chat(picture), max_new_tokens=16)
    assert result["generated_text"][:-1] == chat(picture)
    assert result["generated_text"][-1] == {"role": "assistant", "content": answer(chat(picture))}


def test_a_batch_answers_as_each_alone(pipe, answer, image, picture, monkeypatch):
    """Other questions, sizes, tiles and numbers of images in one batch: padding changes nothing."""
    monkeypatch.setattr(pipe.processor.image_processor, "max_tiles", 4)
    wide = image.resize((432, 144))
    chats = [
        chat(picture),
        chat({"type": "image", "image": wide}, question="What is at the top?"),
        chat(picture, {"type": "image", "image": wide}, question="Describe the image."),
    ]
    counts = [len(pipe.processor(images=[image])["pixel_values"]), len(pipe.processor(images=[wide])["pixel_values"])]
    assert counts[0] != counts[1], "the batch is to hold images of different numbers of tiles"
    assert texts(pipe(text=chats, batch_size=3, **NEW)) == [answer(messages) for messages in chats]


def test_plain_text_and_images(pipe, answer, image, picture):
    """The text that the template makes, with images beside it: single, in one call, as dicts of a generator."""
    prompt = pipe.processor.apply_chat_template(chat(picture), add_generation_prompt=True)
    alone = [answer(chat(picture))]
    assert texts(pipe(images=image, text=prompt, **NEW)) == alone
    assert texts(pipe(images=str(picture), text=prompt, **NEW)) == alone
    other = pipe.processor.apply_chat_template(chat(picture, question="What is this?"), add_generation_prompt=True)
    both = texts(pipe(images=[image, image], text=[prompt, other], **NEW))
    assert both == [*alone, answer(chat(picture, question="What is this?"))]
    rows = ({"images": image, "text": text} for text in (prompt, other, prompt))
    assert texts(pipe(rows, batch_size=2, **NEW)) == [both[0], both[1], both[0]]


def test_text_alone(pipe, answer):
    prompt = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
    assert texts(pipe(text=prompt, **NEW)) == [answer(prompt)]


def test_generate_kwargs(pipe, picture, inputs):
    options = {"max_new_tokens": 8, "num_beams": 2, "do_sample": False}
    ids = pipe.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    result = pipe(text=chat(picture), generate_kwargs=dict(options), return_full_text=False)
    assert texts(result) == pipe.processor.batch_decode(ids, skip_special_tokens=True)


def test_an_answer_that_is_begun(pipe, picture):
    begun = [*chat(picture), {"role": "assistant", "content": [{"type": "text", "text": "A scene"}]}]
    (result,) = pipe(text=begun, max_new_tokens=4)
    last = result["generated_text"][-1]
    assert last["role"] == "assistant" and str(last["content"]) != str(begun[-1]["content"])


@pytest.mark.skipif(OLD, reason="4.57's pipeline keeps what it does not know from the chat template")
def test_image_options_in_the_call(pipe, answer, picture):
    given = pipe(text=chat(picture), processor_kwargs={"max_tiles": 4}, **NEW)
    assert texts(given) == [answer(chat(picture), max_tiles=4)]


@pytest.mark.parametrize("through", ["pipeline", "generate"])
def test_streamed_in_a_thread(pipe, answer, inputs, picture, through):
    streamer = TextIteratorStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120)
    if through == "pipeline":
        options = {"streamer": streamer, "max_new_tokens": 16}
        thread = threading.Thread(target=pipe, kwargs={"text": chat(picture), "generate_kwargs": options})
    else:
        thread = threading.Thread(
            target=pipe.model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 16}
        )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == answer(chat(picture)) and len([piece for piece in pieces if piece]) > 1


@pytest.mark.skipif(OLD, reason="AutoModelForMultimodalLM is of transformers 5")
def test_auto_model_for_multimodal_lm(hub_folder, expected, generated, picture, answer):
    model = transformers.AutoModelForMultimodalLM.from_pretrained(
        hub_folder, trust_remote_code=True, dtype=torch.float32
    )
    assert torch.equal(generated(model), expected)
    pipe = pipeline("any-to-any", model=hub_folder, trust_remote_code=True, dtype=torch.float32)
    assert texts(pipe(text=chat(picture), **NEW)) == [answer(chat(picture))]


# --- pipeline("dense-captioning") -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(hub_folder):
    return pipeline("dense-captioning", model=hub_folder, trust_remote_code=True, dtype=torch.float32, device="cpu")


def test_dense_captioning_is_the_task_call(dense, picture, image):
    (regions,) = dense.model.dense_caption([picture], processor=dense.processor)
    found = dense(str(picture))
    assert found == dense(image) == dense([picture])[0] and len(found) == len(regions["captions"]) > 0
    for region, box, caption, score in zip(found, regions["boxes"], regions["captions"], regions["scores"]):
        assert region["label"] == caption and region["score"] == score.item()
        assert list(region["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert list(region["box"].values()) == box.tolist()
    json.dumps(found)  # plain numbers
    bar = sorted(region["score"] for region in found)[len(found) // 2]
    assert dense(image, threshold=bar) == [region for region in found if region["score"] >= bar]


def test_dense_captioning_in_batches(dense, picture, image):
    tensor = torch.zeros(3, 100, 150, dtype=torch.uint8)
    pictures = [image, image.resize((200, 100)), tensor]
    alone = [dense(each) for each in pictures]
    for found in (dense(pictures, batch_size=2), list(dense((each for each in pictures), batch_size=3))):
        assert [[(r["label"], r["box"]) for r in row] for row in found] == [
            [(r["label"], r["box"]) for r in row] for row in alone
        ]
        scores = [[r["score"] for row in rows for r in row] for rows in (found, alone)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)  # padding rounds otherwise
    assert dense(image, max_new_tokens=4) != alone[0], "options reach generate()"


def test_dense_captioning_asks_for_trust(hub_folder):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("dense-captioning", model=hub_folder, trust_remote_code=False)
