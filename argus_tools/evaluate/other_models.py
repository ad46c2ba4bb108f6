"""Florence-2 and SmolVLM (Idefics3) by transformers' own classes, behind the interface of `models.py`.

Greedy, as everything here, in the models' own prompts. Florence-2's regions carry no scores; they get the one that
Argus's have, exp of the mean log-probability of a region's phrase and location tokens, so that both are ranked alike.
"""

import re
from collections.abc import Iterator, Sequence

import torch

from ..cli_support import CommandError, one_line

# LMMs-Eval's request of COCO and NoCaps; SmolVLM has no task of its own for it.
CAPTION_REQUEST = "Provide a one-sentence caption for the provided image."
_FLORENCE_REGION = re.compile(r"([^<]+)((?:<loc_\d+>){4,})")
_FLORENCE_PHRASE = re.compile(r"\s*.*")  # transformers' parser skips a phrase with a line break in it


class _Other:
    def __init__(self, model, processor, name="model", identity=None, batch_size=8, max_new_tokens: int | None = None):
        self.model, self.processor = model, processor
        self.name, self.identity = name, identity or {"name": name}
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens

    def _batches(self, *columns: Sequence) -> Iterator[tuple]:
        for start in range(0, len(columns[0]), self._batch_size):
            yield tuple(list(column[start : start + self._batch_size]) for column in columns)

    def _generate(self, inputs, max_new_tokens: int):
        inputs = inputs.to(self.model.device)
        inputs.pop("token_type_ids", None)  # some tokenizers add them, none of these models reads them
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            return self.model.generate(
                **inputs,
                max_new_tokens=self._max_new_tokens or max_new_tokens,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                output_logits=True,
            )


class FlorenceAnswerer(_Other):
    """Florence-2: <CAPTION>, <OD> and <DENSE_REGION_CAPTION>. It finds what it knows; phrases only filter that."""

    detects_everything = True

    def caption(self, images) -> list[str]:
        return [text for text, *_ in self._run(images, "<CAPTION>", 64)]

    def detect(self, images, phrases) -> list[dict]:
        results = []
        for found, wanted in zip(self._regions(images, "<OD>"), phrases):
            names = {phrase.lower() for phrase in wanted}
            kept = [i for i, label in enumerate(found["labels"]) if label.lower() in names]
            results.append({key: [values[i] for i in kept] for key, values in found.items()})
        return results

    def dense_caption(self, images) -> list[dict]:
        found = self._regions(images, "<DENSE_REGION_CAPTION>")
        return [{"boxes": each["boxes"], "captions": each["labels"], "scores": each["scores"]} for each in found]

    def _regions(self, images, task: str) -> list[dict]:
        results = []
        for _, ids, log_probs, size in self._run(images, task, 1024):
            text, spans = self.processor.post_processor.decode_with_spans(ids)
            found = self.processor.post_process_generation(text=text, task=task, image_size=size)[task]
            scores = florence_scores(text, spans, log_probs)
            boxes = [[float(value) for value in box] for box in found["bboxes"]]
            if len(scores) != len(boxes):
                raise RuntimeError(f"{len(boxes)} boxes and {len(scores)} scores in {text!r}")
            results.append({"boxes": boxes, "labels": list(found["labels"]), "scores": scores})
        return results

    def _run(self, images, task: str, max_new_tokens: int) -> Iterator[tuple]:
        """(text, ids without special tokens, their log-probabilities, (width, height)) for each image."""
        tokenizer = self.processor.tokenizer
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        for (batch,) in self._batches(images):
            pictures = [pillow_image(image) for image in batch]
            inputs = self.processor(images=pictures, text=[task] * len(pictures), return_tensors="pt", padding=True)
            output = self._generate(inputs, max_new_tokens)
            rows = output.sequences[:, -len(output.logits) :].tolist()
            log_probs = _log_probs(output, rows)
            for picture, row, values in zip(pictures, rows, log_probs):
                kept = [i for i, token in enumerate(_until(row, tokenizer.eos_token_id)) if token not in special]
                ids = [row[i] for i in kept]
                text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                yield text, ids, [values[i] for i in kept], picture.size


class SmolVLMAnswerer(_Other):
    """SmolVLM, SmolVLM2 and Idefics3: captions and answers, by their chat template."""

    def caption(self, images, prompt: str | None = None) -> list[str]:
        return self.answer(images, [prompt or CAPTION_REQUEST] * len(images))

    def answer(self, images, questions) -> list[str]:
        self.processor.tokenizer.padding_side = "left"
        texts: list[str] = []
        for pictures, asked in self._batches(images, questions):
            chats = [_chat(pillow_image(image), question) for image, question in zip(pictures, asked)]
            inputs = self.processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
            )
            output = self._generate(inputs, 64)
            new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
            texts += [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
        return texts


def florence_scores(text: str, spans, log_probs) -> list[float]:
    """exp of the mean log-probability of each region's tokens, in the order of Florence-2's own parser.

    A phrase may have several boxes: each is a region of the phrase's tokens and its own four. `spans`: (start, end) of
    each token in the text.
    """
    scores = []
    for match in _FLORENCE_REGION.finditer(text):
        if not _FLORENCE_PHRASE.fullmatch(match.group(1)):
            continue
        phrase = _tokens(spans, match.start(1), match.end(1))
        locations = _tokens(spans, match.start(2), match.end(2))
        for start in range(0, len(locations) - 3, 4):
            values = [log_probs[i] for i in (*phrase, *locations[start : start + 4])]
            scores.append(float(torch.tensor(values).mean().exp()))
    return scores


def pillow_image(image):
    """An RGB image of Pillow, its EXIF orientation applied, of whatever Argus's processor takes."""
    from PIL import Image

    from processing_argus import load_image

    return Image.fromarray(load_image(image).permute(1, 2, 0).contiguous().cpu().numpy())


def load(kind: str, name: str, identity: dict, device, dtype: str, batch_size: int, **options):
    """The model of type "florence2", "smolvlm" or "idefics3" in a folder or repository.

    Raises:
        CommandError: it cannot be loaded, or an option is none of its own (max_tiles).
    """
    import transformers

    if options.pop("max_tiles", None) is not None:
        raise CommandError(f"--max-tiles is an option of Argus models; {identity['name']} is a {kind}")
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    try:
        processor = transformers.AutoProcessor.from_pretrained(name)
        loader = transformers.AutoModelForImageTextToText
        if kind == "florence2":
            loader = transformers.Florence2ForConditionalGeneration
        model = loader.from_pretrained(name, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
        model = model.to(device).eval()
    except Exception as error:  # damaged files raise many kinds
        raise CommandError(f"the model in {name} could not be loaded: {one_line(error)}") from error
    answerer = FlorenceAnswerer if kind == "florence2" else SmolVLMAnswerer
    return answerer(model, processor, identity["name"], identity, batch_size, **options)


def _tokens(spans, start: int, end: int) -> list[int]:
    return [i for i, (first, last) in enumerate(spans) if first < end and last > start]


def _log_probs(output, rows: list[list[int]]) -> list[list[float]]:
    """The log-probability of each new token, before what `generate()` forbids or forces."""
    steps = []
    for step, logits in enumerate(output.logits):
        chosen = torch.tensor([row[step] for row in rows], device=logits.device)
        steps.append(logits.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0])
    return torch.stack(steps, dim=1).tolist()


def _until(row: list[int], end: int | None) -> list[int]:
    """Up to the end of the answer. Florence-2's begins with </s><s>, so an end at the very start is none."""
    for i, token in enumerate(row):
        if i > 1 and token == end:
            return row[:i]
    return row


def _chat(image, question: str) -> list[dict]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
