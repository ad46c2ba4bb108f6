"""Which `generate()` calls the decoding loop of decode_loop_argus.py serves, and why transformers' own serves the rest.

The loop reads the decoder's weights as they lie and calls none of its modules: whatever somebody has put around a
module, or in place of one, has to be found here, or it would be passed over without a word.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN

from .quantized_argus import decode_weight
from .text_argus import ArgusRMSNorm, ArgusTextAttn, ArgusTextLayer, ArgusTextMLP, ArgusTextModel

# What the loop understands of a call's inputs; the rest of what transformers 4.57 and 5.x hand on says nothing to it.
SERVED_INPUTS = {
    "attention_mask", "position_ids", "cache_position", "past_key_values", "use_cache", "logits_to_keep", "tokenizer",
    "inputs_embeds", "pixel_values", "mm_encoder_outputs", "rows_per_prompt",
}  # fmt: skip
# All of these are softmax(q k^T / sqrt(d)) v, which is what a step computes.
SERVED_ATTENTION = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# The forward of each class as it was when the model's code was read: a library may put its own in its place later.
_FORWARDS: dict[type, Callable] = {
    each: each.forward
    for each in (
        ArgusTextModel, ArgusTextLayer, ArgusTextAttn, ArgusTextMLP, ArgusRMSNorm,
        nn.Linear, nn.Embedding, nn.ModuleList, type(ACT2FN["silu"]),
    )
}  # fmt: skip
_OUTER_FORWARDS: set[Callable] = set()


def known_models(*classes: type) -> None:
    """Names the classes around the decoder, whose subclasses are served as long as their forward is the same."""
    _OUTER_FORWARDS.update(each.forward for each in classes)


def why_not(
    model, input_ids, generation_config, model_kwargs: dict, synced_gpus: bool, running, longest: int | None
) -> str | None:
    """The reason why transformers' own loop has to decode, or None.

    Args:
        running: what ArgusGenerationMixin knows of this `generate()`; None outside of it.
        longest: how many tokens a row may have in the end, its prompt included; None where no criterion says so.
    """
    settings, inputs = generation_config, {k for k, v in model_kwargs.items() if v is not None}
    if running is None:
        return "generate() was not entered by the model's own method"
    if running.fast_decode is False:
        return "fast_decode=False"
    if settings.output_attentions or settings.output_hidden_states:
        return "attentions or hidden states are asked for"
    if unknown := sorted(inputs - SERVED_INPUTS):
        return f"inputs {unknown}"
    if running.has_own_cache or running.has_own_positions:
        return "past_key_values or position_ids of the caller's own"
    if longest is None:
        return "no criterion that ends at a length"
    rope, trained = model.get_decoder().config.rope_parameters, model.get_decoder().config.max_position_embeddings
    if rope["rope_type"] == "dynamic" and longest > trained:
        return f"up to {longest} tokens, which dynamic rotary scaling treats differently from {trained} on"
    if settings.cache_implementation is not None or not model_kwargs.get("use_cache", True):
        return f"cache_implementation={settings.cache_implementation!r}, use_cache={settings.use_cache}"
    if synced_gpus or running.assists or getattr(settings, "prefill_chunk_size", None):
        return "synced_gpus, an assistant, or a prompt read in chunks"
    mask = model_kwargs.get("attention_mask")
    prompt = input_ids if model_kwargs.get("inputs_embeds") is None else model_kwargs["inputs_embeds"]
    if prompt.shape[1] < input_ids.shape[1]:
        return f"{prompt.shape[1]} embeddings for {input_ids.shape[1]} ids"
    if mask is not None and (tuple(mask.shape) != tuple(prompt.shape[:2]) or mask.device != input_ids.device):
        return f"an attention mask {list(mask.shape)} on {mask.device} for a prompt {list(prompt.shape[:2])}"
    if torch.is_autocast_enabled(input_ids.device.type):
        return "autocast"
    return why_model_not(model, input_ids.device)


def why_model_not(model, device: torch.device) -> str | None:
    """The reason why the loop cannot decode with this model as it is now, or None."""
    if model.training:
        return "the model is in training mode"
    if nn.modules.module._has_any_global_hook():
        return "a hook on all modules"
    decoder = model.get_decoder()
    if type(decoder) is not ArgusTextModel or decoder.config.hidden_act != "silu":
        return f"a decoder {type(decoder).__name__} with {decoder.config.hidden_act!r}"
    for module in (model, model.model, model.lm_head, *decoder.modules()):
        if problem := _wrapped(module):
            return f"{type(module).__name__} has {problem}"
    for module in (model, model.model):
        if type(module).forward not in _OUTER_FORWARDS:
            return f"{type(module).__name__} has a forward of its own"
    for module in (model.lm_head, *decoder.modules()):
        if _FORWARDS.get(type(module)) is not type(module).forward:
            return f"{type(module).__name__} stands where the model had another module, or its forward is replaced"
    return _why_layers_not(decoder) or _why_weights_not(model, decoder, device)


def _why_layers_not(decoder) -> str | None:
    """What a step would not see of the layers, as it goes by the config."""
    config = decoder.config
    if config._attn_implementation not in SERVED_ATTENTION:
        return f"attention {config._attn_implementation!r}"
    for i, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        if attention.layer_idx != i or len(decoder.layers) > config.num_hidden_layers:
            return "layers that are not in their order"
        if attention.training and config.attention_dropout:
            return "an attention in training mode"
        if attention.scaling != config.head_dim**-0.5:
            return f"an attention that scales by {attention.scaling}"
        if any(each.bias is not None for each in (attention.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)):
            return "a bias that the model does not have"
    if any(each.eps != config.rms_norm_eps for each in decoder.modules() if isinstance(each, ArgusRMSNorm)):
        return f"a norm whose eps is not {config.rms_norm_eps}"
    return None


def _why_weights_not(model, decoder, device: torch.device) -> str | None:
    """What keeps a step from reading the weights as they lie."""
    if model.lm_head.bias is not None:
        return "an output head with a bias"
    weights = [decoder.embed_tokens.weight, *(m.weight for m in decoder.modules() if isinstance(m, ArgusRMSNorm))]
    if not all(weight.is_contiguous() for weight in weights):
        return "norms or embeddings that are not contiguous"
    for module in (model.lm_head, *decoder.modules()):
        if type(module) is nn.Linear:
            weight = decode_weight(module)
            if weight is None:
                return f"a weight that is quantised or wrapped: {type(module.weight).__name__}"
            weights += weight if isinstance(weight, tuple) else [weight]
    for weight in weights:
        if weight.device != device:
            return f"weights on {weight.device} and ids on {device}"
        if weight.dtype not in (decoder.embed_tokens.weight.dtype, torch.int8):
            return f"weights of {weight.dtype} and {decoder.embed_tokens.weight.dtype}"
    return None


def _wrapped(module: nn.Module) -> str | None:
    """What somebody has put around a module, or None."""
    own = vars(module)
    if "_hf_hook" in own or "forward" in own or own.get("_compiled_call_impl") is not None:
        return "a forward that is replaced or compiled"
    for name in _HOOKS:
        for hook in own[name].values():
            # transformers 5 leaves hooks of its own behind after one call that asked for attentions.
            if not getattr(hook, "__module__", "").startswith("transformers."):
                return f"a hook {getattr(hook, '__qualname__', hook)}"
    return None
