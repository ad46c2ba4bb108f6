"""ArgusVLM: the join of a vision tower, a connector and a text decoder (Section 4.1, Figure 5), and nothing else.

    pixel_values uint8[tiles, 3, S, S] --> ArgusVisionModel --> ArgusConnector --> one vector for each image token
    input_ids int64[B, T] --> token embeddings, image tokens replaced by those vectors --> ArgusTextModel --> lm_head

Tiles are flat over all images of the batch (recipe 11): which row a tile belongs to follows from where the image
tokens stand.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

from .base_argus import ArgusPreTrainedModel
from .compat_modeling_argus import is_first_iteration
from .configuration_argus import ArgusConfig
from .connector_argus import ArgusConnector
from .tasks_argus import ArgusTasksMixin
from .text_argus import ArgusTextModel
from .vision_argus import ArgusVisionModel

IMAGE_INPUTS = ("pixel_values", "num_patches", "image_sizes")  # the processor's outputs that are not rows of the batch


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

    def image_token_mask(self, input_ids, inputs_embeds) -> torch.BoolTensor:
        """bool[B, T]: where image tokens stand, by id or, when only embeddings were passed, by their embedding."""
        if input_ids is not None and (input_ids.shape[1] or inputs_embeds is None):
            return input_ids == self.config.image_token_id
        image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def _check_images(self, mask: torch.BoolTensor, pixel_values: torch.Tensor | None) -> None:
        """Refuses tokens and tiles that do not match; one small read, before anything is launched."""
        length, tiles = self.config.image_seq_length, 0 if pixel_values is None else pixel_values.shape[0]
        if torch.compiler.is_compiling():  # no values to show inside a graph
            counts = mask.sum(-1)
            matches = (counts.sum() == tiles * length) & (counts % length == 0).all()
            torch._assert_async(matches, "image tokens and tiles do not match")
            return
        tokens = mask.sum(-1).tolist()
        if sum(tokens) != tiles * length or any(count % length for count in tokens):
            raise ValueError(
                f"image tokens and tiles do not match: the rows hold {tokens} image tokens, {tiles} tiles of "
                f"{length} tokens each need {tiles * length}. Pass the processor's input_ids and "
                "pixel_values together, unchanged."
            )

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

        Raises:
            ValueError: image tokens without tiles, or of another number; inputs of a wrong shape or dtype.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = None
        # A single token with no pixels is a decoding step: nothing to look for.
        if pixel_values is not None or (input_ids is not None and input_ids.shape[1] > 1):
            mask = self.image_token_mask(input_ids, inputs_embeds)
            if mask.device.type != "meta":
                self._check_images(mask, pixel_values)
            if pixel_values is not None:
                features = self.get_image_features(pixel_values, return_dict=True).pooler_output
                features = features.to(inputs_embeds.device, inputs_embeds.dtype)
                inputs_embeds = inputs_embeds.masked_scatter(mask.unsqueeze(-1).to(inputs_embeds.device), features)
        outputs = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
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


class ArgusForConditionalGeneration(ArgusPreTrainedModel, ArgusTasksMixin, GenerationMixin):
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
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
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
            # With a count over several batches, as gradient accumulation has it, one of them may be empty.
            may_be_empty = kwargs.get("num_items_in_batch") is not None or labels.device.type == "meta"
            if not may_be_empty and not torch.compiler.is_compiling() and (labels[:, 1:] == -100).all():
                raise ValueError(
                    f"all labels of this batch of {labels.shape[0]} rows are -100: there is no token to learn. "
                    "Keep the assistant's tokens in labels, or leave such rows out."
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

    # generate() looks for `inputs_embeds` in this very signature before it accepts embeddings.
    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs):
        first = is_first_iteration(kwargs)
        if first and self.training and self.get_decoder().gradient_checkpointing:
            raise ValueError("gradient checkpointing keeps no cache: call model.eval() before generating.")
        mask = kwargs.get("attention_mask")
        if first and isinstance(mask, torch.Tensor) and mask.ndim == 2 and not mask[:, -1].all():
            rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"rows {rows} of attention_mask end in padding: pad on the left to generate "
                "(processor.tokenizer.padding_side = 'left')."
            )
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        for name in IMAGE_INPUTS:
            inputs.pop(name, None)
            if (first or not kwargs.get("use_cache", True)) and kwargs.get(name) is not None:
                inputs[name] = kwargs[name]  # 5.18 and later drop some of them, and not all
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ):
        """Repeats rows for beams and `num_return_sequences`, each row's flat tiles as one group.

        The base class repeats every tensor row by row, which would hand the tiles of one image to different rows.
        """
        images = {name: model_kwargs.pop(name) for name in IMAGE_INPUTS if model_kwargs.get(name) is not None}
        if expand_size > 1 and "pixel_values" in images:
            mask = self.model.image_token_mask(input_ids, model_kwargs.get("inputs_embeds"))
            self.model._check_images(mask, images["pixel_values"])
            tiles_per_row = (mask.sum(-1) // self.config.image_seq_length).tolist()
            images["pixel_values"] = _repeat_groups(images["pixel_values"], tiles_per_row, expand_size)
            if "num_patches" in images:
                images_per_row = _images_per_row(images["num_patches"].tolist(), tiles_per_row)
                for name in ("num_patches", "image_sizes"):
                    if name in images:
                        images[name] = _repeat_groups(images[name], images_per_row, expand_size)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}


def _repeat_groups(values: torch.Tensor, sizes: list[int], times: int) -> torch.Tensor:
    """[a a b] in groups of (2, 1), two times -> [a a a a b b]."""
    return torch.cat([group.repeat(times, *[1] * (values.ndim - 1)) for group in values.split(sizes)])


def _images_per_row(num_patches: list[int], tiles_per_row: list[int]) -> list[int]:
    """Deals images to rows, given the tiles of each image and of each row."""
    counts, image = [], 0
    for row, tiles in enumerate(tiles_per_row):
        first = image
        while tiles > 0 and image < len(num_patches):
            tiles -= num_patches[image]
            image += 1
        if tiles != 0:
            raise ValueError(f"num_patches {num_patches} do not add up to the {tiles_per_row[row]} tiles of row {row}.")
        counts.append(image - first)
    if image != len(num_patches):
        raise ValueError(f"num_patches {num_patches} name more tiles than the rows' {tiles_per_row}.")
    return counts


__all__ = ["ArgusForConditionalGeneration", "ArgusModel"]
