"""The formats one by one: what each reader makes of its data set, and what it says of a broken record."""

# ruff: noqa: F811 - fixtures are imported, and then named as arguments

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from reader_fixtures import FIXTURES, cache, copied, opened, texts  # noqa: F401

from argus_tools.train.samples import Region, Turn
from modeling_argus.tasks_argus import TASK_PROMPTS

CAPTION, DENSE = TASK_PROMPTS["caption"], TASK_PROMPTS["dense_caption"]
MIX = "sharegpt4v/sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"


def test_sharegpt4v_captions(opened):
    first, second = opened("sharegpt4v")
    assert first.images == (str(FIXTURES / "sharegpt4v/images/coco/train2017/000000000009.jpg"),)
    assert first.conversations[0][0].prompt == "What do you see happening in this image?"  # the marker stood behind it
    assert second.conversations == (
        (Turn("Describe this photo in detail.", "A small blue square in the upper left of a portrait picture."),),
    )


def test_sharegpt4v_mixture_of_instructions(opened):
    """Several turns; text alone, with a leading answer, an unanswered question and a blank answer left out."""
    asked, text = opened("sharegpt4v", path=MIX)
    assert [turn.answer for turn in asked.conversations[0]] == ["Red", "No"]
    assert text.images == () and texts(text) == [[("Name a prime number.", "Seven.")]]
    assert len(opened("sharegpt4v", path=MIX, text_only="drop")) == 1


def test_vision_flan_and_allava_share_images(opened):
    (own,) = opened("vision_flan")
    (allava,) = opened("vision_flan", path="vision_flan/ALLaVA-Instruct-VFLAN-4V.json")
    assert own.images == allava.images
    assert own.conversations[0][0].prompt.endswith("(b) a disc") and own.conversations[0][0].answer == "(a) a bar"


def test_mgm_leaves_out_what_is_for_an_image_generator(opened):
    first, chart, text = opened("mgm_instruct")
    assert texts(first) == [[("What is in the picture?", "A red bar.")]]
    assert texts(chart) == [[("How many bars are there?\nReference OCR token: 1, 2", "1")]]
    assert text.images == ()


@pytest.mark.parametrize(
    "record, message",
    [
        ({"id": "1", "image": "a.png"}, "record 0 lacks 'conversations'; it has 'id', 'image'"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "record 0, message 0 is from 'robot'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "message 0: 'value' must be str, got 3"),
        ({"conversations": "no"}, "'conversations' must be list, got 'no'"),
        ({"image": 5, "conversations": []}, "'image' must be str or list, got 5"),
        ("text", "record 0 is a str, where an object"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}]},
            "record 0 has 1 <image> for 0 images",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
            "not by turns from human and gpt",
        ),
    ],
)
def test_broken_llava_records(record, message, tmp_path, opened):
    (tmp_path / "a.json").write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        opened("sharegpt4v", path=str(tmp_path / "a.json"))


def test_several_images_keep_their_places(tmp_path, opened):
    turns = [("Compare <image>\nand <image>", "Alike."), ("And now?", "Still.")]
    messages = [{"from": who, "value": v} for turn in turns for who, v in zip(("human", "gpt"), turn)]
    front = [{"from": "human", "value": "<image><image>\nAlike?"}, {"from": "gpt", "value": "Yes."}]
    late = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]
    late += [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The first."}]
    names = ["coco/train2017/000000000009.jpg", "sam/images/sa_547913.jpg"]
    rows = [{"image": names, "conversations": each} for each in (messages, front, late)]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    inside, in_front, later = opened("sharegpt4v", path=str(tmp_path / "a.json"))
    assert len(inside.images) == 2
    assert texts(inside) == [[(("Compare ", 0, "and ", 1), "Alike."), ("And now?", "Still.")]]
    assert texts(in_front) == [[("Alike?", "Yes.")]]
    assert texts(later) == [[(("Hello.",), "Hello."), ((0, " or ", 1, "?"), "The first.")]]


def test_coco_captions_by_caption_and_by_image(opened):
    by_caption, by_image = opened("coco_captions"), opened("coco_captions", per_image=True, prompt="Caption:")
    assert [texts(s) for s in by_caption][1] == [[(CAPTION, "A green rectangle standing up.")]]
    assert by_caption[0].images == by_caption[2].images
    assert [len(s.conversations) for s in by_image] == [2, 1, 1]  # a blank caption is none
    assert by_image[0].conversations[1] == (Turn("Caption:", "Two blocks on a pale table"),)
    assert by_caption.may_flip and not opened("coco_captions", may_flip=False).may_flip


def test_coco_instances(opened):
    first, second = opened("coco_instances")
    light, person = Region((30, 10, 60, 30), "traffic light"), Region((4, 4, 24, 44), "person")
    clamped = Region((0, 30.25, 7, 48), "person")
    assert first.objects == (light, person, clamped)  # a cup lay outside of the image
    by_prompt = {turns[0].prompt: turns[0].answer for turns in first.conversations}
    assert by_prompt[DENSE] == first.objects
    assert by_prompt["Detect: person."] == (person, clamped) and by_prompt["Detect: traffic light."] == (light,)
    absent = [prompt for prompt, answer in by_prompt.items() if answer == ()]
    assert absent and all(prompt in ("Detect: bicycle.", "Detect: cup.", "Detect: dog.") for prompt in absent)
    # A crowd of persons: neither an object, nor asked for as present or as absent.
    assert second.objects == (Region((10, 20, 40.5, 64), "dog"),)
    assert not any("person" in turns[0].prompt for turns in second.conversations)


def test_coco_instances_by_task(opened):
    dense, found = opened("coco_instances", detection=False), opened("coco_instances", dense=False, absent=0)
    assert [turns[0].prompt for turns in dense[0].conversations] == [DENSE]
    assert all(turns[0].prompt.startswith("Detect: ") and turns[0].answer for turns in found[0].conversations)


def test_coco_arrays_in_any_order(tmp_path, opened):
    original = json.loads((FIXTURES / "coco/annotations/instances_train2017.json").read_text(encoding="utf-8"))
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(original.items()))), encoding="utf-8")
    turned = opened("coco_instances", path=str(tmp_path / "a.json"))
    assert [s.objects for s in turned] == [s.objects for s in opened("coco_instances")]


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("annotations", {"image_id": 7}, r"annotations\[0\]: there is no image with the id 7"),
        ("annotations", {"category_id": 99}, r"annotations\[0\]: there is no category with the id 99"),
        ("annotations", {"bbox": [1, 2, 3]}, r"annotations\[0\]: a box must be four numbers, got \[1, 2, 3\]"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "not finite"),
        ("annotations", {"bbox": None}, r"annotations\[0\]: 'bbox' must be list, got None"),
        ("images", {"width": "64"}, r"images\[0\]: 'width' must be int, got '64'"),
        ("categories", {"name": 3}, r"categories\[0\]: 'name' must be str"),
    ],
)
def test_broken_coco_records(key, change, message, tmp_path, opened):
    data = json.loads((FIXTURES / "coco/annotations/instances_train2017.json").read_text(encoding="utf-8"))
    data[key][0].update(change)
    (tmp_path / "a.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        opened("coco_instances", path=str(tmp_path / "a.json"))


def test_the_wrong_coco_file(opened):
    with pytest.raises(ValueError, match=r"coco_instances reads images, annotations, categories"):
        opened("coco_instances", path="visual_genome/densecap_splits.json")


def test_resized_image_is_refused(copied, opened):
    folder = copied("coco")
    image = folder / "train2017/000000391895.jpg"
    Image.open(image).resize((32, 24)).save(image)
    with pytest.raises(ValueError, match=r"its boxes are of an image of 64x48 pixels, .* has 32x24"):
        list(opened("coco_instances", images=str(folder / "train2017")))


def test_image_that_is_none_is_refused(copied, opened):
    folder = copied("coco")
    (folder / "train2017/000000391895.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"image \d: the image .*000000391895.jpg cannot be read"):
        list(opened("coco_instances", images=str(folder / "train2017")))


def test_objects365(opened):
    first, second = opened("objects365")
    assert first.objects == (
        Region((5, 5, 25, 35), "cabinet or shelf"),
        Region((30.5, 2.25, 40.5, 32.25), "street lights"),
    )
    assert first.images[0].endswith("patch0/objects365_v1_00000001.jpg")
    assert [region.caption for region in second.objects] == ["person"]
    with pytest.raises(FileNotFoundError, match=r"objects365_v2_00908726.jpg"):  # never published
        list(opened("objects365", missing="error"))


def test_visual_genome(opened):
    first = opened("visual_genome", path="visual_genome")[0]
    assert first.objects == (
        Region((10, 10, 40, 50), "the clock is green in colour"),
        Region((50, 5, 75, 30), "shade is along the street"),
        Region((0, 40, 24, 60), "man wearing a hat"),
    )
    assert first.conversations == ((Turn(DENSE, first.objects),),)


def test_visual_genome_without_what_is_tested_on(opened):
    splits = "visual_genome/densecap_splits.json"
    assert len(opened("visual_genome", splits=splits)) == 2
    assert opened("visual_genome", splits=splits, split="test")[0].objects[0].caption == "a narrow green door"
    with pytest.raises(ValueError, match=r"no split 'val'"):
        opened("visual_genome", splits=splits, split="val")
    with pytest.raises(FileNotFoundError, match=r"nothing.json"):
        opened("visual_genome", splits="visual_genome/nothing.json")


def test_wit(opened):
    first, second = opened("wit", path="wit")
    assert first.images[0].endswith("Tower_Bridge_(London).jpg") and texts(first) == [
        [(CAPTION, "Tower Bridge at dusk")]
    ]
    assert texts(second) == [[(CAPTION, 'The "Iron" bridge, seen from below')]]
    assert first.source.endswith("wit_v1.train.all-00000-of-00010.tsv.gz, record 0")
    assert [texts(s) for s in opened("wit", language="fr")] == [[[(CAPTION, "Un pont")]]]
    assert texts(opened("wit", caption="attribution")[0])[0][0][1] == "English: Tower Bridge, London"


def test_wit_images_by_digest(opened, tmp_path):
    url = "https://upload.wikimedia.org/wikipedia/commons/a/ab/Pont.JPG"
    name = hashlib.md5(url.encode()).hexdigest() + ".jpg"
    shutil.copy(FIXTURES / "wit/images/Pont.JPG", tmp_path / name)
    (sample,) = opened("wit", language="fr", names="md5", images=str(tmp_path))
    assert sample.images == (str(tmp_path / name),)


def test_broken_wit_files(tmp_path, opened):
    packed = (FIXTURES / "wit/wit_v1.train.all-00000-of-00010.tsv.gz").read_bytes()
    plain = gzip.decompress(packed).decode()
    cases = {
        "cut.tsv.gz": (packed[: len(packed) // 2], "cannot be read behind record"),
        "fake.tsv.gz": (b"not gzip", "cannot be read behind record -1"),
        "columns.tsv": (plain.replace("image_url", "url", 1).encode(), "lacks the column 'image_url'"),
        "short.tsv": ((plain + "en\tx\n").encode(), "record 5: it has not as many columns"),
        "latin.tsv": (plain.replace("Un pont", "Un été").encode("latin-1"), "cannot be read"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            opened("wit", path=str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"no .tsv or .tsv.gz file"):
        opened("wit", path=str(FIXTURES / "chat"))


def test_scienceqa(opened):
    seen, read = opened("scienceqa")
    assert texts(seen) == [
        [
            (
                "Look at the picture.\nWhich is longer?\nA. the bar\nB. the gap\n"
                "Answer with the letter of the right choice.",
                "A",
            )
        ]
    ]
    assert seen.images[0].endswith("images/train/1/image.png") and read.images == ()
    assert read.conversations[0][0].answer == "C"
    assert len(opened("scienceqa", text_only="drop")) == 1 and len(opened("scienceqa", split="trainval")) == 3
    assert texts(opened("scienceqa", answer="solution")[0])[0][0][1] == "The bar spans the picture.\nThe answer is A."


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer": 2}, "problem 1: its answer is number 2 of 2 choices"),
        ({"choices": ["one"]}, "problem 1: 'choices' must be 2 to 10 strings"),
        ({"question": None}, "problem 1: 'question' must be str, got None"),
        ({"image": 3}, "problem 1: 'image' must be str or null, got 3"),
    ],
)
def test_broken_scienceqa(change, message, copied, opened):
    folder = copied("scienceqa")
    problems = json.loads((folder / "problems.json").read_text(encoding="utf-8"))
    problems["1"].update(change)
    (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        opened("scienceqa", path=str(folder))
    del problems["2"]
    problems["1"] = problems["3"]
    (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks 1 problems of split 'train', such as 2"):
        opened("scienceqa", path=str(folder))


def test_chat_with_boxes(opened):
    boxes, two, several, alone = opened("chat")
    assert boxes.conversations[0][0].answer == (
        Region((10, 20, 40, 60), "a red block"),
        Region((60.5, 0, 100, 30), "a blue block"),  # clamped; the third lay outside
    )
    assert texts(two) == [
        [
            (("Compare ", 0, " with ", 1), "The first has two blocks."),
            ("And the second?", "One."),
        ]
    ]
    assert texts(several) == [[("Detect: red block.", ())], [("What colour is it?", "Green.")]]
    assert alone.images == () and texts(alone) == [[("Say hello.", "Hello.")]]


def test_chat_boxes_are_of_the_upright_image(tmp_path, opened):
    picture = Image.new("RGB", (30, 20))
    exif = picture.getexif()
    exif[0x0112] = 6  # a quarter turn: 20 wide, 30 high
    picture.save(tmp_path / "turned.jpg", exif=exif)
    answer = [{"box": [0, 0, 30, 30], "caption": "all"}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"images": ["turned.jpg"], "messages": messages}), encoding="utf-8")
    (sample,) = opened("chat", path=str(tmp_path / "a.jsonl"), images=None)
    assert sample.conversations[0][0].answer[0].box == (0, 0, 20, 30)


def test_the_guides_example_mirrors_what_it_asks_to_be_mirrored(opened):
    """`flip` is for sources that allow it, which chat does only where it is told."""
    text = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    (example,) = (yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", text, re.S))
    assert example["data"]["augmentation"]["flip"] > 0
    for source in example["data"]["sources"]:
        paths = {"path": "chat/data.jsonl", "images": "chat/images"}
        assert opened(source["reader"], **source["options"] | paths).may_flip
    assert not opened("chat").may_flip


def said(content, question="?"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": content}]


def boxed(*boxes):
    return [{"box": box, "caption": "x"} for box in boxes]


@pytest.mark.parametrize(
    "content, message",
    [
        (boxed([5, 5, 5, 9]), r"line 1: the box \[5.0, 5.0, 5.0, 9.0\] covers nothing of its image of 30x20 pixels"),
        (boxed([0, 0, 9, 9], [5, 9, 8, 9]), r"the box \[5.0, 9.0, 8.0, 9.0\] covers nothing"),
        (boxed([30, 0, 40, 9], [0, -9, 9, -1]), r"the box \[30.0, 0.0, 40.0, 9.0\] covers nothing"),
        (
            boxed([0.1, 0.1, 0.5, 0.5]),
            r"line 1: the box \[0.1, 0.1, 0.5, 0.5\] looks normalised: .* of 30x20; multiply",
        ),
        (boxed([0, 0, 1, 1], [0.5, 0, 1, 0.25]), r"the box \[0.0, 0.0, 1.0, 1.0\] looks normalised"),
        ("", "line 1: the answer '' is blank"),
        ([{"type": "text", "text": " "}], "line 1: the answer ' ' is blank"),
    ],
)
def test_chat_answers_that_say_nothing_are_bad_samples(content, message, tmp_path, opened):
    """Not lessons that nothing is there, which only [] teaches; the other lines of the file can be used."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    lines = [{"images": ["a.png"], "messages": said(each)} for each in (content, [], boxed([25, 0, 40, 9]))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    bad, nothing, clipped = range(3)
    samples = opened("chat", path=str(tmp_path / "a.jsonl"), images=None)
    with pytest.raises(ValueError, match=message):
        samples[bad]
    assert samples[nothing].conversations[0][0].answer == ()
    assert samples[clipped].conversations[0][0].answer == (Region((25, 0, 30, 9), "x"),)


def test_chat_takes_small_boxes(tmp_path, opened):
    """A box of part of a pixel is one where others are not in 0..1, or where that is the whole image."""
    for name, size in (("a.png", (30, 20)), ("dot.png", (1, 1))):
        Image.new("RGB", size).save(tmp_path / name)
    small = [0.25, 0.5, 1, 1]
    lines = [("a.png", boxed(small, [1, 0, 2, 1])), ("a.png", boxed([7.25, 3, 8, 3.5])), ("dot.png", boxed(small))]
    lines = [json.dumps({"images": [name], "messages": said(content)}) + "\n" for name, content in lines]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    answers = [s.conversations[0][0].answer for s in opened("chat", path=str(tmp_path / "a.jsonl"), images=None)]
    boxes = [[list(region.box) for region in answer] for answer in answers]
    assert boxes == [[small, [1, 0, 2, 1]], [[7.25, 3, 8, 3.5]], [small]]


@pytest.mark.parametrize("place", ["images", "prompt", "answer", "caption"])
def test_half_a_character_is_named_with_its_line(place, tmp_path, opened):
    """JSON can write one half of a surrogate pair, UTF-8 cannot."""
    good = {"images": ["a.png"], "messages": said("a \U0001f600")}
    half = {
        "images": {**good, "images": ["\ud800.png"]},
        "prompt": {**good, "messages": said("a", "b \udc00")},
        "answer": {**good, "messages": said("a \ud83d")},
        "caption": {**good, "messages": said([{"box": [0, 0, 9, 9], "caption": "\ud800"}])},
    }[place]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (good, half, good)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: its text holds half of a character, '\\u"):
        opened("chat", path=str(tmp_path / "a.jsonl"), images=None)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1, is no JSON"),
        ({"images": []}, "line 1 must be an object with either 'messages' or 'conversations'"),
        ({"messages": said("a"), "image": "a.png"}, "unknown key 'image'"),
        ({"messages": said("a")[:1]}, "needs messages by turns"),
        ({"messages": said("a")[::-1]}, "message 0 is from 'assistant', where 'user' was expected"),
        ({"messages": said([{"box": [0, 0, 1, 1], "caption": "x"}])}, "has regions and its line 0 images"),
        ({"images": ["a.png"], "messages": said([{"box": [0, 0, 1], "caption": "x"}])}, "region 0: a box must be four"),
        ({"images": ["a.png"], "messages": said([{"box": [5, 0, 1, 1], "caption": "x"}])}, "not x1 <= x2 and y1 <= y2"),
        ({"images": ["a.png"], "messages": said([{"box": [0, 0, 1, 1]}])}, "region 0 lacks 'caption'"),
        ({"images": ["a.png"], "messages": said([{"box": [0, 0, 1, 1], "caption": " "}])}, "its caption '' is blank"),
        (
            {"images": ["a.png"], "messages": said([{"box": [0, 0, 1, 1], "caption": "a <loc_3> b"}])},
            "holds a location token",
        ),
        (
            {"images": ["a.png"], "messages": said([{"type": "text", "text": "a"}, {"box": [0, 0, 1, 1]}])},
            "mixes text and regions",
        ),
        ({"messages": said("a", [{"type": "video"}])}, "message 0: a user's part is"),
        ({"images": ["a.png"], "messages": said("a", [{"type": "image"}] * 2)}, "shows 2 images in its messages"),
        ({"images": [3], "messages": said("a")}, "'images' must be a list of file names"),
        ({"conversations": []}, "'conversations' is empty"),
    ],
)
def test_broken_chat_lines(line, message, tmp_path, opened):
    (tmp_path / "a.jsonl").write_text(line if isinstance(line, str) else json.dumps(line), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        opened("chat", path=str(tmp_path / "a.jsonl"), images=None)
