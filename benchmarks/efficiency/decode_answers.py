"""Whether decoding fast gives the same tokens: greedy answers of Argus' loop against transformers', held to a rule.

In fp32 both have the same tokens, unless the two likeliest of them were less than 1e-4 apart. In 16 bits every
divergence begins at a near-tie: the gap is no larger than the logits of the two tokens differ there between the paths.
Any logits whatever pass that, as long as they repeat themselves; so the loop must also be no further from the same
weights under transformers' loop, where decoding alone differs, than 16 bits cost. The distance from transformers' own
class, which rounds elsewhere throughout, stands beside. Of every answer it is counted that Argus' own loop gave it.
"""

import copy
import math
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .common import Report, shape_of
from .decode_prompts import Prompt, make_prompt
from .decode_sides import EAGER, Decoder
from .measuring import Bar
from .models import build_ours, build_reference, build_smollm2, packaged_smollm2

NEAR_TIE = 1e-4  # of two logits in fp32
LOOPS_APART = 1  # times what 16 bits cost transformers' class: the bar
# No speed counts beyond this. Two ways to compute the same that round independently and equally well are so far apart.
ROUNDING_ALONE = 2**0.5
INDEPENDENT = "rms; two ways that round independently and equally well are 1.41 apart"
TOKENS = {"256m": 256, "2b": 64}
CONTEXTS = {"batch 1": [880], "padded batch": [300, 240, 150]}
TINY_CONTEXTS = {"batch 1": [60], "padded batch": [40, 30, 24]}
REAL = "SmolLM2-135M"
QUESTIONS = (
    "Name three colours.",
    "What is the capital of France, and what is it known for?",
    "Write a story about a lighthouse keeper and his dog, who find a bottle on the beach one morning.",
)


@dataclass(frozen=True)
class Divergence:
    """Where the answer of a row leaves the expected one, and how much less likely its token was there."""

    row: int
    at: int
    gap: float


class Forced(LogitsProcessor):
    """Every token is the one of the answer int64[B, T], whatever the logits say."""

    def __init__(self, answer: torch.Tensor, prompt_length: int):
        self.answer, self.prompt_length = answer, prompt_length

    def __call__(self, input_ids, scores):
        token = self.answer[:, input_ids.shape[1] - self.prompt_length, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def greedy(side: Decoder, prompt: Prompt, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids int64[B, T], float32[B, T, V] what the model gave for them)."""
    with side.watched():
        out = side.generate(prompt, tokens, output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, prompt.ids.shape[1] :], torch.stack(out.logits, dim=1).float()


def teacher_forced(side: Decoder, prompt: Prompt, answer: torch.Tensor) -> torch.Tensor:
    """float32[B, T, V]: what this side's decoding gives at each token of an answer int64[B, T]."""
    forced = LogitsProcessorList([Forced(answer, prompt.ids.shape[1])])
    settings = {"logits_processor": forced, "output_logits": True, "return_dict_in_generate": True}
    with side.watched():
        out = side.generate(prompt, answer.shape[1], **settings)
    if not torch.equal(out.sequences[:, prompt.ids.shape[1] :], answer):
        raise AssertionError(f"{side.name}: the answer was not kept to")
    return torch.stack(out.logits, dim=1).float()


def divergences(expected: torch.Tensor, logits: torch.Tensor, got: torch.Tensor) -> list[Divergence]:
    """The first difference of each row that has one; ids int64[B, T] each, logits float[B, T, V] of the expected."""
    found = []
    for row in (expected != got).any(1).nonzero().flatten().tolist():
        at = int((expected[row] != got[row]).nonzero()[0])
        at_step = logits[row, at]
        found.append(Divergence(row, at, float(at_step[expected[row, at]] - at_step[got[row, at]])))
    return found


def unexplained(found: list[Divergence], expected, got, usual, fast) -> int:
    """How many divergences have a larger gap than the two paths differ by at that step, in those two tokens.

    expected, got: ids int64[B, T]; usual, fast: float[B, T, V] of both paths, fed the expected ids.
    """
    count = 0
    for each in found:
        where = each.row, each.at
        apart = (fast[where] - usual[where])[[int(expected[where]), int(got[where])]].abs().sum()
        count += not each.gap <= float(apart)
    return count


def off_by(facts: dict, name: str) -> float:
    """The rms of a difference by what 16 bits cost transformers' class; infinite where there is no number."""
    value, cost = facts[name]["rms"], facts["transformers off fp32"]["rms"]
    result = value / cost if cost else float("inf")
    return result if math.isfinite(result) else float("inf")


def differs(facts: dict) -> bool:
    """Whether the answers broke the rule, so that no speed counts for them."""
    return facts["unexplained"] > 0 or ("loops apart" in facts and off_by(facts, "loops apart") > ROUNDING_ALONE)


def _off(a: torch.Tensor, b: torch.Tensor) -> dict:
    return {"largest": float((a - b).abs().max()), "rms": float((a - b).square().mean().sqrt())}


def in_fp32(theirs: Decoder, ours: Decoder, prompt: Prompt, tokens: int) -> dict:
    """Facts of one prompt in fp32; "unexplained" divergences break the rule."""
    expected, logits = greedy(theirs, prompt, tokens)
    found = divergences(expected, logits, greedy(ours, prompt, tokens)[0])
    top = logits.topk(2, dim=-1).values
    return {
        "rows": len(expected),
        "tokens": tokens,
        "distinct tokens": len(expected.unique()),
        "near ties": int((top[..., 0] - top[..., 1] < NEAR_TIE).sum()),
        "divergences": [vars(d) for d in found],
        "unexplained": sum(d.gap >= NEAR_TIE for d in found),
    }


def in_16_bits(theirs: Decoder, ours: Decoder, prompt: Prompt, tokens: int) -> dict:
    """The same in the models' 16 bits, and how far the logits of the paths are apart on transformers' answer."""
    expected, usual = greedy(theirs, prompt, tokens)
    got, _ = greedy(ours, prompt, tokens)
    found = divergences(expected, usual, got)
    fast = teacher_forced(ours, prompt, expected)
    slow = teacher_forced(Decoder("slow", ours.model, True, {"fast_decode": False}), prompt, expected)
    # Not the model's own `float`, which refuses one that came from a quantised file, though it is none any more.
    exact_model = torch.nn.Module.float(copy.deepcopy(theirs.model))
    exact = teacher_forced(Decoder("fp32", exact_model), prompt, expected)
    return {
        "rows": len(expected),
        "tokens": tokens,
        "distinct tokens": len(expected.unique()),
        "divergences": [vars(d) for d in found],
        "unexplained": unexplained(found, expected, got, usual, fast),
        "loops apart": _off(fast, slow),
        "paths apart": _off(fast, usual),
        "transformers off fp32": _off(usual, exact),
        "Argus off fp32": _off(fast, exact),
        "logits' spread": float(exact.std()),
    }


# --- what is compared -------------------------------------------------------------------------------------------------


def run(report: Report, key: str, dtype: torch.dtype, built=None) -> dict[str, dict]:
    """One shape, or `REAL`, in one dtype: batch 1 and a batch padded on the left. cell -> facts.

    built: gives (reference, ours) of this dtype, where a caller has them.
    """
    prompts, (reference, ours) = _prompts(report, key, dtype, built)
    tokens = 8 if report.args.tiny else TOKENS.get(key, 256)
    theirs, mine, found = Decoder(EAGER, reference), Decoder("Argus", ours, True), {}
    for name, prompt in prompts.items():
        cell = f"{key}: answers, {str(dtype)[6:]}, {name}"
        compare = in_fp32 if dtype == torch.float32 else in_16_bits
        facts = report.attempt(cell, compare, theirs, mine, prompt, tokens)
        if facts is not None:
            found[cell] = facts
            report.cell(cell, **facts)
    return found


def _prompts(report: Report, key: str, dtype, built) -> tuple[dict[str, Prompt], tuple]:
    args = report.args
    if key == REAL:
        reference, ours, tokenizer = build_smollm2(packaged_smollm2(), args.device, dtype)
        turns = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in QUESTIONS]
        reference.generation_config.eos_token_id = None
        reference.generation_config.pad_token_id = ours.generation_config.pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "left"
        several = tokenizer(turns, return_tensors="pt", padding=True, add_special_tokens=False).to(args.device)
        several = Prompt(several["input_ids"], several["attention_mask"])
        one = Prompt(several.ids[-1:], several.mask[-1:])  # the longest, which has no padding
        return {"batch 1": one, "padded batch": several}, (reference, ours)
    shape = shape_of(args, key)
    if built is None:
        reference = build_reference(shape, args.device, dtype, args.reference_attention)
        models = reference, build_ours(reference, shape)
    else:
        models = built()
    contexts = TINY_CONTEXTS if args.tiny else CONTEXTS
    return {name: make_prompt(shape, *models, lengths, 1, max_tiles=3) for name, lengths in contexts.items()}, models


def bars(found: dict[str, dict]) -> list[Bar]:
    """Unexplained divergences in fp32 and in 16 bits; the differences, and Argus' error, by what 16 bits cost."""
    exact = [facts for facts in found.values() if "near ties" in facts]
    rounded = [facts for facts in found.values() if "paths apart" in facts]

    def broken(some):
        return sum(facts["unexplained"] for facts in some) if some else None

    def note(some):
        return f"{sum(facts['rows'] * facts['tokens'] for facts in some)} tokens" if some else ""

    def worst(name):
        return max((off_by(facts, name) for facts in rounded), default=None)

    return [
        Bar("greedy tokens, fp32: divergences at gaps of 1e-4 or more", 0, broken(exact), "", note=note(exact)),
        Bar("greedy tokens, 16 bits: unexplained divergences", 0, broken(rounded), "", note=note(rounded)),
        Bar(
            "16-bit logits: the two loops apart / transformers off its fp32",
            LOOPS_APART,
            worst("loops apart"),
            note=INDEPENDENT,
        ),
        Bar("16-bit logits: from transformers' class / that off its fp32", 1, worst("paths apart"), note=INDEPENDENT),
        Bar("16-bit logits: Argus off that fp32 / transformers off it", 1, worst("Argus off fp32"), note="rms"),
    ]


def table(report: Report, found: dict[str, dict]) -> None:
    """All comparisons, a row each."""

    def shown(values: dict | None) -> str:
        return "-" if values is None else f"{values['largest']:.3g} / {values['rms']:.2g}"

    rows = []
    for cell, facts in found.items():
        where = "; ".join(f"row {d['row']} at {d['at']}, gap {d['gap']:.2g}" for d in facts["divergences"])
        measures = ("loops apart", "paths apart", "transformers off fp32", "Argus off fp32")
        apart = (shown(facts.get(name)) for name in measures)
        rows.append(
            [
                cell,
                facts["rows"],
                facts["tokens"],
                facts["distinct tokens"],
                where or "none",
                facts["unexplained"],
                *apart,
            ]
        )
    names = ("from its slow path", "from transformers", "transformers off its fp32", "Argus off the same")
    report.table(
        "Greedy answers: Argus' loop against transformers'",
        ["answer", "rows", "tokens", "distinct", "divergences", "unexplained", *names],
        rows,
        "A divergence ends its row's comparison; its gap is how much lower transformers' logit of Argus' token was. It "
        "is explained in fp32 by a gap below 1e-4, in 16 bits by one no larger than the paths' logits of both tokens "
        "differ there. That says little unless the loop is near its slow path, which a speed requires. Differences of "
        "logits: largest / root mean square, on transformers' answer, fed to all.",
    )
