"""Argus as a chat model of LMMs-Eval (0.7): batches of a task's messages in, answers out.

Importable where lmms-eval is installed; lmms_plugin.py tells it where this is. Several processes, as accelerate starts
them, each take the share of the requests that LMMs-Eval gives their rank.
"""

import torch
from lmms_eval.api.model import lmms
from tqdm import tqdm

from .. import cli_models

# LMMs-Eval hands its own defaults on for every model; these have no meaning to Argus.
_UNUSED = ("max_length", "device_map", "attn_implementation", "use_cache", "max_batch_size")
_GENERATION = ("max_new_tokens", "num_beams", "temperature", "top_p", "do_sample")


class ArgusLmms(lmms):
    """Args: pretrained, a folder or a hub repository (None: argus-nano); device, dtype, max_tiles as of `argus`.

    Raises:
        CommandError: no such model or device.
        ValueError: an argument that Argus does not have.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_tiles: int | None = None,
        trust_remote_code: bool = False,
        **others,
    ):
        super().__init__()
        unknown = [name for name in others if name not in _UNUSED]
        if unknown:
            raise ValueError(
                f"Argus has no argument {unknown[0]!r}; it has pretrained, device, dtype, max_tiles, batch_size"
            )
        self._share_among_processes()
        device = cli_models.read_device(self._own_device or device or "auto")
        name = cli_models.check_model(pretrained, trust_remote_code)
        self._model, self.processor = cli_models.load(name, device, dtype, trust_remote_code)
        self._batch_size = 1 if batch_size == "auto" else int(batch_size)
        self._image_options = {} if max_tiles is None else {"max_tiles": int(max_tiles)}

    @property
    def model(self):
        return self._model

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def device(self):
        return self._model.device

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def generate_until(self, requests) -> list[str]:
        """One answer for each request, in their order; greedy unless the task says otherwise."""
        answers: list = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items(), key=str)), []).append(place)
        with tqdm(total=len(requests), desc="argus", disable=self.rank != 0) as bar:
            for places in groups.values():  # one batch is generated with one set of options
                for start in range(0, len(places), self.batch_size):
                    some = places[start : start + self.batch_size]
                    options = requests[some[0]].args[2]
                    texts = self._answers([self._chat(requests[place].args) for place in some], options)
                    for place, text in zip(some, texts):
                        answers[place] = text
                        self.cache_hook.add_partial("generate_until", (str(requests[place].args[0]), options), text)
                    bar.update(len(some))
        return answers

    def loglikelihood(self, requests):
        raise NotImplementedError("Argus answers by generation: take a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("Argus answers single rounds: take a task whose output_type is generate_until")

    def _chat(self, arguments) -> list[dict]:
        """A task's messages as our chat template takes them."""
        _, doc_to_messages, _, doc_id, task, split = arguments
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return [{"role": message["role"], "content": _content(message["content"], task)} for message in messages]

    def _answers(self, chats: list, options: dict) -> list[str]:
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            **self._image_options,
        ).to(self.device)
        with torch.inference_mode():
            output = self._model.generate(**inputs, **generation_options(options))
        texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [cut(text.strip(), options.get("until")) for text in texts]

    def _share_among_processes(self) -> None:
        from accelerate import Accelerator

        accelerator = Accelerator()
        self._own_device = None
        if accelerator.num_processes > 1:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            self._own_device = str(accelerator.device)


def generation_options(options: dict) -> dict:
    """A task's `generation_kwargs` as `generate()` takes them; temperature 0 is greedy."""
    found = {name: options[name] for name in _GENERATION if options.get(name) is not None}
    found.setdefault("max_new_tokens", options.get("max_gen_toks") or 64)
    found["do_sample"] = bool(found.get("temperature", 0)) and found.get("do_sample", True)
    if not found["do_sample"]:
        found.pop("temperature", None)
        found.pop("top_p", None)
    return found


def cut(text: str, until) -> str:
    """The text before the first of a task's stop strings; a blank one stops nothing."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop.strip():
            text = text.split(stop)[0]
    return text.strip()


def _content(content, task) -> list[dict]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    kept = []
    for part in content:
        if part["type"] == "image":
            kept.append({"type": "image", "image": part["url"]})
        elif part["type"] == "text":
            kept.append({"type": "text", "text": part["text"]})
        elif part.get("url"):  # LMMs-Eval's generic messages may hold empty audios and videos
            raise ValueError(f"the task {task} shows {part['type']}, which Argus does not take")
    return kept
