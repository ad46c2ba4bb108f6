"""The decoding loop behind generate(): what it serves gives what transformers' own loop gives, and it did serve it."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from tiny import tiny_inputs, tiny_model
from tiny_text import build_tokenizer
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from modeling_argus import decode_loop_argus, decode_state_argus, generation_argus

NEW = 12


@pytest.fixture
def served(monkeypatch):
    """A list that grows by one with each call that the loop serves."""
    calls, decode = [], generation_argus.decode

    def spy(*args):
        calls.append(1)
        return decode(*args)

    monkeypatch.setattr(generation_argus, "decode", spy)
    return calls


@pytest.fixture
def late(monkeypatch):
    """The host looks one step late, as on a GPU."""
    monkeypatch.setattr(decode_loop_argus, "reading_waits", lambda tensor: True)


class Streamed(BaseStreamer):
    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        assert not self.ended
        self.got.append(value)

    def end(self):
        self.ended += 1


class NotTwice(LogitsProcessor):
    """A processor of somebody's own, with a state: no token twice in a row's answer."""

    def __init__(self, length):
        self.length, self.calls = length, 0

    def __call__(self, input_ids, scores):
        assert input_ids.shape[1] == self.length + self.calls and input_ids.is_contiguous()
        self.calls += 1
        return scores.scatter(1, input_ids[:, self.length :], -torch.inf)


class AfterCalls(StoppingCriteria):
    def __init__(self, most):
        self.left = most

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        assert self.left >= 0, "asked once too often"
        return torch.full((len(input_ids),), self.left == 0)


def both(model, inputs, make=dict, seed=0, **options):
    """(ours, transformers') outputs for the same seed; `make` gives what has to be new for each."""
    outputs = []
    for fast in (None, False):
        torch.manual_seed(seed)
        outputs.append(model.generate(**inputs, **{"max_new_tokens": NEW, **options, **make()}, fast_decode=fast))
    return outputs


def greedy(model, inputs, **options):
    return model.generate(**inputs, max_new_tokens=NEW, fast_decode=False, **options)[:, inputs["input_ids"].shape[1] :]


OPTIONS = {
    "greedy": {},
    "temperature": {"do_sample": True, "temperature": 0.6},
    "top-k": {"do_sample": True, "top_k": 7},
    "top-p": {"do_sample": True, "top_p": 0.7, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.1},
    "repetition penalty": {"repetition_penalty": 1.4},
    "no n-gram twice": {"no_repeat_ngram_size": 2},
    "min length": {"min_length": 30, "eos_token_id": list(range(0, 300, 2)), "pad_token_id": 0},
    "min new tokens": {"min_new_tokens": 5, "eos_token_id": list(range(0, 300, 2)), "pad_token_id": 0},
    "max length": {"max_new_tokens": None, "max_length": 40},
    "many ends": {"eos_token_id": list(range(0, 300, 5)), "pad_token_id": 3},
    "several answers": {"do_sample": True, "num_return_sequences": 3},
    "suppressed": {"suppress_tokens": [5, 6], "begin_suppress_tokens": [7]},
    "time": {"max_time": 1e6},
}


@pytest.mark.parametrize("tiles", [(2,), (2, 1), (0, 1)])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_the_same_tokens(model, served, name, tiles):
    inputs = tiny_inputs(model, tiles)
    recorded = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_logprobs": True}
    ours, theirs = both(model, inputs, **OPTIONS[name], **recorded)
    assert len(served) == 1
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, other in zip((*ours.scores, *ours.logits), (*theirs.scores, *theirs.logits), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    expected = model.compute_transition_scores(ours.sequences, ours.scores, normalize_logits=True)
    for output in (ours, theirs):
        assert output.logprobs.dtype == torch.float32
        torch.testing.assert_close(output.logprobs, expected, rtol=1e-4, atol=1e-4)
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length()
    plain, _ = both(model, inputs, **OPTIONS[name])  # nothing recorded: greedy tokens are then chosen by the step
    assert torch.equal(plain, theirs.sequences)


@pytest.mark.parametrize("tiles", [(2,), (2, 1)])
def test_rows_end_where_they_should(model, served, late_or_not, tiles):
    inputs = tiny_inputs(model, tiles)
    answers = greedy(model, inputs)
    for ends in ([int(answers[0, 3])], [int(row[i]) for i, row in enumerate(answers)], [int(answers[-1, -1])]):
        for kind in ({}, {"do_sample": True, "top_k": 1}):
            ours, theirs = both(model, inputs, eos_token_id=ends, pad_token_id=0, **kind)
            assert torch.equal(ours, theirs), (ends, kind)
    assert len(served) == 6


@pytest.fixture(params=["at once", "one step late"])
def late_or_not(request, monkeypatch):
    if request.param == "one step late":
        monkeypatch.setattr(decode_loop_argus, "reading_waits", lambda tensor: True)


@pytest.mark.parametrize("tiles", [(1,), (2, 1)])
def test_256_greedy_tokens_in_fp32(model, served, monkeypatch, tiles):
    """And the buffers grow on the way."""
    monkeypatch.setattr(decode_state_argus, "BUCKET", 16)
    monkeypatch.setattr(decode_state_argus, "_AHEAD", 16)
    decode_state_argus.free_states(model)
    inputs = tiny_inputs(model, tiles)
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 256}
    ours, theirs = both(model, inputs, **options)
    assert len(served) == 1
    different = (ours.sequences != theirs.sequences).nonzero()
    if len(different):  # only where the reference itself hardly knows
        first = int(different[:, 1].min()) - inputs["input_ids"].shape[1]
        top = theirs.logits[first].topk(2).values
        assert (top[:, 0] - top[:, 1]).min() < 1e-4
    plain = model.generate(**inputs, max_new_tokens=256)
    assert torch.equal(plain, ours.sequences)
    decode_state_argus.free_states(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_sixteen_bits_answers_part_at_near_ties_only(dtype):
    model = tiny_model().to(dtype)
    exact = copy.deepcopy(model).float()
    inputs = tiny_inputs(model, (2, 1))
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 48}
    ours, theirs = both(model, inputs, **options)
    # The same tokens through every path: what do the paths themselves differ by?
    forced = {}
    for name, each, fast in (("ours", model, None), ("theirs", model, False), ("fp32", exact, False)):
        says = Says(theirs.sequences, inputs["input_ids"].shape[1])
        output = each.generate(**inputs, **options, logits_processor=[says], fast_decode=fast)
        forced[name] = torch.stack(output.logits)
    apart, off = forced["ours"] - forced["theirs"], forced["theirs"] - forced["fp32"]
    assert apart.square().mean() <= off.square().mean() > 0
    for row in range(2):
        parted = (ours.sequences[row] != theirs.sequences[row]).nonzero()
        if len(parted):
            at = int(parted[0])
            step, chosen = at - inputs["input_ids"].shape[1], ours.sequences[row, at]
            gap = theirs.logits[step][row].max() - theirs.logits[step][row, chosen]
            assert gap <= 2 * off[step, row].abs().max()  # what 16 bits cost there


class Says(LogitsProcessor):
    """Makes a model say what somebody else has said."""

    def __init__(self, sequences, start):
        self.sequences, self.next = sequences, start

    def __call__(self, input_ids, scores):
        token = self.sequences[:, self.next]
        self.next += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


def test_processors_and_criteria_of_ones_own(model, served, late):
    inputs = tiny_inputs(model, (2, 1))
    T = inputs["input_ids"].shape[1]

    def make():
        return {"logits_processor": [NotTwice(T)], "stopping_criteria": StoppingCriteriaList([AfterCalls(7)])}

    ours, theirs = both(model, inputs, make)
    assert len(served) == 1 and torch.equal(ours, theirs) and ours.shape[1] == T + 7
    kept = []

    class Keeps(LogitsProcessor):
        def __call__(self, input_ids, scores):
            kept.append(input_ids)
            return scores

    model.generate(**inputs, max_new_tokens=3, logits_processor=[Keeps()])
    before = [each.clone() for each in kept]
    model.generate(**tiny_inputs(model, (2, 1), seed=5), max_new_tokens=3)
    assert all(torch.equal(a, b) for a, b in zip(before, kept))


def test_a_prompt_of_embeddings(model, served):
    inputs = tiny_inputs(model, (0, 0))
    embeds = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}
    embeds["attention_mask"] = inputs["attention_mask"]
    ours, theirs = both(model, embeds)
    assert len(served) == 1 and torch.equal(ours, theirs) and ours.shape[1] == NEW
    ours, theirs = both(model, {**embeds, "input_ids": inputs["input_ids"]})
    assert len(served) == 2 and torch.equal(ours, theirs)


def test_masks_with_holes(model, served):
    inputs = tiny_inputs(model, (2, 1))
    inputs["attention_mask"][:, 5] = 0
    inputs["attention_mask"][1, 7] = 0
    ours, theirs = both(model, inputs)
    assert len(served) == 1 and torch.equal(ours, theirs)


@pytest.mark.parametrize("ends", [False, True])
def test_streamers(model, served, late_or_not, ends):
    inputs = tiny_inputs(model, (2,))
    options = {"eos_token_id": int(greedy(model, inputs)[0, 4]), "pad_token_id": 0} if ends else {}
    streamers = []

    def make():
        streamers.append(Streamed())
        return {"streamer": streamers[-1]}

    ours, theirs = both(model, inputs, make, **options)
    assert len(served) == 1 and torch.equal(ours, theirs)
    mine, other = streamers
    assert mine.ended == other.ended == 1
    assert [each.tolist() for each in mine.got] == [each.tolist() for each in other.got]
    assert torch.equal(torch.cat([each.flatten() for each in mine.got]), ours[0])  # nothing was written over


def test_random_numbers_go_on_as_in_transformers(model, served, late_or_not):
    """One seed, two answers, the first of which ends early: nothing is drawn for a token too many."""
    inputs, answers = tiny_inputs(model, (2,)), []
    torch.manual_seed(3)
    ends = {"eos_token_id": int(model.generate(**inputs, max_new_tokens=NEW, do_sample=True)[0, -6]), "pad_token_id": 0}
    for fast in (None, False):
        torch.manual_seed(3)
        answers += [model.generate(**inputs, max_new_tokens=NEW, do_sample=True, fast_decode=fast, **options)
                    for options in (ends, {})]  # fmt: skip
    assert answers[0].shape[1] < inputs["input_ids"].shape[1] + NEW and len(served) == 3
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[3])


def test_functions_behind_transformers_processors_are_the_callers_own(model, served, late):
    inputs, kept = tiny_inputs(model, (2,)), []

    def allowed(row, ids):
        kept.append(ids)
        return [10 + len(ids) % 7, 20]

    ours, theirs = both(model, inputs, prefix_allowed_tokens_fn=allowed)
    before = [each.clone() for each in kept]
    model.generate(**tiny_inputs(model, (2,), seed=4), max_new_tokens=NEW)
    assert len(served) == 2 and torch.equal(ours, theirs) and len(kept) == 2 * NEW
    assert all(torch.equal(a, b) for a, b in zip(before, kept))


def test_stop_strings(served):
    tokenizer = build_tokenizer()
    model = tiny_model(text_config={"vocab_size": len(tokenizer)})
    inputs = tiny_inputs(model, (2,))
    words = [each.strip("Ġ") for each in tokenizer.convert_ids_to_tokens(greedy(model, inputs)[0].tolist())]
    word = next(each for each in words if len(each) > 1 and each.isascii() and each.isalpha())
    ours, theirs = both(model, inputs, stop_strings=[word], tokenizer=tokenizer)
    assert len(served) == 1 and torch.equal(ours, theirs)
    assert ours.shape[1] < inputs["input_ids"].shape[1] + NEW


def test_a_head_with_more_rows_than_embeddings(served):
    model = tiny_model(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(48, 320, bias=False)
    ours, theirs = both(model, tiny_inputs(model, (2,)))
    assert len(served) == 1 and torch.equal(ours, theirs)


def test_scores_without_sense_are_refused(late_or_not):
    model = tiny_model()

    class Breaks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.fill_(torch.nan) if input_ids.shape[1] == 16 else scores

    Breaks.__module__ = "transformers.test"  # or the host would look at once
    inputs = tiny_inputs(model, (2,))
    with pytest.raises(RuntimeError, match="nan"):
        model.generate(**inputs, max_new_tokens=NEW, do_sample=True, logits_processor=[Breaks()])


# --- buffers ----------------------------------------------------------------------------------------------------------


def states(model):
    return decode_state_argus._POOL.get(model, [])


def test_buffers_are_used_again(served):
    model = tiny_model()
    first = model.generate(**tiny_inputs(model, (2,)), max_new_tokens=NEW)
    (state,) = states(model)
    other = tiny_inputs(model, (1,), text_length=9, seed=3)
    model.generate(**other, max_new_tokens=2 * NEW, do_sample=True)
    assert states(model) == [state] and len(served) == 2
    assert torch.equal(model.generate(**tiny_inputs(model, (2,)), max_new_tokens=NEW), first)
    for rows in (2, 3, 4, 5, 6):
        model.generate(**tiny_inputs(model, (1,) * rows), max_new_tokens=2)
    assert [each.rows for each in states(model)] == [3, 4, 5, 6]  # a few, the last ones
    assert all(each.weights is None for each in states(model))  # which the model may let go
    model.free_decode_buffers()
    assert states(model) == []


def test_what_is_returned_is_the_callers_own(model):
    inputs = tiny_inputs(model, (2, 1))
    options = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    output = model.generate(**inputs, **options)
    kept = copy.deepcopy(output)
    model.generate(**tiny_inputs(model, (1, 2), seed=9), **options)
    assert torch.equal(output.sequences, kept.sequences)
    assert all(torch.equal(a, b) for a, b in zip(output.scores + output.logits, kept.scores + kept.logits))
    for a, b in zip(output.past_key_values.layers, kept.past_key_values.layers):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


def test_a_chat_goes_on_with_the_returned_cache(model, served):
    inputs = tiny_inputs(model, (2,))
    first = model.generate(**inputs, max_new_tokens=NEW, return_dict_in_generate=True)
    ids = torch.cat((first.sequences, torch.tensor([[11, 12, 13]])), dim=1)
    mask = torch.ones_like(ids)
    going_on = model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=NEW
    )
    assert len(served) == 1  # a caller's own cache is transformers' to fill
    whole = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"], max_new_tokens=NEW, fast_decode=False
    )
    assert torch.equal(going_on, whole)


def test_what_one_call_leaves_does_not_reach_the_next():
    model = tiny_model()
    inputs = tiny_inputs(model, (2,))
    expected = model.generate(**inputs, max_new_tokens=NEW)
    (state,) = states(model)
    state.keys.fill_(torch.nan)
    state.values.fill_(torch.inf)
    state.bias.zero_()
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW), expected)
    assert states(model) == [state]


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, ValueError])
def test_a_call_that_breaks_off_leaves_the_model_usable(error):
    model = tiny_model()
    inputs = tiny_inputs(model, (2,))
    expected = model.generate(**inputs, max_new_tokens=NEW)

    class Fails(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > 18:
                raise error("stop")
            return scores

    with pytest.raises(error):
        model.generate(**inputs, max_new_tokens=NEW, logits_processor=[Fails()])
    assert states(model) == []  # nothing half-written is used again
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW), expected)


def test_buffers_that_wait_make_room(monkeypatch):
    """Where memory is short, what waits for other calls goes first."""
    model, init = tiny_model(), decode_state_argus.DecodeState.__init__
    for rows in (1, 2):
        model.generate(**tiny_inputs(model, (1,) * rows), max_new_tokens=2)

    def short(self, *args):
        if states(model):
            raise torch.OutOfMemoryError("no room")
        init(self, *args)

    monkeypatch.setattr(decode_state_argus.DecodeState, "__init__", short)
    model.generate(**tiny_inputs(model, (1,) * 3), max_new_tokens=2)
    assert [each.rows for each in states(model)] == [3]


def test_two_threads_get_their_own_answers(model):
    prompts = [tiny_inputs(model, (1 + i % 2,), text_length=5 + i, seed=i) for i in range(4)]
    expected = [model.generate(**inputs, max_new_tokens=24) for inputs in prompts]
    answers, errors = [[] for _ in prompts], []
    start = threading.Barrier(len(prompts))

    def ask(i):
        try:
            start.wait()
            for _ in range(3):
                answers[i].append(model.generate(**prompts[i], max_new_tokens=24))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(answer, expected[i]) for i in range(len(prompts)) for answer in answers[i])
    assert len(states(model)) <= decode_state_argus._MAX_FREE


def test_models_are_copied_pickled_and_forgotten():
    model = tiny_model()
    inputs = tiny_inputs(model, (2,))
    expected = model.generate(**inputs, max_new_tokens=4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert states(other) == []
        assert torch.equal(other.generate(**inputs, max_new_tokens=4), expected)
    gone = weakref.ref(model)
    del model, other
    gc.collect()
    assert gone() is None


def test_changed_weights_are_seen(served):
    model = tiny_model()
    inputs = tiny_inputs(model, (2,))
    model.generate(**inputs, max_new_tokens=NEW)
    with torch.no_grad():
        for layer in model.model.text_model.layers:
            layer.self_attn.qkv_proj.weight.mul_(1.5)
        model.model.text_model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(
            model.model.text_model.layers[0].mlp.down_proj.weight * 2
        )
    ours, theirs = both(model, inputs)
    assert len(served) == 2 and torch.equal(ours, theirs)
    ours, theirs = both(model.double(), {**inputs})
    assert len(served) == 3 and torch.equal(ours, theirs)


def test_within_inference_mode_and_after_it(model, served):
    inputs = tiny_inputs(model, (2,))
    with torch.inference_mode():
        first = model.generate(**inputs, max_new_tokens=4)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), first) and len(served) == 2


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_logprobs_need_a_dict_and_no_beams(model):
    inputs = tiny_inputs(model, (2,))
    for options in ({"streamer": Streamed()}, {"return_dict_in_generate": True, "num_beams": 2}):
        with pytest.raises(ValueError, match="output_logprobs=True needs"):
            model.generate(**inputs, max_new_tokens=2, output_logprobs=True, **options)
        assert "streamer" not in options or len(options["streamer"].got) == 1  # the prompt, and no token
    for option in ({"fast_decode": "no"}, {"output_logprobs": 1}):
        with pytest.raises(ValueError, match="must be True or False"):
            model.generate(**inputs, **option)


def test_logprobs_cost_one_float_a_token(model, served):
    output = model.generate(
        **tiny_inputs(model, (2, 1)), max_new_tokens=NEW, output_logprobs=True, return_dict_in_generate=True
    )
    assert len(served) == 1
    assert output.scores is None and output.logits is None and output.logprobs.shape == (2, NEW)
    assert (output.logprobs < 0).all()
