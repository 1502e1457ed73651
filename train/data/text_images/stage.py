"""The paper's fourth source: words drawn on backgrounds, and captions that quote them (section 2.1).

"Rendered onto randomly sampled backgrounds with augmentations in blur, color, font, scale, and rotation": a picture is
one to three pieces of text, each with all five, none over another and none cut. A pure function of seed and number, so
any machine can draw any part. What is written is known, so the caption needs no model.

    OUT/00000-0.tar, …     1,000 pictures each (.jpg, .txt, .json): a source for `lens train data scan`

Fonts, texts and backgrounds of one's own are folders and a file; without them: Pillow's built-in Aileron, short English
signs and notices, drawn grounds. For other scripts give fonts that have them.

Heavy ring: Pillow, numpy (`train.data.text_images.draw`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.disk import make_folder, write_atomic
from backend.sizes import TRAINED_RATIOS, parse_ratio, size_for
from train.data.text_images.texts import TextImageSettings

if TYPE_CHECKING:
    from train.data.text_images.draw import Materials, TextImage

VERSION = 1
A_TAR = 1000  # pictures


@dataclass(frozen=True)
class TextImages:
    """Writes the tar `shard` of `folder`, and its mark. A task for any worker."""

    folder: Path
    settings: TextImageSettings

    @property
    def shards(self) -> list[int]:
        return list(range(-(-self.settings.count // A_TAR)))

    def forget_others(self) -> None:
        """Take away what an earlier run drew that was told of more pictures: `scan` would take them in.

        Only tars with a mark of ours; the mark goes last, so that an interruption is made up for.
        """
        for mark in self.folder.glob("*.done"):
            if mark.stem.isdecimal() and int(mark.stem) not in self.shards:
                mark.with_name(f"{mark.stem}-0.tar").unlink(missing_ok=True)
                mark.unlink()

    def done(self, shard: int) -> bool:
        try:
            return self._mark(shard).read_text(encoding="utf-8").strip() == self.stamp(shard)
        except (OSError, UnicodeDecodeError):
            return False

    def __call__(self, shard: int) -> None:
        from train.data.tars.pack import write_tars
        from train.data.text_images.draw import materials

        make_folder(self.folder)
        first = shard * A_TAR
        numbers = range(first, min(first + A_TAR, self.settings.count))
        self._mark(shard).unlink(missing_ok=True)
        given = materials(self.settings)

        def samples() -> Iterator[tuple[int, dict[str, bytes]]]:
            for number in numbers:
                yield number - first, _members(draw(number, self.settings, given), self.settings.quality)

        for _ in write_tars(self.folder, shard, samples(), tar_bytes=1 << 62):
            pass
        write_atomic(self._mark(shard), (self.stamp(shard) + "\n").encode())

    def _mark(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.done"

    def stamp(self, shard: int) -> str:
        """Hash all that a tar is made from; of folders their files' names and sizes."""
        told: dict[str, Any] = {**asdict(self.settings), "version": VERSION}
        if (shard + 1) * A_TAR <= self.settings.count:
            told.pop("count")  # more pictures do not change full tars
        for name in ("fonts", "texts", "backgrounds"):
            told[name] = _sizes(told[name])
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _sizes(path: Path | None) -> list[tuple[str, int]] | None:
    if path is None:
        return None
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(file.relative_to(path)), file.stat().st_size) for file in files if file.is_file()]


def draw(number: int, settings: TextImageSettings, given: Materials) -> TextImage:
    """Picture `number`, with its texts and its caption."""
    from train.data.text_images.draw import draw_picture

    rng = random.Random(f"text image {settings.seed} {number}")
    width, height = size_for(parse_ratio(rng.choice(TRAINED_RATIOS)), rng.choice(settings.bases))
    return draw_picture(width, height, settings, given, rng)


def _members(drawn: TextImage, quality: int) -> dict[str, bytes]:
    from backend.picture.images import encode
    from backend.types import ImageFormat

    told = {"texts": [piece.text for piece in drawn.pieces], "pieces": [vars(piece) for piece in drawn.pieces]}
    return {
        "jpg": encode(drawn.image, ImageFormat.jpeg, quality=quality, record=None),
        "txt": drawn.caption.encode(),
        "json": json.dumps(told, ensure_ascii=False).encode(),
    }
