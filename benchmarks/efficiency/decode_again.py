"""A second `generate()` with a longer prompt and another image: what is built, compiled or captured once more.

Argus owns its buffers and graphs: a later call that fits into them builds nothing. Counted are buffers that were made
and graphs that were captured, and that Argus' own loop ran at all; transformers' eager path, which has none of them,
stands beside it for the time.
"""

from functools import partial

from .common import Report, shape_of
from .decode_prompts import make_prompt
from .decode_sides import EAGER, Decoder, sharing
from .measuring import Bar, milliseconds, shown

CALLS = ("first call", "second call", "the second again")
CONTEXTS, TINY_CONTEXTS = (880, 900), (60, 64)


def measure(report: Report, key: str, reference, ours, sides: dict[str, Decoder]) -> dict:
    """Three calls a side, of which the first has nothing to reuse. Returns {(side, call): values}."""
    args, shape, found = report.args, shape_of(report.args, key), {}
    tokens = 4 if args.tiny else 32
    first, second = (
        make_prompt(shape, reference, ours, [context], seed=seed)
        for seed, context in enumerate(TINY_CONTEXTS if args.tiny else CONTEXTS)
    )
    chosen = [sides[EAGER], Decoder("Argus", sharing(ours), True)]  # a model that has generated nothing yet
    for side in chosen:
        for call, prompt in zip(CALLS, (first, second, second)):
            with side.watched() as counts:
                ms, _ = milliseconds(partial(side.generate, prompt, tokens), args.device)
            built = {name: counts[name] for name in ("buffers", "captures")} if side.ours else {}
            found[side.name, call] = {"ms": round(ms, 2), "context": prompt.ids.shape[1], **built}
        report.cell(f"{key}: again, {side.name}", **{call: found[side.name, call] for call in CALLS})
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        calls = [found[name, call] for call in CALLS]
        built = [f"{c['buffers']} / {c['captures']}" if "buffers" in c else "-" for c in calls[:2]]
        rows.append([name, *(shown(c["ms"]) for c in calls), *built])
    report.table(
        f"{shape.name}: a second call, {tokens} tokens",
        ["side", *(f"{call} (ms)" for call in CALLS), "built: first", "built: second"],
        rows,
        f"Prompts of {first.ids.shape[1]} and {second.ids.shape[1]} tokens with other images; Argus' first call is "
        "that of a model that has generated nothing. Built: buffers / captured graphs.",
    )
    return found


def bar(found: dict) -> Bar:
    values = found.get(("Argus", CALLS[1]))
    built = None if values is None else values["buffers"] + values["captures"]
    return Bar("a second call, longer, another image: buffers and graphs built", 0, built, "")
