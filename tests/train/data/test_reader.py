"""The reader: every sample once an epoch, in an order that is a function of the position alone.

Why it can be trusted: what arrives is told by the pixels, which hold the picture's number, not by the index; and the
permutation is checked to be one by counting.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from backend.errors import FileError, UntrustedError, UsageError
from tests.train.packed import pack
from train.data.tars.reader import PackedIndex, TarReader, permute
from train.data.work import Work

SIZES = ((70, 66), (40, 90), (130, 50), (33, 40))  # 64x64, 32x64 and so on: four buckets
BATCHES = {32: 4, 64: 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), [range(50), range(50, 90), range(90, 100)], SIZES)


def numbers(source: TarReader, position: int) -> list[int]:
    """Which pictures the batch at a position holds, read from their pixels."""
    epoch, bucket, places = source.plan(position)
    assert epoch == position // source.epoch_batches and len(places) == source.batches[bucket.base]
    found: list[int] = []
    for sample in (source.sample(bucket, int(place)) for place in places):
        pixels = sample.pixels()
        assert pixels.shape == (bucket.height, bucket.width, 3)
        number = int(pixels[0, 0, 0]) + 256 * int(pixels[0, 0, 1])
        assert sample.text == f"caption {number}" and sample.record["key"] == f"here/{number}.png"
        found.append(number)
    return found


def reader(folder: Path, batches: Mapping[int, int] = BATCHES) -> TarReader:
    return TarReader(PackedIndex.load(folder), seed=3, batches=batches)


def taken(source: TarReader, steps: int, first: int = 0) -> list[list[int]]:
    return [numbers(source, position) for position in range(first, first + steps)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_permute_is_one_to_one(size: int) -> None:
    shuffled = permute(np.arange(size), size, "a key")
    assert sorted(shuffled.tolist()) == list(range(size))
    assert permute(np.arange(size)[::-1], size, "a key").tolist() == shuffled.tolist()[::-1]  # each for itself
    if size > 64:
        assert permute(np.arange(size), size, "another").tolist() != shuffled.tolist()


def test_permute_shuffles_well() -> None:
    """Where 0..9 of 1000 land under 4000 keys: every tenth equally often, and neighbours do not stay together."""
    landed = np.array([permute(np.arange(10), 1000, str(key)) for key in range(4000)])
    tenths = np.bincount(landed.ravel() // 100, minlength=10)
    assert np.abs(tenths - 4000).max() < 5 * np.sqrt(4000 * 0.9)  # five standard deviations
    together = (np.abs(np.diff(landed, axis=1)) == 1).mean()
    assert abs(together - 2 / 1000) < 0.0012  # by chance 0.2 %: five standard deviations of 36,000 pairs


def test_permute_stays_the_same_forever() -> None:
    """A change here would silently give resumed runs other data. Written down from the first version."""
    assert permute(np.arange(6), 1_000_000_007, "seed 0").tolist() == [
        422685863,
        565574777,
        948201487,
        593973547,
        364420947,
        433838740,
    ]


def test_an_epoch_has_every_sample_once(folder: Path) -> None:
    source = reader(folder, dict.fromkeys(BATCHES, 1))
    epoch, second = (list(itertools.chain(*taken(source, 100, first))) for first in (0, 100))
    assert source.epoch_batches == 100 and sorted(epoch) == sorted(second) == list(range(100)) and second != epoch


def test_what_fills_no_batch_is_another_in_the_next_epoch(folder: Path) -> None:
    source = reader(folder)
    count = source.epoch_batches
    batches = [taken(source, count, number * count) for number in range(6)]
    assert {frozenset(b) for b in batches[0]} != {frozenset(b) for b in batches[1]}  # who meets whom is shuffled too
    epochs = [list(itertools.chain(*batch)) for batch in batches]
    assert all(len(set(epoch)) == len(epoch) == 100 - sum(source.left_out().values()) < 100 for epoch in epochs)
    assert set(itertools.chain(*epochs)) == set(range(100))


def test_a_batch_is_a_function_of_its_position_also_in_another_process(folder: Path) -> None:
    source = reader(folder)
    expected = taken(source, 5)
    other = pickle.loads(pickle.dumps(source))
    assert [numbers(other, position) for position in (3, 0, 4)] == [expected[3], expected[0], expected[4]]
    assert taken(TarReader(source.index, seed=4, batches=BATCHES), 5) != expected


def test_a_tar_edited_by_hand(folder: Path, tmp_path: Path) -> None:
    """Cut, removed, one bit flipped: an error that names the tar and what to do; never another picture."""
    copy = tmp_path / "work" / "pack"
    shutil.copytree(folder, copy)
    tar = sorted(copy.glob("64x64/*.tar"))[0]
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(FileError, match="changed or cut short") as caught:
        PackedIndex.load(copy)
    assert "pack again" in str(caught.value.hint) and tar.name in str(caught.value)
    tar.unlink()
    with pytest.raises(FileError, match="no such file"):
        PackedIndex.load(copy)
    tar.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])  # of the first picture's pixels
    source = reader(copy, dict.fromkeys(BATCHES, 1))
    with pytest.raises(FileError, match=f"{tar.name} is not what was packed"):
        taken(source, source.epoch_batches)


@pytest.mark.parametrize("name", ["../../secret.tar", "/etc/passwd", "a/../../b.tar"])
def test_an_index_names_no_tar_outside_its_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """The index came with the tars; the file that it names exists and has the size it says."""
    shutil.copytree(folder.parent, tmp_path / "work")
    work = Work(tmp_path / "work")
    table = work.read("pack", 0)
    outside = tmp_path / "secret.tar"
    outside.write_bytes(bytes(int(table["tar_bytes"][0].as_py())))
    column = table.schema.get_field_index("tar")
    work.write("pack", 0, table.set_column(column, "tar", pa.array([name] * table.num_rows)), "stamp")
    with pytest.raises(UntrustedError, match="not below the folder"):
        PackedIndex.load(tmp_path / "work" / "pack")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("offset", None, pa.int64()),
        ("offset", -1, pa.int64()),
        ("offset", 2**62, pa.int64()),
        ("offset", float("nan"), pa.float64()),
        ("nbytes", 0, pa.int64()),
        ("nbytes", 2**62, pa.int64()),
        ("base", None, pa.int32()),
        ("width", -64, pa.int32()),
        ("height", "64", pa.string()),
        ("tar_bytes", None, pa.int64()),
        ("tar", "a\0b", pa.string()),
        ("tar", None, pa.string()),
        ("sha256", None, pa.binary()),
    ],
)
def test_a_damaged_index_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path, name: str, value: object, kind: pa.DataType
) -> None:
    shutil.copytree(folder.parent, tmp_path / "work")
    work = Work(tmp_path / "work")
    table = work.read("pack", 0)
    same = table.schema.field(name).type == kind
    column = pa.array([value, *table[name].to_pylist()[1:]] if same else [value] * len(table), kind)
    work.write("pack", 0, table.set_column(table.schema.get_field_index(name), name, column), "stamp")
    with pytest.raises((FileError, UntrustedError)) as caught:
        PackedIndex.load(tmp_path / "work" / "pack")
    assert "index" in str(caught.value) and "\n" not in str(caught.value)


def test_few_open_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.tars.reader._OPEN_TARS", 2)
    before = len(os.listdir("/proc/self/fd"))
    source = reader(folder)
    taken(source, 30)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    source.close()
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer where another test's files were collected


def test_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no packed pictures"):
        PackedIndex.load(tmp_path / "pack")
    index = PackedIndex.load(folder)
    with pytest.raises(UsageError, match="base 64"):
        TarReader(index, seed=0, batches={32: 4})
    with pytest.raises(UsageError, match=r"no bucket of .* fills a batch"):
        TarReader(index, seed=0, batches={32: 1000, 64: 1000})
