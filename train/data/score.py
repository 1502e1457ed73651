"""Stage 2, `score`: numbers of every picture, a Parquet file a filter and shard; nothing is judged here.

All filters of a run share one decode of each picture. A filter that is already done for a shard is not run again, so
filters can be added later.

Heavy ring: pyarrow, Pillow; torch only where a learned filter is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from backend.errors import FileError, UsageError
from train.data.filters import CLASSIC, FILTERS, LEARNED
from train.data.pictures import MAX_PIXELS, Unreadable, decode
from train.data.scores import classic
from train.data.work import Work, open_picture, stamp

if TYPE_CHECKING:
    from PIL import Image

    from train.data.scores.learned import Model

_BATCHES_HELD = 8  # of prepared pictures: bounds a shard's memory; 8 x 32 pictures of 448x448 are 620 MB
_COLUMNS = ["key", "path", "member", "offset", "nbytes", "error"]  # of `scan`


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    filters: tuple[str, ...] = CLASSIC  # of those without a model; "area" needs no score
    nsfw: str | None = None  # folder or Hub id of an image classifier; None: not scored
    watermark: str | None = None  # the same
    aesthetic: str | None = None  # folder or Hub id of the SigLIP encoder; None: not scored
    aesthetic_head: str | None = None  # file of the predictor's linear layers (.safetensors)
    clip: str | None = None  # folder or Hub id of a CLIP model; None: no embeddings, so no duplicates by CLIP
    download: bool = False  # fetch from the Hub what is named and not on this disk
    batch: int = 32  # pictures a call of a network
    device: str = "auto"  # of the networks: "auto", "cpu", "cuda", "cuda:1"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError("batch must be at least 1")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"device = {self.device!r} is unknown", hint="auto, cpu, cuda or cuda:N")


def find_models(settings: ScoreSettings) -> tuple[Model, ...]:
    """The learned filters that were named. Raises what `learned.find_model` raises."""
    named = {name: getattr(settings, name) for name in LEARNED if getattr(settings, name)}
    if not named:
        return ()
    from train.data.scores.learned import find_model  # torch: 1.4 s

    return tuple(
        find_model(name, given, head=settings.aesthetic_head, download=settings.download)
        for name, given in named.items()
    )


@dataclass(frozen=True)
class Score:
    """Writes `score/<filter>/<shard>` for those filters that are not done."""

    work: Work
    classic: tuple[str, ...]
    models: tuple[Model, ...] = ()
    max_pixels: int = MAX_PIXELS
    batch: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        unknown = [name for name in self.classic if name not in CLASSIC]
        if unknown:
            hint = f"filters: {', '.join(CLASSIC)}; {', '.join(LEARNED)} are asked for by naming a model"
            raise UsageError(f"unknown filter {unknown[0]!r}", hint=hint)

    def stamp(self, name: str, shard: int) -> str:
        config: dict[str, Any] = {"filter": name, "max_pixels": self.max_pixels}
        version = classic.VERSION
        for model in self.models:
            if model.filter == name:
                from train.data.scores import learned

                config["model"], version = model.identity, learned.VERSION
        return stamp(version, config, *self.work.inputs(shard, ["scan"]).values())

    def missing(self, shard: int) -> list[str]:
        """Filters that are not done for a shard."""
        names = [*self.classic, *(model.filter for model in self.models)]
        return [name for name in names if not self.work.done(f"score/{name}", shard, self.stamp(name, shard))]

    def __call__(self, shard: int) -> None:
        names = self.missing(shard)
        if not names:
            return
        read = self.work.inputs(shard, ["scan"])
        rows = self.work.read("scan", shard, columns=_COLUMNS)
        models = tuple(model for model in self.models if model.filter in names)
        wanted = tuple(name for name in self.classic if name in names)
        tables = score_rows(rows, wanted, models, self.max_pixels, batch=self.batch, device=self.device)
        for name in names:
            self.work.write(f"score/{name}", shard, tables[name], self.stamp(name, shard), read)


def score_rows(
    rows: pa.Table,
    names: tuple[str, ...],
    models: tuple[Model, ...] = (),
    max_pixels: int = MAX_PIXELS,
    read: Callable[[dict[str, Any]], bytes] = open_picture,
    *,
    batch: int = 32,
    device: str = "auto",
) -> dict[str, pa.Table]:
    """filter -> a row for every row of `scan`, in its order; null where the picture cannot be read.

    What a table holds says `Filter.holds`: `error`, why a picture does not decode (null: it does); `score`; every
    class's probability under its name; `embedding`, unit length, float16.
    """
    columns: dict[str, dict[str, list[Any]]] = {name: {} for name in names}
    columns |= {model.filter: {} for model in models}
    fields: dict[str, tuple[pa.Field, ...]] = {name: (_CLASSIC_FIELDS[FILTERS[name].holds],) for name in names}
    scorers: dict[str, Any] = {}
    if models:
        from train.data.scores import learned

        scorers = {m.filter: learned.load_scorer(m, learned.pick_device(device)) for m in models}
        fields |= {name: scorer.columns for name, scorer in scorers.items()}

    listed = rows.to_pylist()
    step = batch * _BATCHES_HELD if models else max(1, len(listed))
    for first in range(0, len(listed), step):
        prepared: dict[str, list[Any]] = {model.filter: [] for model in models}
        for row in listed[first : first + step]:
            image, error = None, row["error"]
            if error is None:
                try:
                    image = decode(read(row), max_pixels)
                except (FileError, Unreadable) as reason:
                    error = str(reason)
            for name, value in _classic(names, image, error).items():
                columns[name].setdefault(fields[name][0].name, []).append(value)
            for name, scorer in scorers.items():
                prepared[name].append(scorer.prepare(image) if image is not None else None)
        for model in models:
            from train.data.scores import learned

            scored = learned.score_batches(model, scorers[model.filter], prepared[model.filter], batch)
            for column, values in scored.items():
                columns[model.filter].setdefault(column, []).extend(values)

    key = pa.field("key", pa.string())
    return {
        name: pa.table(
            {"key": rows["key"], **{f.name: pa.array(given.get(f.name, []), f.type) for f in fields[name]}},
            schema=pa.schema([key, *fields[name]]),
        )
        for name, given in columns.items()
    }


_CLASSIC_FIELDS = {"error": pa.field("error", pa.string()), "score": pa.field("score", pa.float32())}


def _classic(names: tuple[str, ...], image: Image.Image | None, error: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {name: error if FILTERS[name].holds == "error" else None for name in names}
    if image is not None:
        pixels = {"rgb": image, "grey": classic.grey(image)}
        for name in names:
            if FILTERS[name].holds == "score":
                found[name] = getattr(classic, name)(pixels[FILTERS[name].pixels])
    return found
