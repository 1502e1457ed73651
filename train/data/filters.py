"""The filters of the data stages, a row each: what a filter measures, what it must reach, how it is named and drawn.

`score` measures the rows that are not read from `scan`, `select` applies their limits, `pack` passes their numbers on,
`report` draws them. A new filter without a model is a function in `train.data.scores.classic` of the row's name, a row
here and its thresholds beside it.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Keeps = Literal["at least", "at most", "below"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a picture must reach. None: this filter is not applied.

    The paper gives area and aesthetic; the others are suggestions, to be calibrated on one's own pictures.
    """

    broken: bool = True  # drop what does not decode; False keeps only the head's word, for a quick look
    area: int | None = 384 * 384  # pixels, at least (paper)
    aspect: float | None = None  # long side over short side, at most; the paper's buckets end at 2
    nsfw: float | None = 0.5  # probability of `nsfw_labels` together, below
    aesthetic: float | None = 3.0  # on the predictor's scale of 1 to 10, at least (paper)
    watermark: float | None = 0.5  # probability of `watermark_labels` together, below
    clarity: float | None = 50.0  # variance of the Laplacian, at least
    entropy: float | None = 3.0  # bits, at least
    dark: float | None = 0.05  # luminance: mean V, at least
    bright: float | None = 0.95  # luminance: mean V, at most
    nsfw_labels: tuple[str, ...] = ("medium", "high", "nsfw", "porn", "hentai")  # classes that count; any case
    watermark_labels: tuple[str, ...] = ("watermark",)


@dataclass(frozen=True)
class Bins:
    """A histogram's; what lies outside counts in the first or the last."""

    first: float
    last: float
    count: int
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One row."""

    name: str
    source: Literal["scan", "classic", "learned"]  # scan: known from the head; classic: needs no model
    # What its table holds beside the key: an error, one number `score`, a probability a class, an embedding.
    holds: Literal["error", "score", "classes", "embedding"] = "score"
    pixels: Literal["grey", "rgb"] = "grey"  # classic: what its function is given, as Pillow's image
    limits: Mapping[str, Keeps]  # threshold -> which values stay
    label: str = ""  # quantity and unit, for the report
    bins: Bins | None = None  # of the report's histogram; None: not drawn
    veil: bool = False  # the report blurs its pictures until they are pointed at


# In the paper's order, which is the order of the report's funnel. An unreadable picture fails `broken` alone.
# fmt: off
_ROWS = (
    Filter(name="broken", source="classic", holds="error", limits={}),
    Filter(name="area", source="scan", limits={"area": "at least"},
           label="area, pixels", bins=Bins(1e3, 1e8, 50, log=True)),
    Filter(name="aspect", source="scan", limits={"aspect": "at most"},
           label="long side / short side", bins=Bins(1, 10, 40, log=True)),
    Filter(name="nsfw", source="learned", holds="classes", limits={"nsfw": "below"},
           label="probability of the classes that count", bins=Bins(0, 1, 40), veil=True),
    Filter(name="aesthetic", source="learned", limits={"aesthetic": "at least"},
           label="aesthetic score", bins=Bins(1, 10, 45)),
    Filter(name="watermark", source="learned", holds="classes", limits={"watermark": "below"},
           label="probability of a watermark", bins=Bins(0, 1, 40)),
    Filter(name="clarity", source="classic", limits={"clarity": "at least"},
           label="clarity: variance of the Laplacian", bins=Bins(0.1, 1e5, 60, log=True)),
    Filter(name="entropy", source="classic", limits={"entropy": "at least"},
           label="entropy, bits", bins=Bins(0, 8, 40)),
    Filter(name="luminance", source="classic", pixels="rgb", limits={"dark": "at least", "bright": "at most"},
           label="luminance: mean V", bins=Bins(0, 1, 40)),
    Filter(name="clip", source="learned", holds="embedding", limits={}),  # judges nothing: `dedup` compares them
)
# fmt: on
FILTERS: Mapping[str, Filter] = {row.name: row for row in _ROWS}
CLASSIC = tuple(row.name for row in _ROWS if row.source == "classic")
LEARNED = tuple(row.name for row in _ROWS if row.source == "learned")
JUDGES = tuple(row.name for row in _ROWS if row.limits or row.holds == "error")  # those that may drop a picture
NUMBERS = tuple(name for name in (*CLASSIC, *LEARNED) if FILTERS[name].holds == "score")  # one number a picture
DRAWN = tuple(row for row in _ROWS if row.bins is not None)
