"""All that differs between transformers 4.57 and 5.x for the model, found by features and never by version numbers."""

import inspect

from transformers.masking_utils import create_causal_mask

# Plain constants: a signature kept at module level would break torch.compile(fullgraph=True).
_PARAMETERS = inspect.signature(create_causal_mask).parameters
_EMBEDS_NAME = "inputs_embeds" if "inputs_embeds" in _PARAMETERS else "input_embeds"
_NEEDS_CACHE_POSITION = (
    "cache_position" in _PARAMETERS and _PARAMETERS["cache_position"].default is inspect.Parameter.empty
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
