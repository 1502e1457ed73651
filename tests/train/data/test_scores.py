"""Classic scores and thresholds. What is trusted: values that follow from the definition, an independent convolution,
and the direction in which a score must move when a picture is blurred, flattened or darkened.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from torch import from_numpy
from torch.nn import functional as F

from backend.errors import LensError, UsageError
from tests.train.data_files import encoded, noise
from train.data.filters import CLASSIC, FILTERS, JUDGES, LEARNED, NUMBERS, Thresholds
from train.data.scan import Scan, ScanSettings, make_plan
from train.data.score import Score, ScoreSettings, score_rows
from train.data.scores import classic
from train.data.select import (
    Select,
    SelectSettings,
    count,
    not_applied,
    probability,
    read_settings,
    scored_filters,
    select_rows,
)
from train.data.sources import parse_source
from train.data.work import Work

_KERNEL = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)


def _grey(seed: int, width: int = 512, height: int = 384) -> Image.Image:
    return noise(width, height, seed, smooth=6).convert("L")


# --------------------------------------------------------------------------------------------------------------- scores


def test_clarity_is_the_variance_of_the_laplacian() -> None:
    """At 512 pixels nothing is resampled, and torch's convolution states the rest."""
    luma = _grey(0)
    x = from_numpy(np.asarray(luma, np.float32))[None, None]
    expected = F.conv2d(x, from_numpy(_KERNEL)[None, None]).double().var(unbiased=False)
    assert classic.clarity(luma) == pytest.approx(float(expected), rel=1e-6)


def test_clarity_falls_as_blur_grows() -> None:
    for seed in range(3):
        luma = _grey(seed)
        scores = [
            classic.clarity(luma.filter(ImageFilter.GaussianBlur(r)) if r else luma) for r in (0, 0.5, 1, 2, 4, 8)
        ]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 20 * scores[4]


def test_clarity_does_not_follow_the_scale() -> None:
    """The same picture at 1, 2 and 3 times the size. Without the normalisation its score falls to a few percent."""
    for seed in range(2):
        small = _grey(seed).filter(ImageFilter.GaussianBlur(1.0))  # nothing that a larger raster could add
        scores = [classic.clarity(small.resize((512 * k, 384 * k), Image.Resampling.LANCZOS)) for k in (1, 2, 3)]
        assert max(scores) / min(scores) < 1.25
        plain = np.asarray(small.resize((1536, 1152), Image.Resampling.LANCZOS), np.float32)
        x = from_numpy(plain)[None, None]
        assert float(F.conv2d(x, from_numpy(_KERNEL)[None, None]).var()) < 0.1 * scores[0]


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (2, 900), (5, 5)])
def test_tiny_and_thin_pictures_have_a_score(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    assert classic.clarity(classic.grey(image)) == 0.0
    assert classic.entropy(classic.grey(image)) == 0.0
    assert classic.luminance(image) == pytest.approx(30 / 255)


def test_entropy_of_known_histograms() -> None:
    """n shades in equal shares have log2(n) bits; shares 1/2, 1/4, 1/8, 1/8 have 1.75."""
    for n in (1, 2, 16, 256):
        shades = np.repeat(np.arange(n, dtype=np.uint8), 256)
        assert classic.entropy(Image.fromarray(shades.reshape(16, -1))) == pytest.approx(math.log2(n))
    shades = np.repeat(np.array([0, 9, 99, 200], np.uint8), [128, 64, 32, 32])
    assert classic.entropy(Image.fromarray(shades.reshape(16, 16))) == pytest.approx(1.75)


def test_entropy_falls_with_the_number_of_shades() -> None:
    luma = np.asarray(_grey(1))
    scores = [classic.entropy(Image.fromarray((luma >> bits << bits).astype(np.uint8))) for bits in range(8)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 8


def test_luminance_is_the_mean_of_v() -> None:
    """colorsys states what V is."""
    import colorsys

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    expected = np.mean([colorsys.rgb_to_hsv(*(pixel / 255))[2] for pixel in pixels.reshape(-1, 3)])
    assert classic.luminance(Image.fromarray(pixels)) == pytest.approx(expected, abs=1e-9)
    image = noise(64, 64)
    scores = [classic.luminance(ImageEnhance.Brightness(image).enhance(k)) for k in (0, 0.3, 0.6, 1, 1.5)]
    assert scores == sorted(scores) and scores[0] == 0.0


def test_a_filter_is_scored_once_and_an_unreadable_picture_has_no_number(pictures: Path, tmp_path: Path) -> None:
    work = _scanned(pictures, tmp_path)
    Score(work, ("broken", "entropy"))(0)
    before = work.path("score/entropy", 0).stat().st_mtime_ns
    Score(work, CLASSIC)(0)
    assert work.path("score/entropy", 0).stat().st_mtime_ns == before
    tables = {name: work.read(f"score/{name}", 0) for name in CLASSIC}
    keys = work.read("scan", 0)["key"].to_pylist()
    assert all(table["key"].to_pylist() == keys for table in tables.values())
    broken = dict(zip(keys, tables["broken"]["error"].to_pylist(), strict=True))
    assert "truncated" in broken["s/cut.jpg"] and broken["s/text.jpg"] == "no picture of a known format"
    assert broken["s/good.jpg"] is None
    for name in ("clarity", "entropy", "luminance"):
        numbers = dict(zip(keys, tables[name]["score"].to_pylist(), strict=True))
        assert [key for key, value in numbers.items() if value is None] == ["s/cut.jpg", "s/text.jpg"]
    with pytest.raises(UsageError, match="unknown filter 'blur'"):
        Score(work, ("blur",))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good picture and one for every classic reason to drop it."""
    top = tmp_path_factory.mktemp("pictures") / "s"
    top.mkdir()
    good = noise(500, 400)
    made = {
        "good": good,
        "small": noise(383, 384),
        "blurred": good.filter(ImageFilter.GaussianBlur(9)),
        "flat": Image.fromarray((np.indices((400, 400)).sum(0) % 2 * 200).astype(np.uint8)).convert("RGB"),
        "dark": noise(500, 400, high=9),
        "long": noise(1200, 400),
    }
    for name, picture in made.items():
        (top / f"{name}.png").write_bytes(encoded(picture, "PNG", compress_level=1))
    (top / "good.jpg").write_bytes(encoded(good))
    (top / "cut.jpg").write_bytes(encoded(good)[:9000])
    (top / "text.jpg").write_bytes(b"hello")
    return top


def _scanned(pictures: Path, tmp_path: Path) -> Work:
    shutil.copytree(pictures, tmp_path / "s")
    work = Work(tmp_path / "work")
    make_plan(work, [parse_source(str(tmp_path / "s"))], ScanSettings(), "local", 0)
    Scan(work, ScanSettings().max_pixels)(0)
    return work


# --------------------------------------------------------------------------------------------------------------- select


def test_each_filter_drops_what_it_is_for(pictures: Path, tmp_path: Path) -> None:
    work = _scanned(pictures, tmp_path)
    Score(work, CLASSIC)(0)
    scored = scored_filters(work, [0])
    assert scored == CLASSIC
    settings = SelectSettings(Thresholds(aspect=2.0))
    table = Select(work, settings, scored).table(0)
    reasons = dict(zip(table["key"].to_pylist(), table["reasons"].to_pylist(), strict=True))
    assert "luminance" in reasons.pop("s/dark.png")  # and flat and soft, too, as what is dark is
    assert reasons == {
        "s/good.png": [],
        "s/good.jpg": [],
        "s/small.png": ["area"],
        "s/blurred.png": ["clarity"],
        "s/flat.png": ["entropy"],
        "s/long.png": ["aspect"],
        "s/cut.jpg": ["broken"],
        "s/text.jpg": ["broken"],
    }
    assert table["kept"].to_pylist() == [not why for why in table["reasons"].to_pylist()]
    assert not_applied(settings, scored) == ["nsfw", "aesthetic", "watermark"]
    everything = Thresholds(**dict.fromkeys(("area", "clarity", "entropy", "dark", "bright")), broken=False)
    table = Select(work, SelectSettings(everything), scored).table(0)
    assert [k for k, kept in zip(table["key"].to_pylist(), table["kept"].to_pylist(), strict=True) if not kept] == [
        "s/text.jpg"  # broken=False still cannot use what has no head
    ]


def _synthetic() -> tuple[pa.Table, dict[str, pa.Table]]:
    """Four readable pictures and one that is not, of two sources, with scores on and around every threshold."""
    keys = [f"k{i}" for i in range(5)]
    scan = pa.table(
        {
            "key": keys,
            "source": ["photos", "photos", "posters", "posters", "photos"],
            "width": pa.array([384, 383, 1000, 1000, None], pa.int32()),
            "height": pa.array([384, 384, 1000, 1000, None], pa.int32()),
            "error": [None, None, None, None, "cut short"],
        }
    )

    def scores(name: str, values: list[float | None]) -> pa.Table:
        return pa.table({"key": keys, name: pa.array(values, pa.float32())})

    nsfw = pa.table({"key": keys, "neutral": [1.0, 0.4, 0.8, 0.1, None], "Medium": [0.0, 0.3, 0.1, 0.2, None]})
    nsfw = nsfw.append_column("high", pa.array([0.0, 0.2, 0.1, 0.7, None]))
    return scan, {
        "nsfw": nsfw,
        "aesthetic": scores("score", [3.0, 2.9, 5.0, 5.0, None]),
        "watermark": scores("Watermark", [0.4, 0.6, 0.5, 0.0, None]),
        "clarity": scores("score", [50.0, 49.0, 10.0, 60.0, None]),
        "entropy": scores("score", [3.0, 7.0, 1.0, 7.0, None]),
        "luminance": scores("score", [0.05, 0.5, 0.97, 0.94, None]),
    }


def test_reasons_at_the_thresholds_and_beyond() -> None:
    """Worked out by hand: "at least" keeps the threshold itself, a probability that reaches its own does not."""
    scan, scores = _synthetic()
    table = select_rows(scan, scores, SelectSettings())
    assert table["reasons"].to_pylist() == [
        [],
        ["area", "nsfw", "aesthetic", "watermark", "clarity"],
        ["watermark", "clarity", "entropy", "luminance"],
        ["nsfw"],
        ["broken"],
    ]
    funnel = count([table])
    assert (funnel.pictures, funnel.kept) == (5, 1)
    assert funnel.first == {"broken": 1, "area": 1, "nsfw": 1, "watermark": 1} and next(iter(funnel.first)) == "broken"
    assert funnel.alone == {"broken": 1, "area": 0, "nsfw": 1, "watermark": 0}


def test_a_source_has_thresholds_of_its_own() -> None:
    scan, scores = _synthetic()
    given = ["posters.clarity=none", "posters.entropy=0.5", "posters.bright=none", "watermark=0.8"]
    settings, remembered = read_settings({}, given, ["photos", "posters"])
    table = select_rows(scan, scores, settings)
    assert table["reasons"].to_pylist()[2:4] == [[], ["nsfw"]]
    assert table["reasons"].to_pylist()[1] == ["area", "nsfw", "aesthetic", "clarity"]
    again, _ = read_settings(remembered, ["posters.entropy=default"], ["photos", "posters"])
    assert again.of("posters") == Thresholds(watermark=0.8, clarity=None, bright=None)
    assert again.of("photos") == Thresholds(watermark=0.8)
    for text, message in (
        ("entropi=1", "no such threshold"),
        ("slides.entropy=1", "no source is named 'slides'"),
        ("entropy=much", "'much' is not a number"),
        ("area=none=1", "is not a whole number"),
        ("entropy", "needs key=value"),
        ("entropy=nan", "'nan' is not a number"),
    ):
        with pytest.raises(UsageError, match=message):
            read_settings({}, [text], ["posters"])


def test_classes_that_count_must_exist() -> None:
    _, scores = _synthetic()
    assert probability(scores["nsfw"], "nsfw", ("medium", "high"))[:4] == pytest.approx([0.0, 0.5, 0.2, 0.9])
    with pytest.raises(UsageError, match="knows none of the classes explicit") as caught:
        probability(scores["nsfw"], "nsfw", ("explicit",))
    assert "neutral, Medium, high" in (caught.value.hint or "")


def test_scores_of_other_pictures_are_refused(pictures: Path, tmp_path: Path) -> None:
    scan, scores = _synthetic()
    with pytest.raises(LensError, match="not of these pictures"):
        select_rows(scan, {"entropy": scores["entropy"].take([1, 0, 2, 3, 4])}, SelectSettings())
    work = _scanned(pictures, tmp_path)
    Score(work, ("entropy",))(0)
    (tmp_path / "s" / "good.jpg").write_bytes(encoded(noise(500, 400, 5)))
    make_plan(work, [parse_source(str(tmp_path / "s"))], ScanSettings(), "local", 0)
    Scan(work, ScanSettings().max_pixels)(0)
    with pytest.raises(LensError, match="score/entropy of shard 0 is out of date: scan has changed since"):
        Select(work, SelectSettings(), ("entropy",)).table(0)


def test_scores_do_not_depend_on_how_pictures_are_read() -> None:
    """A row's numbers come from its bytes alone: order and neighbours change nothing."""
    data = {f"{i}": encoded(noise(100, 80, i)) for i in range(4)}
    keys = [*data]
    none, zero = pa.nulls(4, pa.string()), pa.array([0] * 4)
    rows = pa.table({"key": keys, "path": keys, "member": none, "offset": zero, "nbytes": zero, "error": none})
    forward = score_rows(rows, CLASSIC, read=lambda row: data[row["path"]])
    backward = score_rows(rows.take([3, 2, 1, 0]), CLASSIC, read=lambda row: data[row["path"]])
    assert all(backward[name].take([3, 2, 1, 0]).equals(forward[name]) for name in CLASSIC)


def test_every_row_of_the_filters_can_be_carried_out() -> None:
    """A classic row has its function, a learned one its setting, and each threshold is judged by just one row."""
    for name in CLASSIC:
        assert FILTERS[name].holds == "error" or callable(getattr(classic, name))
    models = {field.name for field in dataclasses.fields(ScoreSettings)}
    assert set(LEARNED) <= models
    judged = [limit for row in FILTERS.values() for limit in row.limits]
    thresholds = {field.name for field in dataclasses.fields(Thresholds)}
    assert sorted(judged) == sorted(name for name in thresholds if name != "broken" and not name.endswith("_labels"))
    assert JUDGES == ("broken", "area", "aspect", "nsfw", "aesthetic", "watermark", "clarity", "entropy", "luminance")
    assert NUMBERS == ("clarity", "entropy", "luminance", "aesthetic")
