"""What `generate()` needs to know of images, and how it checks a prompt without waiting for the device.

Both majors of transformers call these hooks in one order: `_expand_inputs_for_generation` once, then for each forward
`prepare_inputs_for_generation`. A prompt's images go in with the prompt alone; what follows are the model's own tokens.
"""

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.utils import logging

from .checks_argus import deferred_checks, settle_deferred_checks
from .decode_loop_argus import IMAGE_INPUTS, ArgusGenerateOutput, LogprobRecorder, decode, longest_answer
from .decode_rule_argus import why_not
from .decode_state_argus import free_states

logger = logging.get_logger("transformers.argus")  # by that name it has transformers' verbosity
# What belongs to the prompt alone and is no row of the batch; the model needs no more than IMAGE_INPUTS of it.
PROMPT_INPUTS = ("num_patches", "image_sizes", *IMAGE_INPUTS)
NO_LOGPROBS = (
    "output_logprobs=True needs return_dict_in_generate=True and greedy decoding or sampling; beams have "
    "output_scores=True and compute_transition_scores()."
)
_RUNNING: ContextVar["_Generation | None"] = ContextVar("argus_running_generation", default=None)


class ArgusGenerationMixin(GenerationMixin):
    """`generate()` of a model whose forward takes `IMAGE_INPUTS` and `num_own_tokens`."""

    def generate(self, *args, fast_decode: bool | None = None, output_logprobs: bool = False, **kwargs):
        """As in transformers. The prompt's values are checked without the host waiting for the device.

        Args:
            fast_decode: False decodes by transformers' own loop. Else the one of decode_loop_argus.py does where it
                can; where it cannot, the reason is logged at debug level.
            output_logprobs: with `return_dict_in_generate=True`, the output's `logprobs` float32[B, new] are the
                chosen tokens' log-probabilities. For greedy decoding and sampling.

        Raises:
            ValueError: besides transformers' own, image tokens and tiles that do not match, with the first token and
                before a streamer gets it; padding on the right; images in a prompt that is read in chunks; images that
                another model has encoded, or this one with other weights.
        """
        chunked = any(
            getattr(settings, "prefill_chunk_size", None)
            for settings in (kwargs.get("generation_config"), self.generation_config)
        )
        if (chunked or kwargs.get("prefill_chunk_size")) and any(kwargs.get(n) is not None for n in IMAGE_INPUTS):
            raise ValueError("prefill_chunk_size cannot cut a prompt with images: leave it out.")
        if kwargs.get("mm_encoder_outputs") is not None:
            self._check_encoded_output(kwargs["mm_encoder_outputs"])
        for name, given in (("fast_decode", fast_decode), ("output_logprobs", output_logprobs)):
            if not isinstance(given, bool | None):
                raise ValueError(f"{name} must be True or False, got {given!r}.")
        streamer = kwargs.get("streamer")
        assists = bool(getattr(kwargs.get("generation_config"), "is_assistant", False))
        own_positions = kwargs.get("position_ids") is not None
        outer = _RUNNING.set(_Generation(assists, fast_decode, output_logprobs, own_positions))
        try:
            with deferred_checks() as checks:
                if streamer is not None:
                    kwargs["streamer"] = _CheckedStreamer(streamer, checks)
                output = super().generate(*args, **kwargs)
                checks.settle(wait=True)
            if output_logprobs and getattr(output, "logprobs", None) is None:
                raise ValueError(NO_LOGPROBS)
        except BaseException:
            if streamer is not None:
                streamer.end()  # whoever reads from it in another thread would wait for ever
            raise
        finally:
            _RUNNING.reset(outer)
        return output

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False,
                streamer=None, **model_kwargs):  # fmt: skip
        """Greedy decoding and sampling, by our own loop where it may."""
        running = _RUNNING.get()
        wants_logprobs = running is not None and running.wants_logprobs
        longest = longest_answer(input_ids, model_kwargs, stopping_criteria)
        reason = why_not(self, input_ids, generation_config, model_kwargs, synced_gpus, running, longest)
        if reason is None:
            logger.debug("generate() decodes by the model's own loop")
            return decode(
                self,
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                streamer,
                model_kwargs,
                running.is_padded,
                wants_logprobs,
            )
        logger.debug("generate() decodes by transformers' own loop: %s", reason)
        recorder = LogprobRecorder()
        if wants_logprobs:
            logits_processor.append(recorder)
        output = super()._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **model_kwargs,
        )
        if wants_logprobs and generation_config.return_dict_in_generate:
            output = ArgusGenerateOutput(**output, logprobs=recorder.finish(output.sequences))
        return output

    def free_decode_buffers(self) -> None:
        """Lets go of the buffers, and on CUDA the graphs, that wait for the next `generate()` (Section 5.4)."""
        free_states(self)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        cache = model_kwargs.get("past_key_values")
        if (running := _RUNNING.get()) is not None:
            running.has_own_cache = cache is not None and getattr(cache, "prefix_length", None) is None
            plain = generation_config.get_generation_mode().value in ("greedy_search", "sample")
            if running.wants_logprobs and not (plain and generation_config.return_dict_in_generate):
                raise ValueError(NO_LOGPROBS)
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def _supports_mm_encoder_outputs(self) -> bool:
        """No: transformers 5.18 would encode the images on its own, before `generate()` has read the mask."""
        return False

    # generate() looks for `inputs_embeds` in this very signature before it accepts embeddings.
    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs):
        own_tokens = _own_tokens(input_ids, kwargs.get("past_key_values"))
        if not own_tokens and self.training and self.get_decoder().gradient_checkpointing:
            raise ValueError("gradient checkpointing keeps no cache: call model.eval() before generating.")
        settle_deferred_checks()
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        T = (inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]).shape[1]
        for name in PROMPT_INPUTS:
            inputs.pop(name, None)
        if own_tokens < T:  # 5.18 and later drop some of them themselves, and not all
            inputs |= {name: kwargs[name] for name in IMAGE_INPUTS if kwargs.get(name) is not None}
        running = _RUNNING.get()
        return {**inputs, "num_own_tokens": own_tokens, "is_padded": running.is_padded if running is not None else None}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ):
        """Repeats rows for beams and `num_return_sequences`; their tiles stay as they are, encoded once.

        The base class repeats every tensor row by row, which would hand the tiles of one image to different rows.
        The mask is read here, the one time, and left out where it says nothing: every step would have to ask again.
        """
        images = {name: model_kwargs.pop(name) for name in PROMPT_INPUTS if model_kwargs.get(name) is not None}
        images = {name: value for name, value in images.items() if name in IMAGE_INPUTS}
        if images:
            images["rows_per_prompt"] = expand_size
        cache = model_kwargs.get("past_key_values")
        if (running := _RUNNING.get()) is not None:
            # An assistant is asked again and again, with the images and a cache that holds them.
            running.prompt_length = 0 if running.assists and _cached(cache) else input_ids.shape[1]
        if expand_size > 1 and isinstance(cache, DynamicCache) and _batch_size(cache) == input_ids.shape[0]:
            cache.batch_repeat_interleave(expand_size)
        mask = model_kwargs.get("attention_mask")
        known = model_kwargs.pop("is_padded", None)
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            if known is None:
                full, ends_in_tokens = torch.stack((mask.all(), mask[:, -1].all())).tolist()
            else:  # a task call has made the mask, on the host and on the left
                full, ends_in_tokens = not known, True
            if not ends_in_tokens:
                rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
                raise ValueError(
                    f"rows {rows} of attention_mask end in padding: pad on the left to generate "
                    "(processor.tokenizer.padding_side = 'left')."
                )
            # With a cache that holds a prefix, 5.x tells by the mask's length whether the ids repeat it.
            if full and self.get_decoder().makes_own_masks() and cache is None:
                del model_kwargs["attention_mask"]
            elif running is not None:
                running.is_padded = not full
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}


@dataclass
class _Generation:
    """What a running `generate()` knows: whether it guesses for another, what it was asked for, whether the caller
    brought positions or a cache, how many ids its prompt has, and whether its mask holds zeros."""

    assists: bool
    fast_decode: bool | None = None
    wants_logprobs: bool = False
    has_own_positions: bool = False
    has_own_cache: bool = False
    prompt_length: int | None = None
    is_padded: bool | None = None


def _own_tokens(input_ids: torch.LongTensor, past_key_values) -> int:
    """How many of the last ids are no prompt's. In a loop of the caller's own: all, once the cache holds something."""
    running = _RUNNING.get()
    if running is not None and running.prompt_length is not None:
        return input_ids.shape[1] - running.prompt_length
    return input_ids.shape[1] if _cached(past_key_values) else 0


def _cached(cache: Cache | None) -> bool:
    """Whether a cache holds something, as far as that is known without reading from the device."""
    length = cache.get_seq_length() if cache is not None else 0
    return not isinstance(length, int) or length > 0


def _batch_size(cache: DynamicCache) -> int | None:
    """The rows of a cache that holds something."""
    keys = getattr(cache.layers[0], "keys", None) if cache.layers else None
    return keys.shape[0] if keys is not None and keys.ndim == 4 else None


class _CheckedStreamer:
    """Hands ids on once no check is open: the prompt's before there are any, the first token's after they passed."""

    def __init__(self, streamer, checks):
        self.streamer, self.checks = streamer, checks

    def put(self, value):
        self.checks.settle(wait=True)  # the token has been read, so the outcomes have arrived
        self.streamer.put(value)

    def end(self):
        self.streamer.end()


__all__ = ["ArgusGenerationMixin"]
