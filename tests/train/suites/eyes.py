"""A vision model that really looks: it decodes the picture it is sent and answers by its mean colour."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageStat


def look(question: str, url: str) -> str:
    """ "Yes" to a red picture being red, and to a cat; "No" to all else."""
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
    red, green, _ = ImageStat.Stat(picture).mean
    if "red" in question:
        return "Yes" if red > 2 * green else "No"
    return "Yes." if "a cat in" in question else "No"
