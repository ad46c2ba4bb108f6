"""The verdicts of decode.py: Section 5.4's ratios, tokens a second on an H100, the ratio on a CPU, and the answers.

No speed counts for a shape whose answers in that dtype were not compared or broke the rule of decode_answers.py, nor
where the side that ships on that device did not run: another side's speed is not the model's.
"""

from . import decode_again, decode_answers
from .decode_sides import EAGER, INT8, KERNELS, LOOP
from .measuring import Bar, ratio, shown

# By shape: Section 5.4's ratio, tokens/s on an H100, what is aimed at there.
GPU_BARS = {"256m": (1.77, 1000, 2000), "2b": (1.90, 450, 700)}
CPU_RATIO, CPU_INT8_AIM = 1.5, 2.5


def shipped(on_gpu: bool) -> str:
    """The name of Argus as it ships."""
    return KERNELS if on_gpu else LOOP


def refusal(answers: dict[str, dict], key: str, dtype: str) -> str:
    """Why no speed counts for a shape in a dtype; "" where one does."""
    facts = [answers.get(f"{key}: answers, {dtype}, {name}") for name in decode_answers.CONTEXTS]
    if None in facts:
        return "answers not compared"
    return "answers differ" if any(decode_answers.differs(each) for each in facts) else ""


def bars(found: dict, answers: dict[str, dict], again: dict, on_gpu: bool, dtype: str) -> list[Bar]:
    """The verdicts. found: (key, batch, context) -> sides; answers: decode_answers' cells; again: decode_again's."""
    ours = shipped(on_gpu)

    def bar(name, limit, key, unit, note, when, against=True):
        sides = found.get((key, 1, 880), {})
        if not when or not sides:
            return Bar(name, limit, None, unit, True, note)
        needed = [ours, EAGER] if against else [ours]
        failed = [side for side in needed if side not in sides]
        speeds = [sides[side]["tokens_per_second"] for side in needed if side in sides]
        problem = f"failed: {', '.join(failed)}" if failed else "" if all(speeds) else "lost in noise"
        problem = problem or refusal(answers, key, dtype)
        notes = [note, f"n = {min(values['whole']['n'] for values in sides.values())}", *([problem] if problem else [])]
        value = None if problem else ratio(*speeds) if against else speeds[0]
        return Bar(name, limit, value, unit, True, "; ".join(notes))

    result = []
    for key, (times, fast, aim) in GPU_BARS.items():
        run_as = f"{dtype}, batch 1, context 880"
        result.append(bar(f"GPU, {key}: tokens/s, Argus / transformers", times, key, "x", run_as, on_gpu))
        result.append(bar(f"GPU, {key}: tokens/s", fast, key, "/s", f"aim: {aim}; {run_as}", on_gpu, against=False))
    sides = found.get(("256m", 1, 880), {})
    both = INT8 in sides and EAGER in sides
    int8 = ratio(*(sides[name]["tokens_per_second"] for name in (INT8, EAGER))) if both else None
    note = f"{dtype}; aim: {CPU_INT8_AIM} with int8, which gives {shown(int8, 2)}"
    when = not on_gpu and dtype == "bfloat16"
    result.append(bar("CPU, 256m: tokens/s, Argus / transformers", CPU_RATIO, "256m", "x", note, when))
    return [*result, *decode_answers.bars(answers), decode_again.bar(again)]
