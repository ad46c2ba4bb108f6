"""ArgusProcessor: ids equal to transformers' own processors, markers in text kept as text, refusals, boxes out."""

import base64
import io
import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_transfer import Copies
from tiny import tiny_model
from tiny_text import (
    IMAGE_SEQ_LENGTH,
    IMAGE_TOKEN,
    KINDS,
    TILE_SIZE,
    build_image_processor,
    build_processor,
    build_reference_processor,
    build_tokenizer,
)
from transformers import AutoImageProcessor, AutoProcessor, pipeline

from processing_argus import CHAT_TEMPLATE, ArgusProcessor, ImageInputError, LocationVocabulary
from processing_argus.compat_processing_argus import portable_tokenizer_config
from processing_argus.prompt_layout_argus import PromptLayout

relaxed = settings(deadline=None, max_examples=60)
REFERENCES = ("smolvlm", "internvl")
SPECIAL_PIECES = [
    *("<image>", "<loc_3>", "<|im_start|>", "<end_of_utterance>", "<image_start>", "<image_end>", "<pad>"),
    *("<", "<ima", "ge>", "<loc_", "5>", "<|im_", "start|>", "image>", "<<image>", ">", " a dog", "\n", "é"),
]


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def user(*items, role="user"):
    content = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item} for item in items
    ]
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def processor():
    """The native processor; tests leave it as it is."""
    return build_processor()


@pytest.fixture(scope="module")
def processors():
    return {kind: build_processor(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def references():
    return {kind: build_reference_processor(kind) for kind in REFERENCES}


# --- the same ids as transformers' own processors ---------------------------------------------------------------------

PROMPTS = [
    (["{i}Hello world"], [[(50, 130)]]),
    (["a {i} b{i}\n\n{i}."], [[(60, 130), (20, 30), (128, 90)]]),
    (["{i}{i}"], [[(40, 300), (300, 40)]]),
    (["no image", "\n{i}\n what is this?", " {i} {i} "], [[], [(64, 64)], [(33, 32), (100, 100)]]),
    # SmolVLMProcessor of 5.6 loses a last prompt that has no image, so the prompt with one stands last.
    (["User: hi", "User:{i}What is this?\nAssistant:"], [[], [(500, 20)]]),
]


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("texts, sizes", PROMPTS, ids=range(len(PROMPTS)))
def test_input_ids_are_those_of_transformers_processors(kind, texts, sizes, processors, references):
    texts = [text.format(i=IMAGE_TOKEN[kind]) for text in texts]
    images = [[image(*size) for size in group] for group in sizes]
    ours = processors[kind](images=images, text=texts)
    # InternVLProcessor deals images out flat and cannot take an empty group.
    theirs = references[kind](
        images=images if kind == "smolvlm" else [picture for group in images for picture in group], text=texts
    )
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["attention_mask"] == theirs["attention_mask"]


@pytest.mark.parametrize("kind", REFERENCES)
def test_chat_ids_are_those_of_transformers_processors(kind, processors, references):
    chat = [
        user(image(50, 130), "What is this? It's 12 of 34."),
        user("A red car.", role="assistant"),
        user("And here:", image(20, 20), image(90, 64), "?"),
    ]
    for options in ({"add_generation_prompt": True}, {}):
        ours = processors[kind].apply_chat_template(chat, tokenize=True, return_dict=True, **options)
        theirs = references[kind].apply_chat_template(chat, tokenize=True, return_dict=True, **options)
        assert ours["input_ids"] == [list(ids) for ids in theirs["input_ids"]]
        text = processors[kind].apply_chat_template(chat, **options)
        assert text == references[kind].apply_chat_template(chat, **options)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(
    pieces=st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["\n", "  ", " a", "<", ">", ":"])), min_size=2),
    rows=st.integers(1, 8),
    cols=st.integers(1, 8),
)
def test_splicing_gives_the_ids_of_the_expanded_text(kind, processors, pieces, rows, cols):
    processor, marker = processors[kind], IMAGE_TOKEN[kind]
    grid = (rows, cols, rows * cols > 1)
    run = processor._runs.ids(*grid)
    marked = processor.tokenizer(marker.join(pieces))["input_ids"]
    spliced = [t for token in marked for t in (run if token == processor.image_token_id else [token])]
    expanded = PromptLayout(kind).expand(*grid, marker * IMAGE_SEQ_LENGTH)
    assert spliced == processor.tokenizer(expanded.join(pieces))["input_ids"]


@pytest.mark.parametrize(
    "layout",
    [{"image_start": "Picture: "}, {"image_end": "\n"}, {"single_prefix": "x"}, {"image_start": "\n<image_start>"}],
)
def test_a_layout_that_would_merge_with_its_neighbours_is_refused(layout):
    with pytest.raises(ValueError, match="outer edges"):
        build_processor(prompt_layout=layout)


@pytest.mark.parametrize("settings, message", [
    ({"prompt_layout": "qwen"}, "qwen"),
    ({"prompt_layout": {"start": "x"}}, "start"),
    ({"image_token": "<picture>"}, "not one token"),
    ({"image_seq_length": 0}, "image_seq_length"),
    ({"num_location_bins": 101}, "lacks 1 location tokens"),
    ({"box_format": "xml"}, "xml"),
    ({"max_tiles": 4}, "max_tiles"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build_processor(tokenizer=build_tokenizer(num_location_bins=100), **settings)


def test_settings_changed_afterwards_hold_as_if_given_at_once():
    def outputs(processor, **changes):
        for name, value in changes.items():
            setattr(processor, name, value)
        text = "a" + processor.image_token + "b" + processor.image_token
        images = [image(30, 30), image(60, 30)]
        chat = [user(*images, "<image> <img>"), user(processor.locations.encode_box((1, 2, 3, 4), (8, 8)))]
        template = CHAT_TEMPLATE.replace("<image>", processor.image_token)
        return [
            processor(images=images, text=text, padding=True)["input_ids"],
            processor(text=["a", "a b c"], padding=True)["input_ids"],
            processor.apply_chat_template(chat, template, tokenize=True),
            processor.post_process_detection(["[1, 2, 3, 4] cat"], [(8, 8)])[0]["labels"],
            processor._get_num_multimodal_tokens([(60, 30)])["num_image_tokens"],
        ]

    processor, layout = build_processor(), {"image_start": "<image_start>", "image_end": "<image_end>"}
    outputs(processor)
    tokenizer = build_tokenizer(num_location_bins=50)
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    settings = {}
    for change in (
        {"box_format": "plain_text"},
        {"num_location_bins": 10},
        {"image_seq_length": 5},
        {"prompt_layout": layout},
        {"tokenizer": tokenizer},
        {"image_token": "<picture>"},
        {"box_format": "location_tokens"},
    ):
        settings |= change
        changed = outputs(processor, **change)
        fresh = build_processor(**{"tokenizer": build_tokenizer(num_location_bins=100), **settings})
        assert changed == outputs(fresh), change
    layout["tile_prefix"] = "<image_end>"  # changed in place
    assert outputs(processor) == outputs(build_processor(**settings))
    assert outputs(processor) != outputs(build_processor(**{**settings, "prompt_layout": "native"}))
    runs = processor._runs
    assert processor._runs is runs, "nothing is made again as long as nothing changes"


def test_settings_changed_afterwards_are_checked_too():
    processor = build_processor()
    processor.num_location_bins = 101
    with pytest.raises(ValueError, match="lacks 1 location tokens"):
        processor.post_process_detection(["a"], [(8, 8)])
    processor.prompt_layout = {"image_end": "\n"}
    with pytest.raises(ValueError, match="outer edges"):
        processor(text="a")


def test_a_custom_layout_without_thumbnail_follows_the_grid():
    layout = {"tile_prefix": "<image_start>{row}/{col}", "row_suffix": ";", "image_end": "<image_end>"}
    processor = build_processor(prompt_layout=layout, image_processor=build_image_processor(use_thumbnail=False))
    ids = processor(images=image(60, 30), text="a<image>b")["input_ids"][0]
    tile = "<image>" * IMAGE_SEQ_LENGTH
    assert processor.decode(ids) == f"a<image_start>1/1{tile};<image_start>2/1{tile};<image_end>b"


# --- the chat template ------------------------------------------------------------------------------------------------


def test_the_native_template_reads_as_specified(processor):
    picture = image(30, 30)
    chat = [user(picture, "What is this?"), user("A cat.", role="assistant"), user("Sure?", picture)]
    expected = (
        "<|im_start|>User:<image>What is this?<end_of_utterance>\nAssistant: A cat.<end_of_utterance>\n"
        "User: Sure?<image><end_of_utterance>\n"
    )
    assert processor.apply_chat_template(chat) == expected
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == expected + "Assistant:"
    assert processor.apply_chat_template([chat, chat[:1]], add_generation_prompt=True)[0] == expected + "Assistant:"
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(plain) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\nUser: Hi<end_of_utterance>\n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_without_markers_in_its_text_is_tokenized_whole(kind, processors):
    processor = processors[kind]
    chat = [{"role": "user", "content": [{"type": "text", "text": "What's 12 + 34?\n\n I don't know"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    assert ids == [processor.tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_string_content_reaches_a_template_that_walks_over_items(processors):
    text = processors["smolvlm"].apply_chat_template([{"role": "user", "content": "hello"}])
    assert text == "<|im_start|>User: hello<end_of_utterance>\n"


@relaxed
@given(st.lists(st.lists(st.sampled_from(SPECIAL_PIECES), min_size=1, max_size=5).map("".join), min_size=1, max_size=3))
def test_what_users_write_never_becomes_structure(processor, texts):
    chat = [user(*texts)]
    rendered = "<|im_start|>User: " + "".join(texts) + "<end_of_utterance>\nAssistant:"
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == rendered
    (ids,) = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    added = set(processor.tokenizer.added_tokens_decoder)
    names = processor.tokenizer.convert_ids_to_tokens([i for i in ids if i in added])
    assert names == ["<|im_start|>", "<end_of_utterance>"]
    assert processor.decode(ids) == rendered


@relaxed
@given(st.lists(st.sampled_from(SPECIAL_PIECES), max_size=6).map("".join))
def test_assistants_write_location_tokens_but_no_other_structure(processor, text):
    chat = [user("Where?"), user(text + "<loc_7>", role="assistant")]
    (ids,) = processor.apply_chat_template(chat, tokenize=True)
    added = processor.tokenizer.added_tokens_decoder
    names = [added[i].content for i in ids if i in added and not added[i].content.startswith("<loc_")]
    assert names == ["<|im_start|>", "<end_of_utterance>", "<end_of_utterance>"]
    assert processor.tokenizer.convert_tokens_to_ids("<loc_7>") in ids
    assert processor.decode(ids).endswith(f"Assistant: {text}<loc_7><end_of_utterance>\n")


def test_markers_in_roles_names_and_documents_are_text_too(processor):
    template = "{{ bos_token }}{% for d in documents %}{{ d['text'] }}{% endfor %}{{ messages[0]['role'] }}"
    (ids,) = processor.apply_chat_template(
        [{"role": "<image>", "content": "x"}], template, documents=[{"text": "<image><loc_1>"}], tokenize=True
    )
    assert processor.image_token_id not in ids
    assert processor.decode(ids) == "<|im_start|><image><loc_1><image>"


def test_in_a_raw_string_markers_are_structure(processor):
    ids = processor(images=image(30, 30), text="<image> <loc_3>")["input_ids"][0]
    assert ids.count(processor.image_token_id) == IMAGE_SEQ_LENGTH
    assert processor.tokenizer.convert_tokens_to_ids("<loc_3>") in ids


def test_a_literal_marker_beside_a_real_image_is_not_counted(processor):
    chat = [user(image(30, 30), "Write <image> twice: <image>.")]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert inputs["input_ids"][0].count(processor.image_token_id) == IMAGE_SEQ_LENGTH
    assert inputs["num_patches"].tolist() == [1]


def test_a_chat_that_holds_the_usual_sentinel_keeps_it(processor):
    text = "\ufdd0 <image> \ufdd1"
    (ids,) = processor.apply_chat_template([user(text)], tokenize=True)
    assert processor.decode(ids) == f"<|im_start|>User: {text}<end_of_utterance>\n"


def test_batches_are_left_padded_and_equal_their_parts(processor):
    chats = [[user(image(60, 30), "What is this?")], [user("Hi")], [user(image(30, 30), "a", image(30, 70), "b")]]
    batch = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape[1:] == (3, TILE_SIZE, TILE_SIZE)
    assert batch["num_patches"].tolist() == [3, 1, 3] and batch["pixel_values"].shape[0] == 7
    assert batch["image_sizes"].tolist() == [[60, 30], [30, 30], [30, 70]]
    for chat, ids, mask in zip(chats, batch["input_ids"], batch["attention_mask"]):
        (single,) = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
        assert ids[mask == 1].tolist() == single
        assert mask.tolist() == [0] * (len(mask) - len(single)) + [1] * len(single)
        assert (ids[mask == 0] == processor.tokenizer.pad_token_id).all()
    lists = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    assert len({len(ids) for ids in lists["input_ids"]}) == 3, "without tensors there is nothing to pad for"


def test_text_without_images_has_no_image_inputs(processor):
    inputs = processor.apply_chat_template([user("Hi")], tokenize=True, return_dict=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_assistant_masks_cover_what_the_assistant_says(processor):
    chats = [
        [user(image(60, 30), "a <image> b"), user("A cat <image>.", role="assistant"), user("Where?"),
         user("<loc_1><loc_2><loc_3><loc_4>cat", role="assistant")],
        [user("Hi"), user(image(30, 30), "Hello", role="assistant")],
    ]  # fmt: skip
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    masks = inputs["assistant_masks"]
    assert masks.shape == inputs["input_ids"].shape and masks.dtype == torch.int64
    said = [processor.decode(ids[mask == 1]) for ids, mask in zip(inputs["input_ids"], masks)]
    assert said[0] == " A cat <image>.<end_of_utterance> <loc_1><loc_2><loc_3><loc_4>cat<end_of_utterance>"
    assert said[1] == "Hello<end_of_utterance>", "image tokens are never learned"


def test_assistant_masks_need_marks(processors):
    chat = [user("Hi"), user("Hello", role="assistant")]
    with pytest.raises(ValueError, match="generation"):
        processors["smolvlm"].apply_chat_template(chat, tokenize=True, return_assistant_tokens_mask=True)


def test_continue_final_message_ends_inside_the_answer(processor):
    chat = [user("Hi"), user("The answer is <", role="assistant")]
    text = processor.apply_chat_template(chat, continue_final_message=True)
    assert text == "<|im_start|>User: Hi<end_of_utterance>\nAssistant: The answer is <"
    (ids,) = processor.apply_chat_template(chat, continue_final_message=True, tokenize=True)
    assert processor.decode(ids) == text
    for clash in ({"add_generation_prompt": True}, {"return_assistant_tokens_mask": True}):
        with pytest.raises(ValueError, match="continue_final_message"):
            processor.apply_chat_template(chat, continue_final_message=True, tokenize=True, **clash)


def test_messages_name_images_in_every_way(processor, tmp_path):
    picture = image(40, 50)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    items = [
        {"type": "image", "image": picture},
        {"type": "image", "image": np.asarray(picture)},
        {"type": "image", "image": buffer.getvalue()},
        {"type": "image", "path": tmp_path / "a.png", "text": None},
        {"type": "image", "url": f"data:image/png;base64,{encoded}"},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    outputs = [
        processor.apply_chat_template([{"role": "user", "content": [item]}], tokenize=True, return_dict=True)
        for item in items
    ]
    for output in outputs[1:]:
        assert output["input_ids"] == outputs[0]["input_ids"]
        assert torch.equal(output["pixel_values"], outputs[0]["pixel_values"])


def test_images_may_stand_beside_messages_that_name_none(processor):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, images=[image(30, 30)])
    named = processor.apply_chat_template([user(image(30, 30), "a")], tokenize=True, return_dict=True)
    assert inputs["input_ids"] == named["input_ids"]
    nested = processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, processor_kwargs={"images": [[image(30, 30)]]}
    )
    assert nested["input_ids"] == named["input_ids"]
    assert processor.apply_chat_template(chat).startswith("<|im_start|>User:<image>a")
    with pytest.raises(ValueError, match="names no source"):
        processor.apply_chat_template(chat, tokenize=True)
    with pytest.raises(ValueError, match="one place"):
        processor.apply_chat_template([user(image(30, 30))], tokenize=True, images=[image(30, 30)])


@pytest.mark.parametrize("chat, message", [
    ([], "non-empty"),
    ([[]], "non-empty"),
    ("hello", "list of messages"),
    ([{"content": "x"}], "no role"),
    ([{"role": "user", "content": 3}], "int"),
    ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "'video'"),
    ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "'audio'"),
    ([{"role": "user", "content": [{"type": "image", "url": "a", "path": "b"}]}], "2 sources"),
])  # fmt: skip
def test_what_is_no_readable_chat_is_refused(processor, chat, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(chat, tokenize=True)


def test_templates_can_be_given_named_and_parametrised(processor):
    chat = [user("Hi")]
    assert processor.apply_chat_template(chat, "{{ messages[0]['content'][0]['text'] }}!") == "Hi!"
    assert processor.apply_chat_template(chat, "{{ mood }}", mood="calm") == "calm"
    named = build_processor(chat_template={"default": "a", "rag": "b"})
    assert (named.apply_chat_template(chat), named.apply_chat_template(chat, "rag")) == ("a", "b")
    assert named.apply_chat_template(chat, chat_template="c") == "c"
    with pytest.raises(TypeError, match="max_tiles"):
        processor.apply_chat_template(chat, max_tile=3)


@pytest.mark.parametrize("name", ["generation_prompt", "add_generation_promp", "image", "content", "generation", "is"])
def test_what_merely_stands_in_a_template_is_no_variable_of_it(processor, name):
    with pytest.raises(TypeError, match=name):
        processor.apply_chat_template([user("Hi")], **{name: True})


def test_a_template_may_have_any_variable_of_its_own(processor):
    template = (
        "{% if not day is defined %}{% set day = 'Monday' %}{% endif %}{% for m in messages %}"
        "{% if loop.index > limit %}{% break %}{% endif %}{% generation %}{{ day }}{% endgeneration %}{% endfor %}"
    )
    chat = [user("Hi"), user("Ho")]
    assert processor.apply_chat_template(chat, template, limit=1) == "Monday"
    assert processor.apply_chat_template(chat, template, limit=2, day="Friday ") == "Friday Friday "
    with pytest.raises(TypeError, match="'limits': did you mean 'limit'"):
        processor.apply_chat_template(chat, template, limits=1)


def test_both_majors_ways_to_pass_keywords_agree(processor):
    chat = [user(image(60, 150), "Hi")]
    flat = processor.apply_chat_template(chat, tokenize=True, return_dict=True, max_tiles=2, padding=True)
    grouped = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="auto",
        processor_kwargs={"images_kwargs": {"max_tiles": 2}, "text_kwargs": {"padding": True}},
    )  # fmt: skip
    assert flat["input_ids"] == grouped["input_ids"] and flat["num_patches"].tolist() == [3]
    assert torch.equal(flat["pixel_values"], grouped["pixel_values"])
    default = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert default["num_patches"].tolist() != [3]


# --- raw calls --------------------------------------------------------------------------------------------------------


def test_flat_images_are_dealt_by_markers_and_nested_ones_stay(processor):
    pictures = [image(30, 30), image(30, 70), image(70, 30)]
    texts = ["<image>a<image>", "b<image>"]
    flat = processor(images=pictures, text=texts)
    nested = processor(images=[pictures[:2], pictures[2:]], text=texts)
    assert flat["input_ids"] == nested["input_ids"]
    one = processor(images=pictures[0], text="<image>")
    stacked = processor(images=torch.stack([torch.zeros(3, 30, 30, dtype=torch.uint8)] * 2), text="<image><image>")
    assert one["num_patches"].tolist() == [1] and stacked["num_patches"].tolist() == [1, 1]


def test_one_place_holds_one_image(processor):
    picture = np.asarray(image(30, 30))
    texts = ["<image>x", "<image>y"]
    with pytest.raises(ImageInputError, match=r"images\[0\]\[0\] is a list of 2 items, .* one image"):
        processor(text=texts, images=[[[picture, picture]], [picture]])
    with pytest.raises(ImageInputError, match=r"images\[1\]\[0\] is a batch of shape \(2, 30, 30, 3\)"):
        processor(text=texts, images=[[picture], [np.stack([picture] * 2)]])
    with pytest.raises(ImageInputError, match=r"images\[1\] is a batch"):
        processor(text=texts, images=[picture, torch.zeros(2, 3, 30, 30, dtype=torch.uint8)])
    for several in ([picture] * 2, np.stack([picture] * 2), []):
        with pytest.raises(ImageInputError, match=r"images\[0\]\[1\] is a "):
            processor.apply_chat_template([user(picture, "x", several)], tokenize=True)


@pytest.mark.parametrize("texts, counts, message", [
    (["<image>", "a"], [1, 1], r"\[1, 0\] markers.*\[1, 1\]"),
    (["<image><image>", ""], [1, 1], r"\[2, 0\] markers.*\[1, 1\]"),
    (["<image>", "<image>"], 1, r"\[1, 1\] markers.*1 in one flat list"),
    (["a"], 1, r"\[0\] markers.*1 in one"),
    (["<image>"], 0, r"\[1\] markers.*0 in one"),
    (["<image>"], [1, 1], r"\[1\] markers.*\[1, 1\]"),
])  # fmt: skip
def test_a_mismatch_says_how_many_of_each(processor, texts, counts, message):
    picture = image(30, 30)
    images = [picture] * counts if isinstance(counts, int) else [[picture] * n for n in counts]
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=texts)


def test_images_alone_give_image_inputs(processor):
    inputs = processor(images=[image(30, 30), image(60, 30)], return_tensors="pt")
    assert set(inputs) == {"pixel_values", "num_patches", "image_sizes"}
    assert inputs["num_patches"].tolist() == [1, 3]


@pytest.mark.parametrize("kwargs, error, message", [
    ({"max_tile": 4}, TypeError, "did you mean 'max_tiles'"),
    ({"paddings": True}, TypeError, "did you mean 'padding'"),
    ({"images_kwargs": {"padding": True}}, TypeError, "padding"),
    ({"text_kwargs": {"padding": True}, "padding": True}, ValueError, "twice"),
    ({"videos": ["a.mp4"]}, ValueError, "videos"),
    ({"audio": [np.zeros(3)]}, ValueError, "audio"),
    ({"stride": 2}, ValueError, "stride"),
    ({"padding": "left"}, ValueError, "padding='left'"),
    ({"truncation": "only_second"}, ValueError, "only_second"),
    ({"return_tensors": "tf"}, ValueError, "'tf'"),
])  # fmt: skip
def test_keywords_that_mean_nothing_are_refused(processor, kwargs, error, message):
    with pytest.raises(error, match=message):
        processor(text=["a", "a b c"], **kwargs)


def test_empty_videos_and_audio_are_accepted(processor):
    inputs = processor(text="a", images=[], videos=[], audio=None, audios=[], stride=0, return_token_type_ids=False)
    assert set(inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("text", [[], 3, [["a", "b"]], [1]])
def test_text_must_be_strings(processor, text):
    with pytest.raises(ValueError, match="text"):
        processor(text=text)
    with pytest.raises(ValueError, match="text, images"):
        processor()


def test_padding_and_truncation_as_in_transformers(processor):
    texts = ["a b c d e f g", "a b"]
    for kwargs in (
        {"padding": True},
        {"padding": "max_length", "max_length": 12},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding": True, "padding_side": "right"},
        {"truncation": True, "max_length": 3},
        {"padding": "longest", "truncation": True, "max_length": 4},
    ):
        ours, theirs = processor(text=texts, **kwargs), processor.tokenizer(texts, **kwargs)
        for key in ("input_ids", "attention_mask"):
            assert ours[key] == theirs[key], kwargs
    assert isinstance(processor(text=texts, return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=texts, return_tensors="pt", padding=False)
    no_pad = build_processor()
    no_pad.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad token"):
        no_pad(text=texts, padding=True)


def test_padding_to_max_length_without_one_is_to_the_models():
    processor = build_processor()
    texts = ["a b c d e f g", "a b"]
    assert processor(text=texts, padding="max_length") == processor(text=texts, padding=True)  # no limit
    processor.tokenizer.model_max_length = 20
    ours, theirs = (call(text=texts, padding="max_length") for call in (processor, processor.tokenizer))
    assert ours["input_ids"] == theirs["input_ids"] and len(ours["input_ids"][1]) == 20


def test_truncation_may_cut_text_but_no_image(processor):
    inputs = processor(images=image(30, 30), text="a<image>b c d e f", truncation=True, max_length=9)
    assert len(inputs["input_ids"][0]) == 9
    with pytest.raises(ValueError, match="max_length=5 would cut into the 6 tokens of image 0 in prompt 0"):
        processor(images=image(30, 30), text="a<image>b", truncation=True, max_length=5)


def test_a_prompt_longer_than_the_model_reads_is_told(caplog):
    processor = build_processor()
    processor.tokenizer.model_max_length = 10
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            processor(images=image(60, 30), text="<image>", verbose=True)
            assert "14 tokens, more than the model's 10" in caplog.text
    finally:
        logger.propagate = False


def test_token_counts_are_what_serving_engines_ask_for(processors):
    sizes = [(30, 30), (60, 130), (200, 40)]
    for kind, processor in processors.items():
        counts = processor._get_num_multimodal_tokens(image_sizes=sizes, max_tiles=4)
        for size, tokens, patches in zip(sizes, counts["num_image_tokens"], counts["num_image_patches"]):
            inputs = processor(
                images=image(*size), text=f"a{IMAGE_TOKEN[kind]}b", max_tiles=4, return_mm_token_type_ids=True
            )
            assert sum(inputs["mm_token_type_ids"][0]) == tokens
            assert inputs["num_patches"].tolist() == [patches]
            assert inputs["input_ids"][0].count(processor.image_token_id) == patches * IMAGE_SEQ_LENGTH
    assert "num_image_tokens" not in processors["native"]._get_num_multimodal_tokens()


def test_offsets_point_into_the_prompt(processor):
    inputs = processor(images=image(30, 30), text="ab<image> c", return_offsets_mapping=True)
    spans = {"ab<image> c"[start:end] for start, end in inputs["offset_mapping"][0]}
    assert "<image>" in spans and len(inputs["offset_mapping"][0]) == len(inputs["input_ids"][0])


def test_model_input_names_are_the_keys(processor):
    inputs = processor(images=image(30, 30), text="<image>")
    assert set(inputs) == set(processor.model_input_names)


# --- what the model wrote ---------------------------------------------------------------------------------------------


def generated(processor, *texts):
    rows = [processor.tokenizer(text + "<end_of_utterance>")["input_ids"] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [processor.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def test_dense_captioning_gives_boxes_in_pixels_of_each_image(processor):
    size, boxes, captions = (200, 400), [(40, 20, 81, 61), (0, 0, 400, 200)], ["a red car", "Ein Café 日本"]
    text = processor.locations.encode_regions(boxes, captions, size)
    ids = generated(processor, text, "Hm.<loc_9><loc_1><loc_2><loc_3>no<loc_1>", "")
    first, second, third = processor.post_process_dense_captioning(ids, torch.tensor([size, (10, 10), (10, 10)]))
    assert first["captions"] == captions and first["unparsed"] == []
    assert first["boxes"].dtype == first["scores"].dtype == torch.float32
    torch.testing.assert_close(first["boxes"], torch.tensor([[42.0, 21, 82, 61], [2, 1, 398, 199]]))
    assert first["scores"].tolist() == [1.0, 1.0]
    assert second["boxes"].shape == (0, 4) and second["unparsed"] == [
        "Hm.",
        "<loc_9><loc_1><loc_2><loc_3>no",
        "<loc_1>",
    ]
    assert third == third | {"captions": [], "unparsed": []} and third["scores"].shape == (0,)
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    again = processor.post_process_detection(texts, [size, (10, 10), (10, 10)])
    assert again[0]["labels"] == captions and torch.equal(again[0]["boxes"], first["boxes"])


def test_location_tokens_that_are_special_ones_are_read_too():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*tokenizer.all_special_tokens, *(f"<loc_{i}>" for i in range(10))]}
    )
    processor = build_processor(num_location_bins=10, tokenizer=tokenizer)
    assert tokenizer.convert_tokens_to_ids("<loc_3>") in tokenizer.all_special_ids
    ids = generated(processor, "<loc_1><loc_2><loc_3><loc_4>dog")
    (result,) = processor.post_process_detection(ids, [(10, 10)])
    assert result["labels"] == ["dog"] and result["boxes"].tolist() == [[2.5, 1.5, 4.5, 3.5]]


def test_scores_are_mean_probabilities_of_a_regions_tokens(processor):
    ids = generated(processor, "Oh <loc_1><loc_1><loc_2><loc_2>cat<loc_3><loc_3><loc_4><loc_4>a dog")[0].tolist()
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    starts = [i for i, token in enumerate(tokens) if token in ("<loc_1>", "<loc_3>")][::2]
    end = tokens.index("<end_of_utterance>")
    log_probs = torch.linspace(-3, -0.1, len(ids))
    (result,) = processor.post_process_dense_captioning(torch.tensor([ids]), [(50, 50)], scores=log_probs[None])
    expected = [log_probs[starts[0] : starts[1]].mean().exp(), log_probs[starts[1] : end].mean().exp()]
    torch.testing.assert_close(result["scores"], torch.stack(expected))
    with pytest.raises(ValueError, match="scores"):
        processor.post_process_dense_captioning([ids], [(50, 50)], scores=log_probs[None, :-1])
    with pytest.raises(ValueError, match="scores"):
        processor.post_process_dense_captioning(["x"], [(50, 50)], scores=log_probs[None])


def test_plain_text_boxes_are_read_the_same_way():
    processor = build_processor("smolvlm", box_format="plain_text")
    assert processor.locations.num_location_bins == 1000
    text = processor.locations.encode_regions([(10, 20, 30, 40)] * 2, ["a cat", "a dog"], (100, 50))
    ids = generated(processor, text + "\nand so on")
    (result,) = processor.post_process_detection(ids, [(100, 50)], scores=torch.full(ids.shape, -0.5))
    assert result["labels"] == ["a cat", "a dog"] and result["unparsed"] == ["and so on"]
    torch.testing.assert_close(result["boxes"], torch.tensor([[10.0, 20, 30, 40]] * 2), atol=0.1, rtol=0)
    torch.testing.assert_close(result["scores"], torch.full((2,), -0.5).exp())


@relaxed
@given(st.lists(st.integers(-100, 700), max_size=30))
def test_no_generated_ids_raise(processor, ids):
    (result,) = processor.post_process_dense_captioning([ids], [(30, 40)])
    assert len(result["boxes"]) == len(result["captions"]) == len(result["scores"])


def test_a_model_without_locations_says_what_to_do(processors):
    with pytest.raises(ValueError, match=r"bootstrap.*plain_text"):
        processors["smolvlm"].post_process_dense_captioning(["a"], [(10, 10)])
    with pytest.raises(ValueError, match="2 outputs"):
        processors["native"].post_process_dense_captioning(["a", "b"], [(10, 10)])


def test_added_location_tokens_are_single_and_survive_decoding(processor):
    ids = processor.tokenizer("x<loc_99>y<loc_100>")["input_ids"]
    assert processor.tokenizer.convert_tokens_to_ids("<loc_99>") in ids
    assert processor.batch_decode([ids], skip_special_tokens=True) == ["x<loc_99>y<loc_100>"]
    assert processor.locations.encode_box((0, 0, 1, 1), (1, 1)) == "<loc_0><loc_0><loc_99><loc_99>"


# --- files and pipelines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_loads_and_can_be_read_by_every_version(kind, processors, tmp_path):
    processor = processors[kind]
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, ArgusProcessor)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__name__ == "ArgusImageProcessor"
    for name in (
        "image_token",
        "image_seq_length",
        "prompt_layout",
        "box_format",
        "num_location_bins",
        "chat_template",
    ):
        assert getattr(loaded, name) == getattr(processor, name)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.tokenizer.padding_side == "left"
    chat = [user(image(60, 130), "What is <image> this?")]
    assert loaded.apply_chat_template(chat, tokenize=True) == processor.apply_chat_template(chat, tokenize=True)

    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(tokenizer_config.get("extra_special_tokens"), list)
    processor_config = json.loads((tmp_path / "processor_config.json").read_text())
    assert "image_processor" not in processor_config and (tmp_path / "preprocessor_config.json").is_file()
    assert processor_config["prompt_layout"] == kind


def test_tokenizer_configs_of_both_majors_become_one():
    common = {"eos_token": "</s>", "add_bos_token": False, "start_image_token": "<img>"}
    named = {"extra_special_tokens": {"start_image_token": "<img>"}}
    newer = {**common, "tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"], "backend": "tokenizers"}
    older = {**common, "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>"], **named}
    expected = dict(older)
    for config in (newer, older):
        portable_tokenizer_config(config)
        assert config == expected
    plain = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {}}
    portable_tokenizer_config(plain)
    assert plain == {"tokenizer_class": "Qwen2Tokenizer"}


def test_the_image_text_to_text_pipeline_runs_through_the_processor(processor):
    model = tiny_model(
        "siglip_llama",
        text_config={"vocab_size": len(processor.tokenizer)},
        image_token_id=processor.image_token_id,
    )
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    run = pipeline(
        "image-text-to-text",
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    chat = [user(image(60, 30), "What is this?")]
    options = {"max_new_tokens": 5, "do_sample": False}
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    new = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    expected = processor.batch_decode(new, skip_special_tokens=True)
    answer = run(text=chat, return_full_text=False, generate_kwargs=options)
    assert [row["generated_text"] for row in answer] == expected
    raw = run(images=image(60, 30), text="<image>What?", return_full_text=False, generate_kwargs=options)
    assert isinstance(raw[0]["generated_text"], str)


def test_locations_are_those_of_the_vocabulary(processor):
    assert isinstance(processor.locations, LocationVocabulary)
    assert processor.locations.num_location_bins == 100


# --- on a device ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["raw", "chat", "text alone"])
def test_with_a_device_everything_crosses_in_one_copy(processor, call):
    image = np.zeros((40, 60, 3), np.uint8)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    options = {"return_tensors": "pt", "device": "meta", "return_mm_token_type_ids": True}
    with Copies() as copies:
        if call == "chat":
            messages = [{"role": "user", "content": content}]
            inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        elif call == "raw":
            inputs = processor(images=[image], text=[f"{processor.image_token} a"], **options)
        else:
            inputs = processor(text=["a cat"], **options)
    assert copies.crossings == 1 and copies.waits == [] and copies.blocking == 0
    assert all(value.device.type == "meta" for value in inputs.values())
    packed = [name for name in inputs if name != "pixel_values"]
    assert {"input_ids", "attention_mask", "mm_token_type_ids"} <= set(packed)
    assert len({inputs[name].untyped_storage()._cdata for name in packed}) == 1
    before = dict(inputs)
    assert all(inputs.to("meta")[name] is value for name, value in before.items())


def test_without_a_device_all_is_on_the_cpu(processor):
    inputs = processor(
        images=[np.zeros((40, 60, 3), np.uint8)], text=[f"{processor.image_token} a"], return_tensors="pt"
    )
    with torch.device("meta"):
        again = processor(
            images=[np.zeros((40, 60, 3), np.uint8)], text=[f"{processor.image_token} a"], return_tensors="pt"
        )
    assert all(value.device.type == "cpu" and torch.equal(value, again[name]) for name, value in inputs.items())


@pytest.mark.parametrize("device", [0, ""])
def test_a_device_that_python_calls_false_is_a_device(device, monkeypatch):
    """For text alone as with images: 0 is the pipelines' first device, and an empty name is refused."""
    from processing_argus import processing_argus

    seen = []
    monkeypatch.setattr(processing_argus, "resolve_device", lambda given: seen.append(given) or torch.device("cpu"))
    build_processor("smolvlm")(text="a dog", return_tensors="pt", device=device)
    assert seen == [device]
