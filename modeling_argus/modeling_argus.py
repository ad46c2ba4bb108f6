"""ArgusVLM: the join of a vision tower, a connector and a text decoder (Section 4.1, Figure 5), and nothing else.

    pixel_values uint8[tiles, 3, S, S] --> ArgusVisionModel --> ArgusConnector --> one vector for each image token
    input_ids int64[B, T] --> token embeddings, image tokens replaced by those vectors --> ArgusTextModel --> lm_head

Tiles are flat over all images of the batch (recipe 11): which row a tile belongs to follows from where the image
tokens stand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

# transformers' loader wants every sibling named in this file, those that others import too.
from .base_argus import ArgusPreTrainedModel
from .checks_argus import require
from .compat_modeling_argus import causal_mask  # noqa: F401
from .configuration_argus import ArgusConfig
from .connector_argus import ArgusConnector
from .decode_loop_argus import decode  # noqa: F401
from .decode_rule_argus import known_models
from .decode_state_argus import DecodeState  # noqa: F401
from .decode_weights_argus import DecodeWeights  # noqa: F401
from .encoded_argus import EncodedImage, EncodedImages
from .generation_argus import ArgusGenerationMixin
from .kernels_argus import choose  # noqa: F401
from .kernels_liger_argus import HAS_LIGER  # noqa: F401
from .kernels_triton_argus import HAS_TRITON  # noqa: F401
from .kernels_triton_attention_argus import decode_attention  # noqa: F401
from .kernels_triton_decode_argus import linear_add  # noqa: F401
from .prefix_argus import ArgusEncodingMixin
from .quantized_argus import decode_weight  # noqa: F401
from .tasks_argus import ArgusTasksMixin
from .text_argus import ArgusTextModel
from .vision_argus import ArgusVisionModel

if TYPE_CHECKING:  # named for the loader, which keeps it with the model; not imported: all pipelines come with it
    from .pipeline_argus import ArgusDenseCaptioningPipeline  # noqa: F401


def place_visual_tokens(inputs_embeds, mask, features, rows_per_prompt: int = 1) -> torch.Tensor:
    """float[B, T, D] embeddings whose image tokens are replaced, in order, by the visual tokens.

    By an index, so that nothing is read from the device; numbers that do not match are `_check_images`'s to refuse.

    Args:
        mask: bool[B, T], where image tokens stand.
        features: float[tiles, image_seq_length, D].
        rows_per_prompt: how many rows, one after the other, share the same visual tokens.
    """
    vectors = features.flatten(0, 1).to(inputs_embeds.device, inputs_embeds.dtype)
    mask = mask.to(inputs_embeds.device)
    prompts = mask[::rows_per_prompt]
    index = (prompts.flatten().cumsum(0) - 1).clamp(0, vectors.shape[0] - 1).view_as(prompts)
    if rows_per_prompt > 1:
        index = index.repeat_interleave(rows_per_prompt, dim=0)
    return torch.where(mask.unsqueeze(-1), vectors[index], inputs_embeds)


@dataclass
class ArgusModelOutputWithPast(BaseModelOutputWithPast):
    """`image_hidden_states`: float[tiles, image_seq_length, D], the visual tokens, when there were pixels."""

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class ArgusCausalLMOutputWithPast(ModelOutput):
    """`loss`: Equation 1; `logits`: float[B, kept, V]; the rest as in ArgusModelOutputWithPast."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    image_hidden_states: torch.FloatTensor | None = None


class ArgusModel(ArgusPreTrainedModel):
    """Vision tower, connector and decoder without the output head."""

    def __init__(self, config: ArgusConfig):
        super().__init__(config)
        self.vision_model = ArgusVisionModel._from_config(config.vision_config)
        self.connector = ArgusConnector(config)
        self.text_model = ArgusTextModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_model.set_input_embeddings(value)

    def get_decoder(self):
        return self.text_model

    def set_decoder(self, decoder):
        self.text_model = decoder

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Encodes tiles uint8[tiles, 3, S, S]; `pooler_output` is float[tiles, image_seq_length, D] for the decoder."""
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        outputs.pooler_output = self.connector(outputs.last_hidden_state)
        return outputs

    def _encoded_features(self, mm_encoder_outputs, pixel_values) -> torch.Tensor | None:
        """float[tiles, image_seq_length, D] of images that were encoded before, or None."""
        if mm_encoder_outputs is None:
            return None
        if not isinstance(mm_encoder_outputs, Mapping) or set(mm_encoder_outputs) - {"image"}:
            keys = isinstance(mm_encoder_outputs, Mapping) and not hasattr(mm_encoder_outputs, "pooler_output")
            given = f"one of {sorted(mm_encoder_outputs)}" if keys else f"a {type(mm_encoder_outputs).__name__}"
            raise ValueError(f"mm_encoder_outputs must be a dict with the one key 'image', got {given}.")
        encoded = mm_encoder_outputs.get("image")
        if encoded is None:
            return None
        if pixel_values is not None:
            raise ValueError("pass the images as pixel_values or, encoded before, as mm_encoder_outputs, not as both.")
        features = encoded.pooler_output if hasattr(encoded, "pooler_output") else encoded
        features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features
        expected = (self.config.image_seq_length, self.config.text_config.hidden_size)
        if not isinstance(features, torch.Tensor) or features.ndim != 3 or tuple(features.shape[1:]) != expected:
            shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(
                f"mm_encoder_outputs['image'] must hold a pooler_output of [tiles, {expected[0]}, {expected[1]}], got "
                f"{shape}: encode the images with this model."
            )
        return features

    def image_token_mask(self, input_ids, inputs_embeds) -> torch.BoolTensor:
        """bool[B, T]: where image tokens stand, by id or, when only embeddings were passed, by their embedding."""
        if input_ids is not None and (input_ids.shape[1] or inputs_embeds is None):
            return input_ids == self.config.image_token_id
        # An index that lives on the device: the host would wait for a copy to it.
        image_token = torch.full((), self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def _check_images(self, mask: torch.BoolTensor, vectors: int, tokens_per_tile: int) -> None:
        """Refuses image tokens and visual tokens that do not match, row by row and in all."""
        counts = mask.sum(-1)

        def details():
            return (
                f"the rows hold {counts.tolist()} image tokens, {vectors // tokens_per_tile} tiles of "
                f"{tokens_per_tile} tokens each need {vectors}. Pass the processor's input_ids and pixel_values "
                "together, unchanged; with past_key_values, the tiles of the images that those do not hold."
            )

        fits = (counts.sum() == vectors) & (counts % tokens_per_tile == 0).all()
        require(fits, "image tokens and tiles do not match", details)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        num_patches: torch.LongTensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        rows_per_prompt: int = 1,
        num_own_tokens: int = 0,
        is_padded: bool | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> ArgusModelOutputWithPast:
        """Encodes the images, puts them where the image tokens stand, and decodes.

        Args:
            input_ids: int64[B, T] with `image_seq_length` image tokens for each tile; or `inputs_embeds`.
            pixel_values: uint8[tiles, 3, S, S], flat over the batch in the order of the image tokens; or floats that
                are normalised already.
            attention_mask: int64[B, past + T], 0 for padding, which belongs on the left when generating.
            num_patches, image_sizes: the processor's other outputs; accepted so that all of them can be passed on.
            mm_encoder_outputs: {"image": what `get_image_features` gave}, in place of `pixel_values`, for tiles that
                were encoded before (the name that transformers 5.18 gave it).
            rows_per_prompt: how many times each prompt stands in the batch, one copy after the other, all of them with
                the same tiles, which are passed and encoded once (beams, `num_return_sequences`).
            num_own_tokens: how many of the last tokens no prompt holds, chosen by the model or guessed for it: an image
                token among them is a token like others.
            is_padded: whether `attention_mask` holds zeros, for callers who know it; else it is read.

        Raises:
            ValueError: image tokens without tiles, or of another number; inputs of a wrong shape or dtype. On CUDA
                within `generate()`, numbers that do not match are raised with the first token: nothing waits for them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        T = inputs_embeds.shape[1]
        has_prompt = num_own_tokens < T and T > 1  # one token is a step of decoding
        # Read here, before anything is launched; decoding does not ask.
        if is_padded is None and has_prompt:
            is_padded = self.text_model.is_padded(attention_mask)
        encoded = self._encoded_features(mm_encoder_outputs, pixel_values)
        features = None
        if pixel_values is not None or encoded is not None or (has_prompt and input_ids is not None):
            mask = self.image_token_mask(input_ids, inputs_embeds)
            if num_own_tokens:
                mask = mask & (torch.arange(T, device=mask.device) < T - num_own_tokens)
            tiles = (0 if pixel_values is None else pixel_values.shape[0]) if encoded is None else encoded.shape[0]
            length = self.config.image_seq_length
            self._check_images(mask, rows_per_prompt * tiles * length, length)
            if tiles:
                features = encoded
                if features is None:
                    features = self.get_image_features(pixel_values, return_dict=True).pooler_output
                inputs_embeds = place_visual_tokens(inputs_embeds, mask, features, rows_per_prompt)
        outputs = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            is_padded=is_padded,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        return ArgusModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features,
        )


class ArgusForConditionalGeneration(ArgusPreTrainedModel, ArgusEncodingMixin, ArgusTasksMixin, ArgusGenerationMixin):
    """ArgusModel with an output head: text and boxes from images and text."""

    _tied_weights_keys = {"lm_head.weight": "model.text_model.embed_tokens.weight"}  # 4.57 reads the keys, 5.x both

    def __init__(self, config: ArgusConfig):
        super().__init__(config)
        self.model = ArgusModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def get_decoder(self):
        return self.model.get_decoder()

    def set_decoder(self, decoder):
        self.model.set_decoder(decoder)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """See `ArgusModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_patches: torch.LongTensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        rows_per_prompt: int = 1,
        num_own_tokens: int = 0,
        is_padded: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> ArgusCausalLMOutputWithPast:
        """See `ArgusModel.forward`.

        Args:
            labels: int64[B, T], -100 wherever a token is not the assistant's. The loss is Equation 1 averaged over the
                rest, or summed and divided by `num_items_in_batch` where the caller (the Trainer) passes it.
            logits_to_keep: the number of last positions to compute logits for (0: all), or their indices.

        Raises:
            ValueError: labels of another shape than the tokens, or with no token to learn.
        """
        # With a count over several batches, as gradient accumulation has it, one of them may be empty.
        if labels is not None and labels.ndim == 2 and kwargs.get("num_items_in_batch") is None:
            require(
                (labels[:, 1:] != -100).any(),
                "there is no token to learn",
                lambda: (
                    f"all labels of this batch of {labels.shape[0]} rows are -100. Keep the assistant's tokens in "
                    "labels, or leave such rows out."
                ),
            )
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            mm_encoder_outputs=mm_encoder_outputs,
            rows_per_prompt=rows_per_prompt,
            num_own_tokens=num_own_tokens,
            is_padded=is_padded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            if tuple(labels.shape) != tuple(logits.shape[:2]):
                raise ValueError(
                    f"labels are {list(labels.shape)}, the logits cover {list(logits.shape[:2])}; they must match."
                )
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return ArgusCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


known_models(ArgusModel, ArgusForConditionalGeneration)

__all__ = ["ArgusForConditionalGeneration", "ArgusModel", "EncodedImage", "EncodedImages"]
