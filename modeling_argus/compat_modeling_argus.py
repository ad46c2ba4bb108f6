"""All that differs between transformers 4.57 and 5.x for the model, found by features and never by version numbers."""

import inspect

import torch
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask

# Plain constants: a signature kept at module level would break torch.compile(fullgraph=True).
_PARAMETERS = inspect.signature(create_causal_mask).parameters
_EMBEDS_NAME = "inputs_embeds" if "inputs_embeds" in _PARAMETERS else "input_embeds"
_NEEDS_CACHE_POSITION = (
    "cache_position" in _PARAMETERS and _PARAMETERS["cache_position"].default is inspect.Parameter.empty
)
_NAMES_FIRST_ITERATION = (
    "is_first_iteration" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
del _PARAMETERS


def causal_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids, cache_position):
    """The mask that the configured attention wants: None where causal is enough, else 2D, 4D or a block mask."""
    arguments = {
        "config": config,
        _EMBEDS_NAME: inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    if _NEEDS_CACHE_POSITION:
        arguments["cache_position"] = cache_position
    return create_causal_mask(**arguments)


def is_first_iteration(arguments: dict) -> bool:
    """Whether `prepare_inputs_for_generation` was called for a prompt: 5.x says so, 4.57 by an empty cache.

    5.x says no to an assistant model's prompt, which would leave it blind: an empty cache is a prompt too. Nothing is
    read from the device: where a static cache's length is a tensor, a step of decoding is told by its one position.
    """
    cache = arguments.get("past_key_values")
    length = cache.get_seq_length() if cache is not None else None
    if _NAMES_FIRST_ITERATION:
        return bool(arguments.get("is_first_iteration", False)) or (isinstance(length, int) and length == 0)
    if isinstance(length, int):
        return length == 0
    position: torch.Tensor = arguments.get("cache_position")
    return position is None or position.shape[0] > 1
