"""Configurations: what is read, and that every wrong value is named with its place."""

import dataclasses

import pytest

from argus_tools.train.config import load_config, parse_config

GOOD = {
    "output_dir": "runs/x",
    "data": {"sources": [{"reader": "squares", "weight": 2, "stated": 64, "conversations": 1}]},
    "stages": [{"name": "all", "steps": 4, "batch_size": 8, "learning_rate": {"text": "1e-3", "vision": 1}}],
}


def changed(**changes):
    raw = dict(GOOD)
    raw["stages"] = [{**GOOD["stages"][0], **changes.pop("stage", {})}]
    raw["data"] = {**GOOD["data"], **changes.pop("data", {})}
    return {**raw, **changes}


def test_what_is_no_field_of_a_source_is_its_readers_option():
    config = parse_config(GOOD)
    assert config.data.sources[0].options == {"conversations": 1} and config.data.sources[0].weight == 2.0
    assert config.stages[0].learning_rate == {"text": 1e-3, "vision": 1.0}
    assert parse_config({**dataclasses.asdict(config)}) == config


@pytest.mark.parametrize(
    "raw, message",
    [
        (changed(colour="red"), "unknown key 'colour'"),
        (changed(stage={"step": 1}), r"stages\[0\] has an unknown key 'step'"),
        (changed(stage={"steps": "many"}), r"stages\[0\]: steps must be of type int, got 'many'"),
        (changed(stage={"steps": True}), "must be of type int, got True"),
        (changed(stage={"steps": 0}), "stage 'all': steps must be at least 1"),
        (changed(stage={"learning_rate": {"eyes": 1.0}}), "some of vision, connector, text"),
        (changed(stage={"learning_rate": {"text": "nan"}}), "finite number"),
        (changed(stage={"learning_rate": {"text": -1}}), "text must be at least 0, got -1.0"),
        (changed(stage={"final": 7}), "final must be from 0 to 1"),
        (changed(stage={"warmup": -5}), "warmup must be at least 0"),
        (changed(stage={"name": "model"}), "not start or model"),
        (changed(stage={"name": "../precious"}), "letters, digits"),
        (changed(save_every=0), "save_every must be at least 1, got 0"),
        (changed(seed=-1), "seed must be at least 0"),
        (changed(adam_betas=[0.9, 1.0]), "adam_betas"),
        (changed(data={"max_length": 0}), "max_length must be at least 1"),
        (changed(stage={"schedule": "sometimes"}), "it can be constant, cosine, linear, decay"),
        (changed(stage={"accumulation": 3}), "does not divide into 3"),
        (changed(stage={"answer_weight": 0}), "one of them above 0"),
        (changed(data={"sources": []}), "at least one stage and one data source"),
        (changed(data={"sources": [{"reader": "squares", "weight": 0}]}), "weight 0.0; it must be above 0"),
        (changed(data={"sources": [{"weight": 1}]}), r"sources\[0\] lacks reader"),
        (changed(data={"answer_weighting": "twice"}), "it can be tokens, root"),
        (changed(data={"bad_samples": "mend"}), "data.bad_samples is 'mend'; it can be skip, stop"),
        (changed(stages=[GOOD["stages"][0]] * 2), "different names"),
        (changed(stages="none"), "stages must be a list"),
        ({**GOOD, "data": 3}, "data must hold keys and values"),
    ],
)
def test_what_does_not_fit_is_named(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_config(raw)


def test_a_file_is_read_with_changes_and_paths_beside_it(tmp_path, monkeypatch):
    import yaml

    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "weights").mkdir(parents=True)
    file = tmp_path / "there" / "run.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "model": "weights"}))
    config = load_config(file, {"stages.0.steps": 9, "data.max_length": 100})
    assert (config.stages[0].steps, config.data.max_length) == (9, 100)
    assert config.model == str(tmp_path / "there" / "weights")
    assert config.output_dir == str(tmp_path / "runs" / "x")
    for changes in ({"stages.1.steps": 9}, {"stages.first.steps": 1}):
        with pytest.raises(ValueError, match="to change"):
            load_config(file, changes)
    file.write_text("a: [1")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(file)
    file.write_text("- 1")
    with pytest.raises(ValueError, match="keys and values"):
        load_config(file)
    with pytest.raises(ValueError, match="is not a file"):
        load_config(tmp_path / "none.yaml")
