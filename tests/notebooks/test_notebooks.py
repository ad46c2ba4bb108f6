"""The notebooks run, in few steps, in kernels of this interpreter, and find what their text says; those that are stored
hold outputs, pictures and links that are right."""

import base64
import importlib.util
import io
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "notebooks" / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

NAMES = ("1_quickstart", "2_boxes", "3_finetune_lora", "4_convert_smolvlm", "5_where_the_time_goes")
# What is true at a notebook's end, said in its own names, whatever the model's answers are.
CHECKS = {
    "1_quickstart": """
assert CHECKPOINT == "argus-nano" and not COLAB and FAST
assert len(captions) == len(images) == 3 and all(captions) and alone == captions
assert streamed == captions[0] and len(pieces) > 1
assert result[0]["generated_text"].strip() == captions[0]
assert model.answer(encoded, questions, processor=processor) == model.answer(images[0], questions, processor=processor)
""",
    "2_boxes": """
assert len(regions["boxes"]) == len(regions["captions"]) == len(regions["scores"]) > 0
for picture, each in [(image, regions), *zip(pictures, batch)]:
    for x1, y1, x2, y2 in each["boxes"].tolist():
        assert 0 <= x1 < x2 <= picture.width and 0 <= y1 < y2 <= picture.height
pairs = [list(zip(each["boxes"], each["captions"])) for each in right]
assert region_scores(batch, "captions", pairs)["f1_50_boxes_alone"] > 0.5
assert len(alone) == len(phrases) and len(merged["boxes"]) == sum(len(found["labels"]) for found in alone)
assert len(coco["annotations"]) == sum(len(each["boxes"]) for each in batch)
""",
    "3_finetune_lora": """
assert len(losses) == STEPS and sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
assert set(before) == set(after) == set(reloaded) == set(held_out)
assert all(scores["f1_50"] == 0 for scores in before.values()) and trainable < 0.2 * merged.num_parameters()
for name, scores in reloaded.items():  # merging rounds, and may move a box by a bin
    assert abs(scores["f1_50_boxes_alone"] - after[name]["f1_50_boxes_alone"]) < 0.15, (scores, after[name])
assert not any("lora" in name for name, _ in merged.named_parameters())
assert merged.lm_head.weight is merged.get_input_embeddings().weight
from argus_tools.train.samples import Region
sample = samples.readers[0][0]
assert all(isinstance(region, Region) for region in sample.conversations[0][0].answer)
""",
    "4_convert_smolvlm": """
assert identical and all(same for pair in agreed for same in pair)
assert {"transformers", "Argus"} <= set(sides) and min(inputs_ms.values()) > 0
assert len(native.levels(native.prepare(photos[0]))) < len(ours.levels(ours.prepare(photos[0])))
""",
    "5_where_the_time_goes": """
assert set(agreed) == {row.name for row in rows} and len(rows) > 8 and all(each["same_ids"] for each in agreed.values())
assert all(parts["decode"] > 0 for parts in found.values()) and all(sum(taken.values()) for taken in stacks.values())
assert 0 < calls[OURS] < calls[TORCHVISION]
assert decode(new_tokens) == decode(new_tokens, fast_decode=False)
""",
}


def pictures_of(notebook) -> list[Image.Image]:
    """Every picture among the outputs, decoded."""
    outputs = [each.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    encoded = [data[kind] for data in outputs for kind in ("image/png", "image/jpeg") if kind in data]
    found = [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]
    for picture in found:
        picture.load()
    return found


def test_there_are_the_notebooks_that_are_tested():
    assert tuple(path.stem for path in run.paths()) == NAMES == tuple(CHECKS)


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_finds_what_it_says(name):
    notebook = run.read(ROOT / "notebooks" / f"{name}.ipynb")
    same_python = f"import sys\nassert sys.prefix == {sys.prefix!r}, sys.prefix"
    notebook.cells.append(nbformat.v4.new_code_cell(f"{same_python}\n{CHECKS[name]}\nprint('checked')"))
    run.tidy(run.execute(notebook, fast=True, timeout=600))  # CellExecutionError with the cell's traceback
    assert notebook.cells[-1].outputs[0].text == "checked\n"
    assert run.problems(notebook) == []
    assert pictures_of(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_whole(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert run.problems(notebook) == []
    assert all(min(picture.size) > 100 for picture in pictures_of(notebook)) and pictures_of(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "stored from one run, from top to bottom"


@pytest.mark.parametrize("name", NAMES)
def test_badge_and_first_cell_are_the_ones_of_all(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    stored = nbformat.read(path, as_version=4)
    assert [cell.source for cell in stored.cells] == [cell.source for cell in run.read(path).cells]
    top = stored.cells[0].source
    assert f"github/{run.REPOSITORY}/blob/main/{path.relative_to(ROOT)})" in top.split("\n")[0]
    assert f"github.com/{run.REPOSITORY} " in run.SETUP
    assert "has not been run" in " ".join(top.split()) and "Colab" in top


def test_the_command_beside_fine_tuning_trains_as_the_notebook_does():
    source = "\n".join(cell.source for cell in nbformat.read(run.paths(["lora"])[0], as_version=4).cells)
    (command,) = re.findall(r"`python (examples/finetune_lora.py [^`]*)`", source)
    script, *arguments = command.split()
    said = runpy.run_path(str(ROOT / script))["parse_arguments"](arguments)
    (steps, batch), (rate,) = (re.findall(r"else \((\d+), (\d+)\)", source)[0], re.findall(r"rate=(\S+),", source))
    assert (said.steps, said.batch_size, said.learning_rate) == (int(steps), int(batch), float(rate))
    assert said.rank == int(re.search(r"rank=(\d+)", source)[1]) and said.images is None


def test_links_between_notebooks_and_files_that_they_name_exist():
    for path in run.paths():
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if not link.startswith("http")]
        named = [name for name in re.findall(r"`([\w./-]+/[\w./-]*\w)`", text) if (ROOT / name.split("/")[0]).is_dir()]
        missing = [name for name in links if not (path.parent / name).is_file()]
        missing += [name for name in named if not (ROOT / name).exists()]
        assert not missing, f"{path.name} names {missing}"


def test_numbers_that_are_cited_are_those_of_the_file():
    """A paragraph or list item that names a file of benchmarks/results: its decimal numbers stand in it."""
    cited = 0
    for path in run.paths():
        cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
        for part in re.split(r"\n\s*\n|\n(?=- )", "\n\n".join(cells)):
            if files := re.findall(r"`(benchmarks/results/\w+\.md)`", part):
                known = " ".join((ROOT / file).read_text(encoding="utf-8") for file in files)
                numbers = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", part)
                missing = [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}", known)]
                assert not missing, f"{path.name}: {missing} in none of {files}: {part}"
                cited += len(numbers)
    assert cited >= 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("saved to /root/project/out.json", "path of a machine"),
        ("/home/somebody/x", "path of a machine"),
        ("FutureWarning: no more", "FutureWarning"),
        ("fine, see https://example.org/home/page and work/in/progress", None),
    ],
)
def test_what_must_not_be_stored_is_found(text, said):
    cell = nbformat.v4.new_code_cell("1", execution_count=1, outputs=[nbformat.v4.new_output("stream", text=text)])
    found = run.problems(nbformat.v4.new_notebook(cells=[cell]))
    assert found == [] if said is None else said in found[0]


def test_errors_missing_outputs_and_size_are_found():
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    cells = [
        nbformat.v4.new_code_cell("1", execution_count=1, outputs=[error]),
        nbformat.v4.new_code_cell("2", execution_count=2),
        nbformat.v4.new_code_cell("3" * run.MOST_BYTES, execution_count=3, outputs=[error]),
    ]
    found = " ".join(run.problems(nbformat.v4.new_notebook(cells=cells)))
    assert "cell 0 holds an error" in found and "cell 1 has no output" in found and "bytes" in found


def test_an_unknown_name_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["no_such_notebook"])
    assert stop.value.code == 2 and "1_quickstart" in capsys.readouterr().err


def test_sheet_draws_each_pictures_boxes_on_that_picture():
    from notebooks.sheet import GAP, sheet

    pictures = [Image.new("RGB", size, "white") for size in ((400, 200), (100, 100), (200, 200), (300, 300))]
    found = [None, {"boxes": [[25, 50, 75, 75]], "captions": ["a cup"], "scores": [0.5]}, None, None]
    drawn = sheet(pictures, found, height=400, columns=2)
    assert drawn.size == (800 + GAP + 400, 800 + GAP)
    left, top, right, bottom = sheet(pictures, None, 400, 2).getbbox()
    assert (left, top, right, bottom) == (0, 0, *drawn.size)
    inked = Image.eval(drawn.convert("L"), lambda value: 255 * (value < 200)).getbbox()
    x, y = 800 + GAP, 0  # where the second picture stands; its box is at a quarter to three quarters of its width
    assert x + 80 <= inked[0] <= x + 100 and x + 300 <= inked[2] <= x + 400
    assert y + 100 <= inked[1] <= y + 200 and y + 300 <= inked[3] <= y + 310
