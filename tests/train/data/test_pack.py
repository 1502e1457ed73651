"""Packing: the tars are WebDataset's, the index is true, and what goes wrong leaves no half of anything.

Why it can be trusted: the tars are read with the webdataset package, which knows nothing of our index, and the index
is checked by cutting the bytes it names out of the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from backend.errors import FileError, UsageError
from tests.train.packed import SMALL, corpus, pack, picture
from tests.train.works import scanned
from train.data.pack_stages import Bucket, Pack, choose_text
from train.data.tars.pack import PackConfig, pack_rows, read_members
from train.data.tars.reader import PackedIndex
from train.data.text_rules import unusable
from train.data.work import Work

SIZES = ((70, 66), (40, 90), (130, 50), (33, 40), (5, 5))  # the last fits no bucket


def webdatasets(tar: Path) -> list[dict[str, Any]]:
    return list(WebDataset(str(tar), shardshuffle=False))


def test_webdataset_reads_the_tars_and_the_index_says_where(tmp_path: Path) -> None:
    folder = pack(tmp_path, [range(40), range(40, 60)], SIZES)
    seen: dict[str, dict[str, Any]] = {}
    for tar in sorted(folder.glob("*/*.tar")):
        width, height = map(int, tar.parent.name.split("x"))
        for sample in webdatasets(tar):
            assert Image.open(io.BytesIO(sample["png"])).size == (width, height)
            assert sample["__key__"] not in seen
            seen[sample["__key__"]] = sample
    rows = [row for shard in (0, 1) for row in Work(tmp_path).read("pack", shard).to_pylist()]
    assert [row["key"] for row in rows] == [f"here/{n}.png" for n in range(60)]  # every picture has its row, in order
    packed = [row for row in rows if row["error"] is None]
    assert len(packed) == 48 == len(seen)
    for number, row in ((int(row["key"][5:-4]), row) for row in packed):
        sample = seen[row["name"]]
        assert sample["txt"] == f"caption {number}".encode()
        assert json.loads(sample["json"])["key"] == row["key"]
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert (pixels == (number, 0, 128)).all() and pixels.shape == (row["height"], row["width"], 3)
        block = (folder / row["tar"]).read_bytes()[row["offset"] : row["offset"] + row["nbytes"]]
        assert hashlib.sha256(block).digest() == row["sha256"]
        assert read_members(block) == {name: data for name, data in sample.items() if not name.startswith("__")}
        assert (folder / row["tar"]).stat().st_size == row["tar_bytes"]
    assert {row["error"] for row in rows if int(row["key"][5:-4]) % 5 == 4} == {"too small for every base"}


def test_the_same_input_gives_the_same_bytes_and_other_settings_leave_no_old_tars(tmp_path: Path) -> None:
    one, two = (pack(tmp_path / name, [range(40)], SIZES) for name in "ab")
    files = {path.relative_to(one): path.read_bytes() for path in one.glob("*/*.tar")}
    assert files == {path.relative_to(two): path.read_bytes() for path in two.glob("*/*.tar")}
    # Again, in many small tars, then back in one each: no sample twice for a reader of whole folders.
    pack(tmp_path / "b", [range(40)], SIZES, PackConfig(format="png", tar_bytes=10_240))
    assert len(list(two.glob("*/*.tar"))) > len(files)
    assert sum(len(webdatasets(tar)) for tar in two.glob("*/*.tar")) == 32
    pack(tmp_path / "b", [range(40)], SIZES)
    assert files == {path.relative_to(two): path.read_bytes() for path in two.glob("*/*.tar")}


def test_the_crop_is_what_the_table_says(tmp_path: Path) -> None:
    """Left third red, middle green, right blue: a square crop of the middle is green."""
    colours = np.zeros((60, 180, 3), np.uint8)
    for index in range(3):
        colours[:, 60 * index : 60 * index + 60, index] = 255
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG")
    row = {"key": "k", "base": 32, "width": 32, "height": 32, "left": 60, "top": 0, "right": 120, "bottom": 60}
    rows = pa.Table.from_pylist([{**row, "error": None, "caption": "c"}])
    index = pack_rows(rows, lambda row: buffer.getvalue(), PackConfig(format="webp"), tmp_path, 7).to_pylist()
    (sample,) = webdatasets(tmp_path / index[0]["tar"])
    inner = np.asarray(Image.open(io.BytesIO(sample["webp"])).convert("RGB"))[:, 4:-4]  # the filter reaches 3 further
    assert (inner == (0, 255, 0)).all()
    assert sample["__key__"] == "00007-000000"


def test_captions_that_are_none(tmp_path: Path) -> None:
    """Empty, binary, a megabyte: such a picture is not packed, its row says why, the others are."""
    rows, files = corpus(range(7), ((64, 64),))
    captions = ["fine", "", "  \n", None, "\x00\x01PNG\x02", "word " * 200_000, "café 🦊 猫"]
    rows = rows.set_column(rows.schema.get_field_index("caption"), "caption", pa.array(captions, pa.string()))
    index = pack_rows(rows, lambda row: files[row["key"]], PackConfig(), tmp_path, 0).to_pylist()
    errors = [row["error"] for row in index]
    assert errors[0] is None and errors[6] is None
    assert errors[1:4] == ["no caption"] * 3 and "binary" in errors[4] and "1,000,000 characters" in errors[5]
    texts = [sample["txt"].decode() for sample in webdatasets(tmp_path / index[0]["tar"])]
    assert texts == ["fine", captions[6]]
    assert unusable("half a \ud83e character") and unusable("\ufffd\ufffd") and not unusable("a\nb\tc")


def test_pictures_that_are_gone_damaged_or_shrunk(tmp_path: Path) -> None:
    rows, files = corpus(range(4), ((64, 64),))
    files["here/1.png"] = files["here/1.png"][:50]
    files["here/2.png"] = corpus(range(2, 3), ((32, 32),))[1]["here/2.png"]

    def read(row: Any) -> bytes:
        if row["key"] == "here/3.png":
            raise FileError("cannot read here/3.png: no such file")
        return files[row["key"]]

    errors = [row["error"] for row in pack_rows(rows, read, PackConfig(), tmp_path, 0).to_pylist()]
    assert errors[0] is None and all(errors[1:])
    assert "smaller than when it was scanned" in errors[2] and "no such file" in errors[3]


def test_a_key_that_occurs_twice(tmp_path: Path) -> None:
    rows, files = corpus(range(3), ((64, 64),))
    twice = pa.concat_tables([rows, rows.slice(0, 1)])
    with pytest.raises(FileError, match=r"'here/0\.png' stands for two pictures"):
        pack_rows(twice, lambda row: files[row["key"]], PackConfig(), tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_tar(tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond 30 kB, as a full disk or a quota does; then there is room again."""
    rows, files = corpus(range(40), ((64, 64),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(FileError, match=r"cannot write .*00000-0\.tar: file too large"):
            pack_rows(rows, lambda row: files[row["key"]], PackConfig(), tmp_path / "pack", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    folder = pack(tmp_path, [range(40)], ((64, 64),))
    assert sum(len(webdatasets(tar)) for tar in folder.glob("*/*.tar")) == 40


def test_tars_are_split_where_they_are_full(tmp_path: Path) -> None:
    folder = pack(tmp_path, [range(40)], ((64, 64),), PackConfig(format="png", tar_bytes=20_000))
    tars = sorted(folder.glob("64x64/*.tar"))
    assert [tar.name for tar in tars] == [f"00000-{part}.tar" for part in range(len(tars))] and len(tars) > 2
    assert all(tar.stat().st_size < 20_000 + 3 * 10_240 for tar in tars)
    assert sum(len(tarfile.open(tar).getmembers()) for tar in tars) == 120


@pytest.mark.parametrize("wrong", [{"text": "x"}, {"format": "gif"}, {"quality": 0}, {"tar_bytes": 1}])
def test_settings_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PackConfig(**wrong)


def test_while_tars_are_replaced_no_mark_vouches_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed anew with other settings, and a crash in the middle: the old index is gone, the next run mends it."""
    files = {f"{n}.png": picture(n, 70, 70) for n in range(4)} | {f"{n}.txt": b"words" for n in range(4)}
    work = scanned(tmp_path, {"a": files})
    kept = pa.table({"key": [f"a/{n}.png" for n in range(4)], "kept": [True] * 4})
    work.write("dedup", 0, kept, "none dropped")
    Bucket(work, SMALL)(0)
    stage = Pack(work, choose_text(work, [0], PackConfig(format="png")))
    stage(0)
    first = work.mark("pack", 0)
    stage(0)
    assert work.mark("pack", 0) == first  # nothing to do
    other = replace(stage, config=replace(stage.config, format="webp"))
    monkeypatch.setattr("train.data.pack_stages.open_picture", None)
    with pytest.raises(TypeError):
        other(0)
    assert work.mark("pack", 0) is None
    with pytest.raises(FileError, match="no packed pictures"):
        PackedIndex.load(work.folder / "pack")
    monkeypatch.undo()
    other(0)
    samples = [sample for tar in (work.folder / "pack").glob("*/*.tar") for sample in webdatasets(tar)]
    assert len(samples) == 4 and all("webp" in sample and sample["txt"] == b"words" for sample in samples)
    told = json.loads(samples[0]["json"])
    assert told["source"] == "a" and told["original_width"] == 70 and len(told["sha256"]) == 64 and "path" not in told
