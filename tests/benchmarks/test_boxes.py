"""Table 4 at our scale: the whole machinery at a toy size, and what it says of results, whichever way they come out."""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from argus_tools.train import nano
from argus_tools.train.run import run_config
from argus_tools.train.tokenizer import train_tokenizer
from argus_tools.train.trainer import ArgusTrainer
from benchmarks.accuracy import boxes, boxes_run
from benchmarks.accuracy.boxes import latency
from benchmarks.accuracy.boxes_report import (
    PAPER,
    RESULTS,
    cells_of,
    difference,
    findings,
    markdown_of,
    percent,
    score_of,
    spread,
)
from benchmarks.accuracy.boxes_run import (
    CLASSES,
    ColumnRowVocabulary,
    Plan,
    config_of,
    held_out,
    load,
    order_of,
    run_one,
    start_of,
    stopped_at,
)
from processing_argus import ArgusProcessor
from processing_argus.locations_argus import LocationVocabulary

TOY = Plan("toy", samples=8, batch_size=4, scenes=4)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The results of a toy run in each format, and where they are."""
    work = tmp_path_factory.mktemp("boxes")
    plans = [TOY, dataclasses.replace(TOY, box_format="plain_text")]
    return work, {plan.box_format: run_one(plan, work / plan.name) for plan in plans}


def test_twelve_runs_and_six_more():
    main, others, starts = boxes.plans_of(boxes.build_parser().parse_args([])).values()
    assert len(main) == 12 and len(others) == len(starts) == 3
    assert len({plan.name for plan in main + others + starts}) == 18
    assert {(p.size, p.box_format, p.seed) for p in main} == {
        (size, name, seed)
        for size in ("small", "large")
        for name in ("plain_text", "location_tokens")
        for seed in (0, 1, 2)
    }
    # Nothing but the named fields differs: the budget is the same for all.
    assert len({dataclasses.replace(p, size="", box_format="", seed=0) for p in main}) == 1
    assert [(p.bins, p.order) for p in others] == [(300, "row-column"), (1000, "row-column"), (100, "column-row")]
    assert {p.size for p in others} == {"small"}
    # Each without waves has its like with them.
    assert all(not p.waves and dataclasses.replace(p, waves=True) in main for p in starts)
    assert {(p.size, p.box_format, p.seed) for p in starts} == {("small", "location_tokens", i) for i in range(3)}


def test_without_waves_nothing_but_location_tokens_starts_otherwise(monkeypatch):
    tokenizer = train_tokenizer(num_location_bins=100)
    config = nano.nano_config(tokenizer, *boxes_run.SIZES["toy"])
    waves, kept = nano.build_nano(tokenizer, config, 3).state_dict(), nano.build_nano
    with start_of(dataclasses.replace(TOY, waves=False)):
        bare = nano.build_nano(tokenizer, config, 3).state_dict()
    assert nano.build_nano is kept
    with start_of(TOY):
        assert nano.build_nano is kept
    different = {name for name, value in bare.items() if not value.equal(waves[name])}
    assert different == {"model.text_model.embed_tokens.weight", "lm_head.weight"}
    one, two = (state["model.text_model.embed_tokens.weight"] for state in (bare, waves))
    changed = (one != two).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(i for t, i in tokenizer.get_vocab().items() if t.startswith("<loc_"))
    added = nano._waves
    monkeypatch.setattr(nano, "_waves", lambda places, width: added(places, width) * (len(places) != 100))
    assert one.equal(nano.build_nano(tokenizer, config, 3).state_dict()["model.text_model.embed_tokens.weight"])


def test_formats_differ_in_the_format_alone(tmp_path):
    one, two = (config_of(dataclasses.replace(TOY, box_format=f), tmp_path) for f in ("location_tokens", "plain_text"))
    assert one.nano.pop("box_format") == "location_tokens" and two.nano.pop("box_format") == "plain_text"
    assert one == two


def test_a_run_is_trained_scored_and_kept(done):
    work, results = done
    for name, result in results.items():
        assert result["box_format"] == name and 0 <= score_of(result) <= 1 and result["parameters"] > 10_000
        assert set(result["map"]) >= {"meteor-lite"} and len(result["loss"]) == 1 and result["samples"] == 8
        plan = dataclasses.replace(TOY, box_format=name)
        assert run_one(plan, work / plan.name) == result  # read, not run again
        assert run_config(config_of(plan, work / plan.name / "training")).is_dir()
    assert results["location_tokens"]["tokens"]["box"] == 4.0
    assert results["plain_text"]["tokens"]["box"] > 8
    assert results["plain_text"]["tokens"]["region"] > results["location_tokens"]["tokens"]["region"]
    file = work / TOY.name / "result.json"
    older = json.loads(file.read_text(encoding="utf-8"))
    del older["waves"]  # of before that field was there
    kept = file.read_text(encoding="utf-8")
    file.write_text(json.dumps(older), encoding="utf-8")
    assert run_one(TOY, work / TOY.name) == older
    with pytest.raises(ValueError, match="another plan"):
        run_one(dataclasses.replace(TOY, waves=False), work / TOY.name)
    file.write_text(kept, encoding="utf-8")
    with pytest.raises(ValueError, match="another plan"):
        run_one(dataclasses.replace(TOY, samples=12), work / TOY.name)


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(done, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def save_and_die(trainer, *args, **kwargs):
        save(trainer, *args, **kwargs)
        raise Killed

    save, config = ArgusTrainer._save_checkpoint, boxes_run.config_of
    monkeypatch.setattr(boxes_run, "config_of", lambda plan, at: dataclasses.replace(config(plan, at), save_every=1))
    folder = tmp_path / TOY.name
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(ArgusTrainer, "_save_checkpoint", save_and_die)
        run_one(TOY, folder)
    assert stopped_at(folder) == 1 and not (folder / "result.json").exists()
    monkeypatch.setattr(boxes.sys, "executable", "false")
    boxes.run_apart(TOY, tmp_path)
    assert f"{TOY.name}: goes on from step 1\n" in capsys.readouterr().out
    begun, begin = [], ArgusTrainer.training_step
    monkeypatch.setattr(
        ArgusTrainer,
        "training_step",
        lambda self, *a, **k: begun.append(self.state.global_step) or begin(self, *a, **k),
    )
    result, undisturbed = run_one(TOY, folder), done[1]["location_tokens"]
    assert begun == [1]  # of two
    different = {name for name in undisturbed if result[name] != undisturbed[name]}
    # A log line here is of two steps, and one was before; checkpoints of true runs fall together with log lines.
    assert different <= {"samples_a_second", "loss"}
    weights = [at / "training" / "model" / "model.safetensors" for at in (folder, done[0] / TOY.name)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert stopped_at(folder) == 0


def test_latency_is_of_both_in_turn(done):
    work, _ = done
    plans = [TOY, dataclasses.replace(TOY, box_format="plain_text")]
    sides = {plan.box_format: load(work / plan.name / "training" / "model") for plan in plans}
    timed = latency(sides, [scene.image for scene in held_out(TOY)], 2, TOY.max_new_tokens)
    assert set(timed) == {"location_tokens", "plain_text"}
    assert all(each["images"] == 2 and each["ms"] > 0 for each in timed.values())


def test_the_scenes_are_of_the_classes():
    assert {o.name for scene in held_out(dataclasses.replace(TOY, scenes=80)) for o in scene.objects} == set(CLASSES)


def test_the_other_order_of_a_box_goes_there_and_back(done):
    vocabulary, box, size = ColumnRowVocabulary(100), (10.0, 40.0, 30.0, 90.0), (100, 100)
    text = vocabulary.encode_regions([box], ["a cat"], size)
    assert text == "<loc_10><loc_40><loc_30><loc_90>a cat"
    (region,), unparsed = vocabulary.parse(text)
    assert region.bins == (10, 40, 30, 90) and not unparsed
    # What is no box in this order is none: x2 before x1, y2 before y1.
    assert vocabulary.parse("<loc_30><loc_40><loc_10><loc_90>a cat")[0] == []
    assert vocabulary.parse("<loc_10><loc_90><loc_30><loc_40>a cat")[0] == []
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = np.sort(rng.integers(0, 100, (2, 2)), axis=1)
        box = (x[0], y[0], x[1], y[1])
        middles = [value + 0.5 for value in box]
        (region,), _ = vocabulary.parse(vocabulary.encode_regions([middles], ["x"], size))
        assert region.bins == box
    processor = ArgusProcessor.from_pretrained(done[0] / TOY.name / "training" / "model")
    with order_of(dataclasses.replace(TOY, order="column-row")):
        assert type(processor.locations) is ColumnRowVocabulary
    assert type(processor.locations) is LocationVocabulary


def test_one_command_does_it_all(done, tmp_path, monkeypatch, capsys):
    work, out = done[0], tmp_path / "out"

    def in_this_process(plan, folder):
        return run_one(plan, folder / plan.name)

    monkeypatch.setattr(boxes, "run_apart", in_this_process)
    options = ["--tiny", "--samples", "8", "--seeds", "1", "--scenes", "4", "--timed", "2", "--jobs", "1"]
    assert boxes.main([*options, "--work", str(work), "--out", str(out)]) == 0
    report = json.loads((out / "boxes.json").read_text(encoding="utf-8"))
    assert len(report["runs"]) == 2 and len(report["bins_and_order"]) == 3 and report["measured_with"]["torch"]
    assert [(r["waves"], r["seed"]) for r in report["starts"]] == [(False, 0)]
    assert {r["bins"] for r in report["bins_and_order"]} == {100, 300, 1000}
    text = (out / "boxes.md").read_text(encoding="utf-8")
    assert "numbers mean nothing" in text and "column-row" in text and str(tmp_path) not in text + str(report)
    assert all(f"| {value:.2f} |" in text for value in PAPER.values())
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["benchmark"] == "boxes" and line["runs"] == 6
    assert markdown_of(report) == text and "2 optimizer steps" in text and "| location tokens | drawn |" in text


def test_a_run_that_fails_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(boxes.sys, "executable", "false")
    result = boxes.run_apart(TOY, tmp_path)
    assert result == {"run": TOY.name, "error": "exit status 1"} and "exit status 1" in capsys.readouterr().out
    assert cells_of([result]) == {}


def _result(size, name, seed, value):
    maps = {"meteor-lite": {"clean": 0.5, "reference": 0.5}, "METEOR 1.5": {"clean": value, "reference": value}}
    return {"size": size, "box_format": name, "seed": seed, "map": maps}


@pytest.mark.parametrize(
    ("tokens", "text", "said"),
    [
        ((0.30, 0.31, 0.33), (0.20, 0.22, 0.22), "with every seed location tokens are better, by more than twice"),
        ((0.30, 0.31, 0.32), (0.20, 0.25, 0.31), "location tokens are better, but the gain is within the spread of"),
        ((0.20, 0.22, 0.22), (0.30, 0.31, 0.33), "with every seed plain text is better, by more than twice"),
        ((0.20, 0.25, 0.31), (0.30, 0.31, 0.32), "plain text is better, but the gain is within the spread of seeds"),
        ((0.30, 0.20, 0.32), (0.25, 0.25, 0.31), "the seeds disagree: no difference is shown"),
        ((0.30,), (0.25,), "one seed has no spread: nothing is shown"),
    ],
)
def test_findings_are_what_came_out(tokens, text, said):
    results = [_result("small", "location_tokens", i, v) for i, v in enumerate(tokens)]
    results += [_result("small", "plain_text", i, v) for i, v in enumerate(text)]
    cells = cells_of(results[::-1])
    assert list(cells) == [("small", "plain_text"), ("small", "location_tokens")]
    (sentence,) = findings(cells)
    assert said in sentence and f"{100 * (np.mean(tokens) - np.mean(text)):+.2f} points" in sentence
    if "deviation" in sentence:
        deviation = np.std([100 * (one - two) for one, two in zip(tokens, text)], ddof=1)
        assert f"{deviation:.2f}, n = 3)" in sentence


def test_spread_and_seeds_without_their_like():
    assert spread([1.0, 2.0, 3.0]) == "2.00 +- 1.00" and spread([1.0]) == "1.00"
    apart = [[_result("small", "plain_text", i, 0.1)] for i in range(2)]
    assert difference(*apart, ("one is", "the other is")) == "no seed has both"


@pytest.fixture(scope="module")
def committed():
    return json.loads((RESULTS / "boxes.json").read_text(encoding="utf-8"))


def test_the_committed_tables_are_what_the_committed_numbers_give(committed):
    assert markdown_of(committed) == (RESULTS / "boxes.md").read_text(encoding="utf-8")
    assert committed["findings"] == findings(cells_of(committed["runs"])) and len(committed["findings"]) == 2


def test_the_readme_has_the_committed_numbers(committed):
    readme = (Path(boxes.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| location tokens against plain text \|.*$", readme, re.MULTILINE)
    cells = cells_of(committed["runs"])
    for size in ("small", "large"):
        sides = []
        for name in ("location_tokens", "plain_text"):
            values = [percent(score_of(r)) for r in cells[size, name]]
            assert len(values) == 3
            sides.append(f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f}")
        assert " against ".join(sides) in row
    assert f"{committed['plan']['samples']:,} rendered images" in row
