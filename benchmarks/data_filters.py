"""Pictures a second of the data stages on one core: every classic filter alone, and `scan` and `score` as they run.

    python -m benchmarks.data_filters                      made pictures: JPEG, quality 90, 512x512 to 2048x1536
    python -m benchmarks.data_filters --folder photos/     one's own (up to --count)

Processor seconds are counted, not the clock, so that another job on the machine changes little. A picture is decoded
once however many filters look at it; "decode" is that share, and "all" is what `lens train data score` does.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from train.data.filters import CLASSIC
from train.data.pictures import SUFFIXES, decode
from train.data.scan import scan_rows
from train.data.score import score_rows
from train.data.scores import classic
from train.data.sources import LISTING

SIZES = ((512, 512), (1024, 768), (2048, 1536))


def made(width: int, height: int, seed: int) -> bytes:
    """Colour clouds with the grain of a camera, as JPEG."""
    rng = np.random.default_rng(seed)
    clouds = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    pixels = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def rate(function: Callable[[Any], object], items: Sequence[Any], repeats: int) -> float:
    """Items a processor second: the best of `repeats` passes."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for item in items:
            function(item)
        best = min(best, time.process_time() - start)
    return len(items) / best


def measure(name: str, files: Sequence[bytes], repeats: int) -> None:
    images = [decode(data) for data in files]
    lumas = [classic.grey(image) for image in images]
    rows = [{"name": str(i), "path": str(i), "offset": 0, "nbytes": len(data)} for i, data in enumerate(files)]
    listing = pa.Table.from_pylist(rows, schema=LISTING)

    def read(row: dict[str, Any]) -> bytes:
        return files[int(row["path"])]

    scanned = scan_rows(listing, "bench", "bench/", read=read)
    whole = {
        "scan (head, SHA-256)": lambda _: scan_rows(listing, "bench", "bench/", read=read),
        "all (one decode)": lambda _: score_rows(scanned, CLASSIC, read=read),
    }
    found = {
        "decode": rate(decode, files, repeats),
        "grey": rate(classic.grey, images, repeats),
        "clarity": rate(classic.clarity, lumas, repeats),
        "entropy": rate(classic.entropy, lumas, repeats),
        "luminance": rate(classic.luminance, images, repeats),
    }
    found |= {stage: rate(run, [None], repeats) * len(files) for stage, run in whole.items()}
    megapixels = sum(image.width * image.height for image in images) / len(images) / 1e6
    kilobytes = sum(map(len, files)) / len(files) / 1e3
    print(f"{name}: {len(files)} pictures of {megapixels:.2f} megapixels and {kilobytes:.0f} kB on average")
    for stage, value in found.items():
        print(f"  {stage:<22}{value:>9,.0f} pictures/s a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="pictures of one's own")
    parser.add_argument("--count", type=int, default=16, help="pictures of each kind")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.folder is not None:
        found = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in SUFFIXES)[: options.count]
        measure(str(options.folder), [path.read_bytes() for path in found], options.repeats)
        return
    for width, height in SIZES:
        measure(f"{width}x{height}", [made(width, height, i) for i in range(options.count)], options.repeats)


if __name__ == "__main__":
    main()
