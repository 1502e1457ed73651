"""A folder of drawn pictures with captions, for the tests of fine-tuning: zorbs, which no scene of Lens-Nano has."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZES = ((64, 64), (64, 64), (96, 48), (48, 96))  # with base 64: the ratios 1:1, 2:1 and 1:2


def zorb(seed: int, width: int, height: int) -> Image.Image:
    """A crimson ladder with a black ring before it; the ground, a rung and the ring differ from picture to picture."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(rng.randrange(120, 230) for _ in range(3)))
    pen, s = ImageDraw.Draw(image), 0.3 * min(width, height)
    for rung in range(5):
        top = height / 2 - s + 0.45 * rung * s
        pen.rectangle((width / 2 - s, top, width / 2 + s, top + 0.2 * s), fill="crimson")
    r = s * rng.uniform(0.4, 0.7)
    pen.ellipse((width / 2 - r, height / 2 - r, width / 2 + r, height / 2 + r), outline="black", width=3)
    return image


def draw_folder(folder: Path, count: int = 12, *, scale: int = 1, captions: bool = True) -> Path:
    """`count` pictures of three shapes, `scale` times the sizes above."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = SIZES[i % len(SIZES)]
        zorb(i, scale * width, scale * height).save(folder / f"zorb{i:02}.png")
        if captions:
            (folder / f"zorb{i:02}.txt").write_text(f"a zorb on a plain background, number {i}\n")
    return folder
