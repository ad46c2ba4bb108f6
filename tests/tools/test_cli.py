"""The command line, run in this process: what it prints, draws and writes, and how it refuses bad input."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_model
from tiny_text import build_processor
from transformers import LogitsProcessor, LogitsProcessorList

import argus_tools.cli_models
from argus_tools import __version__
from argus_tools.cli import build_parser, main
from argus_tools.cli_checkpoints import with_options
from argus_tools.cli_support import CommandError, printable, whole_file
from argus_tools.draw import caption_color
from modeling_argus import ArgusForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
REGIONS = "<loc_0><loc_10><loc_49><loc_99>a red car<loc_20><loc_20><loc_30><loc_30>a dog<loc_5>broken"


def save_tiny(folder, **processor_options):
    processor = build_processor("native", **processor_options)
    tokenizer = processor.tokenizer
    model = tiny_model(
        image_token_id=processor.image_token_id,
        text_config={"vocab_size": len(tokenizer)},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for name, size, color in (("one", (64, 40), "gray"), ("two", (30, 90), "blue"), ("three", (32, 32), "green")):
        paths.append(str(tmp_path / f"{name}.png"))
        Image.new("RGB", size, color).save(paths[-1])
    return paths


@pytest.fixture
def says(monkeypatch):
    """Makes every loaded model say one text, whatever it sees."""
    original = ArgusForConditionalGeneration.generate

    def set_text(text):
        def generate(self, **inputs):
            ids = torch.tensor(build_processor().tokenizer(text + "<end_of_utterance>").input_ids)
            start = inputs["input_ids"].shape[1]

            class Says(LogitsProcessor):
                def __call__(self, input_ids, scores):
                    scores = torch.full_like(scores, -float("inf"))
                    scores[:, ids[input_ids.shape[1] - start]] = 0.0
                    return scores

            return original(self, **inputs, logits_processor=LogitsProcessorList([Says()]))

        monkeypatch.setattr(ArgusForConditionalGeneration, "generate", generate)

    return set_text


def fails(capsys, *argv, status=2):
    """The one line that the command ends with."""
    assert main([str(word) for word in argv]) == status
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("argus: error: ") and captured.err.count("\n") == 1
    return captured.err


# --- the four tasks ---------------------------------------------------------------------------------------------------


def test_caption(folder, pictures, says, capsys):
    says(" A red car.\n Two dogs.\x1b[31m")
    assert main(["caption", pictures[0], "--model", folder]) == 0
    assert capsys.readouterr().out == "A red car.\n Two dogs. [31m\n"
    assert main(["caption", *pictures, "--model", folder, "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == "".join(f"{picture}: A red car. Two dogs. [31m\n" for picture in pictures)


def test_caption_as_json(folder, pictures, says, capsys):
    says("A crème brûlée.")
    assert main(["caption", *pictures[:2], "--model", folder, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert [json.loads(line) for line in captured.out.splitlines()] == [
        {"image": pictures[0], "width": 64, "height": 40, "caption": "A crème brûlée."},
        {"image": pictures[1], "width": 30, "height": 90, "caption": "A crème brûlée."},
    ]


def test_a_model_without_a_script_runs_too(folder, pictures, capsys):
    argv = [*pictures, "--model", folder, "--max-new-tokens", "5", "--json", "--dtype", "bfloat16", "--device", "cpu"]
    assert main(["caption", *argv]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["dense-caption", *argv]) == 0
    for line in capsys.readouterr().out.splitlines():
        result = json.loads(line)
        assert len(result["boxes"]) == len(result["captions"]) == len(result["scores"])


def test_ask(folder, pictures, says, capsys):
    says("A cat.")
    assert main(["ask", pictures[0], "What is this?", "--model", folder]) == 0
    assert capsys.readouterr().out == "A cat.\n"
    assert main(["ask", *pictures[:2], "-q", "What?", "--question", "Where?", "--model", folder]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{picture}: {question}: A cat." for picture in pictures[:2] for question in ("What?", "Where?")
    ]
    assert main(["ask", *pictures[:2], "What?", "--model", folder, "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["image"], r["question"], r["answer"]) for r in results] == [(p, "What?", "A cat.") for p in pictures[:2]]


def test_each_question_reaches_each_image(folder, pictures, monkeypatch, capsys):
    seen = []

    def answer(self, images, questions, **options):
        seen.extend((tuple(image.shape), question) for image, question in zip(images, questions))
        return [f"answer {number}" for number in range(len(questions))]

    monkeypatch.setattr(ArgusForConditionalGeneration, "answer", answer)
    assert main(["ask", *pictures[:2], "-q", "A?", "-q", "B?", "--model", folder, "--json"]) == 0
    assert seen == [((3, 40, 64), "A?"), ((3, 40, 64), "B?"), ((3, 90, 30), "A?"), ((3, 90, 30), "B?")]
    answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["answer 0", "answer 1", "answer 2", "answer 3"]


def test_questions_share_one_encoding_of_each_image(folder, pictures, monkeypatch, capsys):
    tiles = []
    original = ArgusForConditionalGeneration.get_image_features

    def count(self, pixel_values, **kwargs):
        tiles.append(len(pixel_values))
        return original(self, pixel_values, **kwargs)

    monkeypatch.setattr(ArgusForConditionalGeneration, "get_image_features", count)
    argv = ["--model", folder, "--json", "--max-new-tokens", "6"]
    questions = ["What is this?", "Where is the dog in the image?", "A cat?"]
    alone = []
    for picture in pictures[:2]:
        for question in questions:
            assert main(["ask", picture, question, *argv]) == 0
            alone.append(capsys.readouterr().out)
    tiles.clear()
    asked = [word for question in questions for word in ("-q", question)]
    for batch_size in ("8", "1"):
        assert main(["ask", *pictures[:2], *asked, *argv, "--batch-size", batch_size]) == 0
        assert capsys.readouterr().out == "".join(alone)
        assert sum(tiles) == 7 + 4
        tiles.clear()


@pytest.mark.parametrize("command", [["caption"], ["ask", "-q", "What?"], ["detect", "-p", "a dog"], ["dense-caption"]])
def test_max_upscale_bounds_the_tiles(folder, pictures, command, monkeypatch, capsys):
    tiles = []
    hook = ArgusForConditionalGeneration.generate
    monkeypatch.setattr(
        ArgusForConditionalGeneration,
        "generate",
        lambda self, **inputs: tiles.append(len(inputs["pixel_values"])) or hook(self, **inputs),
    )
    argv = [command[0], pictures[0], *command[1:], "--model", folder, "--max-new-tokens", "1", "--json"]
    for value in ("8", "1", "0.01"):  # 64x40 pixels in tiles of 32
        assert main([*argv, "--max-upscale", value]) == 0
    assert tiles[0] > tiles[1] >= tiles[2] == 1
    capsys.readouterr()
    for value in ("0", "-1", "nan", "inf", "two", "", "1_0", "\u0662"):
        assert "is not a number above 0" in fails(capsys, *argv, "--max-upscale=" + value)


def test_stream_prints_the_answer_as_it_comes(folder, pictures, says, monkeypatch, capsys):
    says(" A red car and\ntwo small dogs.")
    written = []
    original = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: written.append(text) or original(text))
    assert main(["caption", pictures[0], "--model", folder, "--stream"]) == 0
    assert capsys.readouterr().out == "A red car and\ntwo small dogs.\n"
    assert len([text for text in written if text.strip()]) > 3
    assert main(["ask", pictures[0], "What?", "--model", folder, "--stream"]) == 0
    assert capsys.readouterr().out == "A red car and\ntwo small dogs.\n"


def test_dense_caption_prints_a_table(folder, pictures, says, capsys):
    says(REGIONS)
    assert main(["dense-caption", *pictures[:2], "--model", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{pictures[0]}  64x40  2 regions"
    assert lines[1:4] == [
        "  score    x1   y1    x2    y2  caption",
        "   1.00   6.7  0.2  63.7  19.8  a red car",
        "   1.00  13.1  8.2  19.5  12.2  a dog",
    ]
    assert "unparsed" in lines[4] and "broken" in lines[4]
    assert lines[5] == f"{pictures[1]}  30x90  2 regions"


def test_dense_caption_as_json(folder, pictures, says, capsys):
    says(REGIONS)
    assert main(["dense-caption", pictures[0], "--model", folder, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["image"], result["width"], result["height"]) == (pictures[0], 64, 40)
    assert result["captions"] == ["a red car", "a dog"] and result["scores"] == [1.0, 1.0]
    assert result["boxes"] == [[6.72, 0.2, 63.68, 19.8], [13.12, 8.2, 19.52, 12.2]]
    assert "broken" in result["unparsed"][0]


def test_detect(folder, pictures, says, monkeypatch, capsys):
    says("<loc_0><loc_10><loc_49><loc_99>a red car")
    phrases = []
    original = ArgusForConditionalGeneration.detect
    monkeypatch.setattr(
        ArgusForConditionalGeneration, "detect", lambda s, i, p, **k: phrases.append(p) or original(s, i, p, **k)
    )
    assert main(["detect", pictures[0], "a red car", "a dog", "--model", folder]) == 0
    assert "a red car" in capsys.readouterr().out
    assert main(["detect", *pictures[:2], "-p", "a red car", "--phrase", "a cat", "--model", folder, "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["labels"] for result in results] == [["a red car"]] * 2
    assert phrases == [["a red car", "a dog"], ["a red car", "a cat"]]


def test_options_reach_the_model(folder, pictures, monkeypatch, capsys):
    seen = {}

    def caption(self, images, **options):
        seen.update(options, dtype=self.dtype, images=images)
        return ["x"] * len(images)

    monkeypatch.setattr(ArgusForConditionalGeneration, "caption", caption)
    options = [
        "--max-tiles",
        "3",
        "--max-new-tokens",
        "7",
        "--batch-size",
        "2",
        "--dtype",
        "float16",
        "--prompt",
        "Say.",
    ]
    assert main(["caption", pictures[0], "--model", folder, *options]) == 0
    assert (seen["max_tiles"], seen["max_new_tokens"], seen["batch_size"], seen["prompt"]) == (3, 7, 2, "Say.")
    assert seen["dtype"] == torch.float16 and seen["do_sample"] is False and "max_upscale" not in seen
    assert main(["caption", pictures[0], "--model", folder, "--max-upscale", "1.5"]) == 0
    assert seen["max_upscale"] == 1.5
    assert seen["max_new_tokens"] == 7  # left as it was: options that were not typed are not passed on
    if not torch.cuda.is_available():
        assert seen["dtype"] == torch.float32


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_draw_one_image(folder, pictures, says, tmp_path, capsys):
    says(REGIONS)
    out = tmp_path / "boxes.png"
    assert main(["dense-caption", pictures[0], "--model", folder, "--draw", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"drawn: {out}"
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and drawn.size == (768, 480)
        colors = {color for _, color in drawn.getcolors(1 << 24)}
    assert {caption_color("a red car"), caption_color("a dog")} <= colors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes.png", "one.png", "three.png", "two.png"]
    assert out.stat().st_mode & 0o777 == Path(pictures[0]).stat().st_mode & 0o777


def test_draw_several_images(folder, pictures, says, tmp_path, capsys):
    says(REGIONS)
    assert main(["dense-caption", *pictures, "--model", folder, "--draw", f"{tmp_path}/new/", "--json"]) == 0
    drawn = [json.loads(line)["drawn"] for line in capsys.readouterr().out.splitlines()]
    assert drawn == [str(tmp_path / "new" / name) for name in ("one.png", "two.png", "three.png")]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["one.png", "three.png", "two.png"]
    argv = ["detect", *pictures[:2], "-p", "a dog", "--model", folder]
    assert main([*argv, "--draw", str(tmp_path / "boxes-{stem}.jpg")]) == 0
    with Image.open(tmp_path / "boxes-two.jpg") as image:
        assert image.format == "JPEG"


def test_places_that_cannot_be_drawn_to(folder, pictures, tmp_path, capsys):
    def draw(*words):
        return fails(capsys, "dense-caption", *words, "--model", folder)

    assert "one name for 3 images" in draw(*pictures, "--draw", tmp_path / "out.png")
    assert "no image format" in draw(pictures[0], "--draw", tmp_path / "out.text")
    for suffix in (".psd", ".fli", ".wmf", ".h5", ".msp", ".xbm"):  # read only, or without colours
        assert f"{suffix} is no image format" in draw(pictures[0], "--draw", tmp_path / f"out{suffix}")
    assert "no suffix" in draw(pictures[0], "--draw", tmp_path / "out")
    assert "there is no folder" in draw(pictures[0], "--draw", tmp_path / "missing" / "out.png")
    assert "that is an input" in draw(pictures[0], "--draw", pictures[0])
    assert "that is an input" in draw(pictures[0], pictures[1], "--draw", tmp_path)
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "deeper" / "one.png")
    assert "both be drawn" in draw(pictures[0], tmp_path / "deeper" / "one.png", "--draw", f"{tmp_path}/new/")
    assert not (tmp_path / "new").exists()
    assert "out.png" in draw(pictures[0], "--draw", "/dev/null/out.png")


def test_a_failed_drawing_leaves_nothing_behind(folder, pictures, says, tmp_path, capsys, monkeypatch):
    says(REGIONS)

    def save(self, path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    old = tmp_path / "out.png"
    old.write_bytes(b"old")
    message = fails(capsys, "dense-caption", pictures[0], "--model", folder, "--draw", old)
    assert "out.png cannot be written: No space left" in message
    assert old.read_bytes() == b"old" and not list(tmp_path.glob(".*"))


def test_whole_file_survives_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(CommandError, match="cannot be written"), whole_file(tmp_path / "missing" / "a.txt"):
        raise AssertionError("not reached")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_words(capsys, pictures, folder):
    assert "required: COMMAND" in fails(capsys)
    assert "invalid choice: 'foo'" in fails(capsys, "foo")
    assert "--dtype" in fails(capsys, "caption", pictures[0], "--dtype", "int3")
    for value in ("0", "-1", "two", "1.5", "²"):
        assert "whole number" in fails(capsys, "caption", pictures[0], "--max-tiles=" + value)
    assert "unrecognized arguments" in fails(capsys, "caption", pictures[0], "--nonsense")
    assert "question is missing" in fails(capsys, "ask", pictures[0])
    assert "question is missing" in fails(capsys, "ask", *pictures)
    assert "look for is missing" in fails(capsys, "detect", pictures[0])
    assert "look for is missing" in fails(capsys, "detect", *pictures)
    assert "a phrase is empty" in fails(capsys, "detect", pictures[0], " ")
    assert "not UTF-8" in fails(capsys, "ask", pictures[0], "What\udcff?")
    assert "not UTF-8" in fails(capsys, "detect", pictures[0], "a\udce9 dog")
    assert "not UTF-8" in fails(capsys, "caption", pictures[0], "--prompt", "\udcff")
    assert "one image and one question" in fails(capsys, "caption", *pictures, "--stream")
    assert "one image and one question" in fails(capsys, "ask", pictures[0], "-q", "A?", "-q", "B?", "--stream")
    assert "exclude each other" in fails(capsys, "caption", pictures[0], "--stream", "--json")
    assert "--device" in fails(capsys, "caption", pictures[0], "--model", folder, "--device", "toaster")
    assert "--device" in fails(capsys, "caption", pictures[0], "--model", folder, "--device", "cuda:99")
    assert "meta" in fails(capsys, "caption", pictures[0], "--model", folder, "--device", "meta")


def test_bad_images(capsys, folder, pictures, tmp_path):
    assert "nope.png: no such file" in fails(capsys, "caption", "nope.png", "--model", folder)
    assert "a folder, not an image" in fails(capsys, "caption", tmp_path, "--model", folder)
    text = tmp_path / "text.png"
    text.write_text("no image")
    assert "text.png: not an image" in fails(capsys, "caption", pictures[0], text, "--model", folder)
    (tmp_path / "empty.png").touch()
    assert "empty.png: not an image" in fails(capsys, "caption", tmp_path / "empty.png", "--model", folder)
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:600])
    assert "cut.png" in fails(capsys, "caption", tmp_path / "cut.png", "--model", folder)
    assert "data URL" in fails(capsys, "caption", "data:image/png;base64,%%%", "--model", folder)
    assert "could not be downloaded" in fails(capsys, "caption", "http://127.0.0.1:9/x.png", "--model", folder)


def test_bad_models(capsys, folder, pictures, tmp_path):
    def load(model):
        return fails(capsys, "caption", pictures[0], "--model", model)

    assert "no such folder" in load(tmp_path / "missing")
    assert "a file" in load(pictures[0])
    broken = tmp_path / "broken"
    broken.mkdir()
    assert "no config.json" in load(broken)
    (broken / "config.json").write_text("{")
    assert "cannot be read" in load(broken)
    (broken / "config.json").write_text("[]")
    assert "cannot be read" in load(broken)
    (broken / "config.json").write_text('{"model_type": "smolvlm"}')
    assert "'smolvlm', not 'argus'" in load(broken)
    (broken / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    assert "no weights" in load(broken)
    weights = (Path(folder) / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "no processor_config.json" in load(broken)
    for path in Path(folder).iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    assert "could not be loaded" in load(broken)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def test_a_generate_of_the_models_own_runs_only_when_trusted(capsys, copied, pictures, tmp_path):
    """transformers 4.57 imports it while it loads a local folder, trusted or not."""
    ran = tmp_path / "ran"
    (copied / "custom_generate").mkdir()
    (copied / "custom_generate" / "generate.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n\ndef generate(model, **inputs):\n    raise ValueError('its own generate')\n"
    )
    message = fails(capsys, "caption", pictures[0], "--model", copied)
    assert "custom_generate is code, which runs only with --trust-remote-code" in message and not ran.exists()


def test_nobody_is_asked_whether_a_tokenizers_code_may_run(capsys, copied, pictures, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    path = copied / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": [None, "foreign.ForeignTokenizer"]}}
    path.write_text(json.dumps({**config, "tokenizer_class": "ForeignTokenizer"}))
    (copied / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    status = main(["caption", pictures[0], "--model", str(copied), "--max-new-tokens", "2"])
    assert not asked and not (tmp_path / "ran").exists()
    if status != 0:  # versions differ in whether they can do without the code
        assert status == 2 and capsys.readouterr().err.endswith("runs only with --trust-remote-code\n")


def test_a_broken_chat_template_is_named(capsys, copied, pictures):
    (copied / "chat_template.jinja").write_text("{% for message in %}")
    assert "chat_template.jinja" in fails(capsys, "caption", pictures[0], "--model", copied)
    (copied / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")
    assert "chat_template.jinja" in fails(capsys, "caption", pictures[0], "--model", copied)


def test_hub_names_are_asked_from_the_hub(capsys, pictures):
    assert "could not be loaded" in fails(capsys, "caption", pictures[0], "--model", "no-such-owner/no-such-model")


def test_a_model_without_location_tokens_says_what_to_do(capsys, pictures, tmp_path):
    blind = save_tiny(tmp_path / "blind", num_location_bins=None)
    capsys.readouterr()  # transformers' bar of the files being saved
    assert "argus bootstrap" in fails(capsys, "dense-caption", pictures[0], "--model", blind)
    assert "argus bootstrap" in fails(capsys, "detect", pictures[0], "a dog", "--model", blind)


def test_the_embedded_model_is_the_default(capsys, pictures, folder, monkeypatch, says):
    says("A dog.")
    monkeypatch.setattr(argus_tools.cli_models, "default_model_path", lambda: Path(folder))
    assert main(["caption", pictures[0]]) == 0
    assert main(["caption", pictures[0], "--model", "argus-nano"]) == 0
    assert capsys.readouterr().out == "A dog.\n" * 2


# --- faults, interrupts, pipes ----------------------------------------------------------------------------------------


def raising(error):
    def caption(self, *args, **kwargs):
        raise error

    return caption


def test_interrupts_and_faults_are_one_line(capsys, folder, pictures, monkeypatch):
    argv = ["caption", pictures[0], "--model", folder]
    monkeypatch.setattr(ArgusForConditionalGeneration, "caption", raising(KeyboardInterrupt()))
    assert "interrupted" in fails(capsys, *argv, status=130)
    monkeypatch.setattr(ArgusForConditionalGeneration, "caption", raising(KeyError("a\nb")))
    assert "KeyError" in fails(capsys, *argv, status=1)
    monkeypatch.setattr(ArgusForConditionalGeneration, "caption", raising(ValueError("two\nlines")))
    assert "two lines" in fails(capsys, *argv)
    monkeypatch.setattr(ArgusForConditionalGeneration, "caption", raising(torch.OutOfMemoryError("no memory")))
    assert "smaller --batch-size" in fails(capsys, *argv)
    monkeypatch.setattr(ArgusForConditionalGeneration, "caption", raising(BrokenPipeError()))
    assert main(argv) == 141 and capsys.readouterr().err == ""


def test_debug_shows_the_traceback(capsys, folder):
    assert main(["caption", "nope.png", "--model", folder, "--debug"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" in captured.err and captured.err.endswith("argus: error: nope.png: no such file\n")


def test_libraries_are_quiet_and_speak_again_afterwards(capsys, folder, pictures):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert main(["caption", pictures[0], "--model", folder, "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err == ""
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def test_long_work_shows_a_bar_on_a_terminal(capsys, folder, pictures, says, monkeypatch):
    says("A dog.")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["caption", *pictures, "--model", folder]) == 0
    captured = capsys.readouterr()
    assert "3/3" in captured.err and captured.out.count("A dog.") == 3 and "3/3" not in captured.out


def test_printable():
    assert printable("a\x1b[2Jb\r\nc") == "a [2Jb  c"
    assert printable("a\nb\tc", newlines=True) == "a\nb c"


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_export(capsys, folder, tmp_path):
    out = tmp_path / "hub"
    assert main(["export", "--model", folder, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == str(out) and {"modeling_argus.py", "model.safetensors"} <= set(result["files"])
    assert "--force" in fails(capsys, "export", "--model", folder, "--out", out)
    assert main(["export", "--model", folder, "--out", str(out), "--force"]) == 0
    assert "ready for a hub repository" in capsys.readouterr().out
    assert "no checkpoint folder" in fails(capsys, "export", "--model", tmp_path / "missing", "--out", tmp_path / "b")


def test_convert_and_bootstrap_refuse_in_one_line(capsys, folder, tmp_path):
    out = tmp_path / "out"
    assert "does not exist" in fails(capsys, "convert", tmp_path / "missing", "--out", out)
    assert "already" in fails(capsys, "convert", folder, "--out", out)
    assert "--to" in fails(capsys, "convert", folder, "--out", out, "--to", "gguf")
    assert "--out" in fails(capsys, "convert", folder)
    assert "'7b' is unknown" in fails(capsys, "bootstrap", "7b", "--out", out)
    assert "--source, or both --vision and --text, to" in fails(capsys, "bootstrap", "--out", out)
    assert "SIZE '7b'" in fails(capsys, "bootstrap", "7b", "--out", out)
    assert "--num-location-bins 1 must" in fails(capsys, "bootstrap", "256m", "--num-location-bins=1", "--out", out)
    for words in (["256m"], ["--source", folder], ["256m", "--source", folder]):
        message = fails(capsys, "bootstrap", *words, "--pixel-unshuffle-factor", "2", "--out", out)
        assert "--pixel-unshuffle-factor 2 is for a model assembled from --vision and --text;" in message
    assert "--source takes" in with_options("x; smolvlm= takes 'a'") and with_options("a.size=3") == "a.size=3"
    for seed in ("99999999999999999999", "-99999999999999999999", "1.5"):
        assert "--seed" in fails(capsys, "bootstrap", "--source", folder, "--seed=" + seed, "--out", out)
    assert not out.exists()


def test_a_linked_folder_is_written_where_it_is(capsys, folder, tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real")
    assert main(["export", "--model", folder, "--out", str(link)]) == 0
    assert link.is_symlink() and (tmp_path / "real" / "config.json").is_file()
    shutil.rmtree(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert main(["bootstrap", "--source", folder, "--num-location-bins", "1500", "--out", str(link)]) == 0
    assert link.is_symlink() and (tmp_path / "real" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_models_of_the_family_are_known_by_name(capsys, folder, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(argus_tools.cli_models, "default_model_path", lambda: Path(folder))
    assert main(["export", "--model", "argus-nano", "--out", "out"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    capsys.readouterr()
    for words in (["export", "--out", "b"], ["caption", pictures[0]]):  # cards alone ship of the larger ones
        assert "no weights" in fails(capsys, *words, "--model", "argus-256m")
        assert "argus-256m, argus-2b" in fails(capsys, *words, "--model", "argus-7b")


def test_convert_and_bootstrap_pass_on_what_was_typed(capsys, monkeypatch, tmp_path):
    import argus_tools.convert as package

    calls = []

    def record(*args, progress, **options):
        calls.append((args, options))
        for done in (1, 2, 3):
            progress(done, 3, "a tensor")
        return package.ConvertResult(tmp_path / "out", 3, 2_500_000, "bfloat16", ["Train it first."])

    monkeypatch.setattr(package, "convert", record)
    monkeypatch.setattr(package, "bootstrap", record)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["convert", "a/b", "--out", "c", "--to", "smolvlm", "--dtype", "float16"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}/out: 3 tensors, 2.5M parameters, bfloat16\nnote: Train it first.\n"
    assert "3/3" in captured.err
    assert main(["bootstrap", "argus-2b", "--vision", "v", "--text", "t", "--out", "c", "--seed", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 2_500_000
    assert main(["bootstrap", "256m", "--source", "s", "--out", "c", "--num-location-bins", "50"]) == 0
    assert calls[0] == (("a/b", "c"), {"to": "smolvlm", "dtype": "float16"})
    assert calls[1][0] == ("2b", "c") and calls[1][1]["vision"] == "v" and calls[1][1]["seed"] == 5
    assert calls[2][0] == ("256m", "c") and calls[2][1]["smolvlm"] == "s"
    assert calls[2][1]["num_location_bins"] == 50 and calls[2][1]["dtype"] is None


# --- the program ------------------------------------------------------------------------------------------------------


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"argus {__version__}\n"
    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    commands = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    tasks = ["caption", "ask", "detect", "dense-caption"]
    assert set(commands) == {*tasks, "annotate", "convert", "bootstrap", "export", "train", "evaluate"}
    for name in commands:
        assert name in listing
        assert main([name, "--help"]) == 0
        assert f"argus {name}" in capsys.readouterr().out


def run_program(words, modules_cache=None, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    if modules_cache is not None:
        environment["HF_MODULES_CACHE"] = modules_cache
    return subprocess.run([sys.executable, *words], env=environment, **options)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, argus_tools.cli as cli; status = cli.main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    run_program(["-c", code], check=True, stdout=subprocess.DEVNULL)


def test_foreign_code_runs_in_the_program_only_when_it_is_trusted(folder, pictures, says, tmp_path, capsys):
    exported = tmp_path / "exported"
    assert main(["export", "--model", folder, "--out", str(exported)]) == 0
    code = exported / "modeling_argus.py"
    code.write_text(code.read_text() + "\nprint('the code of the folder ran')\n")
    capsys.readouterr()
    says("A dog.")
    argv = ["caption", *pictures, "--model", str(exported), "--json"]
    assert main(argv) == 0
    assert [json.loads(line)["caption"] for line in capsys.readouterr().out.splitlines()] == ["A dog."] * 3

    # A process of its own, where the installed classes are not registered.
    words = ["-m", "argus_tools.cli", *argv, "--max-new-tokens", "3", "--trust-remote-code"]
    done = run_program(words, cwd=tmp_path, capture_output=True, text=True, modules_cache=str(tmp_path / "modules"))
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    # torchao, which transformers imports where it is installed, is warned of by torch.
    said = [line for line in done.stderr.splitlines() if "torch/utils/_pytree.py" not in line]
    assert first == "the code of the folder ran" and said == []
    assert [json.loads(line)["image"] for line in lines] == pictures


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently there")
def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = run_program(["-m", "argus_tools.cli", "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_json_stays_json_on_a_narrow_encoding(folder, pictures, says, monkeypatch):
    says("A crème brûlée.")
    for encoding, letters in (("ascii", b"cr\\u00e8me"), ("latin-1", b"cr\\u00e8me"), ("UTF8", "crème".encode())):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["caption", pictures[0], "--model", folder, "--json"]) == 0
        line = stdout.buffer.getvalue()
        assert letters in line and json.loads(line)["caption"] == "A crème brûlée."


def test_closed_streams_are_no_traceback(folder, pictures, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)  # as with >&-
        patch.setattr(sys, "stderr", None)
        draw = ["--draw", str(tmp_path / "out.png"), "--max-new-tokens", "2"]
        assert main(["dense-caption", pictures[0], "--model", folder, *draw]) == 0
        patch.setattr(sys, "stderr", None)
        assert main(["caption", "nope.png"]) == 2
    assert (tmp_path / "out.png").is_file() and capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(folder, tmp_path, number):
    code = (
        "import os, signal, sys, argus_tools.cli, argus_tools.export as export\n"
        "signal.signal(int(sys.argv[1]), signal.SIG_DFL)\n"  # nohup, under which tests may run, has it ignored
        "def end(folder): print(len(os.listdir(folder))), os.kill(os.getpid(), int(sys.argv[1]))\n"
        "export._write_auto_maps = end\n"
        "sys.exit(argus_tools.cli.main(sys.argv[2:]))"
    )
    words = ["-c", code, str(int(number)), "export", "--model", folder, "--out", str(tmp_path / "out")]
    done = run_program(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + number, f"argus: error: ended by {number.name}\n")
    assert int(done.stdout) > 5 and not list(tmp_path.iterdir())


def test_handlers_are_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
