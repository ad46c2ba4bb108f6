"""`generate()`'s loop over the steps of decode_state_argus.py: transformers' `_sample` with three things replaced.

New ids are written into a buffer whose length the host knows, a forward is a step (on CUDA a graph's replay), and on
CUDA the host looks one step late whether all rows have ended, so that it never waits for the step just launched.
Logits processors, stopping criteria, streamers and recorded scores work as they do there, on the ids so far.
"""

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    LogitsProcessor,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
)

from .checks_argus import reading_waits, settle_deferred_checks
from .decode_state_argus import MAX_EOS, DecodeState, PromptCache, borrowed_state

# A prompt's images, as the model's forward takes them.
IMAGE_INPUTS = ("pixel_values", "mm_encoder_outputs", "rows_per_prompt")


@dataclass
class ArgusGenerateOutput(GenerateDecoderOnlyOutput):
    """transformers' output with `logprobs` float32[B, new]: the log-probability of each chosen token.

    Under the distribution that it was chosen from, after logits processors: what `compute_transition_scores(...,
    normalize_logits=True)` gives, without the scores of the whole vocabulary being kept.
    """

    logprobs: torch.FloatTensor | None = None


def token_logprobs(scores: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """float32[B]: of each row's token int64[B] under scores float[B, V]."""
    return scores.float().log_softmax(-1).gather(-1, token[:, None])[:, 0]


class LogprobRecorder(LogitsProcessor):
    """Keeps the log-probability of each token while transformers' own loop chooses: of a step's scores, once the next
    call shows which token it was. It has to stand last."""

    def __init__(self):
        self.scores, self.logprobs = None, []

    def __call__(self, input_ids, scores):
        self._keep(input_ids)
        self.scores = scores
        return scores

    def _keep(self, input_ids):
        if self.scores is not None:
            self.logprobs.append(token_logprobs(self.scores, input_ids[:, -1].to(self.scores.device)))

    def finish(self, sequences: torch.LongTensor) -> torch.Tensor:
        """float32[B, new], `sequences` being what the loop gave."""
        self._keep(sequences)
        return torch.stack(self.logprobs, dim=1)


def is_transformers_own(function) -> bool:
    """Whether a processor or criterion is transformers' own, which keeps neither ids nor a count of its calls."""
    callers = isinstance(function, PrefixConstrainedLogitsProcessor)  # around a function of the caller's
    return type(function).__module__.startswith("transformers.") and not callers


def decode(
    model,
    input_ids: torch.LongTensor,
    logits_processor,
    stopping_criteria,
    generation_config,
    streamer,
    model_kwargs: dict,
    is_padded: bool | None,
    wants_logprobs: bool,
):
    """Reads a prompt and decodes; the arguments and the result are those of transformers' `_sample`.

    Raises:
        RuntimeError: scores to sample from that are NaN, infinite or all -inf, as in transformers.
    """
    device = input_ids.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        prompt = _Prompt(model, input_ids, model_kwargs, is_padded)
        limit = longest_answer(input_ids, model_kwargs, stopping_criteria)
        with borrowed_state(model, len(input_ids), prompt.length, limit) as state:
            run = _Run(state, prompt, logits_processor, stopping_criteria, generation_config, streamer, wants_logprobs)
            run.choose(prompt.read_into(state, run.eos, run.pad))
            while not run.is_over(limit):
                state.step(run.chooses_in_step)
                run.choose(state.logits)
            return run.result(prompt.cache)


def longest_answer(input_ids, model_kwargs: dict, stopping_criteria) -> int | None:
    """How many tokens a row can have in the end, its prompt included, be that ids or embeddings; None: any number."""
    embeds = model_kwargs.get("inputs_embeds")
    longest = min((each.max_length for each in stopping_criteria if type(each) is MaxLengthCriteria), default=None)
    if longest is None:
        return None
    return longest + (0 if embeds is None else embeds.shape[1] - input_ids.shape[1])


class _Prompt:
    """A prompt as `generate()` prepared it: what of it the model has to read, and where its tokens stand."""

    def __init__(self, model, input_ids, model_kwargs: dict, is_padded: bool | None):
        self.model, self.input_ids, self.is_padded = model, input_ids, is_padded
        self.images = {name: model_kwargs[name] for name in IMAGE_INPUTS if name in model_kwargs}
        self.embeds, self.mask = model_kwargs.get("inputs_embeds"), model_kwargs.get("attention_mask")
        cache = model_kwargs.get("past_key_values")
        self.held = cache.get_seq_length() if cache is not None else 0
        self.cache: DynamicCache | None = cache if self.held else None  # of `with_prefix`
        new = input_ids if self.embeds is None else self.embeds
        # Ids come whole, the part that the cache holds included.
        self.length = new.shape[1] if self.embeds is None else self.held + new.shape[1]
        positions = model_kwargs.get("position_ids")
        if positions is None and self.mask is not None:
            positions = (self.mask.long().cumsum(-1) - 1).clamp_(min=0)
        self.positions = positions if positions is None else positions[:, self.held - self.length :]

    def read_into(self, state: DecodeState, eos, pad) -> torch.Tensor:
        """Fills a state with the prompt; gives the logits float[B, V] behind it."""
        state.begin(self.length, self.mask, None if self.positions is None else self.positions[:, -1], eos, pad)
        state.ids[:, self.length - self.input_ids.shape[1] : self.length] = self.input_ids
        for i in range(len(state.keys) if self.cache is not None else 0):
            layer = self.cache.layers[i]
            state.keys[i, :, :, : self.held], state.values[i, :, :, : self.held] = layer.keys, layer.values
        outputs = self.model.model(
            input_ids=self.input_ids[:, self.held :] if self.embeds is None else None,
            inputs_embeds=self.embeds,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=PromptCache(state, self.held),
            is_padded=self.is_padded,
            use_cache=True,
            return_dict=True,
            **self.images,
        )
        return self.model.lm_head(outputs.last_hidden_state[:, -1])


class _Run:
    """The choice of tokens, what is recorded of it, and how the host learns of its end."""

    def __init__(self, state, prompt, processors, criteria, generation_config, streamer, wants_logprobs):
        self.state, self.processors, self.criteria, self.streamer = state, processors, criteria, streamer
        self.length, self.first_id = prompt.length, prompt.length - prompt.input_ids.shape[1]
        self.sampled, self.keep = generation_config.do_sample, generation_config.return_dict_in_generate
        self.scores = [] if self.keep and generation_config.output_scores else None
        self.logits = [] if self.keep and generation_config.output_logits else None
        self.logprobs = [] if wants_logprobs else None
        own = all(is_transformers_own(each) for each in (*processors, *criteria))
        ends = [each for each in criteria if type(each) is EosTokenCriteria]
        lengths = [each for each in criteria if type(each) is MaxLengthCriteria]
        self.pad = generation_config._pad_token_tensor
        self.has_eos = any(hasattr(each, "eos_token_id") for each in criteria)
        self.eos = torch.cat([each.eos_token_id.flatten().to(state.device) for each in ends]) if ends else None
        # Nothing but the likeliest token up to an end that is known: the step can do all of it.
        self.chooses_in_step = (
            not (self.sampled or len(processors) or self.scores is not None or self.logits is not None)
            and len(ends) + len(lengths) == len(criteria)
            and (self.eos is None or self.eos.numel() <= MAX_EOS)
        )
        if not self.chooses_in_step:
            self.eos = None  # the criteria say
        # A processor of the caller's own may count its calls: it gets not one too many.
        self.late = own and reading_waits(state.token)
        self.own, self.limits = own, lengths
        self.unfinished = torch.ones(state.rows, dtype=torch.long, device=state.device)
        self.random_state = None  # before the last token was drawn
        self.waiting = None  # what the step before ended with, on its way to the host

    def _ids(self) -> torch.LongTensor:
        """int64[B, length so far]; a copy for functions that might keep it."""
        ids = self.state.ids[:, self.first_id : self.length]
        return ids if self.own else ids.clone()

    def choose(self, logits: torch.Tensor) -> None:
        """Takes a token of each row from logits float[B, V], unless the step has done so."""
        state, broken = self.state, None
        if self.chooses_in_step:
            if logits is not state.logits:  # the prompt's
                state.logits.copy_(logits)
                state.choose()
            scores, ended = state.logits, state.ended
        else:
            scores = logits.to(torch.float32, copy=True)
            if self.logits is not None:
                self.logits.append(scores)
            scores = self.processors(self._ids(), scores)
            if self.scores is not None:
                self.scores.append(scores)
            if self.sampled:
                token, broken = self._sample(scores)
            else:
                token = scores.argmax(-1)
            if self.has_eos:
                token = token * self.unfinished + self.pad * (1 - self.unfinished)
            state.token.copy_(token)
            state.ids[:, self.length] = token
            ended = None
        if self.logprobs is not None:
            self.logprobs.append(token_logprobs(scores, state.token))
        self.length += 1
        if ended is None:
            given = tuple(self.scores) if self.scores is not None else None
            self.unfinished = self.unfinished & ~self.criteria(self._ids(), given)
            ended = self.unfinished.max() == 0
        for each in self.limits if self.chooses_in_step else ():
            if self.length - self.first_id == (each.max_position_embeddings or -1) + 1:
                each(self._ids(), None)  # it warns
        self._tell(ended, broken, state.token if self.streamer is not None else None)

    def _sample(self, scores):
        """Tokens int64[B] by transformers' distribution and random numbers; and whether that has no sense, bool[]."""
        probabilities = F.softmax(scores, dim=-1)
        if not self.late:
            return torch.multinomial(probabilities, num_samples=1)[:, 0], None
        # What torch.multinomial does for one sample, without its reading the probabilities for a check. If this token
        # is one too many, its random numbers go back.
        self.random_state = _generator(scores.device).get_state()
        token = (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(-1)
        return token, ~torch.isfinite(probabilities).all()

    def _tell(self, *asked) -> None:
        """Sends to the host what it asks of this step (has it ended, is it broken, its token; or None), and looks at
        that or, where looking waits, at what the step before has sent."""
        # Copies, to pinned memory: the next step writes over them.
        sent = [each if each is None else each.to("cpu", non_blocking=self.late, copy=True) for each in asked]
        arrived = None
        if self.late and self.state.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        before, self.waiting = self.waiting, (sent, arrived)
        outcome = before if self.late else self.waiting
        self.ended = outcome is not None and self._look(outcome)
        settle_deferred_checks()

    def _look(self, outcome) -> bool:
        (ended, broken, token), arrived = outcome
        if arrived is not None:
            arrived.synchronize()
        if broken:
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        if token is not None:
            self.streamer.put(token)
        return bool(ended)

    def is_over(self, limit: int) -> bool:
        """Whether the answer has ended, at `limit` tokens with the prompt at the latest."""
        if self.late and self.ended:  # seen one step late: the last token is one too many
            self.length -= 1
            if self.random_state is not None:
                _generator(self.state.device).set_state(self.random_state)
            for recorded in (self.scores, self.logits, self.logprobs):
                if recorded:
                    recorded.pop()
            return True
        if self.late and self.length >= limit:
            self._look(self.waiting)
        return self.ended or self.length >= limit

    def result(self, given: DynamicCache | None):
        """What `_sample` gives; a cache that was given holds all but the last token afterwards, as there."""
        if self.streamer is not None:
            self.streamer.end()
        sequences = self.state.ids[:, self.first_id : self.length].clone()
        if given is not None and getattr(given, "wants_new_tokens", True):
            self.state.fill(given, self.length - 1)
        if not self.keep:
            return sequences
        values = {
            "sequences": sequences,
            "scores": None if self.scores is None else tuple(self.scores),
            "logits": None if self.logits is None else tuple(self.logits),
            "past_key_values": self.state.as_cache(self.length - 1) if given is None else given,
        }
        if self.logprobs is None:
            return GenerateDecoderOnlyOutput(**values)
        return ArgusGenerateOutput(**values, logprobs=torch.stack(self.logprobs, dim=1))


def _generator(device: torch.device) -> torch.Generator:
    """The one that random numbers of a device come from by default."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
