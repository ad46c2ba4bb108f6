"""What every Argus model shares: what it supports, how it is initialised, and a loader that refuses gaps."""

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_argus import ArgusConfig


class ArgusPreTrainedModel(PreTrainedModel):
    config_class = ArgusConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArgusVisionLayer", "ArgusTextLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module):
        """Initialises the parameters that `module` itself holds; classes of ours say how by `init_own_weights(std)`."""
        std = self.config.initializer_range
        if hasattr(module, "init_own_weights"):
            module.init_own_weights(std)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but a checkpoint that lacks a tensor is refused instead of filled with noise.

        Raises:
            ValueError: with the names of the missing tensors.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        missing = sorted(info["missing_keys"])
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ValueError(
                f"the checkpoint {pretrained_model_name_or_path!r} lacks {len(missing)} tensors that "
                f"{cls.__name__} needs: {shown}. It is incomplete, or of another model: "
                "convert that with `argus convert`."
            )
        return (model, info) if output_loading_info else model

    def _wanted_outputs(self, output_hidden_states: bool | None, output_attentions: bool | None) -> tuple[bool, bool]:
        """Whether a call gives hidden states and attention weights; None takes the config's word.

        Raises:
            ValueError: weights are wanted of an attention that has none.
        """
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_weights = self.config.output_attentions if output_attentions is None else output_attentions
        if want_weights and self.config._attn_implementation not in (None, "eager"):
            raise ValueError(
                "attention weights exist only with attn_implementation='eager', not "
                f"{self.config._attn_implementation!r}."
            )
        return want_states, want_weights

    def enable_input_require_grads(self):
        """Lets gradients reach adapters through checkpointed layers, those of the vision tower too.

        transformers 4.57 hooks the token embeddings alone: adapters of the vision tower would silently learn nothing.
        """
        super().enable_input_require_grads()
        self._remove_vision_hook()  # Trainer and PEFT may both have asked
        tower = getattr(self.base_model, "vision_model", None)
        if tower is not None:
            self._vision_require_grads_hook = tower.get_input_embeddings().register_forward_hook(_require_grads)

    def disable_input_require_grads(self):
        super().disable_input_require_grads()
        self._remove_vision_hook()

    def _remove_vision_hook(self):
        if hasattr(self, "_vision_require_grads_hook"):
            self._vision_require_grads_hook.remove()


def _require_grads(module, inputs, output: torch.Tensor) -> None:
    output.requires_grad_(True)
