"""`export`: what the folder holds, what it refuses, and that nothing half-written is left behind."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from argus_tools import export as export_module
from argus_tools.export import AUTO_MAP, export
from argus_tools.paths import hub_code_files


def test_folder_is_flat_and_whole(tiny_checkpoint, tiny_hub_folder):
    names = {path.name for path in tiny_hub_folder.iterdir()}
    assert all(path.is_file() for path in tiny_hub_folder.iterdir())
    assert {path.name for path in hub_code_files()} <= names and "__init__.py" not in names
    assert {path.name for path in tiny_checkpoint.iterdir() if path.suffix != ".py"} <= names
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= names
    assert "chat_template.jinja" in names
    assert [path.name for path in tiny_hub_folder.parent.iterdir()] == [tiny_hub_folder.name]
    assert tiny_hub_folder.stat().st_mode & 0o055 == 0o055 & tiny_checkpoint.stat().st_mode


def test_auto_maps(tiny_hub_folder):
    config = json.loads((tiny_hub_folder / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == AUTO_MAP
    processor = json.loads((tiny_hub_folder / "processor_config.json").read_text(encoding="utf-8"))
    assert processor["auto_map"]["AutoProcessor"] == AUTO_MAP["AutoProcessor"]


def test_only_what_a_hub_folder_needs_is_taken(tiny_checkpoint, tmp_path):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    for name in (
        "checkpoint-500/model.safetensors",
        "trainer_state.json",
        "optimizer.pt",
        ".cache/notes.md",
        "images/a.png",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("")
    (source / ".eval_results").mkdir()
    (source / ".eval_results" / "scenes.yaml").write_text("[]")
    (source / "modeling_argus.py").write_text("raise SystemExit('stale')")
    (source / "notes.py").write_text("")
    out = export(source, tmp_path / "out")
    assert "stale" not in (out / "modeling_argus.py").read_text(encoding="utf-8") and not (out / "notes.py").exists()
    assert (out / "images" / "a.png").exists() and (out / ".eval_results" / "scenes.yaml").exists()
    names = {path.name for path in out.rglob("*")}
    assert not names & {"checkpoint-500", "trainer_state.json", "optimizer.pt", ".cache"}


@pytest.mark.parametrize("bins", [64, None])
def test_a_missing_card_is_begun(tiny_checkpoint, tmp_path, monkeypatch, bins):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source", ignore=shutil.ignore_patterns("README.md"))
    processor = json.loads((source / "processor_config.json").read_text(encoding="utf-8"))
    (source / "processor_config.json").write_text(json.dumps({**processor, "num_location_bins": bins}))
    card = ModelCard.load(export(source, tmp_path / "mine") / "README.md")
    assert set(card.data.tags) == {"custom_code"} | ({"dense-captioning", "grounding"} if bins else set())
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    found = []
    for name in ("AutoProcessor", "AutoModelForImageTextToText"):
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", lambda path, **_: found.append(path))
    exec(snippet, {})
    assert found == ["mine", "mine"]


def test_a_target_with_content_is_refused(tiny_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of it")
    with pytest.raises(FileExistsError, match="is not empty"):
        export(tiny_checkpoint, tmp_path / "out")
    with pytest.raises(FileExistsError, match="not an earlier export"):
        export(tiny_checkpoint, tmp_path / "out", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]
    with pytest.raises(FileExistsError, match="is a file"):
        export(tiny_checkpoint, tmp_path / "out" / "thesis.tex")
    with pytest.raises(FileExistsError, match="overlaps"):
        export(tiny_checkpoint, tiny_checkpoint / "hub")


def test_force_replaces_an_earlier_export_and_keeps_its_git(tiny_checkpoint, tmp_path):
    out = export(tiny_checkpoint, tmp_path / "out")
    (out / ".git").mkdir()
    (out / "kernels_of_last_year.py").write_text("")
    (out / "config.json").write_text('{"model_type": "argus", "stale": true}')
    with pytest.raises(FileExistsError, match="--force"):
        export(tiny_checkpoint, out)
    export(tiny_checkpoint, out, force=True)
    assert (out / ".git").is_dir() and not (out / "kernels_of_last_year.py").exists()
    assert "stale" not in (out / "config.json").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_a_target(tiny_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export(tiny_checkpoint, tmp_path / "out") / "config.json").is_file()


@pytest.mark.parametrize(
    "missing, message",
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no weights .*argus convert"),
        ("tokenizer.json", "no tokenizer.json"),
    ],
)
def test_incomplete_checkpoints_are_refused(tiny_checkpoint, tmp_path, missing, message):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    (source / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_missing_shards_and_pickles_and_other_models_are_refused(tiny_checkpoint, tmp_path):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        export(source, tmp_path / "out")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is pickled"):
        export(source, tmp_path / "out")
    (source / "config.json").write_text('{"model_type": "smolvlm"}')
    with pytest.raises(ValueError, match="'smolvlm'"):
        export(source, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        export(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "[]", "config.json holds no JSON object"),
        ("config.json", "{", "config.json cannot be read as JSON"),
        ("config.json", '{"model_type": "argus", "auto_map": ["x"]}', "auto_map in .*config.json"),
        ("processor_config.json", "[]", "processor_config.json holds no JSON object"),
        ("processor_config.json", '{"auto_map": ["x"]}', "auto_map in .*processor_config.json"),
        ("model.safetensors.index.json", "{}", "index.json has no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "index.json has no weight_map"),
        ("model.safetensors", "xx", "model.safetensors is not a whole safetensors file"),
    ],
)
def test_damaged_files_are_named(tiny_checkpoint, tmp_path, name, content, message):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    (source / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_of_folders_only_what_a_card_shows_is_taken(tiny_checkpoint, tmp_path):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    for name in ("images/boxes.png", "training/scores.json", ".eval_results/a.yaml", "private/me.png", ".git/x.yaml"):
        (source / name).parent.mkdir()
        (source / name).write_text("{}")
    out = export(source, tmp_path / "out")
    taken = {str(path.relative_to(out)) for path in out.rglob("*") if path.parent != out}
    assert taken == {"images/boxes.png", "training/scores.json", ".eval_results/a.yaml"}


def test_an_interrupted_replacement_keeps_the_earlier_export(tiny_checkpoint, tmp_path, monkeypatch):
    out = export(tiny_checkpoint, tmp_path / "out")
    replace = export_module.os.replace

    def interrupted(old, new):
        if new == out and "-old-" not in str(old):
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(export_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, out, force=True)
    assert (out / "config.json").is_file() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_left_of_an_interrupted_export(tiny_checkpoint, tmp_path, monkeypatch):
    def full_disk(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(export_module, "_write_auto_maps", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export(tiny_checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_old_name_of_the_auto_class_works_on_both_majors(tiny_checkpoint):
    import processing_argus  # noqa: F401  registers the processor
    from modeling_argus import AutoModelForVision2Seq

    model = AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)
    assert type(model).__name__ == "ArgusForConditionalGeneration"
