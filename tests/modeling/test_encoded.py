"""Encoded images: the same answers as with images, no vision for a second question, and only the question decoded."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from tiny_text import build_image_processor, build_processor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from argus_tools.paths import default_model_path
from modeling_argus import ArgusForConditionalGeneration, EncodedImage, EncodedImages
from modeling_argus.encoded_argus import MAX_PREFIXES, sent, weights_mark
from modeling_argus.prefix_argus import OWN_CACHE, READS_PROMPT, _Row, fits_generation
from processing_argus import ArgusProcessor

QUESTIONS = ["What is this?", "Where is the dog in the second image, and what is that beside it?", "A cat?"]
PLAIN = {"max_new_tokens": 8, "do_sample": False}


def build(shape="siglip_llama", **text_config):
    tile_size = 32 if shape == "siglip_llama" else 28
    processor = build_processor("native", image_processor=build_image_processor(tile_size=tile_size))
    tokenizer = processor.tokenizer
    model = tiny_model(
        shape,
        image_token_id=processor.image_token_id,
        text_config={"vocab_size": len(tokenizer), **text_config},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model, processor


@pytest.fixture(scope="module", params=["siglip_llama", "internvit_qwen"])
def pair(request):
    """A model and its processor; read-only."""
    return build(request.param)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((64, 40), (30, 90), (32, 32))
    ]


class Seen:
    """What the vision tower (tiles) and the decoder (rows, tokens) were called with."""

    def __init__(self, model):
        self.tiles, self.decoded = [], []
        tower, decoder = model.model.vision_model, model.model.text_model
        self.hooks = [
            tower.register_forward_pre_hook(
                lambda m, a, k: self.tiles.append(len(k["pixel_values"])), with_kwargs=True
            ),
            decoder.register_forward_pre_hook(
                lambda m, a, k: self.decoded.append(tuple(k["inputs_embeds"].shape[:2])), with_kwargs=True
            ),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for hook in self.hooks:
            hook.remove()


def chat(processor, images, question, **options):
    messages = [
        {
            "role": "user",
            "content": [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}],
        }
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt", **options}
    return processor.apply_chat_template(messages, **options)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_encoded_images_hold_the_visual_tokens(pair, images):
    model, processor = pair
    encoded = model.encode_images(images, processor=processor, batch_size=2)
    inputs = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert isinstance(encoded, EncodedImages) and [each.num_patches for each in encoded] == [7, 4, 1]
    torch.testing.assert_close(torch.cat([each.features for each in encoded]), features)
    assert [each.image_size for each in encoded] == [(64, 40), (30, 90), (32, 32)]
    assert not any(each.features.requires_grad for each in encoded)
    for each in encoded:  # none holds the memory of the others
        assert each.features.untyped_storage().nbytes() == each.nbytes == each.features.nbytes
    assert "tiles=7 of 4 tokens x" in repr(encoded[0]) and "image_size=(64, 40)" in repr(encoded[0])
    (fewer,) = model.encode_images(images[0], processor=processor, max_tiles=1)
    assert fewer.num_patches == 1 and fewer.image_options["max_tiles"] == 1
    (whole,) = model.encode_images(images[0], processor=processor, crop_to_patches=False, max_upscale=None)
    assert processor(images=whole, return_tensors="pt")["num_patches"].tolist() == [1]
    assert model.encode_images([], processor=processor) == []


def test_encoded_images_are_copied_and_carried_without_what_can_be_made_anew(pair, images):
    model, processor = pair
    encoded = model.encode_images(images[:2], processor=processor)
    answers = model.answer(encoded, QUESTIONS[:2], processor=processor, **PLAIN)
    assert encoded.nbytes > sum(each.features.nbytes for each in encoded)
    copies = [copy.deepcopy(encoded), EncodedImages(map(copy.copy, encoded)), encoded.to("cpu")]
    for other in copies:
        assert [each.origin.weights for each in other] == [weights_mark(model.model)] * 2
    carried = pickle.loads(pickle.dumps(encoded))
    assert [each.origin.weights for each in (*carried, *encoded.to("meta"))] == [None] * 4
    for other in (carried, *copies[:2]):
        assert isinstance(other, EncodedImages) and other.nbytes == sum(each.features.nbytes for each in encoded)
        assert model.answer(other, QUESTIONS[:2], processor=processor, **PLAIN) == answers
    assert encoded.to("cpu")[0] is encoded[0]
    moved = encoded.to("meta")
    assert moved[0].features.device.type == "meta" and moved[0].image_size == encoded[0].image_size
    encoded.forget()
    assert encoded.nbytes == sum(each.features.nbytes for each in encoded)
    assert model.answer(encoded, QUESTIONS[:2], processor=processor, **PLAIN) == answers


def test_few_prefixes_are_kept_and_generation_writes_into_none(pair, images):
    model, processor = pair
    first, *others = model.encode_images([*images, *images[:2]], processor=processor)
    model.answer(first, QUESTIONS[0], processor=processor, **PLAIN)
    (kept,) = first._prefixes.values()
    before = kept.clone()
    inputs = model.with_prefix(chat(processor, [first], QUESTIONS[1]), first)
    for layer in inputs["past_key_values"].layers:
        assert layer.keys.untyped_storage().data_ptr() != kept.untyped_storage().data_ptr()
    model.generate(**inputs, **PLAIN)
    model.answer([[first], [others[0]]], QUESTIONS[:2], processor=processor, num_beams=2, **PLAIN)
    assert torch.equal(kept, before) and next(iter(first._prefixes.values())) is kept
    for count in range(1, 5):
        model.answer([[first, *others[:count]]], "Same?", processor=processor, **PLAIN)
    assert len(first._prefixes) == MAX_PREFIXES and not any(value is kept for value in first._prefixes.values())


# --- the same answers -------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_images(pair, images):
    model, processor = pair
    encoded = model.encode_images(images, processor=processor)
    options = {"processor": processor, **PLAIN}
    expected = model.answer(images, QUESTIONS, **options)
    for _ in range(2):  # prefixes computed, prefixes kept
        assert model.answer(encoded, QUESTIONS, **options) == expected
        assert model.answer(encoded, QUESTIONS, batch_size=2, **options) == expected
        assert [model.answer(*each, **options)[0] for each in zip(encoded, QUESTIONS)] == expected
    assert model.caption(encoded, **options) == model.caption(images, **options)
    rows, tiles = [[images[0], images[1]], [images[2]]], [[encoded[0], encoded[1]], [encoded[2]]]
    assert model.answer(tiles, QUESTIONS[:2], **options) == model.answer(rows, QUESTIONS[:2], **options)
    one = [model.answer(images[0], question, **options)[0] for question in QUESTIONS]
    assert model.answer(encoded[0], QUESTIONS, **options) == one


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"do_sample": True}])
def test_beams_and_samples_are_the_same(pair, images, how):
    model, processor = pair
    encoded = model.encode_images(images, processor=processor)
    answers = []
    for given in (images, encoded, encoded):
        torch.manual_seed(3)
        answers.append(model.answer(given, QUESTIONS, processor=processor, **{**PLAIN, **how}))
    assert answers[0] == answers[1] == answers[2]


def test_regions_and_scores_are_the_same(pair, images):
    model, processor = pair

    class Boxes(LogitsProcessor):
        """Five tokens of a region, of whatever bins the model likes best."""

        def __call__(self, input_ids, scores):
            allowed = torch.full_like(scores, -float("inf"))
            first = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
            allowed[:, first : first + processor.num_location_bins] = 0
            return scores + allowed

    encoded = model.encode_images(images, processor=processor)
    options = {"processor": processor, "max_new_tokens": 12, "do_sample": False}
    for extra in ({}, {"logits_processor": LogitsProcessorList([Boxes()])}):
        for given in (encoded, encoded):
            for a, b in zip(
                model.dense_caption(images, **options, **extra), model.dense_caption(given, **options, **extra)
            ):
                assert a["captions"] == b["captions"] and a["unparsed"] == b["unparsed"]
                torch.testing.assert_close(a["boxes"], b["boxes"])
                torch.testing.assert_close(a["scores"], b["scores"], atol=1e-4, rtol=0)
    for a, b in zip(model.detect(images, "a dog", **options), model.detect(encoded, "a dog", **options)):
        assert a["labels"] == b["labels"] and a["unparsed"] == b["unparsed"]


def test_logits_are_the_same(pair, images):
    model, processor = pair
    encoded = model.encode_images(images[0], processor=processor)[0]
    wanted = {**PLAIN, "output_logits": True, "return_dict_in_generate": True}
    inputs = chat(processor, [encoded], QUESTIONS[1])
    plain = model.generate(**chat(processor, images[:1], QUESTIONS[1]), **wanted)
    for given in (inputs, model.with_prefix(inputs, encoded), model.with_prefix(inputs, [[encoded]])):
        output = model.generate(**given, **wanted)
        assert torch.equal(output.sequences, plain.sequences)
        for a, b in zip(output.logits, plain.logits):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_streamer_gets_the_same(pair, images):
    model, processor = pair

    class Collect(BaseStreamer):
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ids.append(None)

    encoded = model.encode_images(images[0], processor=processor)
    streams = []
    for given in (images[0], encoded, encoded):
        streams.append(Collect())
        model.answer(given, QUESTIONS[0], processor=processor, streamer=streams[-1], **PLAIN)
    assert streams[0].ids == streams[1].ids == streams[2].ids and streams[0].ids[-1] is None


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_length": 60},
        {"sequence_bias": {(5,): 3.0}},
        {"bad_words_ids": [[5], [6]]},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_cannot_use_a_prefix_still_uses_the_visual_tokens(pair, images, options):
    model, processor = pair
    encoded = model.encode_images(images[0], processor=processor)
    options = {"processor": processor, **PLAIN, **options}
    copies = [images[0].copy() for _ in QUESTIONS]
    expected = model.answer(copies, QUESTIONS, **options)
    with Seen(model) as seen:
        assert model.answer(encoded[0], QUESTIONS, **options) == expected
    assert seen.tiles == [] and encoded.nbytes == encoded[0].features.nbytes


@pytest.mark.parametrize("same_prompts", [True, False])
def test_what_generates_the_same_with_a_prefix_is_known_by_name(same_prompts):
    rows = [_Row([1, 7, 2], 2, []), _Row([1, 7, 2] if same_prompts else [1, 7, 2, 3], 2, [])]

    def fits(*options, **settings):
        return fits_generation(GenerationConfig(**settings), dict.fromkeys(options), rows)

    assert fits() and fits(do_sample=True) and fits(num_beams=2) and fits("synced_gpus", "tokenizer")
    other = {"use_cache": False, "cache_implementation": "static", "prefill_chunk_size": 8, "guidance_scale": 1.5,
             "token_healing": True}  # fmt: skip
    assert other.keys() == OWN_CACHE.keys()
    for name, value in other.items():
        settings = GenerationConfig()
        setattr(settings, name, value)
        assert not fits_generation(settings, {}, rows), name
    for mode in ({"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 2}):  # contrastive, assisted
        assert not fits(**mode), mode
    assert not fits("assistant_model") and not fits("inputs_embeds")
    readers = {"repetition_penalty": 1.2, "encoder_repetition_penalty": 1.2, "no_repeat_ngram_size": 2,
               "encoder_no_repeat_ngram_size": 2, "min_length": 5, "sequence_bias": {(5,): 3.0},
               "bad_words_ids": [[5]], "watermarking_config": {}, "stop_strings": "x"}  # fmt: skip
    assert readers.keys() == READS_PROMPT.keys()
    for name, value in readers.items():
        settings = GenerationConfig()
        setattr(settings, name, value)
        assert fits_generation(settings, {}, rows) is same_prompts, name
    assert fits("logits_processor") is fits("stopping_criteria") is same_prompts


def test_prefixes_with_the_same_first_image_are_told_apart(pair, images):
    model, processor = pair
    others = [images[2], images[2].rotate(90)]
    encoded = model.encode_images([images[0], *others], processor=processor)
    for _ in range(2):
        for raw, each in zip(others, encoded[1:]):
            inputs = chat(processor, [images[0], raw], "Same?")
            wanted = {**PLAIN, "output_logits": True, "return_dict_in_generate": True}
            plain = model.generate(**inputs, **wanted)
            given = model.with_prefix(chat(processor, [encoded[0], each], "Same?"), [encoded[0], each])
            torch.testing.assert_close(
                torch.stack(model.generate(**given, **wanted).logits), torch.stack(plain.logits), atol=1e-4, rtol=0
            )
    first, second = encoded[0]._prefixes.values()
    assert first.shape == second.shape and not torch.allclose(first, second)


def test_a_rotary_base_that_grows_with_the_prompt_keeps_no_prefix(images):
    model, processor = build("internvit_qwen", max_position_embeddings=40)
    encoded = model.encode_images(images[0], processor=processor)
    for question in QUESTIONS:  # one prompt is shorter than 40 tokens, one longer
        expected = model.answer(images[0], question, processor=processor, **PLAIN)
        for _ in range(2):
            assert model.answer(encoded, question, processor=processor, **PLAIN) == expected
    long = chat(processor, encoded, QUESTIONS[1])
    assert long["input_ids"].shape[1] > 40 and model.with_prefix(long, encoded) is long


def test_argus_nano_answers_the_same():
    model = ArgusForConditionalGeneration.from_pretrained(default_model_path(), dtype=torch.float32).eval()
    processor = ArgusProcessor.from_pretrained(default_model_path())
    rng = np.random.default_rng(1)
    photo = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((300, 200))
    questions = ["What is in the image?", "How many objects are there?"]
    options = {"processor": processor, "max_tiles": 2, "max_new_tokens": 12, "do_sample": False}
    expected = [model.answer(photo, question, **options)[0] for question in questions]
    encoded = model.encode_images(photo, processor=processor, max_tiles=2)
    for given in (photo, encoded, encoded):
        assert model.answer(given, questions, **options) == expected


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_a_second_question_pays_no_vision_and_no_image_prefill(pair, images):
    model, processor = pair
    with Seen(model) as seen:
        encoded = model.encode_images(images[0], processor=processor)
        assert seen.tiles == [7] and seen.decoded == []
        model.answer(encoded, QUESTIONS[0], processor=processor, max_new_tokens=1)
    T = chat(processor, encoded, QUESTIONS[0])["input_ids"].shape[1]
    (rows, prefix), (_, rest) = seen.decoded
    assert rows == 1 and prefix + rest == T and prefix >= 7 * 4 and rest < 30
    with Seen(model) as seen:
        model.answer(encoded, QUESTIONS[0], processor=processor, max_new_tokens=1)
        assert seen.tiles == [] and seen.decoded == [(1, rest)]
        model.answer(encoded[0], QUESTIONS, processor=processor, max_new_tokens=1)
        lengths = [chat(processor, encoded, question)["input_ids"].shape[1] - prefix for question in QUESTIONS]
        assert seen.tiles == [] and seen.decoded[1:] == [(3, max(lengths))]


def test_several_questions_about_an_image_encode_it_once(pair, images, tmp_path):
    model, processor = pair
    options = {"processor": processor, **PLAIN}
    expected = [model.answer(images[0], question, **options)[0] for question in QUESTIONS]
    path = str(tmp_path / "photo.png")
    images[0].save(path)
    for image, batch_size in ((images[0], 8), (images[0], 1), (images[0], 2), (path, 2)):
        with Seen(model) as seen:
            assert model.answer(image, QUESTIONS, batch_size=batch_size, **options) == expected
        assert seen.tiles == [7]
    mixed = [images[0], images[1], images[0], [images[2], images[0]]]
    expected = [model.answer([image], "What?", **options)[0] for image in mixed]
    with Seen(model) as seen:
        assert model.answer(mixed, "What?", **options) == expected
    assert sum(seen.tiles) == 7 + 4 + 1
    with Seen(model) as seen:  # nothing twice: nothing is encoded apart
        model.answer(images, "What?", **options)
    assert seen.tiles == [12] and len(seen.decoded) == 8


def test_prefixes_of_one_length_are_computed_together(pair, images):
    model, processor = pair
    encoded = model.encode_images([images[0], images[0].rotate(180), images[2]], processor=processor)
    with Seen(model) as seen:
        model.answer(encoded, "What?", processor=processor, max_new_tokens=1)
    assert [rows for rows, _ in seen.decoded] == [2, 1, 3]


# --- chats and the processor ------------------------------------------------------------------------------------------


def test_chats_with_encoded_images(pair, images):
    model, processor = pair
    encoded = model.encode_images(images, processor=processor)
    raw, inputs = (chat(processor, given[:2], QUESTIONS[0]) for given in (images, encoded))
    assert "pixel_values" not in inputs and torch.equal(raw["input_ids"], inputs["input_ids"])
    for name in ("num_patches", "image_sizes", "attention_mask"):
        assert torch.equal(raw[name], inputs[name])
    assert inputs["mm_encoder_outputs"]["image"].pooler_output.shape[0] == 11
    with Seen(model) as seen:
        ids = model.generate(**inputs, **PLAIN)
    assert seen.tiles == [] and torch.equal(ids, model.generate(**raw, **PLAIN))
    # Rows with other images, with several and with none, in one batch.
    prompts = ["<image>What?", "Hello!", "<image> and <image>: which?"]
    nested = [[encoded[0]], [], [encoded[1], encoded[2]]]
    batch = processor(images=nested, text=prompts, return_tensors="pt")
    plain = model.generate(**batch, **PLAIN)[:, batch["input_ids"].shape[1] :]
    for given in (nested, encoded):
        prefixed = model.with_prefix(batch, given)
        assert torch.equal(model.generate(**prefixed, **PLAIN)[:, prefixed["input_ids"].shape[1] :], plain)


def test_several_sequences_of_one_prompt(pair, images):
    model, processor = pair
    (encoded,) = model.encode_images(images[0], processor=processor)
    inputs = chat(processor, [encoded], QUESTIONS[0])
    for options in ({"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        sequences = []
        for given in (inputs, model.with_prefix(inputs, encoded)):
            torch.manual_seed(0)
            sequences.append(model.generate(**given, max_new_tokens=6, num_return_sequences=3, **options))
        assert torch.equal(*sequences)


def test_a_batch_with_encoded_images_can_be_moved_and_cast(pair, images):
    model, processor = pair
    encoded = model.encode_images(images[:2], processor=processor)
    inputs = processor(images=encoded, text=["<image>a", "<image>b"], return_tensors="pt", device="cpu")
    moved = inputs.to("meta", dtype=torch.float16)
    assert {value.device.type for name, value in moved.items() if name != "mm_encoder_outputs"} == {"meta"}
    features = moved["mm_encoder_outputs"]["image"].pooler_output
    assert (
        features.device.type == "meta" and features.dtype == torch.float16 and moved["input_ids"].dtype == torch.int64
    )
    assert encoded[0].features.device.type == "cpu"
    alone = processor(images=encoded, return_tensors="np")
    assert sorted(alone) == ["image_sizes", "mm_encoder_outputs", "num_patches"]
    assert isinstance(alone["num_patches"], np.ndarray)


def test_task_calls_ask_the_processor_for_the_models_device(images, monkeypatch):
    model, processor = build()
    seen = []
    original = processor.apply_chat_template
    monkeypatch.setattr(
        processor, "apply_chat_template", lambda m, **k: seen.append(k.get("device")) or original(m, **k)
    )
    model.caption(images[0], processor=processor, max_new_tokens=1)
    monkeypatch.setattr(model, "_device_option", lambda: {"device": model.device})  # as on a GPU
    model.caption(images[0], processor=processor, max_new_tokens=1)
    assert seen == [None, torch.device("cpu")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(images):
    model, processor = build()
    model = model.cuda()
    options = {"processor": processor, **PLAIN}
    expected = [model.answer(images[0], question, **options)[0] for question in QUESTIONS]
    encoded = model.encode_images(images[0], processor=processor)
    assert encoded[0].features.is_cuda
    for given in (images[0], encoded[0], encoded[0], encoded.to("cpu").to("cuda")[0]):
        assert model.answer(given, QUESTIONS, **options) == expected


def test_a_prefix_can_be_given_to_generate_again(pair, images):
    model, processor = pair
    encoded = model.encode_images(images[:2], processor=processor)
    texts = [f"<image> {question}" for question in QUESTIONS[:2]]
    batch = processor(images=list(encoded), text=texts, return_tensors="pt")
    calls = [
        {"max_new_tokens": 1},
        {},
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2},
        {},
    ]
    inputs = model.with_prefix(batch, encoded)
    for options in calls:
        options = {**PLAIN, **options}
        expected = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        assert torch.equal(model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :], expected)


def test_a_longer_chat_goes_on_with_the_cache(pair, images):
    """The cache of a call is kept as it is where the next prompt is longer."""
    model, processor = pair
    (encoded,) = model.encode_images(images[0], processor=processor)
    inputs = model.with_prefix(chat(processor, [encoded], "What?"), encoded)
    ids = model.generate(**inputs, **{**PLAIN, "min_new_tokens": 8})
    more = torch.cat((ids, ids[:, -3:]), dim=1)
    with Seen(model) as seen:
        going_on = model.generate(
            input_ids=more,
            attention_mask=torch.ones_like(more),
            past_key_values=inputs["past_key_values"],
            max_new_tokens=1,
        )
    assert seen.decoded == [(1, 4)]  # all but what the cache holds
    pixels = processor(images=images[0], return_tensors="pt")["pixel_values"]
    assert torch.equal(going_on, model.generate(input_ids=more, pixel_values=pixels, max_new_tokens=1))


def test_inputs_can_be_moved_one_by_one(pair, images):
    model, processor = pair
    (encoded,) = model.encode_images(images[0], processor=processor)
    inputs = chat(processor, [encoded], "What?")
    expected = model.generate(**inputs, **PLAIN)
    moved = {name: value.to("cpu") for name, value in inputs.items()}
    assert moved["mm_encoder_outputs"]["image"].origins == [encoded.origin]
    assert torch.equal(model.generate(**moved, **PLAIN), expected)
    away = {name: sent(value, torch.device("meta")) for name, value in inputs.items()}
    assert away["mm_encoder_outputs"]["image"].pooler_output.device.type == "meta"
    assert away["mm_encoder_outputs"]["image"].origins[0].weights is None
    assert inputs["mm_encoder_outputs"]["image"].pooler_output.device.type == "cpu"


def test_offloaded_weights_encode_and_answer(images):
    accelerate = pytest.importorskip("accelerate")
    model, processor = build()
    options = {"processor": processor, **PLAIN}
    expected = [model.answer(images[0], question, **options)[0] for question in QUESTIONS]
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.device.type == "meta"
    encoded = model.encode_images(images[0], processor=processor)
    for given in (images[0], encoded[0]):
        assert model.answer(given, QUESTIONS, **options) == expected


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_images_encoded_elsewhere_or_before_are_refused(images):
    model, processor = build()
    (encoded,) = model.encode_images(images[0], processor=processor)
    ask = {"questions": "What?", "processor": processor, **PLAIN}
    model.answer(encoded, **ask)
    with pytest.raises(ValueError, match="another model"):
        build()[0].answer(encoded, **ask)
    carried = pickle.loads(pickle.dumps(encoded))
    assert build()[0].answer(carried, **ask) == model.answer(encoded, **ask)  # whoever carried it vouches for it
    with pytest.raises(ValueError, match=r"4 tokens x 48, this model's are 4 x 40"):
        build("internvit_qwen")[0].answer(encoded, **ask)
    with pytest.raises(ValueError, match=r"torch\.float32 on cpu, the model torch\.bfloat16"):
        build()[0].to(torch.bfloat16).answer(carried, **ask)
    with pytest.raises(ValueError, match=r"on meta, .* to\(device\)"):
        model.answer(encoded.to("meta"), **ask)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for change in (
        lambda: model.load_state_dict(state),
        lambda: torch.optim.SGD(model.model.text_model.norm.parameters(), lr=0.1).step(),
    ):
        (encoded,) = model.encode_images(images[0], processor=processor)
        model.model.text_model.norm.weight.grad = torch.ones_like(model.model.text_model.norm.weight)
        change()
        with pytest.raises(ValueError, match="weights have been changed"):
            model.answer(encoded, **ask)
        with pytest.raises(ValueError, match="weights have been changed"):
            model.with_prefix(chat(processor, [encoded], "What?"), encoded)


def fused_adamw(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.01, fused=True).step()


def write_data(model):
    model.model.vision_model.layers[0].mlp.fc1.weight.data.mul_(1.5)


def write_one_row_of_the_embeddings(model):
    weight = model.get_input_embeddings().weight
    weight.data[weight.shape[0] // 2 :].add_(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [fused_adamw, write_data, write_one_row_of_the_embeddings])
def test_changes_that_torch_does_not_count_are_noticed(images, change, dtype):
    model, processor = build()
    model = model.to(dtype)
    (encoded,) = model.encode_images(images[0], processor=processor)
    inputs = chat(processor, [encoded], "What?")
    written = [p._version for p in model.parameters()]
    ask = {"questions": "What?", "processor": processor, **PLAIN}
    model.answer(encoded, **ask)
    change(model)
    assert change is fused_adamw or [p._version for p in model.parameters()] == written
    for image in (encoded, copy.copy(encoded), copy.deepcopy(encoded)):
        with pytest.raises(ValueError, match="weights have been changed"):
            model.answer(image, **ask)
    with pytest.raises(ValueError, match="weights have been changed"):
        model._check_encoded_output(inputs["mm_encoder_outputs"])


def test_adapters_merged_or_switched_are_noticed(images):
    peft = pytest.importorskip("peft")
    model, processor = build()
    lora = peft.LoraConfig(r=2, target_modules=["qkv_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, lora)
    ask = {"questions": "What?", "processor": processor, **PLAIN}

    def asked(encoded, refused):
        if refused:
            with pytest.raises(ValueError, match="weights have been changed"):
                model.answer(encoded, **ask)
        else:
            model.answer(encoded, **ask)

    (encoded,) = model.encode_images(images[0], processor=processor)
    with tuned.disable_adapter():
        asked(encoded, refused=True)
    asked(encoded, refused=False)  # they are on again
    tuned.merge_adapter()
    asked(encoded, refused=True)
    (encoded,) = model.encode_images(images[0], processor=processor)
    tuned.unmerge_adapter()
    asked(encoded, refused=True)
    tuned.add_adapter("second", lora)
    (encoded,) = model.encode_images(images[0], processor=processor)
    tuned.set_adapter("second")
    asked(encoded, refused=True)


def test_the_mark_reads_what_it_can():
    model, _ = build()
    mark = weights_mark(model.model)
    assert weights_mark(model.model) == mark
    model.model.text_model.norm.weight.data.fill_(float("nan"))
    assert weights_mark(model.model) == weights_mark(model.model)  # NaN is itself here
    with torch.inference_mode():
        assert isinstance(weights_mark(copy.deepcopy(model.model)), int)
    model.model.vision_model.patch_embedding.to(memory_format=torch.channels_last)  # not in one piece as it is indexed
    before = weights_mark(model.model)
    model.model.vision_model.patch_embedding.weight.data.mul_(2)
    assert weights_mark(model.model) != before
    assert isinstance(weights_mark(model.model.to("meta")), int)


def test_the_processors_output_says_where_it_comes_from(images):
    model, processor = build()
    encoded = model.encode_images(images[:2], processor=processor)
    inputs = chat(processor, encoded, "What?")
    for given in (inputs, copy.deepcopy(inputs).to("cpu"), inputs.to("cpu")):
        outputs = given["mm_encoder_outputs"]
        model._check_encoded_output(outputs)
        model._check_encoded_output(outputs["image"])
        for wrong in (outputs, outputs["image"], copy.copy(outputs)):
            with pytest.raises(ValueError, match="comes from another model"):
                build()[0]._check_encoded_output(wrong)
    other = build()[0]
    features = inputs["mm_encoder_outputs"]["image"].pooler_output
    for unknown in (
        BaseModelOutputWithPooling(pooler_output=features),
        features,
        None,
        pickle.loads(pickle.dumps(inputs))["mm_encoder_outputs"],
    ):
        other._check_encoded_output(unknown)
        other._check_encoded_output({"image": unknown} if not isinstance(unknown, dict) else unknown)


def test_images_in_another_order_are_refused(pair, images):
    model, processor = pair
    first, second = model.encode_images([images[2], images[2].rotate(90)], processor=processor)
    inputs = chat(processor, [first, second], "Which?")
    assert "past_key_values" in model.with_prefix(inputs, [copy.deepcopy(first), copy.copy(second)])
    carried = pickle.loads(pickle.dumps([first, second]))
    assert "past_key_values" in model.with_prefix(inputs, carried)
    for wrong in ([second, first], [first, first]):
        with pytest.raises(ValueError, match="others than the inputs were made with, or stand in another order"):
            model.with_prefix(inputs, wrong)
        del_outputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        assert "past_key_values" in model.with_prefix(del_outputs, wrong)  # nothing to compare with


def test_mixtures_and_contradictions_are_refused(pair, images):
    model, processor = pair
    encoded = model.encode_images(images, processor=processor)
    ask = {"questions": "What?", "processor": processor, **PLAIN}
    for mixed in ([images[0], encoded[1]], [[encoded[0], images[1]]]):
        with pytest.raises(ValueError, match="mixes"):
            model.answer(mixed, **ask)
        with pytest.raises(ValueError, match="mixes 1 encoded images with 1 others"):
            processor(images=mixed, text=["<image>", "<image>"] if len(mixed) == 2 else ["<image><image>"])
    with pytest.raises(ValueError, match="encoded already"):
        model.encode_images(encoded, processor=processor)
    with pytest.raises(ValueError, match="flat list"):
        model.encode_images([images], processor=processor)
    with pytest.raises(ValueError, match="batch_size"):
        model.encode_images(images, processor=processor, batch_size=0)
    with pytest.raises(TypeError, match="max_tile"):
        model.encode_images(images, processor=processor, max_tile=3)
    for device in ("cpu", None):
        with pytest.raises(ValueError, match=r"works where the model is, on cpu: leave device="):
            model.encode_images(images, processor=processor, device=device)
    for options in ({"crop_to_patches": False}, {"do_image_splitting": False}):
        with pytest.raises(ValueError, match=r"=False was given, but the image was encoded with True"):
            processor(images=encoded, text="<image>" * 3, **options)
    assert processor(images=encoded, text="<image>" * 3, crop_to_patches=True)["num_patches"].tolist() == [7, 4, 1]
    with pytest.raises(ValueError, match=r"max_tiles=1 was given, but the image was encoded with 6"):
        model.answer(encoded, max_tiles=1, **ask)
    assert model.answer(encoded, max_tiles=6, **ask) == model.answer(images, **ask)
    other = build_processor("native", image_seq_length=9)
    with pytest.raises(ValueError, match=r"7 tiles of 4 tokens, where this processor makes 7 of 9"):
        other(images=encoded, text="<image>" * 3)
    lying = EncodedImage(encoded[0].features[:3], (64, 40), encoded[0].image_options)
    with pytest.raises(ValueError, match=r"3 tiles of 4 tokens, where this processor makes 7 of 4"):
        processor(images=lying, text="<image>")


def test_a_prefix_needs_its_own_images_and_something_behind_them(pair, images):
    model, processor = pair
    encoded = model.encode_images(images, processor=processor)
    inputs = chat(processor, encoded[:1], "What?")
    with pytest.raises(ValueError, match="prompt 0 holds 28 image tokens"):
        model.with_prefix(inputs, encoded[1])
    with pytest.raises(ValueError, match="2 encoded images more"):
        model.with_prefix(inputs, encoded)
    with pytest.raises(ValueError, match="needs the encoded images"):
        model.with_prefix(inputs, images[0])
    ends = {name: inputs[name][:, : inputs["input_ids"][0].tolist().index(processor.image_token_id) + 28] for name in
            ("input_ids", "attention_mask")}  # fmt: skip
    with pytest.raises(ValueError, match="ends in an image"):
        model.with_prefix(ends, encoded[0])


def test_training_keeps_no_prefix(images):
    model, processor = build()
    (encoded,) = model.encode_images(images[0], processor=processor)
    model.train()
    inputs = chat(processor, [encoded], "What?")
    assert model.with_prefix(inputs, encoded) is inputs
    model.answer(encoded, ["What?", "Where?"], processor=processor, **PLAIN)
    assert encoded.nbytes == encoded.features.nbytes
