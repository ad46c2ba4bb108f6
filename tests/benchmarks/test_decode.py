"""The script on decoding: every side gives the same tokens, what a side changes is undone, and the rules by hand."""

import json

import pytest
import torch

import modeling_argus.decode_state_argus as decode_state
import modeling_argus.generation_argus as generation
from benchmarks.efficiency import decode, decode_again, decode_answers
from benchmarks.efficiency.decode_answers import divergences
from benchmarks.efficiency.decode_prompts import make_prompt
from benchmarks.efficiency.decode_sides import (
    COMPILED,
    DEDUPLICATED,
    EAGER,
    INT8,
    KERNELS,
    LOOP,
    NORM,
    ROTARY,
    STATIC,
    build_decoders,
    bytes_per_step,
    counted,
    read_bandwidth,
    sharing,
    stored_bytes,
    without_graph,
)
from benchmarks.efficiency.models import build_ours, build_reference, build_same_decoder
from benchmarks.efficiency.shapes import SHAPES, TINY
from modeling_argus.kernels_argus import TORCH

PASSED = {"whole": {"n": 5}, "prefill": {"ms": 1.0}}


@pytest.fixture(scope="module", params=["256m", "2b"])
def built(request):
    shape = TINY[request.param]
    reference = build_reference(shape, dtype=torch.float32)
    ours = build_ours(reference, shape)
    return shape, reference, ours, build_decoders(shape, reference, ours)


@pytest.mark.parametrize("contexts", [[60], [40, 24, 33]])
def test_all_sides_have_transformers_tokens_and_leave_nothing_behind(built, contexts):
    shape, reference, ours, sides = built
    assert set(sides) == {EAGER, STATIC, NORM, ROTARY, DEDUPLICATED, LOOP}
    prompt = make_prompt(shape, reference, ours, contexts)
    assert prompt.mask.sum(1).tolist() == contexts and len(prompt.features) > 0
    expected = sides[EAGER].generate(prompt, 8)
    assert expected.shape == (len(contexts), 8)
    for name, side in sides.items():
        ms, ids = side.first_call(prompt, 8)
        assert ms > 0
        assert ids == expected.tolist(), name
    changed = {type(m).__name__ for m in reference.modules() if "forward" in vars(m)}
    assert not changed and "get_image_features" not in vars(reference.model)


def test_a_side_that_another_loop_decoded_is_refused(built):
    shape, reference, ours, sides = built
    prompt = make_prompt(shape, reference, ours, [24])
    sides[LOOP].settings["use_cache"] = False
    try:
        with pytest.raises(AssertionError, match="decoded by transformers' loop"):
            sides[LOOP].first_call(prompt, 3)
    finally:
        del sides[LOOP].settings["use_cache"]


def test_the_stages_run_the_fused_kernels(built):
    """Counted: two norms a layer and a last one a step, queries and keys each turned once."""
    from dataclasses import replace

    from benchmarks.efficiency.decode_sides import fused_norms, fused_rotary

    shape, reference, ours, sides = built
    calls = {"rms_norm": 0, "rotary": 0}

    def counting(name):
        def count(*args):
            calls[name] += 1
            return getattr(TORCH, name)(*args)

        return count

    counted = replace(TORCH, **{name: counting(name) for name in calls})
    prompt = make_prompt(shape, reference, ours, [24])
    side = sides[EAGER]
    changes = (lambda: fused_norms(reference, counted), lambda: fused_rotary(reference, counted))
    type(side)("counted", reference, changes=changes).generate(prompt, 3)
    layers = shape.config["text_config"]["num_hidden_layers"]
    assert calls == {"rms_norm": 3 * (2 * layers + 1), "rotary": 3 * 2 * layers}


def test_int8_decodes_by_the_same_loop():
    pytest.importorskip("torchao")
    shape = TINY["256m"]
    reference = build_reference(shape)
    ours = build_ours(reference, shape)
    side = build_decoders(shape, reference, ours)[INT8]
    _, ids = side.first_call(make_prompt(shape, reference, ours, [24]), 5)
    assert len(ids[0]) == 5 and type(side.model.lm_head.weight) is not type(ours.lm_head.weight)
    towers = (model.model.vision_model.parameters() for model in (side.model, ours))
    assert all(a is b for a, b in zip(*towers))
    weight = side.model.lm_head.weight
    assert weight.numel() < stored_bytes(weight) < 1.2 * weight.numel()  # a byte each, and a scale a row
    assert bytes_per_step(side.model, 1, 0) < 0.7 * bytes_per_step(ours, 1, 0) == 0.7 * bytes_per_step(reference, 1, 0)


def test_what_a_side_changes_in_the_loop_is_undone():
    usual = decode_state.uses_graph
    with pytest.raises(KeyError), without_graph():
        assert decode_state.uses_graph is not usual and not decode_state.uses_graph(torch.device("cuda"))
        raise KeyError
    assert decode_state.uses_graph is usual
    places = ((generation, "decode"), (decode_state.DecodeState, "_allocate"), (decode_state, "capture"))
    before = [getattr(*place) for place in places]
    with pytest.raises(KeyError), counted() as counts:
        assert all(getattr(*place) is not function for place, function in zip(places, before))
        raise KeyError
    assert [getattr(*place) for place in places] == before and set(counts.values()) == {0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_of_a_loop_that_never_ran_are_no_answers(dtype, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation, "why_not", lambda *args, **kwargs: "always handed over")
    bars, usual = [], decode.bars
    monkeypatch.setattr(decode, "bars", lambda *args: bars.extend(usual(*args)) or bars)  # before tiny ones are void
    arguments = ["--tiny", "--shapes", "256m", "--dtype", dtype, "--device", "cpu", "--repeats", "1"]
    parts = ["--parts", "answers", "fp32-answers", "again"]
    assert decode.main([*arguments, *parts, "--out", str(tmp_path)]) == 1
    capsys.readouterr()
    lines = (tmp_path / "decode.jsonl").read_text(encoding="utf-8").splitlines()
    cells = {cell["cell"]: cell for cell in map(json.loads, lines)}
    compared = {name: cell for name, cell in cells.items() if "answers" in name or name == "256m: again"}
    assert len(compared) == (3 if dtype == "float32" else 5)
    assert all(cell["error"].endswith("decoded by transformers' loop") for cell in compared.values())
    assert len(bars) == 11 and {bar.verdict for bar in bars} == {"not measured"}


def test_a_model_over_shared_weights_has_buffers_of_its_own(built):
    _, _, ours, _ = built
    other = sharing(ours, kernels="torch")
    pairs = zip(ours.parameters(), other.parameters())
    assert all(a is b for a, b in pairs) and other.config.kernels == "torch" != ours.config.kernels


def test_bytes_of_a_step_by_hand():
    shape = SHAPES["256m"]
    with torch.device("meta"):
        import transformers

        model = transformers.SmolVLMForConditionalGeneration(transformers.SmolVLMConfig(**shape.config)).bfloat16()
    assert bytes_per_step(model, 1, 0) == pytest.approx(269e6, rel=0.01)  # 106.2M and 28.4M weights
    assert bytes_per_step(model, 4, 1) - bytes_per_step(model, 4, 0) == 4 * 23040
    assert read_bandwidth("cpu", seconds=0) > 1e8


def test_a_decoder_of_qwen3s_sizes():
    reference = build_reference(TINY["qwen3-vl-2b"], dtype=torch.float32)
    ours = build_same_decoder(reference)
    theirs = reference.model.language_model
    weights = sum(p.numel() for p in theirs.parameters())
    norms = sum(p.numel() for name, p in theirs.named_parameters() if "q_norm" in name or "k_norm" in name)
    assert sum(p.numel() for p in ours.model.text_model.parameters()) == weights - norms > 0 < norms


def test_divergences_by_hand():
    logits = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]], [[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]]])
    expected = torch.tensor([[0, 1], [0, 1]])
    assert divergences(expected, logits, expected.clone()) == []
    (found,) = divergences(expected, logits, torch.tensor([[0, 1], [0, 2]]))
    assert (found.row, found.at, found.gap) == (1, 1, 0.5)


def test_a_gap_is_held_against_its_own_two_tokens():
    usual = torch.tensor([[[3.0, 2.0, 9.0]]])
    found = [decode_answers.Divergence(0, 0, 1.0)]
    expected, got = torch.tensor([[0]]), torch.tensor([[1]])
    for fast, count in (([2.4, 2.5, 9.0], 0), ([2.9, 2.5, 9.0], 1), ([3.0, 2.0, -9.0], 1), ([torch.nan] * 3, 1)):
        assert decode_answers.unexplained(found, expected, got, usual, torch.tensor([[fast]])) == count


def test_garbage_that_repeats_itself_is_refused():
    """Noise explains every gap by its own size; its distance from the same weights' slow path gives it away."""
    garbage = {"rows": 1, "tokens": 9, "unexplained": 0, "paths apart": {"rms": 5.0, "largest": 30.0}}
    garbage |= {name: {"rms": 5.0, "largest": 30.0} for name in ("loops apart", "Argus off fp32")}
    garbage |= {"transformers off fp32": {"rms": 0.02, "largest": 0.1}}
    assert decode_answers.differs(garbage)
    near = {**garbage, "loops apart": {"rms": 0.01, "largest": 0.1}}
    assert not decode_answers.differs(near) and decode_answers.differs({**near, "unexplained": 1})
    assert decode_answers.differs({**garbage, "loops apart": {"rms": float("nan"), "largest": 0.1}})
    loops = decode_answers.bars({"a": near, "b": garbage})[2]
    assert (loops.verdict, loops.value) == ("MISSED", 250)
    answers = {f"256m: answers, bfloat16, {name}": near for name in decode_answers.CONTEXTS}
    found = {("256m", 1, 880): {name: {"tokens_per_second": v, **PASSED} for name, v in ((EAGER, 20.0), (LOOP, 40.0))}}

    def cpu(answers):
        bars = decode.bars(found, answers, {}, False, "bfloat16")
        return next(bar for bar in bars if bar.name.startswith("CPU"))

    assert cpu(answers).value == 2.0
    bar = cpu({**answers, "256m: answers, bfloat16, padded batch": garbage})
    assert bar.value is None and bar.note.endswith("answers differ")


def test_the_rules_of_answers_by_hand():
    exact = {"rows": 1, "tokens": 256, "near ties": 1, "unexplained": 0}
    rounded = {"rows": 3, "tokens": 4, "unexplained": 1, "paths apart": {"rms": 1.0, "largest": 3.0}}
    rounded |= {"loops apart": {"rms": 0.2, "largest": 0.5}}
    rounded |= {"transformers off fp32": {"rms": 2.0, "largest": 4.0}, "Argus off fp32": {"rms": 1.5, "largest": 4.0}}
    fp32, rule, loops, logits, error = decode_answers.bars({"a": exact, "b": rounded})
    assert (fp32.verdict, fp32.note) == ("PASS", "256 tokens")
    assert (rule.verdict, rule.value, rule.note) == ("MISSED", 1, "12 tokens")
    assert (loops.value, logits.verdict, logits.value, error.value) == (0.1, "PASS", 0.5, 0.75)
    assert {bar.verdict for bar in decode_answers.bars({})} == {"not measured"}
    assert decode_again.bar({}).verdict == "not measured"
    assert decode_again.bar({("Argus", "second call"): {"buffers": 0, "captures": 1}}).verdict == "MISSED"


def test_speed_counts_only_with_answers_that_were_compared():
    found = {
        ("256m", 1, 880): {EAGER: {"tokens_per_second": 20.0, **PASSED}, LOOP: {"tokens_per_second": 40.0, **PASSED}}
    }
    names = [f"256m: answers, bfloat16, {name}" for name in decode_answers.CONTEXTS]
    good = {name: {"rows": 1, "tokens": 1, "unexplained": 0} for name in names}
    bad = {**good, names[1]: {"rows": 1, "tokens": 1, "unexplained": 2}}

    def cpu(answers, dtype="bfloat16"):
        bars = decode.bars(found, answers, {}, False, dtype)
        return next(bar for bar in bars if bar.name.startswith("CPU"))

    assert (cpu(good).verdict, cpu(good).value) == ("PASS", 2.0) and "n = 5" in cpu(good).note
    for some in ({}, {names[0]: good[names[0]]}):
        assert cpu(some).verdict == "not measured" and cpu(some).note.endswith("answers not compared")
    assert cpu(bad).verdict == "not measured" and cpu(bad).note.endswith("answers differ")
    assert cpu(good, "float32").value is None

    def gpu():
        bars = decode.bars(found, good, {}, True, "bfloat16")
        return [(bar.limit, bar.value, bar.note) for bar in bars if bar.name.startswith("GPU, 256m")]

    assert all(value is None and note.endswith(f"failed: {KERNELS}") for _, value, note in gpu())
    found["256m", 1, 880][KERNELS] = {"tokens_per_second": 60.0, **PASSED}
    assert [bar[:2] for bar in gpu()] == [(1.77, 3.0), (1000, 60.0)]
    del found["256m", 1, 880][EAGER]
    (_, times, note), (_, fast, _) = gpu()
    assert times is None and note.endswith(f"failed: {EAGER}") and fast == 60.0


def test_a_grid_without_a_cell_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        decode.main(["--batches", "7", "--device", "cpu", "--out", str(tmp_path / "none")])
    assert "leave no cell; batch x context here: 1 x 880, 1 x 128" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_it_measures_every_part(run_script):
    run = run_script("decode")
    cells = {cell["cell"]: cell for cell in run.cells("decode")}
    for key in ("256m", "2b", "qwen3-vl-2b"):
        cell = cells[f"{key}: batch 1, context 60"]
        assert {EAGER, STATIC, NORM, ROTARY, DEDUPLICATED, LOOP} <= set(cell) and COMPILED not in cell
        assert cell[LOOP]["first_call_ms"] > 0 and cell[LOOP]["memory_limit"] > 0
        smaller = cells[f"{key}: batch 2, context 24"]
        assert NORM not in smaller and smaller[LOOP]["whole"]["n"] == 1
    for name in (EAGER, STATIC, NORM, ROTARY, DEDUPLICATED, LOOP):
        assert cells["256m: batch 1, context 60"][name]["same_tokens"] == "5 of 5"
    assert cells["qwen3-vl-2b: batch 1, context 60"][LOOP]["same_tokens"] is None
    assert cells["256m: answers, float32, padded batch"]["unexplained"] == 0
    again = cells["256m: again, Argus"]
    assert again["first call"]["buffers"] == 1 and again["second call"]["buffers"] == 0
    order = list(cells)
    assert order.index("256m: answers, float32, batch 1") < order.index("256m: batch 2, context 24")
    bars = cells["bars"]["bars"]
    assert len(bars) == 11 and {bar["is"] for bar in bars.values()} == {"not measured"}
