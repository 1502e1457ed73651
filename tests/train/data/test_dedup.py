"""Duplicate pictures: exact, scaled and re-encoded copies go, the best one stays, look-alikes stay too.

Why it can be trusted: the copies are made here by Pillow, and which one is best is said here; the embeddings of the
CLIP part are made with known cosines. Pairs of hashes are compared with a search over all pairs.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance

from backend.errors import FileError, LensError, UsageError
from tests.train.works import scanned
from train.data.duplicates import perceptual
from train.data.duplicates.dedup import DedupSettings, Look, dedup
from train.data.work import Work


def scene(seed: int, width: int = 480, height: int = 360) -> Image.Image:
    """A picture with large and small structure: noise of five sizes, each as strong as it is coarse."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (4, 8, 16, 40, 100):
        small = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), float) / side
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def deduplicated(
    work: Work, captioned: tuple[str, ...] = (), **settings: Any
) -> tuple[Counter[str], dict[str, tuple[str | None, str | None]]]:
    """(how many of each kind, key -> (duplicate of, kind))."""
    shards = work.shards("scan")
    for shard in shards:
        Look(work)(shard)
    counts = dedup(work, shards, DedupSettings(**settings), captioned)
    rows = [row for shard in shards for row in work.read("dedup", shard).to_pylist()]
    assert all(row["kept"] == (row["duplicate_of"] is None) for row in rows)
    assert {row["duplicate_of"] for row in rows} - {None} <= {row["key"] for row in rows if row["kept"]}
    return counts, {row["key"]: (row["duplicate_of"], row["kind"]) for row in rows}


def test_one_with_a_caption_goes_before_a_larger_one_without(tmp_path: Path) -> None:
    """Without a text a picture cannot be trained on; where all are captioned later, size alone decides."""
    one = scene(1)
    half = file(one.resize((240, 180), Image.Resampling.LANCZOS))
    photos = {"large.png": file(one), "same.png": file(one), "told.png": half, "told.txt": b"a hill"}
    work = scanned(tmp_path, {"a": photos, "b": {"blank.png": half, "blank.txt": b"  "}})
    kept = {key for key, (of, _) in deduplicated(work)[1].items() if of is None}
    assert kept == {"a/told.png"}  # a blank caption is none
    kept = {key for key, (of, _) in deduplicated(work, captioned=("a", "b"))[1].items() if of is None}
    assert kept == {"a/large.png"}
    kept = {key for key, (of, _) in deduplicated(work, captioned=("b",))[1].items() if of is None}
    assert kept == {"a/told.png"}  # of the same size as the other that has a text: the first by name


def test_copies_go_and_the_largest_stays(tmp_path: Path) -> None:
    one, two = scene(1), scene(2)
    half = one.resize((240, 180), Image.Resampling.LANCZOS)
    photos = {
        "one.png": file(one),
        "again/one.png": file(one),
        "small.jpg": file(half, "JPEG", quality=60),
        "web.webp": file(one, "WEBP", quality=50),
        "brighter.png": file(ImageEnhance.Brightness(one).enhance(1.03)),
        "two.png": file(two),
        "turned.png": file(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "grey.png": file(one.convert("L")),
        "cut.png": file(one.crop((0, 0, 480, 300))),
    }
    work = scanned(tmp_path, {"a": photos, "b": {"two.jpg": file(two.resize((960, 720)), "JPEG")}}, shard_size=3)
    assert len(work.shards("scan")) > 2  # copies lie in different shards
    counts, found = deduplicated(work)
    assert found["a/one.png"] == ("a/again/one.png", "exact")  # of equals the first by name
    for copy in ("small.jpg", "web.webp", "brighter.png"):
        assert found[f"a/{copy}"] == ("a/again/one.png", "perceptual")
    assert found["a/two.png"] == ("b/two.jpg", "perceptual")  # the other has more pixels
    for other in ("a/again/one.png", "b/two.jpg", "a/turned.png", "a/grey.png", "a/cut.png"):
        assert found[other] == (None, None)
    assert counts == {"exact": 1, "perceptual": 4}
    assert deduplicated(work, kinds=("exact",))[0] == {"exact": 1}


def test_plain_pictures_of_other_colours_are_others(tmp_path: Path) -> None:
    """Bits alone would take them all for one."""
    names = ("red", "blue", "white", "black", "green")
    plain = {f"{name}.png": file(Image.new("RGB", (100, 100), name)) for name in names}
    plain["red2.png"] = file(Image.new("RGB", (90, 90), (250, 2, 2)))
    _, found = deduplicated(scanned(tmp_path, {"a": plain}))
    assert found.pop("a/red2.png") == ("a/red.png", "perceptual")
    assert set(found.values()) == {(None, None)}


def test_the_result_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    files = {f"{n:02}.png": file(scene(n % 7, 96 + 8 * (n % 3), 72 + 6 * (n % 3))) for n in range(15)}
    found = [deduplicated(scanned(tmp_path / str(size), {"a": files}, shard_size=size))[1] for size in (4, 100)]
    assert found[0] == found[1]
    assert sum(of is None for of, _ in found[0].values()) == 7


def with_embeddings(work: Work, vectors: dict[str, np.ndarray], shards: list[int] | None = None) -> None:
    for shard in work.shards("scan") if shards is None else shards:
        keys = work.read("scan", shard, columns=["key"])["key"].to_pylist()
        cells = [vectors[key].astype(np.float16).tolist() if key in vectors else None for key in keys]
        table = pa.table({"key": keys, "embedding": pa.array(cells, pa.list_(pa.float16(), 8))})
        work.write("score/clip", shard, table, "made up")


def test_embeddings_decide_after_the_looks(tmp_path: Path) -> None:
    files = {f"{n}.png": file(scene(n, 96 + 6 * n, 64 + 4 * n)) for n in range(5)}  # 4 is the largest
    work = scanned(tmp_path, {"a": files}, shard_size=2)
    angles = {4: 0.0, 3: 9.0, 2: 11.0, 1: 20.0}  # degrees from picture 4; arccos 0.985 is 9.94
    vectors = {
        f"a/{n}.png": np.array([np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a)), 0, 0, 0, 0, 0, 0])
        for n, a in angles.items()
    }
    with_embeddings(work, vectors)  # and none for picture 0
    counts, found = deduplicated(work)
    # 2 is 2 degrees from 3, but 3 is out; from 4, which stays, it is 11. 1 is 9 degrees from 2.
    assert found == {
        "a/4.png": (None, None), "a/3.png": ("a/4.png", "clip"), "a/2.png": (None, None),
        "a/1.png": ("a/2.png", "clip"), "a/0.png": (None, None),
    }  # fmt: skip
    assert counts == {"clip": 2}
    assert deduplicated(work, cosine=0.9999)[0] == {}
    assert not list((work.folder / "dedup").glob(".embeddings*"))


def test_the_better_liked_of_equally_large_ones_stays(tmp_path: Path) -> None:
    image = scene(3, 120, 90)
    files = {"a.png": file(image), "b.jpg": file(image, "JPEG", quality=80), "c.webp": file(image, "WEBP")}
    work = scanned(tmp_path, {"s": files})
    keys = work.read("scan", 0, columns=["key"])["key"].to_pylist()
    liked = {"s/a.png": 4.0, "s/b.jpg": 6.5, "s/c.webp": None}
    scores = pa.table({"key": keys, "score": pa.array([liked[key] for key in keys], pa.float32())})
    work.write("score/aesthetic", 0, scores, "made up")
    _, found = deduplicated(work)
    assert found["s/b.jpg"] == (None, None) and found["s/a.png"] == found["s/c.webp"] == ("s/b.jpg", "perceptual")


def test_nothing_is_done_twice_and_a_change_redoes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = scanned(tmp_path, {"a": {f"{n}.png": file(scene(n, 64, 48)) for n in range(4)}}, shard_size=2)
    deduplicated(work)
    marks = [work.mark("dedup", shard) for shard in (0, 1)]
    monkeypatch.setattr("train.data.duplicates.dedup._gather", None)  # would fail if it were called
    deduplicated(work)
    assert [work.mark("dedup", shard) for shard in (0, 1)] == marks
    with pytest.raises(TypeError):
        deduplicated(work, most_bits=0)


def test_what_cannot_be_meant_or_is_missing(tmp_path: Path) -> None:
    work = scanned(tmp_path, {"a": {f"{n}.png": file(scene(n, 64, 48)) for n in range(4)}}, shard_size=2)
    with_embeddings(work, {}, shards=[0])
    with pytest.raises(LensError, match="1 of 2 shards have no CLIP"):
        dedup(work, [0, 1], DedupSettings(kinds=("clip",)))
    with pytest.raises(LensError, match="dedup/look is not done"):
        dedup(work, [0, 1], DedupSettings(kinds=("perceptual",)))
    twice = work.read("select", 0)
    scan = work.read("scan", 0)
    work.write("scan", 1, scan, "the same again")
    work.write("select", 1, twice, "the same again")
    with pytest.raises(FileError, match="stands for two pictures"):
        dedup(work, [0, 1], DedupSettings(kinds=("exact",)))
    for wrong in ({"kinds": ("x",)}, {"most_bits": 64}, {"cosine": 1.0}, {"probes": 0}):
        with pytest.raises(UsageError):
            DedupSettings(**wrong)  # type: ignore[arg-type]


def test_bands_find_every_likeness() -> None:
    """Against all pairs: hashes in families that differ by 0 to 16 bits."""
    rng = np.random.default_rng(0)
    roots = rng.integers(0, 2, (40, 256), dtype=np.uint8)
    flat = roots[rng.integers(0, 40, 400)]
    for row in flat:
        row[rng.choice(256, rng.integers(0, 9), replace=False)] ^= 1
    bits = np.packbits(flat, axis=1)
    colours = rng.integers(0, 6, (400, 192)).astype(np.uint8)
    ratios = np.where(np.arange(400) % 10 == 0, 1.5, 1.0)
    found = perceptual.first_alike(bits, colours, ratios, most_bits=10, most_colour=1.9)
    expected: list[int] = []
    for one in range(400):
        alike = (
            other
            for other in range(one)
            if expected[other] < 0
            and (flat[one] != flat[other]).sum() <= 10
            and np.abs(colours[one].astype(int) - colours[other]).mean() <= 1.9
            and ratios[one] == ratios[other]
        )
        expected.append(next(alike, -1))
    assert found.tolist() == expected and 100 < (found >= 0).sum() < 300


def test_many_copies_are_no_many_pairs() -> None:
    """A placeholder that half the web shows: 40,000 copies are 800 million pairs, which no memory holds."""
    rng = np.random.default_rng(0)
    bits = np.repeat(rng.integers(0, 256, (1, 32), dtype=np.uint8), 40_000, axis=0)
    bits[np.arange(40_000), rng.integers(0, 32, 40_000)] ^= 1
    colours = np.zeros((40_000, 192), np.uint8)
    found = perceptual.first_alike(bits, colours, np.ones(40_000), most_bits=10, most_colour=6.0)
    assert found[0] == -1 and (found[1:] == 0).all()
