"""The embedded model as a hub folder, loaded with `trust_remote_code=True` as its users do."""

from pathlib import Path

import pytest
import torch
from asking import chat
from PIL import Image

from argus_tools.export import export
from argus_tools.paths import default_model_path


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    """The folder that `argus export` writes, as a string."""
    return str(export(default_model_path(), tmp_path_factory.mktemp("exported") / "argus-nano-hub"))


@pytest.fixture(scope="session")
def picture() -> Path:
    return Path(__file__).resolve().parents[2] / "examples" / "scene.png"


@pytest.fixture(scope="session")
def image(picture):
    return Image.open(picture).convert("RGB")


@pytest.fixture(scope="session")
def processor(hub_folder):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True)


@pytest.fixture(scope="session")
def load(hub_folder):
    """load(**options): the model, in float32 unless the options say otherwise."""
    from transformers import AutoModelForImageTextToText

    def load(**options):
        options = {"dtype": torch.float32, **options}
        return AutoModelForImageTextToText.from_pretrained(hub_folder, trust_remote_code=True, **options).eval()

    return load


@pytest.fixture(scope="session")
def inputs(processor, picture):
    """One chat about one image, as README's snippet makes it."""
    return processor.apply_chat_template(
        chat(picture), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.fixture(scope="session")
def expected(load, inputs):
    """The greedy answer of a model loaded without any library in between: int64[1, T], prompt included."""
    return load().generate(**inputs, max_new_tokens=24, do_sample=False)


@pytest.fixture(scope="session")
def generated(inputs):
    """generated(model, **options): the same for another model."""
    return lambda model, **options: model.generate(**inputs, max_new_tokens=24, do_sample=False, **options)
