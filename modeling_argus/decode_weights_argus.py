"""The weights of a decoding step, as they lie in the model: nothing is copied."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .quantized_argus import Int8Weight, decode_weight


class LayerWeights(NamedTuple):
    """One layer's weights: norms float[D], projections float[N, K] or Int8Weight, a bias or None."""

    input_norm: torch.Tensor
    qkv: torch.Tensor | Int8Weight
    qkv_bias: torch.Tensor | None
    o: torch.Tensor | Int8Weight
    post_norm: torch.Tensor
    gate_up: torch.Tensor | Int8Weight
    down: torch.Tensor | Int8Weight


class DecodeWeights(NamedTuple):
    """Everything that a step reads."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor | Int8Weight

    @classmethod
    def of(cls, model) -> "DecodeWeights":
        decoder = model.get_decoder()
        layers = tuple(
            LayerWeights(
                layer.input_layernorm.weight.detach(),
                decode_weight(layer.self_attn.qkv_proj),
                None if layer.self_attn.qkv_proj.bias is None else layer.self_attn.qkv_proj.bias.detach(),
                decode_weight(layer.self_attn.o_proj),
                layer.post_attention_layernorm.weight.detach(),
                decode_weight(layer.mlp.gate_up_proj),
                decode_weight(layer.mlp.down_proj),
            )
            for layer in decoder.layers
        )
        return cls(
            decoder.embed_tokens.weight.detach(), layers, decoder.norm.weight.detach(), decode_weight(model.lm_head)
        )

    def tensors(self) -> Iterator[torch.Tensor]:
        for each in (self.embedding, *(w for layer in self.layers for w in layer), self.norm, self.head):
            yield from each if isinstance(each, Int8Weight) else () if each is None else (each,)

    def addresses(self) -> tuple[int, ...]:
        """What a captured graph has of the weights."""
        return tuple(tensor.data_ptr() for tensor in self.tensors())
