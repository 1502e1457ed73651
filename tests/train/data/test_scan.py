"""Sources, shards, marks and `scan`. What is trusted: files written here, and hashlib."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.errors import FileError, LensError, UsageError
from tests.train.data_files import bomb, encoded, noise, write_tar
from train.data.scan import SCAN, Scan, ScanSettings, make_plan, planned, totals
from train.data.sources import PictureSource, parse_source, walk
from train.data.work import Work, open_picture, stamp


def _scan(work: Work, *sources: PictureSource, **settings: object) -> tuple[list[dict[str, object]], list[str]]:
    """All rows of `scan`, in the order of the shards, and the warnings."""
    chosen = ScanSettings(**settings)  # pyright: ignore[reportArgumentType]
    shards, notes = make_plan(work, sources, chosen, "local", 0)
    for shard in shards:
        Scan(work, chosen.max_pixels)(shard)
    rows = [row for shard in shards for row in work.read("scan", shard).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return rows, notes


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "work")


def test_a_folder_with_captions_and_odd_files(tmp_path: Path, work: Work) -> None:
    top = tmp_path / "photos"
    (top / "deep").mkdir(parents=True)
    (top / ".hidden").mkdir()
    picture = encoded(noise(40, 30))
    captions = {
        "a": b"a red kite\n",
        "bom": "ein Zug".encode("utf-8-sig"),
        "blank": b" \n",
        "binary": b"ab\0cd",
        "latin": "café".encode("latin-1"),
        "long": b"x" * 1_000_000,
        "page": b"x" * 20_001,
    }
    for name, caption in captions.items():
        (top / f"{name}.jpg").write_bytes(picture)
        (top / f"{name}.txt").write_bytes(caption)
    (top / "deep" / "z.JPG").write_bytes(picture)
    (top / ".hidden" / "b.jpg").write_bytes(picture)
    (top / "notes.md").write_text("no picture")
    (top / "phone.HEIC").write_bytes(b"not read")
    (top / "text.jpg").write_bytes(b"hello")
    (top / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (top / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")

    rows, notes = _scan(work, PictureSource("p", str(top)))
    found = {str(row["key"]): row for row in rows}
    assert notes == [f"{top}: 1 .heic passed over, pictures of a kind that is not read (make them .jpg or .png)"]
    assert set(found) == {
        "p/a.jpg", "p/bom.jpg", "p/blank.jpg", "p/binary.jpg", "p/latin.jpg", "p/long.jpg", "p/page.jpg",
        "p/deep/z.JPG", "p/text.jpg", "p/bomb.png", "p/gone.jpg",
    }  # fmt: skip
    plain = found["p/a.jpg"]
    assert {name: plain[name] for name in ("width", "height", "format", "mode", "nbytes", "sha256", "error")} == {
        "width": 40,
        "height": 30,
        "format": "JPEG",
        "mode": "RGB",
        "nbytes": len(picture),
        "sha256": hashlib.sha256(picture).hexdigest(),
        "error": None,
    }
    said = {name: (found[f"p/{name}.jpg"]["caption"], found[f"p/{name}.jpg"]["caption_error"]) for name in captions}
    assert said == {
        "a": ("a red kite", None),
        "bom": ("ein Zug", None),
        "blank": (None, None),
        "binary": (None, "the caption is no text (binary data?)"),
        "latin": (None, "not UTF-8"),
        "long": (None, "1,000,000 bytes are no caption"),
        "page": (None, "the caption has 20,001 characters, more than 20,000"),
    }
    assert found["p/text.jpg"]["error"] == "no picture of a known format"
    assert "not decoded" in str(found["p/bomb.png"]["error"])
    assert found["p/bomb.png"]["width"] == 60_000
    assert "cannot read" in str(found["p/gone.jpg"]["error"])
    assert totals(work) == {
        "shards": 1,
        "pictures": 11,
        "bytes": sum(int(str(row["nbytes"])) for row in rows),
        "unreadable": 3,
        "captions": 2,
        "captions_unusable": 4,
    }


def test_a_tar_and_the_same_tar_cut_anywhere(tmp_path: Path, work: Work) -> None:
    """A cut loses the member it hits and what comes after, and nothing else; it is always told."""
    pictures = {f"{i:03d}.jpg": encoded(noise(20 + i, 20, i)) for i in range(6)}
    members = {name: data for key in pictures for name, data in ((key, pictures[key]), (f"{key[:3]}.txt", b"word"))}
    whole = write_tar(tmp_path / "whole.tar", {"readme.md": b"x", **members})
    rows, notes = _scan(work, parse_source(str(tmp_path / "whole.tar")))
    assert not notes
    assert [(row["key"], row["caption"], row["error"]) for row in rows] == [
        (f"whole/{name}", "word", None) for name in pictures
    ]
    assert [open_picture(row) for row in rows] == list(pictures.values())

    ends = [int(str(row["offset"])) + int(str(row["nbytes"])) for row in rows]
    for at in (len(whole) // 2, ends[2] - 1, ends[2], -(-ends[2] // 512) * 512, ends[3] - 300):
        (tmp_path / "cut.tar").write_bytes(whole[:at])
        found, notes = _scan(Work(tmp_path / f"work-{at}"), parse_source(str(tmp_path / "cut.tar")))
        good = [row for row in found if row["error"] is None]
        assert len(good) == sum(end <= at for end in ends), at
        assert [open_picture(row) for row in good] == list(pictures.values())[: len(good)]
        assert all("cut short" in str(row["error"]) for row in found if row["error"] is not None)
        assert len(found) - len(good) <= 1
        assert len(notes) == 1 and "cut short" in notes[0]


def test_a_tar_with_two_members_of_one_name(tmp_path: Path, work: Work) -> None:
    write_tar(tmp_path / "both.tar", {"a.jpg": encoded(noise(20, 20))})
    (tmp_path / "a.jpg").write_bytes(encoded(noise(30, 30)))
    with tarfile.open(tmp_path / "both.tar", "a") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    rows, _ = _scan(work, PictureSource("s", str(tmp_path / "both.tar")))
    assert [(row["key"], row["width"]) for row in rows] == [("s/a.jpg", 20), ("s/a.jpg#2", 30)]


def test_no_tar_at_all_and_a_compressed_one(tmp_path: Path, work: Work) -> None:
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b not a tar" * 100)
    with pytest.raises(FileError, match=r"cannot read .*x\.tar") as caught:
        _scan(work, PictureSource("x", str(tmp_path / "x.tar")))
    assert "uncompressed" in (caught.value.hint or "")
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(UsageError) as refused:
        parse_source(str(tmp_path / "x.tar.gz"))
    assert "unpacked" in (refused.value.hint or "")


def test_parquet_of_bytes_and_parquet_of_paths(tmp_path: Path, work: Work) -> None:
    data = [encoded(noise(20 + i, 20, i), "PNG") for i in range(5)]
    inside = pa.table({"image": [{"bytes": d, "path": None} for d in data], "text": ["one", None, "", "four", "five"]})
    pq.write_table(inside, tmp_path / "inside.parquet", row_group_size=2)
    (tmp_path / "b.png").write_bytes(data[0])
    listed = pa.table({"path": ["b.png", str(tmp_path / "b.png"), "gone.png", None], "caption": ["x", "y", "z", None]})
    pq.write_table(listed, tmp_path / "listed.parquet")

    rows, _ = _scan(
        work, parse_source(str(tmp_path / "inside.parquet")), PictureSource("l", str(tmp_path / "listed.parquet"))
    )
    first, second = rows[:5], rows[5:]
    assert [open_picture(row) for row in first] == data
    assert [open_picture(row) for row in reversed(first)] == data[::-1]
    assert [row["caption"] for row in first] == ["one", None, None, "four", "five"]
    assert [row["sha256"] for row in first] == [hashlib.sha256(d).hexdigest() for d in data]
    assert [row["error"] is None for row in second] == [True, True, False, False]
    assert second[0]["key"] == "l/b.png"

    pq.write_table(pa.table({"label": [1]}), tmp_path / "neither.parquet")
    with pytest.raises(UsageError, match="no column of image bytes or paths; its columns: label"):
        _scan(Work(tmp_path / "w2"), parse_source(str(tmp_path / "neither.parquet")))
    pq.write_table(pa.table({"path": ["https://x.test/a.jpg"]}), tmp_path / "far.parquet")
    with pytest.raises(UsageError, match="lists addresses"):
        _scan(Work(tmp_path / "w3"), parse_source(str(tmp_path / "far.parquet")))


def test_shards_are_full_and_only_changed_ones_are_scanned_again(tmp_path: Path) -> None:
    top = tmp_path / "photos"
    top.mkdir()
    for i in range(7):
        (top / f"{i}.jpg").write_bytes(encoded(noise(20, 20, i)))
    write_tar(top / "more.tar", {"x.jpg": encoded(noise(20, 20)), "y.jpg": encoded(noise(20, 20, 1))})
    work = Work(top / "work")  # inside the source: it must not find itself
    source = PictureSource("p", str(top))
    rows, _ = _scan(work, source, shard_size=3)
    assert [work.read("scan", s).num_rows for s in planned(work)] == [3, 3, 1, 2]
    assert [row["key"] for row in rows][-2:] == ["p/more.tar/x.jpg", "p/more.tar/y.jpg"]
    before = {shard: work.path("scan", shard).stat().st_mtime_ns for shard in planned(work)}

    (top / "4.jpg").write_bytes(encoded(noise(50, 20, 9)))
    write_tar(work.folder / "packed.tar", {"z.jpg": encoded(noise(20, 20))})
    rows, _ = _scan(work, source, shard_size=3)
    after = {shard: work.path("scan", shard).stat().st_mtime_ns for shard in planned(work)}
    assert [shard for shard in after if after[shard] != before[shard]] == [1]
    assert rows[4]["width"] == 50

    os.utime(top / "more.tar")  # another time, the same contents: listed again, scanned not
    _scan(work, source, shard_size=3)
    assert work.path("scan", 3).stat().st_mtime_ns == before[3]


def test_what_cannot_be_read_is_told(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="max_pixels = 100,000,001 is above"):
        ScanSettings(max_pixels=100_000_001)
    with pytest.raises(FileError, match=r"cannot list .*no such file"):
        list(walk(tmp_path / "nowhere", work.folder))
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"not read")
    with pytest.raises(UsageError, match="no pictures in") as caught:
        _scan(work, PictureSource("p", str(tmp_path / "phone")))
    assert "1 .heic passed over" in (caught.value.hint or "")
    (tmp_path / "phone" / "b.png").write_bytes(encoded(noise(20, 20), "PNG"))
    monkeypatch.setattr("train.data.work.PICTURE_BYTES", 100)  # of a file, so that it need not be made
    (row,), _ = _scan(work, PictureSource("p", str(tmp_path / "phone")))
    assert "is larger than 100 B: not read" in str(row["error"]) and row["sha256"] is None


def test_what_comes_before_shifts_no_shard(tmp_path: Path, work: Work) -> None:
    top = tmp_path / "tars"
    top.mkdir()
    for name in ("b", "c", "d"):
        write_tar(top / f"{name}.tar", {f"{name}.jpg": encoded(noise(20, 20, ord(name)))})
    source = PictureSource("p", str(top))
    _scan(work, source)
    before = {shard: work.path("scan", shard).stat().st_mtime_ns for shard in planned(work)}
    write_tar(top / "a.tar", {"a.jpg": encoded(noise(20, 20))})
    rows, _ = _scan(work, source)
    assert [row["key"] for row in rows] == [f"p/{name}.tar/{name}.jpg" for name in "bcda"]
    assert all(work.path("scan", shard).stat().st_mtime_ns == time for shard, time in before.items())
    (top / "b.tar").unlink()  # a hole is filled, so that shards are numbered without gaps
    rows, _ = _scan(work, source)
    assert [row["key"] for row in rows] == [f"p/{name}.tar/{name}.jpg" for name in "acd"]
    assert work.path("scan", 1).stat().st_mtime_ns == before[1]


def test_an_interrupted_scan_is_no_ground_for_other_stages(tmp_path: Path, work: Work) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(noise(20, 20, i)))
    make_plan(work, [PictureSource("p", str(tmp_path))], ScanSettings(shard_size=2), "local", 0)
    Scan(work, ScanSettings().max_pixels)(0)
    with pytest.raises(LensError, match="1 of 2 shards are not scanned yet"):
        planned(work)


def test_names_of_sources(tmp_path: Path, work: Work) -> None:
    (tmp_path / "a b").mkdir()
    assert parse_source(f"x={tmp_path / 'a b'}") == PictureSource("x", str(tmp_path / "a b"))
    assert parse_source(str(tmp_path / "a b")).name == "a b"
    (tmp_path / "k=v").mkdir()
    assert parse_source(str(tmp_path / "k=v")).name == "k=v"
    with pytest.raises(UsageError, match="no such source"):
        parse_source("/no/such/place")
    with pytest.raises(UsageError, match="two sources are named 'x'"):
        _scan(work, PictureSource("x", str(tmp_path)), PictureSource("x", str(tmp_path / "a b")))
    with pytest.raises(UsageError, match="no pictures in"):
        _scan(work, PictureSource("x", str(tmp_path / "a b")))
    with pytest.raises(LensError, match="nothing was scanned yet"):
        planned(Work(tmp_path / "elsewhere"))


# ---------------------------------------------------------------------------------------------------------------- marks


def test_a_mark_follows_its_file_and_vouches_for_nothing_else(tmp_path: Path) -> None:
    work, table = Work(tmp_path), pa.table({"x": [1, 2, 3]})
    assert not work.done("stage", 0, "a")
    work.write("stage", 0, table, "a")
    assert work.done("stage", 0, "a") and not work.done("stage", 0, "b")
    said = json.loads((tmp_path / "stage" / "00000.done").read_text())
    assert said["rows"] == 3
    assert said["sha256"] == hashlib.sha256((tmp_path / "stage" / "00000.parquet").read_bytes()).hexdigest()
    for stage in ("../elsewhere", "/elsewhere", 300 * "1"):  # a stranger's folder: what it read is no path of ours
        (tmp_path / "stage" / "00000.done").write_text(json.dumps(said | {"reads": {stage: "0"}}))
        assert work.mark("stage", 0) is None and work.changed("stage", 0) == "stage"
    (tmp_path / "stage" / "00000.done").write_text('{"rows": 3')  # cut by a full disk
    assert work.mark("stage", 0) is None
    with pytest.raises(LensError, match="stage is not done for shard 0"):
        work.read("stage", 0)


def test_what_was_made_from_older_tables_is_told(tmp_path: Path) -> None:
    """scan -> select -> bucket: each mark names what it read, and a change below shows above."""
    work, table = Work(tmp_path), pa.table({"x": [1]})
    work.write("scan", 0, table, "a")
    work.write("select", 0, table, "a", work.inputs(0, ["scan"]))
    work.write("bucket", 0, table, "a", work.inputs(0, ["select"]))
    work.write("scan", 0, table, "b")  # anew, with the same contents
    assert work.inputs(0, ["bucket"]) == {"bucket": work.sha256("scan", 0)}
    work.write("scan", 0, pa.table({"x": [2]}), "c")
    assert [work.changed(stage, 0) for stage in ("scan", "select", "bucket", "pack")] == [None, "scan", "scan", "pack"]
    with pytest.raises(LensError, match="bucket of shard 0 is out of date: scan has changed since") as caught:
        work.inputs(0, ["bucket"])
    assert "lens train data run" in (caught.value.hint or "")
    assert work.read("bucket", 0).num_rows == 1  # it may be looked at
    work.write("select", 0, table, "c", work.inputs(0, ["scan"]))  # another scan, the same selection
    assert work.changed("bucket", 0) is None
    work.path("select", 0).with_suffix(".done").unlink()
    assert work.changed("bucket", 0) == "select"


def test_an_interrupted_write_leaves_the_old_pair_or_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(tmp_path)
    work.write("stage", 0, pa.table({"x": [1]}), "a")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("train.data.work.pq.write_table", full_disk)
        with pytest.raises(FileError, match="no space left") as caught:
            work.write("stage", 0, pa.table({"x": [2]}), "b")
        assert "disk is full" in (caught.value.hint or "")
    assert work.done("stage", 0, "a") and work.read("stage", 0)["x"].to_pylist() == [1]

    with monkeypatch.context() as patch:  # between the two files
        patch.setattr("train.data.work.write_atomic", full_disk)
        with pytest.raises(OSError):
            work.write("stage", 0, pa.table({"x": [2]}), "b")
    assert work.mark("stage", 0) is None  # so that it is redone
    assert sorted(file.name for file in (tmp_path / "stage").iterdir()) == ["00000.parquet"]


def test_a_damaged_table_is_named_with_the_way_out(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.write("stage", 0, pa.table({"x": [1]}), "a")
    work.path("stage", 0).write_bytes(b"PAR1 not really")
    with pytest.raises(FileError, match=r"stage/00000\.parquet") as caught:
        work.read("stage", 0)
    assert "00000.done" in (caught.value.hint or "")


def test_stamps_follow_version_config_and_inputs() -> None:
    base = stamp(1, {"a": 1, "b": 2}, "x", "y")
    assert stamp(1, {"b": 2, "a": 1}, "x", "y") == base
    assert (
        len(
            {
                base,
                stamp(2, {"a": 1, "b": 2}, "x", "y"),
                stamp(1, {"a": 1}, "x", "y"),
                stamp(1, {"a": 1, "b": 2}, "y", "x"),
            }
        )
        == 4
    )


def test_a_picture_that_changed_after_the_scan(tmp_path: Path, work: Work) -> None:
    write_tar(tmp_path / "a.tar", {"x.jpg": encoded(noise(30, 30))})
    rows, _ = _scan(work, parse_source(str(tmp_path / "a.tar")))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(FileError, match=r"cut short at x\.jpg"):
        open_picture(rows[0])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileError, match="cannot read"):
        open_picture(rows[0])
    assert work.read("scan", 0).schema.equals(SCAN)
