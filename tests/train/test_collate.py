"""Batches: each conversation is exactly the processor's prompt, images stand once, and only answers are learnt."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from tiny_runs import square_sample

from argus_tools.train.collate import IGNORED, Collator
from argus_tools.train.samples import Region, Sample, Turn


def chat(sample, turns, locations):
    """The conversation as a user would write it."""
    messages = []
    for number, turn in enumerate(turns):
        images = [{"type": "image", "image": image} for image in sample.images] if number == 0 else []
        answer = turn.answer
        if not isinstance(answer, str):
            height, width = sample.images[0].shape[:2]
            answer = locations.encode_regions([r.box for r in answer], [r.caption for r in answer], (height, width))
        messages.append({"role": "user", "content": [*images, {"type": "text", "text": turn.prompt}]})
        messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.mark.parametrize("side, max_tiles", [(32, 1), (96, 6)])
def test_each_branch_is_the_processors_prompt(processor, side, max_tiles):
    samples = [square_sample(i, side=side) for i in range(3)]
    batch = Collator(processor, max_tiles=max_tiles)(samples)
    assert batch["input_ids"].shape[0] == 3 and batch["input_ids"].shape[1] % 8 == 0
    for row, sample in enumerate(samples):
        segments, ids, labels = (batch[name][row] for name in ("segments", "input_ids", "labels"))
        assert (ids == processor.image_token_id)[segments != 0].sum() == 0  # the images stand in the prefix alone
        for number, turns in enumerate(sample.conversations, start=1):
            whole = processor.apply_chat_template(
                chat(sample, turns, processor.locations),
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
                max_tiles=max_tiles,
            )
            keep = (segments == 0) | (segments == number)
            length = int(keep.sum())
            assert torch.equal(ids[keep], whole["input_ids"][0, :length])
            assert processor.tokenizer.decode(whole["input_ids"][0, length:]) == "\n"
            assert torch.equal(batch["position_ids"][row][keep], torch.arange(length))
            said = whole["assistant_masks"][0, :length].bool()
            assert torch.equal(labels[keep] != IGNORED, said)
            assert torch.equal(labels[keep][said], ids[keep][said])
            assert labels[keep][said][-1] == processor.tokenizer.eos_token_id
    tiles = processor.image_processor([s.images[0] for s in samples], max_tiles=max_tiles, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], tiles["pixel_values"])
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_one_conversation_is_a_plain_row(processor):
    batch = Collator(processor)([square_sample(0, conversations=1), square_sample(1, conversations=1)])
    assert sorted(batch) == ["attention_mask", "input_ids", "labels", "pixel_values"]


def test_without_branches_every_conversation_has_its_row_and_its_tiles(processor):
    batch = Collator(processor, branches=False, naming=True)([square_sample(0)])
    assert batch["input_ids"].shape[0] == batch["pixel_values"].shape[0] == 3 and "segments" not in batch
    assert batch["names"].shape == (3, processor.image_seq_length)


def test_several_images_stand_where_the_prompt_says(processor):
    one, two = square_sample(0).images[0], square_sample(1).images[0]
    interleaved = Sample((one, two), ((Turn(("First ", 1, " then ", 0, "?"), "Yes."),),))
    first = Sample((one, two), ((Turn("Both?", "Yes."),),))
    batch = Collator(processor)([interleaved, first])
    shown = [two, one, one, two]  # tiles follow the image tokens
    assert torch.equal(batch["pixel_values"], torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2))
    expected = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "First "},
                    {"type": "image", "image": two},
                    {"type": "text", "text": " then "},
                    {"type": "image", "image": one},
                    {"type": "text", "text": "?"},
                ],
            },
            {"role": "assistant", "content": "Yes."},
        ],
        tokenize=True,
        return_dict=True,
    )["input_ids"][0]
    kept = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
    assert kept == expected[: len(kept)]


def test_text_alone_has_no_tiles(processor):
    batch = Collator(processor)([Sample((), ((Turn("Hello?", "Yes."),),))])
    assert "pixel_values" not in batch and (batch["labels"] != IGNORED).any()


def test_image_tokens_are_never_cut(processor):
    sample = square_sample(0, conversations=1)
    long = dataclasses.replace(sample, conversations=((Turn("Describe the image.", "A red square. " * 50),),))
    prompt = processor.image_seq_length + 12
    batch = Collator(processor, max_length=prompt + 20)([long])
    assert int(batch["attention_mask"].sum()) == prompt + 20
    assert (batch["input_ids"] == processor.image_token_id).sum() == processor.image_seq_length
    with pytest.raises(ValueError, match="cut into the 6 tokens of image"):
        Collator(processor, max_length=5)([sample])
    with pytest.raises(ValueError, match="square 0 has no word of the assistant to learn"):
        Collator(processor, max_length=processor.image_seq_length + 8)([sample])


def test_boxes_are_about_one_image(processor):
    sample = square_sample(0, conversations=1)
    with pytest.raises(ValueError, match="its conversation has 2"):
        Collator(processor)([dataclasses.replace(sample, images=sample.images * 2)])


def test_a_broken_image_is_named_by_its_source(processor):
    with pytest.raises(ValueError, match="an image of shelf 4 cannot be used"):
        Collator(processor)(
            [square_sample(0), Sample((b"no image",), ((Turn("What is this?", "Yes."),),), source="shelf 4")]
        )


def test_an_answer_counts_by_the_root_of_its_length(processor):
    batch = Collator(processor, answer_weighting="root")([square_sample(i) for i in range(4)])
    labels, segments, weights = (batch[name].numpy() for name in ("labels", "segments", "label_weights"))
    known = labels != IGNORED
    assert ((weights > 0) == known).all()
    for row in range(4):
        for number in range(1, segments[row].max() + 1):
            here = known[row] & (segments[row] == number)
            assert weights[row][here].sum() == pytest.approx(here.sum() ** 0.5, rel=1e-5)


def test_templates_without_marks_give_the_same_labels(processor):
    """As converted SmolVLM and InternVL checkpoints have; the answers are found by rendering what is before them."""
    template = processor.chat_template
    samples = [square_sample(i) for i in range(3)]
    marked = Collator(processor)(samples)
    try:
        processor.chat_template = re.sub(r"{% (end)?generation %}", "", template)
        plain = Collator(processor)(samples)
        processor.chat_template = processor.chat_template.replace("%}Assistant:", "%}Answer:")
        with pytest.raises(ValueError, match="add the marks"):
            Collator(processor)(samples)
    finally:
        processor.chat_template = template
    assert marked.keys() == plain.keys() and all(torch.equal(marked[name], plain[name]) for name in marked)


def test_visual_tokens_are_named_by_what_lies_there(processor):
    """Two objects on an image of one tile of 2 x 2 visual tokens, and on one of 1 x 2 tiles and a thumbnail."""
    regions = (Region((0, 0, 16, 32), "a cat"), Region((16, 16, 32, 32), "the red star"))
    sample = Sample((np.zeros((32, 32, 3), np.uint8),), ((Turn("What is this?", "Yes."),),), regions)
    names = Collator(processor, naming=True)([sample])["names"]
    read = [processor.tokenizer.decode([i]).strip() for i in names.flatten().tolist()]
    assert read == ["cat", ".", "cat", "red"]

    wide = Region((32, 0, 64, 32), "a cat")
    sample = Sample((np.zeros((32, 64, 3), np.uint8),), ((Turn("What is this?", "Yes."),),), (wide,))
    names = Collator(processor, naming=True, max_tiles=2)([sample])["names"]
    read = [[processor.tokenizer.decode([i]).strip() for i in tile] for tile in names.tolist()]
    assert read == [["."] * 4, ["cat"] * 4, [".", "cat"] * 2]

    unknown = dataclasses.replace(sample, objects=())
    assert (Collator(processor, naming=True)([unknown])["names"] == IGNORED).all()
