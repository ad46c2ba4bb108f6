"""The plugin of LMMs-Eval: found by its entry point, fed as a task feeds a chat model, on its real base class too."""

import importlib
import importlib.util
import sys

import lmms_stand_in
import pytest
from PIL import Image

from argus_tools.evaluate import lmms_plugin

CLASS = "argus_tools.evaluate.lmms_model"
INSTALLED = importlib.util.find_spec("lmms_eval") is not None
PICTURES = [Image.new("RGB", (144, 144), (200, 90, 10)), Image.new("RGB", (144, 144), (10, 90, 200))]
DOCS = [{"question": "What is this?", "image": 0}, {"question": "Describe the image.", "image": 1}]


@pytest.fixture(
    scope="module",
    params=[
        "stand-in",
        pytest.param("lmms-eval", marks=pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")),
    ],
)
def plugin(request):
    """(the model's class, Instance), over the stand-in or over lmms-eval itself."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "lmms_eval"}
    sys.modules.pop(CLASS, None)
    added = lmms_stand_in.modules() if request.param == "stand-in" else {}
    sys.modules.update(added)
    yield importlib.import_module(CLASS).ArgusLmms, importlib.import_module("lmms_eval.api.instance").Instance
    for name in (*added, CLASS):
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.fixture(scope="module")
def model(plugin):
    model = plugin[0].create_from_arg_string("max_tiles=1", {"batch_size": 2, "device": "cpu", "max_batch_size": None})
    model.task_dict = {"a_task": {"test": DOCS}}
    return model


def messages(doc):
    content = [{"type": "image", "url": PICTURES[doc["image"]]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": [*content, {"type": "audio", "url": ""}]}]


def requests(plugin, places, **options):
    options = {"max_new_tokens": 6, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False} | options
    metadata = {"task": "a_task", "doc_id": 0, "repeats": 1}
    return [
        plugin[1]("generate_until", ("", messages, options, place, "a_task", "test"), i, metadata)
        for i, place in enumerate(places)
    ]


def test_the_entry_point_names_a_chat_model(plugin):
    found = lmms_plugin.manifest()
    assert found.model_id == "argus" and found.simple_class_path is None
    module, name = found.chat_class_path.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name) is plugin[0]
    base = sys.modules["lmms_eval.api.model"].lmms
    assert issubclass(plugin[0], base) and plugin[0].is_simple is False
    assert not getattr(plugin[0], "__abstractmethods__", None)


def test_lmms_evals_own_registry_takes_it(plugin):
    registry = sys.modules["lmms_eval.models.registry_v2"]
    if not hasattr(registry, "ModelRegistryV2"):
        pytest.skip("the stand-in has no registry")
    models = registry.ModelRegistryV2()
    models.register_manifest(lmms_plugin.manifest())
    assert models.get_model_class("argus") is plugin[0]


def test_answers_are_the_models_own_and_in_order(plugin, model):
    first, second = (
        model.model.answer(PICTURES[i], DOCS[i]["question"], processor=model.processor, max_new_tokens=6)[0]
        for i in (0, 1)
    )
    assert model.generate_until(requests(plugin, [0, 1, 0])) == [first, second, first]
    assert first != second


def test_requests_of_different_options_are_not_mixed(plugin, model):
    short, long = requests(plugin, [1], max_new_tokens=1), requests(plugin, [1], max_new_tokens=8)
    answers = model.generate_until([short[0], long[0], short[0]])
    assert answers[0] == answers[2] and answers[1].startswith(answers[0]) and len(answers[1]) > len(answers[0])


def test_stop_strings_cut(plugin, model):
    whole = model.generate_until(requests(plugin, [1], max_new_tokens=12))[0]
    stop = whole.split()[1]
    assert (
        model.generate_until(requests(plugin, [1], max_new_tokens=12, until=["\n\n", stop]))[0]
        == whole.split(stop)[0].strip()
    )


def test_options_of_tasks_are_generates():
    sys.modules.update(added := lmms_stand_in.modules())
    try:
        options = importlib.import_module(CLASS).generation_options
    finally:
        for name in (*added, CLASS):
            sys.modules.pop(name, None)
    assert options({}) == {"max_new_tokens": 64, "do_sample": False}
    assert options({"temperature": 0, "top_p": 1.0, "max_gen_toks": 5}) == {"max_new_tokens": 5, "do_sample": False}
    sampled = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert options(sampled | {"until": ["x"]}) == sampled


def test_what_it_cannot_do_is_said(plugin, model):
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="Argus has no argument 'max_pixels'"):
        plugin[0](max_pixels=3)
    film = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    request = plugin[1](
        "generate_until", ("", lambda doc: film, {}, 0, "a_task", "test"), 0, {"task": "a", "doc_id": 0, "repeats": 1}
    )
    with pytest.raises(ValueError, match="the task a_task shows video, which Argus does not take"):
        model.generate_until([request])
