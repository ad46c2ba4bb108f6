"""What the decoding loop hands over to transformers' own, with the reason in the log; the answers are the same."""

import inspect
import logging

import pytest
import torch
from tiny import tiny_inputs, tiny_model
from transformers import AttentionInterface, GenerationConfig
from transformers.cache_utils import DynamicCache
from transformers.generation import EosTokenCriteria, StoppingCriteriaList
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_argus import generation_argus, text_argus
from modeling_argus.decode_rule_argus import why_model_not, why_not

GENERATE = {"max_new_tokens": 6}


@pytest.fixture
def reasons():
    """The messages of generate(), one for each call that decoded token by token."""
    messages, logger = [], generation_argus.logger

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def expected():
    model = tiny_model()
    return model.generate(**tiny_inputs(model, (2,)), **GENERATE)


CALLS = {
    "fast_decode=False": {"fast_decode": False},
    "cache_implementation='dynamic'": {"cache_implementation": "dynamic"},
    "cache_implementation='static'": {"cache_implementation": "static", "disable_compile": True},
    "use_cache=False": {"use_cache": False},
    "hidden states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "of the caller's own": {"past_key_values": None},
}


@pytest.mark.parametrize("reason", CALLS)
def test_calls_that_are_handed_over(model, reasons, reason):
    inputs = tiny_inputs(model, (2,))
    expected = model.generate(**inputs, **GENERATE)
    options = dict(CALLS[reason])
    if "past_key_values" in options:
        options["past_key_values"] = DynamicCache()
    output = model.generate(**inputs, **GENERATE, **options)
    assert torch.equal(getattr(output, "sequences", output), expected)
    assert "own loop" in reasons[0] and "transformers'" not in reasons[0]
    assert "transformers' own loop: " in reasons[1] and reason in reasons[1]


def test_attentions_are_handed_over_and_leave_the_model_as_it_was(model, reasons):
    inputs, before = tiny_inputs(model, (2,)), model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model.generate(**inputs, **GENERATE, output_attentions=True, return_dict_in_generate=True)
        assert len(output.attentions) == GENERATE["max_new_tokens"] and "attentions" in reasons[-1]
        assert torch.equal(model.generate(**inputs, **GENERATE), output.sequences)
        assert "transformers'" not in reasons[-1]
    finally:
        model.set_attn_implementation(before)


def test_other_methods_do_not_ask(model, reasons):
    inputs = tiny_inputs(model, (2,))
    model.generate(**inputs, **GENERATE, num_beams=2)
    model.generate(**inputs, **GENERATE, prompt_lookup_num_tokens=2, eos_token_id=299, pad_token_id=0)
    assert reasons == []


def test_assistants_are_handed_over(siglip_llama, reasons):
    model, inputs = siglip_llama, tiny_inputs(siglip_llama, (2,))
    options = {**GENERATE, "eos_token_id": 299, "pad_token_id": 0}
    assisted = model.generate(**inputs, **options, assistant_model=tiny_model(seed=3))
    assert reasons and all("transformers' own loop" in each for each in reasons)
    assert torch.equal(assisted, model.generate(**inputs, **options))


def hook(*args):
    return None


def with_forward_hook(model):
    model.model.text_model.layers[1].mlp.register_forward_hook(hook)


def with_pre_hook_on_top(model):
    model.register_forward_pre_hook(hook)


def with_another_module(model):
    model.model.text_model.layers[0].self_attn.o_proj = torch.nn.Sequential(
        model.model.text_model.layers[0].self_attn.o_proj
    )


def with_a_subclass(model):
    class Linear(torch.nn.Linear):
        pass

    model.lm_head.__class__ = Linear


def with_a_parametrization(model):
    torch.nn.utils.parametrizations.weight_norm(model.model.text_model.layers[0].mlp.down_proj)


def with_a_replaced_forward(model):
    layer = model.model.text_model.layers[0].mlp
    layer.forward = layer.forward


def with_two_dtypes(model):
    model.model.text_model.norm.to(torch.float64)


def in_training(model):
    model.train()


def compiled(model):
    model.compile(backend="eager")


def with_a_bias(model):
    model.model.text_model.layers[0].mlp.down_proj = torch.nn.Linear(72, 48)


def with_a_head_with_bias(model):
    model.lm_head = torch.nn.Linear(48, 300)


def with_layers_in_another_order(model):
    model.model.text_model.layers = torch.nn.ModuleList(list(model.model.text_model.layers)[::-1])


def with_a_layer_less(model):
    layers = model.model.text_model.layers
    model.model.text_model.layers = torch.nn.ModuleList([layers[0], layers[2]])


def with_another_scale(model):
    model.model.text_model.layers[0].self_attn.scaling = 0.5


def with_another_eps(model):
    model.model.text_model.norm.eps = 0.1


def with_a_part_in_training(model):
    model.config.text_config.attention_dropout = model.model.text_model.config.attention_dropout = 0.1
    model.model.text_model.layers[0].self_attn.train()


def with_an_attention_of_ones_own(model):
    AttentionInterface.register("hot", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation("hot")


def with_a_norm_that_is_a_view(model):
    model.model.text_model.norm.weight = torch.nn.Parameter(torch.ones(96)[::2])


def with_a_subclass_of_its_own(model):
    class Louder(type(model)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model.__class__ = Louder


CHANGES = {
    with_a_bias: "a bias",
    with_a_head_with_bias: "a bias",
    with_layers_in_another_order: "order",
    with_a_layer_less: "order",
    with_another_scale: "scales by 0.5",
    with_another_eps: "eps",
    with_a_part_in_training: "training",
    with_an_attention_of_ones_own: "attention 'hot'",
    with_a_norm_that_is_a_view: "not contiguous",
    with_a_subclass_of_its_own: "Louder has a forward of its own",
    with_forward_hook: "a hook hook",
    with_pre_hook_on_top: "a hook hook",
    with_another_module: "Sequential stands",
    with_a_subclass: "Linear stands",
    with_a_parametrization: "stands where",
    with_a_replaced_forward: "replaced",
    with_two_dtypes: "weights of torch.float64",
    in_training: "training",
    compiled: "compiled",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_models_that_are_handed_over(change):
    model = tiny_model()
    assert why_model_not(model, model.device) is None
    change(model)
    assert CHANGES[change] in why_model_not(model, model.device)


@pytest.mark.parametrize("name", ["ArgusTextMLP", "ArgusTextLayer", "ArgusRMSNorm"])
def test_classes_whose_forward_a_library_replaces(monkeypatch, name):
    model, part = tiny_model(), getattr(text_argus, name)
    forward = part.forward
    monkeypatch.setattr(part, "forward", lambda self, *args, **kwargs: forward(self, *args, **kwargs))
    assert "forward is replaced" in why_model_not(model, model.device)


def test_a_subclass_with_the_same_forward_is_served():
    model = tiny_model()
    model.__class__ = type("Mine", (type(model),), {})
    assert why_model_not(model, model.device) is None


def test_positions_of_the_callers_own(model, reasons):
    inputs = tiny_inputs(model, (2,))
    T = inputs["input_ids"].shape[1]
    model.generate(**inputs, **GENERATE, position_ids=torch.arange(T)[None] + 300)
    assert "position_ids of the caller's own" in reasons[-1]


def test_a_loop_of_ones_own_without_a_length(model):
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        criteria = StoppingCriteriaList([EosTokenCriteria(list(range(0, 300, 2)))])
        generation_config._pad_token_tensor = torch.tensor(0)
        return model._sample(input_ids, logits_processor, criteria, generation_config, **kwargs)

    inputs = tiny_inputs(model, (2,))
    assert model.generate(**inputs, custom_generate=loop, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


def test_a_hooked_model_calls_its_hook_for_every_token(reasons, expected):
    model, calls = tiny_model(), []
    model.model.text_model.layers[1].register_forward_hook(lambda *args: calls.append(1))
    assert torch.equal(model.generate(**tiny_inputs(model, (2,)), **GENERATE), expected)
    assert len(calls) == GENERATE["max_new_tokens"] and "hook" in reasons[-1]


def test_adapters_are_handed_over_and_merged_ones_are_not(reasons):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    inputs = tiny_inputs(model, (2,))
    lora = peft.LoraConfig(r=2, target_modules=["qkv_proj", "down_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, lora)
    tuned.eval()
    adapted = tuned.generate(**inputs, **GENERATE)
    assert "transformers' own loop" in reasons[-1]
    merged = tuned.merge_and_unload()
    assert torch.equal(merged.generate(**inputs, **GENERATE), adapted)
    assert "transformers'" not in reasons[-1]


def test_offloaded_weights_are_handed_over(reasons, expected):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    assert torch.equal(model.generate(**tiny_inputs(model, (2,)), **GENERATE), expected)
    assert "transformers' own loop" in reasons[-1]


def test_autocast_is_handed_over(model, reasons):
    with torch.autocast("cpu", torch.bfloat16):
        model.generate(**tiny_inputs(model, (2,)), **GENERATE)
    assert "autocast" in reasons[-1]


def test_a_hook_on_all_modules_is_handed_over(model):
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        assert "all modules" in why_model_not(model, model.device)
    finally:
        handle.remove()
    assert why_model_not(model, model.device) is None


def test_inputs_that_the_loop_does_not_know_are_handed_over(model, reasons, monkeypatch):
    forward = type(model).forward

    def flavoured(self, *args, flavour=None, **kwargs):
        return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    extra = inspect.Parameter("flavour", inspect.Parameter.KEYWORD_ONLY, default=None)
    *named, rest = signature.parameters.values()
    flavoured.__signature__ = signature.replace(parameters=[*named, extra, rest])
    monkeypatch.setattr(type(model), "forward", flavoured)
    inputs = tiny_inputs(model, (2,))
    model.generate(**inputs, **GENERATE, flavour=torch.ones(1, 1))
    assert "inputs ['flavour']" in reasons[-1]


def test_ranks_that_wait_for_each_other_are_handed_over(model):
    running = generation_argus._Generation(assists=False)
    inputs = tiny_inputs(model, (2,))
    for synced, reason in ((False, None), (True, "synced_gpus")):
        given = why_not(model, inputs["input_ids"], GenerationConfig(), {}, synced, running, 30)
        assert given is None if reason is None else reason in given


def test_dynamic_rotary_scaling_past_the_trained_length(reasons):
    model = tiny_model("internvit_qwen", text_config={"max_position_embeddings": 24})
    inputs = tiny_inputs(model, (1,))
    T = inputs["input_ids"].shape[1]
    outputs = [model.generate(**inputs, max_length=length, fast_decode=fast) for length, fast in
               ((24, None), (24, False), (40, None), (40, False))]  # fmt: skip
    assert "dynamic rotary scaling" in reasons[2] and "transformers'" not in reasons[0]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[2], outputs[3]) and T < 24


def test_generation_configs_of_the_callers_own(model, reasons):
    inputs = tiny_inputs(model, (2,))
    settings = GenerationConfig(max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(**inputs, generation_config=settings), model.generate(**inputs, **GENERATE))
    assert all("transformers'" not in each for each in reasons)
