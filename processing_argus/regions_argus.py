"""From generated ids to regions: captions (or labels), boxes in pixels of the original image, scores.

A language model has no objectness. A region's score is therefore the geometric mean of its tokens' probabilities,
location and caption tokens alike: exp(mean log-probability).
"""

import numbers

import torch

from .locations_argus import LocationVocabulary, is_location_token


def read_regions(tokenizer, vocabulary: LocationVocabulary, outputs, image_sizes, scores, text_key: str) -> list[dict]:
    """What `ArgusProcessor.post_process_dense_captioning` documents, with the captions under `text_key`."""
    outputs = [outputs] if isinstance(outputs, str) else _as_list(outputs)
    if outputs and isinstance(outputs[0], numbers.Integral):
        outputs = [outputs]
    image_sizes = [_as_list(size) for size in _as_list(image_sizes) if not isinstance(size, numbers.Number)]
    if len(outputs) != len(image_sizes) or any(len(size) != 2 for size in image_sizes):
        raise ValueError(
            f"image_sizes must be one (height, width) per output: got {len(outputs)} outputs and sizes {image_sizes}."
        )
    if scores is not None and len(scores) != len(outputs):
        raise ValueError(f"scores must be float[B, T] like the ids: got {len(scores)} rows for {len(outputs)} outputs.")
    results = []
    for i, (output, size) in enumerate(zip(outputs, image_sizes)):
        if isinstance(output, str):
            if scores is not None:
                raise ValueError("scores belong to tokens: pass the generated ids, not strings, to score regions.")
            text, spans = output, []
        else:
            text, spans = decode_with_spans(tokenizer, _as_list(output))
        regions, unparsed = vocabulary.parse(text)
        boxes = [vocabulary.bins_to_box(region.bins, size) for region in regions]
        results.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                text_key: [region.caption for region in regions],
                "scores": _region_scores(regions, spans, None if scores is None else scores[i], len(output)),
                "unparsed": unparsed,
            }
        )
    return results


def decode_with_spans(tokenizer, ids: list[int]) -> tuple[str, list[tuple[int, int, int]]]:
    """The text of the ids, special tokens left out, and (place of the token, first character, end) for each one kept.

    Location tokens are kept even where the tokenizer holds them as special ones. Ids outside of the vocabulary (-100 in
    labels) are left out too.
    """
    names = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens)
    special, size = {token for token, name in names if not is_location_token(name)}, len(tokenizer)
    kept = [place for place, token in enumerate(ids) if 0 <= token < size and token not in special]
    text, spans, pending = "", [], []
    for place in kept:
        # One character can be spread over up to four byte-level tokens: decode once it is whole.
        pending.append(place)
        piece = tokenizer.decode([ids[p] for p in pending], clean_up_tokenization_spaces=False)
        if not piece.endswith("\ufffd") or place == kept[-1] or len(pending) >= 4:
            spans += [(p, len(text), len(text) + len(piece)) for p in pending]
            text, pending = text + piece, []
    return text, spans


def _region_scores(regions, spans, log_probs, num_tokens: int) -> torch.Tensor:
    if log_probs is None:
        return torch.ones(len(regions), dtype=torch.float32)
    log_probs = torch.as_tensor(log_probs, dtype=torch.float32).cpu()
    if log_probs.shape != (num_tokens,):
        raise ValueError(f"scores must be float[B, T] like the ids: got {list(log_probs.shape)} for {num_tokens} ids.")
    values = []
    for region in regions:
        places = [place for place, start, end in spans if start < region.end and end > region.start]
        values.append(log_probs[places].mean().exp().item())
    return torch.tensor(values, dtype=torch.float32)


def _as_list(values) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)
