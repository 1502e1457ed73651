"""The paper's filters that need no model: numbers of one decoded picture (section 2.1, items 6 to 8).

Each is the function of its row's name in `train.data.filters`.

The paper names the quantities and no constants; those here are ours and are part of `VERSION`.

Heavy ring: Pillow, numpy.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops

VERSION = 1
LONG_SIDE = 512  # pixels: every picture's is made this long before the Laplacian


def grey(image: Image.Image) -> Image.Image:
    """ITU-R 601 luma, 0 to 255."""
    return image.convert("L")


def clarity(luma: Image.Image) -> float:
    """Variance of the Laplacian of scale-normalised grey (0 to 255); low: blurred. 0 where a side is under 3 pixels.

    The long side is made 512 pixels first, up or down: otherwise the same picture would score by its resolution.
    The operator is the four neighbours less four times the middle, without the border.
    """
    scale = LONG_SIDE / max(luma.size)
    size = (max(1, round(luma.width * scale)), max(1, round(luma.height * scale)))
    # reducing_gap: a huge picture is halved by cheap box averages down to 3 times the size, then resampled.
    x = np.asarray(luma.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0), dtype=np.float32)
    if min(x.shape) < 3:
        return 0.0
    middle = x[1:-1, 1:-1]
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * middle
    return float(laplacian.var(dtype=np.float64))


def entropy(luma: Image.Image) -> float:
    """Shannon entropy of the grey histogram in bits: 0 (one shade) to 8 (all 256 alike)."""
    counts = np.asarray(luma.histogram(), dtype=np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0: never -0.0


def luminance(image: Image.Image) -> float:
    """Mean of HSV's V, which is max(R, G, B), in 0 to 1."""
    red, green, blue = image.split()
    counts = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram(), dtype=np.float64)
    return float((counts * np.arange(256)).sum() / counts.sum() / 255)
