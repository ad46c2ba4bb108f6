"""The fixtures in the data sets' original formats, how to open one, and how to damage a copy of it."""

import shutil
from pathlib import Path

import pytest

from argus_tools.train.readers import open_reader

pytest.importorskip("datasets", reason="readers keep their records in Arrow files of `datasets`")

FIXTURES = Path(__file__).parent / "fixtures"
# Name, options relative to the fixtures, number of samples.
SOURCES = {
    "sharegpt4v": (
        {"path": "sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json", "images": "sharegpt4v/images"},
        2,
    ),
    "coco_captions": ({"path": "coco/annotations/captions_train2017.json", "images": "coco/train2017"}, 4),
    "coco_instances": ({"path": "coco/annotations/instances_train2017.json", "images": "coco/train2017"}, 2),
    "objects365": (
        {"path": "objects365/zhiyuan_objv2_train.json", "images": "objects365/train", "missing": "skip"},
        2,
    ),
    "visual_genome": (
        {"path": "visual_genome/region_descriptions.json", "images": "visual_genome/images"},
        3,
    ),
    "wit": ({"path": "wit/wit_v1.train.all-00000-of-00010.tsv.gz", "images": "wit/images"}, 2),
    "vision_flan": (
        {"path": "vision_flan/annotation_191-task_1k.json", "images": "vision_flan/images_191task_1k"},
        1,
    ),
    "scienceqa": ({"path": "scienceqa"}, 2),
    "mgm_instruct": ({"path": "mgm_instruct/mgm_instruction.json", "images": "mgm_instruct/images"}, 3),
    "chat": ({"path": "chat/data.jsonl", "images": "chat/images"}, 4),
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("arrow")


@pytest.fixture
def opened(cache):
    """Opens a reader on its fixture, with changed options."""

    def open_fixture(name, **changes):
        return open_reader(name, root=FIXTURES, **{**SOURCES[name][0], "cache_dir": cache, **changes})

    return open_fixture


@pytest.fixture
def copied(tmp_path):
    """A copy of a fixture's folder, to damage."""

    def copy(name):
        return Path(shutil.copytree(FIXTURES / name, tmp_path / name))

    return copy


def texts(sample):
    return [[(turn.prompt, turn.answer) for turn in turns] for turns in sample.conversations]
