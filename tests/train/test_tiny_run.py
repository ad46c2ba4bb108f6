"""From nothing to a model that works: configs/tiny.yaml as it stands, by the command line, and what it has learnt."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from argus_tools.cli import main
from argus_tools.evaluate.scenes import match
from argus_tools.scenes import render_scene, with_article
from argus_tools.train import config as config_module
from argus_tools.train.config import load_config

CONFIGS = config_module.Path(config_module.__file__).parent / "configs"


@pytest.mark.slow
def test_a_model_from_nothing_boxes_and_names_what_it_has_never_seen(tmp_path, capsys, monkeypatch):
    """Held-out scenes, greedy. By chance, a box of the right place and name is found in well under 5 of 100."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # at this size two are slower
        assert main(["train", str(CONFIGS / "tiny.yaml"), "--output-dir", str(tmp_path / "tiny"), "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    folder = json.loads(capsys.readouterr().out)["model"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    options = load_config(CONFIGS / "tiny.yaml").data.sources[0].options
    drawn = {name: tuple(options[name]) for name in ("styles", "classes")}
    scenes = [render_scene(i, "val", height=72, width=72, max_objects=2, **drawn) for i in range(48)]
    found = model.dense_caption([scene.image for scene in scenes], processor=processor, batch_size=48)
    right = 0
    for scene, regions in zip(scenes, found):
        truth = [(thing.box, with_article(thing.label)) for thing in scene.objects]
        matches = match(regions["boxes"].tolist(), regions["captions"], *zip(*truth))
        right += sum(one is not None for one in matches)
    total = sum(len(scene.objects) for scene in scenes)
    assert right / total > 0.4, f"{right} of {total}"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_configurations_are_read(name):
    loaded = load_config(CONFIGS / name)
    assert loaded.stages and yaml.safe_load((CONFIGS / name).read_text())
