"""What a scene's objects stand on: plain colours, gradients, noise, stripes, checks and dots."""

import math

import numpy as np

from .atlas import COLOURS

BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "checkered", "dotted")
_COLOUR_VALUES = np.array(list(COLOURS.values()), np.float32)


def visible_colours(canvas: np.ndarray) -> list[str]:
    """Names of the colours that stand out from the whole background, sampled on a coarse grid."""
    step = max(7, min(canvas.shape[:2]) // 13)
    samples = canvas[::step, ::step].reshape(-1, 3).astype(np.float32)
    distances = np.linalg.norm(samples[:, None] - _COLOUR_VALUES, axis=2).min(0)
    return [name for name, d in zip(COLOURS, distances) if d > 80] or [list(COLOURS)[int(distances.argmax())]]


def jittered(rng, colour, amount) -> tuple[int, int, int]:
    """An RGB colour up to `amount` away in each channel."""
    return tuple(
        min(255, max(0, value + int(shift))) for value, shift in zip(colour, rng.integers(-amount, amount + 1, 3))
    )


def draw_background(rng, height, width) -> tuple[str, str | None, np.ndarray]:
    """(kind, colour name for a plain one, uint8[H, W, 3])."""
    kind = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    first = rng.integers(0, 256, 3).astype(np.float32)
    if kind == "plain":
        name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = jittered(rng, COLOURS[name], 12)
        return kind, name, canvas
    if kind == "noise":
        # Coarse enough to be seen, weak enough that objects stay visible.
        cell = int(rng.integers(1, 4))
        noise = rng.standard_normal((-(-height // cell), -(-width // cell), 3), np.float32) * rng.uniform(10, 32)
        noise = np.clip(first + noise, 0, 255).astype(np.uint8)
        return kind, None, noise.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    second = np.clip(first + rng.uniform(35, 110, 3) * rng.choice([-1, 1], 3), 0, 255).astype(np.float32)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    period = min(height, width) * rng.uniform(0.08, 0.3)
    if kind in ("gradient", "stripes"):
        angle = rng.uniform(0, 2 * math.pi)
        ramp = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
        if kind == "gradient":
            ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
            return kind, None, (first + (second - first) * ramp[..., None]).astype(np.uint8)
        on = np.floor(ramp / period) % 2 > 0
    elif kind == "checkered":
        on = (np.floor(x / period) + np.floor(y / period)) % 2 > 0
    else:
        middle = period / 2
        on = (x % period - middle) ** 2 + (y % period - middle) ** 2 < (period * rng.uniform(0.2, 0.4)) ** 2
    return kind, None, np.stack([first, second]).astype(np.uint8)[on.astype(np.uint8)]
