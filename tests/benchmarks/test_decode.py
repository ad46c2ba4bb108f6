"""The script on decoding: every side gives the same tokens, what a side changes is undone, and the rules by hand."""

import pytest
import torch

from benchmarks.efficiency import decode, decode_again, decode_answers
from benchmarks.efficiency.decode_answers import divergences
from benchmarks.efficiency.decode_prompts import make_prompt
from benchmarks.efficiency.decode_sides import (
    COMPILED,
    DEDUPLICATED,
    EAGER,
    INT8,
    LOOP,
    NORM,
    ROTARY,
    STATIC,
    build_decoders,
    bytes_per_step,
    read_bandwidth,
    sharing,
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
    good = {"256m: answers, bfloat16, batch 1": {"rows": 1, "tokens": 1, "unexplained": 0}}
    bad = {"256m: answers, bfloat16, batch 1": {"rows": 1, "tokens": 1, "unexplained": 2}}

    def cpu(answers, dtype="bfloat16"):
        bars = decode.bars(found, answers, {}, False, dtype)
        return next(bar for bar in bars if bar.name.startswith("CPU"))

    assert (cpu(good).verdict, cpu(good).value) == ("PASS", 2.0) and "n = 5" in cpu(good).note
    assert cpu({}).verdict == "not measured" and cpu({}).note.endswith("answers not compared")
    assert cpu(bad).verdict == "not measured" and cpu(bad).note.endswith("answers differ")
    assert cpu(good, "float32").value is None
    gpu = [bar for bar in decode.bars(found, good, {}, True, "bfloat16") if bar.name.startswith("GPU, 256m")]
    assert [(bar.limit, bar.value) for bar in gpu] == [(1.77, 2.0), (1000, 40.0)]


def test_it_measures_every_part(run_script):
    run = run_script("decode")
    cells = {cell["cell"]: cell for cell in run.cells("decode")}
    for key in ("256m", "2b", "qwen3-vl-2b"):
        cell = cells[f"{key}: batch 1, context 60"]
        assert {EAGER, STATIC, NORM, ROTARY, DEDUPLICATED, LOOP} <= set(cell) and COMPILED not in cell
        assert cell[LOOP]["first_call_ms"] > 0 and cell["memory_limit"] > 0
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
