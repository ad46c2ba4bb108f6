"""The gallery: scenes are chosen by the rule that it states, and what is right or wrong is written so."""

import numpy as np
import pytest

from argus_tools.evaluate.scenes import exchanges_of
from argus_tools.scenes import render_scene
from benchmarks.accuracy import gallery


def perfect(asked):
    """What a model without fault says."""
    said = {"caption": asked["caption"].answer, "answers": {k: e.answer for k, e in asked["answer"].items()}}
    for task, key in (("dense_caption", "captions"), ("detect", "labels")):
        regions = asked[task].answer
        said[task] = {
            "boxes": [list(b) for b, _ in regions],
            key: [t for _, t in regions],
            "scores": [1.0] * len(regions),
        }
    return said


@pytest.fixture(scope="module")
def seen():
    """Twelve scenes, of which a model knows those with even numbers."""
    scenes = [render_scene(i, "test", height=64, width=64) for i in range(12)]
    asked = [exchanges_of(scene, i, 0) for i, scene in enumerate(scenes)]
    nothing = {"caption": "Hm.", "dense_caption": {"boxes": [], "captions": [], "scores": []}}
    wrong = [
        {**nothing, "detect": {"boxes": [[0, 0, 9, 9]], "labels": ["gizmo"], "scores": [0.5]}}
        | {"answers": dict.fromkeys(each["answer"], "Hm.")}
        for each in asked
    ]
    said = [perfect(each) if i % 2 == 0 else wrong[i] for i, each in enumerate(asked)]
    return scenes, asked, said


@pytest.mark.parametrize("task", gallery.TASKS)
def test_scenes_are_chosen_by_the_rule(seen, task):
    rows = gallery.chosen(task, *seen, seed=0)
    assert list(rows) == ["best", "worst", "random"]
    assert all(each.score == 1.0 and each.index % 2 == 0 for each in rows["best"])
    assert all(each.score == 0.0 and each.index % 2 == 1 for each in rows["worst"])
    for cells in (rows["best"], rows["worst"]):
        assert len(cells) == 3 and [c.to_find for c in cells] == sorted((c.to_find for c in cells), reverse=True)
    indices = [each.index for cells in rows.values() for each in cells]
    assert len(set(indices)) == 9
    assert rows["random"] == gallery.chosen(task, *seen, seed=0)["random"]
    # No scene that is left has more to find than one shown as best.
    everything = gallery.chosen(task, *(part[0::2] for part in seen), seed=0)
    assert [e.to_find for e in everything["best"]] == [e.to_find for e in rows["best"]]


@pytest.mark.parametrize("task", gallery.TASKS)
def test_a_sheet_says_what_is_wrong(seen, task, tmp_path):
    rows = gallery.chosen(task, *seen, seed=0)
    image = gallery.sheet(task, rows)
    assert image.width > 3 * gallery.CELL and image.height > 3 * gallery.CELL
    gallery.save(image, tmp_path / "sheet.png")
    assert 1_000 < (tmp_path / "sheet.png").stat().st_size < 400_000
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    lines = [gallery.boxes_and_lines(task, each)[2] for each in rows["worst"]]
    if task in ("caption", "answer"):
        assert all("WRONG" in " ".join(each) for each in lines)
        assert not any("WRONG" in " ".join(gallery.boxes_and_lines(task, each)[2]) for each in rows["best"])
    else:
        assert all(any(line.startswith("True: ") for line in each) for each in lines)
    assert gallery.table(task, rows).count("\n") == 10
    assert np.asarray(image).std() > 10


def test_scores_of_single_scenes():
    assert gallery.f1(0, 0, 0) == 1.0 and gallery.f1(1, 1, 3) == 0.5 and gallery.f1(0, 2, 0) == 0.0
    assert gallery.listed(["a cat", "a dog", "a cat"]) == "2 x a cat, a dog" and gallery.listed([]) == "nothing"
