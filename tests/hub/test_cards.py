"""The cards: metadata as the hub reads it, snippets run on argus-nano, numbers as measured, results as scored."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from isolation import ROOT, run_isolated
from PIL import Image

from argus_tools import cards
from argus_tools.cli_support import CommandError
from argus_tools.convert.bootstrapping import PUBLISHED
from argus_tools.export import export
from argus_tools.paths import default_model_path

PAGES = sorted(ROOT.glob("hub_cards/argus-*/README.md"))
MADE = [page for page in PAGES if page.parent.name != "argus-nano"]  # from weights of others
RESULTS = ROOT / "benchmarks" / "results"

each_card = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
each_made = pytest.mark.parametrize("page", MADE, ids=lambda page: page.parent.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def config_of(page: Path, name: str) -> dict:
    return json.loads((page.parent / name).read_text(encoding="utf-8"))


def snippets(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text_of(page), re.M | re.S))


# --- metadata ---------------------------------------------------------------------------------------------------------


@each_card
def test_metadata(page):
    data = ModelCard.load(page).data
    known = vars(ModelCardData())
    assert set(data.to_dict()) <= {*known, "base_model_relation"}, "a key that the hub does not know"
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-text-to-text", "apache-2.0")
    assert {"custom_code", "dense-captioning", "grounding"} <= set(data.tags) and data.language == ["en"]
    assert data.model_name is None, "results stand in .eval_results, not in the metadata"
    for name in [*(data.base_model or []), *(data.datasets or [])]:
        validate_repo_id(name)
        assert "/" in name
    again = ModelCard(str(ModelCard.load(page)))
    assert again.data.to_dict() == data.to_dict()


@each_made
def test_base_models_are_those_that_bootstrap_takes(page):
    data = ModelCard.load(page).data
    published = PUBLISHED[page.parent.name.removeprefix("argus-")]
    assert data.base_model == list(published.values())
    assert data.base_model_relation == ("merge" if len(published) > 1 else "finetune")
    assert "No trained weights" in text_of(page)
    for source in published.values():
        assert len(published) > 1 or f"argus convert {source} " in text_of(page)
    assert f"argus bootstrap {page.parent.name.removeprefix('argus-')} " in text_of(page)


def test_nano_is_made_from_nothing():
    data = ModelCard.load(default_model_path() / "README.md").data
    assert data.base_model is None and any(default_model_path().glob("*.safetensors"))


# --- what a card has to say ------------------------------------------------------------------------------------------


@each_card
def test_sections_links_and_the_box_convention(page):
    text = text_of(page)
    headings = set(re.findall(r"^## (.+)$", text, re.M))
    assert {"Using it", "Prompts and output", "Tile budget", "Latency", "Intended use", "Citation"} <= headings
    assert any(heading.startswith("Licence") for heading in headings)
    if page in MADE:
        assert {"Weights, today", "Limits", "Training and scores"} <= headings
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if not re.match(r"https?:", link)]
    assert str(cards.PICTURE) in links and all((page.parent / link).is_file() for link in links), links
    assert "`y1 x1 y2 x2`" in text and "`x1, y1, x2, y2`" in text and "original image" in text
    assert "2603.16987" in text and "@article" in text and not re.search(r"\b(TODO|TBD|FIXME)\b", text)


@each_card
def test_sizes_are_those_of_the_configuration(page):
    text, processor, images = (
        text_of(page),
        config_of(page, "processor_config.json"),
        config_of(page, "preprocessor_config.json"),
    )
    side, tokens, bins = images["tile_size"], processor["image_seq_length"], processor["num_location_bins"]
    assert re.search(rf"\| tile \| {side} x {side} pixels, pixel-unshuffle \d, {tokens} tokens", text)
    assert f"{bins} bins of the original image" in " ".join(text.split()) and f"<loc_{bins - 1}>" in text
    if images["max_tiles"] > 1:
        tiles = images["max_tiles"] + images["use_thumbnail"]
        assert f"1 to {images['max_tiles']} tiles of {side} x {side}" in text and str(tiles * tokens) in text
    else:
        assert f"An image is one tile of {side} x {side} pixels, {tokens} tokens" in text


def test_prompts_are_those_of_the_task_calls():
    from modeling_argus.tasks_argus import TASK_PROMPTS

    for page in PAGES:
        assert f"`{TASK_PROMPTS['caption']}`" in text_of(page) and f"`{TASK_PROMPTS['dense_caption']}`" in text_of(page)
        assert f"`{TASK_PROMPTS['detect'].format(phrases='a red circle, a cat')}`" in text_of(page)


def test_snippets_run(tmp_path):
    """Each card's Python blocks in one process, from argus-nano's exported folder, with the project out of reach."""
    work = tmp_path / "elsewhere"
    export(default_model_path(), work / "argus-nano-hub")
    shutil.copytree(ROOT / "examples", work / "examples")
    different = {re.sub(r'"argus-\w+-hub"', '"argus-nano-hub"', snippets(page)) for page in PAGES}
    checks = """
assert isinstance(text[0], str) and text[0].strip() and text[0].startswith(streamed[:8]) and streamed
assert len(captions) == len(answers) == len(regions) == len(found) == 1
assert len(replies) == 2 and replies[0][0]["generated_text"] == replies[1][0]["generated_text"]
assert len(boxes) == len(regions[0]["captions"]) and all(set(box) == {"label", "score", "box"} for box in boxes)
"""
    script = tmp_path / "snippets.py"
    parts = [f"exec({code + checks!r}, {{'__name__': 'card'}})" for code in sorted(different)]
    script.write_text("\n".join(parts), encoding="utf-8")
    run_isolated(str(script), home=tmp_path, timeout=580)


# --- numbers ----------------------------------------------------------------------------------------------------------

OURS = {"ttft": "Argus", "decode": "+ Argus' loop", "int8": "+ int8 weights (torchao)"}
THEIRS = {"ttft": "transformers, torchvision", "decode": "transformers, eager"}


def latency_rows(page: Path) -> list[tuple[dict, str, str]]:
    """(measured cell, side, as the card shows it) of each number in the card's tables of latencies."""
    found = []
    for row in re.findall(r"^\| (.+) \| `(\w+)\.jsonl`, ([^|]+) \|$", text_of(page), re.M):
        (what, *values), file, cell = row[0].split(" | "), row[1], row[2]
        kind = file.split("_")[0]
        if kind == "reuse":  # ours alone; the cell ends in the side
            cell, side = cell.rsplit(", ", 1)
            sides = [side]
        else:
            sides = [OURS["int8" if "int8" in what else kind], THEIRS[kind]]
        lines = (RESULTS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
        (measured,) = (result for result in map(json.loads, lines) if result.get("cell") == cell)
        assert len(values) == len(sides), row
        found += [(measured, side, value) for side, value in zip(sides, values) if value != "-"]
    return found


def shown(value: dict, as_shown: str) -> str:
    """A measured value in the unit and with the digits of the card's."""
    number, _, unit = as_shown.partition(" ")
    size = {"ms": value.get("ms"), "s": value.get("ms", 0) / 1000, "": value.get("tokens_per_second")}[unit]
    return f"{size:.{len(number.partition('.')[2])}f} {unit}".strip()


@each_card
def test_latencies_are_those_that_were_measured(page):
    """Measured again: benchmarks/results/ has the new numbers, and this says which ones the card has to take."""
    rows, text = latency_rows(page), " ".join(text_of(page).split())
    assert rows and "Hardware:" in text
    for measured, side, value in rows:
        assert value == shown(measured[side], value), f"{measured['cell']}, {side}"
        assert measured["command"] in text, "the command that measured it"
        hardware = f"{measured['cpu']}, {measured['cores']} cores, no GPU; Python {measured['python']}, "
        assert measured["gpu"] is None and hardware in text
        assert f"torch {measured['torch'].split('+')[0]}" in text and f"transformers {measured['transformers']}" in text


@each_made
def test_numbers_of_the_paper_are_said_to_be_the_papers(page):
    """Nothing else of a card's text is in milliseconds of a GPU."""
    for paragraph in text_of(page).split("\n\n"):
        if "H100" in paragraph:
            assert paragraph.startswith("The paper's") and "measured here" in paragraph


# --- results for the hub ----------------------------------------------------------------------------------------------


def test_nano_results_are_its_scores():
    """Otherwise: `python -m argus_tools.cards` makes them again."""
    folder = default_model_path()
    scores = json.loads((folder / cards.SCORES).read_text(encoding="utf-8"))
    expected = cards.eval_results(scores)
    found = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (folder / cards.RESULTS).iterdir()}
    assert found == expected
    assert not any((page.parent / cards.RESULTS).exists() for page in MADE), "no results without weights"


@pytest.mark.parametrize("file", sorted((default_model_path() / cards.RESULTS).glob("*")), ids=lambda path: path.name)
def test_results_are_in_the_format_of_the_hub(file):
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert file.suffix == ".yaml" and entries
    for entry in entries:
        assert set(entry) == {"dataset", "value", "notes"} and set(entry["dataset"]) == {"id", "task_id"}
        assert isinstance(entry["value"], float | int) and 0 <= entry["value"] <= 1
        validate_repo_id(entry["dataset"]["id"])
    tasks = [entry["dataset"]["task_id"] for entry in entries]
    assert len(tasks) == len(set(tasks)) >= 5
    if hasattr(huggingface_hub, "parse_eval_result_entries"):  # from 1.0 on
        parsed = huggingface_hub.parse_eval_result_entries(entries)
        assert [each.value for each in parsed] == [entry["value"] for entry in entries]
        assert huggingface_hub.eval_result_entries_to_yaml(parsed) == entries


def scene_scores(**changes) -> dict:
    regions = {"f1_50": 0.5, "ap_50": 0.25}
    values = {"scenes": 16, "caption": {"object_recall": 0.5}, "answer": {"where": {"accuracy": 0.125, "questions": 8}}}
    return {**values, "detect": regions, "dense_caption": regions, **changes}


def test_results_of_evaluate_are_understood():
    """What argus_tools.evaluate.card writes, a setting each, with data and scores apart."""
    result = {"task": "scenes", "data": {"scenes_version": 3, "split": "test"}, "scores": scene_scores()}
    files = cards.eval_results({"test": result, "val": result})
    assert set(files) == {"rendered-scenes.yaml"}, "val is what the model was chosen by"
    (entries,) = files.values()
    values = {entry["dataset"]["task_id"]: entry["value"] for entry in entries}
    assert values["answer_where"] == 0.125 and values["dense_caption"] == 0.25 and values["dense_caption_f1"] == 0.5
    assert all("scenes version 3" in entry["notes"] and "16 scenes" in entry["notes"] for entry in entries)


def test_no_two_results_have_one_name():
    files = cards.eval_results({"test": scene_scores(), "unseen_style": scene_scores()})
    named = [(entry["dataset"]["id"], entry["dataset"]["task_id"]) for entries in files.values() for entry in entries]
    assert len(files) == 2 and len(named) == len(set(named))


@pytest.mark.parametrize(
    "scores, message",
    [({}, "none of test"), ({"test": scene_scores(detect={})}, "no detect.ap_50"), ([], "holds no scores")],
)
def test_scores_that_are_not_there_are_named(tmp_path, scores, message):
    (tmp_path / cards.SCORES).parent.mkdir()
    (tmp_path / cards.SCORES).write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(CommandError, match=message):
        cards.write_eval_results(tmp_path)
    assert not (tmp_path / cards.RESULTS).exists()


def test_the_picture_of_the_convention(tmp_path):
    for bins in (64, 1000):
        out = cards.draw_convention(bins, ROOT / "examples" / "scene.png", tmp_path / str(bins) / "boxes.png")
        with Image.open(out) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 400
            beside_the_axis = picture.convert("L").crop((0, 60, 38, 490)).point(lambda value: 255 * (value < 128))
            _, top, _, bottom = beside_the_axis.getbbox()
            assert bottom - top > 100, "the y axis says what it counts, as the x axis does"
    assert (tmp_path / "64" / "boxes.png").read_bytes() != (tmp_path / "1000" / "boxes.png").read_bytes()
    with Image.open(ROOT / "examples" / "scene.png") as scene:
        assert scene.size == cards.SCENE_SIZE


@each_card
def test_the_picture_of_the_convention_is_called_an_illustration(page):
    (alt,) = re.findall(rf"!\[([^\]]*)\]\({cards.PICTURE.as_posix()}\)", text_of(page))
    caption = text_of(page).partition(f"({cards.PICTURE.as_posix()})")[2].strip()
    assert all(text.startswith("An illustration, drawn, not predicted: ") for text in (alt, caption))


def test_export_carries_card_pictures_and_results(tmp_path):
    out = export(default_model_path(), tmp_path / "out")
    for name in ("README.md", cards.PICTURE, *(cards.RESULTS / name for name in cards.FILES.values())):
        assert (out / name).read_bytes() == (default_model_path() / name).read_bytes()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text_of(out / "README.md"))
    assert len(pictures) >= 2 and all((out / picture).is_file() for picture in pictures)
    ModelCard.load(out / "README.md")
