"""The task calls: batches, prompts, boxes, scores, streams, refusals. A logits processor plays the trained model."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from tiny_text import build_processor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from modeling_argus.tasks_argus import TASK_PROMPTS


@pytest.fixture(scope="module")
def processor():
    return build_processor("native")


@pytest.fixture(scope="module")
def argus(processor):
    return tiny_model(
        image_token_id=processor.image_token_id,
        text_config={"vocab_size": len(processor.tokenizer)},
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


class Says(LogitsProcessor):
    """Makes every row say one text, each token with probability 1 / (1 + e^-2) against the rest together."""

    def __init__(self, processor, text):
        self.ids = processor.tokenizer(text + processor.tokenizer.eos_token, add_special_tokens=False).input_ids
        self.length, self.step = None, 0

    def __call__(self, input_ids, scores):
        self.step = self.step + 1 if self.length == input_ids.shape[1] - 1 else 0  # a new prompt starts anew
        self.length = input_ids.shape[1]
        wanted = self.ids[min(self.step, len(self.ids) - 1)]
        scores = torch.full_like(scores, -float("inf"))
        scores[:, wanted], scores[:, 0] = 2.0, 0.0
        return scores


def says(processor, text):
    return LogitsProcessorList([Says(processor, text)])


@pytest.fixture(scope="module")
def images():
    return [
        Image.new("RGB", size, color) for size, color in (((64, 40), "red"), ((30, 90), "blue"), ((32, 32), "green"))
    ]


def test_captions_come_back_one_for_each_image(argus, processor, images):
    said = says(processor, " A red car.")
    assert argus.caption(images, processor=processor, logits_processor=said) == ["A red car."] * 3
    assert argus.caption(images[0], processor=processor, logits_processor=said) == ["A red car."]
    assert argus.caption([], processor=processor) == []


def test_a_batch_answers_as_its_rows_do_alone(argus, processor, images):
    questions = ["What is this?", "Where is the dog?", "A cat?"]
    together = argus.answer(images, questions, processor=processor, max_new_tokens=6, do_sample=False)
    pairs = argus.answer(images, questions, processor=processor, max_new_tokens=6, do_sample=False, batch_size=2)
    alone = [
        argus.answer(image, question, processor=processor, max_new_tokens=6, do_sample=False)[0]
        for image, question in zip(images, questions)
    ]
    assert together == pairs == alone


def test_one_image_can_have_several_questions_and_a_question_several_images(argus, processor, images, monkeypatch):
    seen = []
    original = processor.apply_chat_template
    monkeypatch.setattr(processor, "apply_chat_template", lambda m, **k: seen.append(m) or original(m, **k))
    assert len(argus.answer(images[0], ["A?", "B?"], processor=processor, max_new_tokens=2)) == 2
    assert len(argus.answer([images[:2]], "Same?", processor=processor, max_new_tokens=2)) == 1
    assert [item["type"] for item in seen[-1][0][0]["content"]] == ["image", "image", "text"]


def test_dense_captions_have_boxes_in_pixels_and_scores(argus, processor, images):
    K = processor.num_location_bins
    text = "<loc_0><loc_10><loc_49><loc_99>a red car<loc_20><loc_20><loc_30><loc_30>a dog<loc_5>broken"
    results = argus.dense_caption(images, processor=processor, logits_processor=says(processor, text), batch_size=2)
    assert len(results) == 3
    for image, result in zip(images, results):
        W, H = image.size
        assert result["captions"] == ["a red car", "a dog"]
        expected = torch.tensor([[10.5 * W, 0.5 * H, 99.5 * W, 49.5 * H], [20.5 * W, 20.5 * H, 30.5 * W, 30.5 * H]]) / K
        torch.testing.assert_close(result["boxes"], expected)
        # every token was chosen with the same probability, so every region's score is that probability
        torch.testing.assert_close(result["scores"], torch.full((2,), torch.tensor(2.0).sigmoid().item()))
        assert result["unparsed"] and "broken" in result["unparsed"][0]


def test_scores_with_beams_are_the_same_measure(argus, processor, images):
    text = "<loc_0><loc_10><loc_49><loc_99>a red car"
    (result,) = argus.dense_caption(
        images[0], processor=processor, logits_processor=says(processor, text), num_beams=2, do_sample=False
    )
    torch.testing.assert_close(result["scores"], torch.full((1,), torch.tensor(2.0).sigmoid().item()))


def test_detection_asks_for_the_phrases_of_each_image(argus, processor, images, monkeypatch):
    prompts = []
    original = processor.apply_chat_template

    def record(messages, **kwargs):
        prompts.extend(message[0]["content"][-1]["text"] for message in messages)
        return original(messages, **kwargs)

    monkeypatch.setattr(processor, "apply_chat_template", record)
    said = says(processor, "<loc_1><loc_2><loc_30><loc_40>a dog")
    results = argus.detect(images, "a dog", processor=processor, logits_processor=said)
    assert [result["labels"] for result in results] == [["a dog"]] * 3
    argus.detect(images[:2], [["a dog", "a cat"], ["a tree"]], processor=processor, max_new_tokens=1)
    assert prompts[:3] == ["Detect: a dog."] * 3 and prompts[3:] == ["Detect: a dog, a cat.", "Detect: a tree."]
    assert TASK_PROMPTS["detect"].format(phrases="a dog") == prompts[0]


def test_streams_for_a_single_image(argus, processor, images):
    class Collect(BaseStreamer):
        ids, ended = [], False

        def put(self, value):
            self.ids.append(value)

        def end(self):
            self.ended = True

    streamer = Collect()
    argus.caption(images[0], processor=processor, streamer=streamer, max_new_tokens=3)
    assert streamer.ended and len(streamer.ids) == 4  # the prompt, then each token
    with pytest.raises(ValueError, match="one answer at a time; 3"):
        argus.caption(images, processor=processor, streamer=streamer)


def test_image_options_reach_the_processor(argus, processor, images, monkeypatch):
    tiles = []
    original = argus.generate
    monkeypatch.setattr(argus, "generate", lambda **k: tiles.append(len(k["pixel_values"])) or original(**k))
    argus.caption(images[1], processor=processor, max_new_tokens=1)
    argus.caption(images[1], processor=processor, max_new_tokens=1, max_tiles=1)
    argus.caption(images[1], processor=processor, max_new_tokens=1, max_upscale=0.9)
    assert tiles[0] > 1 and tiles[1:] == [1, 1]


def test_a_model_without_location_tokens_says_what_to_do(argus, images):
    blind = build_processor("native", num_location_bins=None)
    for call in (
        lambda: argus.detect(images, "a dog", processor=blind),
        lambda: argus.dense_caption(images, processor=blind),
    ):
        with pytest.raises(ValueError, match=r"no location tokens.*argus bootstrap.*plain_text"):
            call()


def test_inputs_that_do_not_fit_together_are_refused(argus, processor, images):
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        argus.answer(images, ["A?", "B?"], processor=processor)
    with pytest.raises(ValueError, match="phrases"):
        argus.detect(images, [["a dog"], []], processor=processor)
    with pytest.raises(ValueError, match="one image at a time"):
        argus.dense_caption([images[:2]], processor=processor)
    with pytest.raises(ValueError, match="num_return_sequences"):
        argus.caption(images, processor=processor, num_return_sequences=2)
    with pytest.raises(ValueError, match="batch_size"):
        argus.caption(images, processor=processor, batch_size=0)
    for wrong in (None, processor.tokenizer):
        with pytest.raises(TypeError, match="ArgusProcessor"):
            argus.caption(images, processor=wrong)
        with pytest.raises(TypeError, match="ArgusProcessor"):
            argus.dense_caption(images, processor=wrong)
    with pytest.raises(ValueError, match="empty list"):
        argus.caption([[]], processor=processor)
    for blank in (None, 5, "", " ", ["a cat", " "]):
        with pytest.raises(ValueError, match="questions must be a string"):
            argus.answer(images[0], blank, processor=processor)
        with pytest.raises(ValueError, match="phrases must be a string"):
            argus.detect(images[0], blank, processor=processor)
    for prompt in (5, ["What?"]):
        with pytest.raises(ValueError, match="prompt must be a string"):
            argus.caption(images, processor=processor, prompt=prompt)
    with pytest.raises(ValueError, match="num_return_sequences"):
        argus.caption(
            images, processor=processor, generation_config=GenerationConfig(num_return_sequences=2, num_beams=2)
        )
    with pytest.raises(ValueError, match="max_length 3 leaves no room"):
        argus.caption(images, processor=processor, max_length=3)
    with pytest.raises(ValueError, match="output_scores"):
        argus.caption(images, processor=processor, output_scores=True)


def test_arrays_of_several_images_are_several_images(argus, processor):
    batch = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    options = {"processor": processor, "max_new_tokens": 3, "do_sample": False}
    assert argus.caption(batch, **options) == argus.caption(list(batch), **options)


def test_a_generation_config_of_the_caller_is_followed(argus, processor, images):
    said = says(processor, " A red car and two small dogs near a tree.")
    config = GenerationConfig(max_new_tokens=2, eos_token_id=argus.config.eos_token_id)
    (short,) = argus.caption(images[0], processor=processor, generation_config=config, logits_processor=said)
    (longer,) = argus.caption(images[0], processor=processor, logits_processor=said)
    assert longer.startswith(short) and len(processor.tokenizer(" " + short).input_ids) <= 2
    assert config.max_new_tokens == 2 and not config.return_dict_in_generate  # the caller's own is left alone
    message = [
        {
            "role": "user",
            "content": [{"type": "image", "image": images[0]}, {"type": "text", "text": "Describe the image."}],
        }
    ]
    T = len(
        processor.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ][0]
    )
    for options in ({"max_length": T + 2}, {"generation_config": GenerationConfig(max_length=T + 2)}):
        assert argus.caption(images[0], processor=processor, logits_processor=said, **options) == [short]
