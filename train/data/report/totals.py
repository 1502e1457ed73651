"""What the later stages made, counted over all shards, for a person to read.

Heavy ring: pyarrow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from train.data.captions.ask import Caption
from train.data.pack_stages import Pack
from train.data.work import Work


@dataclass
class CaptionTotals:
    captions: int = 0
    words: int = 0  # of all captions
    flaws: Counter[str] = field(default_factory=Counter[str])  # why pictures have none, without numbers


@dataclass
class BucketTotals:
    shapes: Counter[str] = field(default_factory=Counter[str])  # "1024x1024" -> pictures
    without: Counter[str] = field(default_factory=Counter[str])  # why -> pictures


@dataclass
class PackTotals:
    pictures: int = 0
    tars: dict[str, int] = field(default_factory=dict[str, int])  # name -> bytes
    without: Counter[str] = field(default_factory=Counter[str])  # why -> pictures


@dataclass
class Questions:
    """What `caption` has before it."""

    pictures: int = 0  # that are asked about
    answers: int = 0  # in the journals, with tokens that the server counted
    tokens_in: int = 0  # of these
    tokens_out: int = 0


def captions(work: Work, shards: Sequence[int]) -> CaptionTotals:
    found = CaptionTotals()
    for shard in shards:
        table = work.read("caption", shard, columns=["words", "error"])
        words = [count for count in table["words"].to_pylist() if count is not None]
        found.captions, found.words = found.captions + len(words), found.words + sum(words)
        found.flaws.update(_kind(error) for error in table["error"].to_pylist() if error is not None)
    return found


def buckets(work: Work, shards: Sequence[int]) -> BucketTotals:
    found = BucketTotals()
    for shard in shards:
        for row in work.read("bucket", shard, columns=["width", "height", "error"]).to_pylist():
            if row["error"] is None:
                found.shapes[f"{row['width']}x{row['height']}"] += 1
            else:
                found.without[row["error"]] += 1
    return found


def packed(work: Work, shards: Sequence[int]) -> PackTotals:
    found = PackTotals()
    for shard in shards:
        for row in work.read("pack", shard, columns=["tar", "tar_bytes", "error"]).to_pylist():
            if row["error"] is None:
                found.pictures += 1
                found.tars[row["tar"]] = row["tar_bytes"]
            else:
                found.without[_kind(row["error"])] += 1
    return found


def questions(stage: Caption, shards: Sequence[int]) -> Questions:
    found = Questions()
    for shard in shards:
        sources = stage.rows(shard)["source"].to_pylist()
        found.pictures += sum(source not in stage.settings.own for source in sources)
        answers, tokens_in, tokens_out = stage.journal(shard).tokens()
        found.answers += answers
        found.tokens_in, found.tokens_out = found.tokens_in + tokens_in, found.tokens_out + tokens_out
    return found


def to_pack(stage: Pack, shards: Sequence[int]) -> int:
    """Pictures."""
    return sum(stage.rows(shard).num_rows for shard in shards)


def _kind(error: str) -> str:
    """An error without its numbers, so that its like can be counted."""
    return re.sub(r"[\d,]*\d", "#", error)[:90]
