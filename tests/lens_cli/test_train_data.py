"""`lens train data` as it is typed: from a folder to a report, and what a person is told on the way.

One work folder serves most tests in the order in which a person would go; each stage's numbers are counted by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from backend.disk import claimed
from tests.lens_cli.cli import Run, lens_inside
from tests.train.data_files import encoded, noise, write_tar


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good pictures (four with captions), one too small, one blurred, one broken; a tar of two, cut short."""
    from PIL import ImageFilter

    top = tmp_path_factory.mktemp("sources")
    (top / "photos").mkdir()
    for i in range(6):
        (top / "photos" / f"good{i}.jpg").write_bytes(encoded(noise(420, 400, i)))
        if i < 4:
            (top / "photos" / f"good{i}.txt").write_text("word " * (10 * i + 1))
    (top / "photos" / "small.png").write_bytes(encoded(noise(100, 100), "PNG"))
    (top / "photos" / "<b>blurred.jpg").write_bytes(encoded(noise(420, 400).filter(ImageFilter.GaussianBlur(9))))
    (top / "photos" / "broken.jpg").write_bytes(encoded(noise(420, 400))[:5000])
    whole = write_tar(top / "shards.tar", {"a.jpg": encoded(noise(400, 400)), "b.jpg": encoded(noise(400, 400))})
    (top / "shards.tar").write_bytes(whole[: len(whole) // 2])
    return top


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def run(stage: str, *words: str) -> Run:
        return lens_inside(monkeypatch, capfd, "train", "data", stage, *words)

    return run


def test_from_a_folder_to_a_report(data, photos: Path, tmp_path: Path) -> None:
    work = str(tmp_path / "work")
    dry = data("scan", work, str(photos / "photos"), f"old={photos / 'shards.tar'}", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert dry.json["data"]["pictures"] == 11 and dry.json["data"]["measured_on"] == 11
    assert not Path(work).exists()
    # Eight of 420 x 400 in JPEG, six good, one blurred, one half: too small for any bucket, so no tars.
    assert dry.json["data"]["disk"] < 100_000 and dry.json["data"]["hours"]["pack"] >= 0

    scan = data("scan", work, str(photos / "photos"), f"old={photos / 'shards.tar'}", "--workers", "0", "--json")
    assert scan.code == 0, scan.err
    assert scan.json["data"]["pictures"] == 11
    assert scan.json["data"]["captions"] == 4
    assert scan.json["data"]["shards"] == 2
    assert any("cut short" in warning for warning in scan.json["warnings"])

    early = data("select", work)
    assert early.code == 0
    assert "clarity is not applied: it was not scored" in early.err

    score = data("score", work, "--workers", "0", "--json")
    assert score.json["data"] == {"filters": ["broken", "clarity", "entropy", "luminance"], "shards": 2}

    select = data("select", work, "--workers", "0", "--json")
    assert select.json["data"]["kept"] == 7  # six photos and the tar's first
    assert select.json["data"]["dropped"] == {"broken": 2, "area": 1, "clarity": 1}

    foretold = data("select", work, "--set", "photos.clarity=none", "--dry-run", "--json")
    assert foretold.json["data"]["kept"] == 8
    again = data("select", work, "--workers", "0", "--json")
    assert again.json["data"]["kept"] == 7  # a dry run is not remembered
    data("select", work, "--workers", "0", "--set", "photos.clarity=none")
    assert json.loads((tmp_path / "work" / "config.json").read_text())["select"] == {"photos.clarity": None}
    assert data("select", work, "--workers", "0", "--json").json["data"]["kept"] == 8  # what was set is

    report = data("report", work)
    assert report.lines == [f"{work}/report.html"]
    page = Path(report.lines[0]).read_text(encoding="utf-8")
    assert "<strong>8 kept</strong>" in page
    assert "on average\n<strong>16 words</strong>; the paper's are 109" in page  # 1, 11, 21 and 31
    assert "&lt;b&gt;blurred.jpg" in page and "<b>blurred" not in page  # names are strangers' text
    assert page.count("<svg") == 7  # funnel, captions; area, aspect, clarity, entropy, luminance
    assert "data:image/jpeg;base64," in page
    assert not re.search(r"(src|href)=\"?(http|/)", page)  # one file, no links
    assert "cut short" in page


def test_a_source_may_be_called_anything(data, photos: Path, tmp_path: Path) -> None:
    """Names go into charts, whose drawer takes what stands between dollar signs for a formula."""
    name = r"$\nonsense$<b>"
    run = data("run", str(tmp_path / "work"), f"{name}={photos / 'photos'}", "--workers", "0", "--set",
               f"select.{name}.clarity=none", "--set", "report.near=1")  # fmt: skip
    assert run.code == 8, run.err  # the small photos fit no base, so none is packed; the report is written all the same
    page = (tmp_path / "work" / "report.html").read_text(encoding="utf-8")
    assert "$\\nonsense$&lt;b&gt;" in page and "<b>" not in page


def test_run_does_all_and_then_nothing(data, photos: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    words = (str(work), str(photos / "photos"), "--workers", "0", "--set", "select.entropy=0", "--set", "report.near=2")
    first = data("run", *words)
    assert first.code == 8 and "no picture was packed: 6 of 6: too small for every base" in first.err, first.err
    assert "select: 6 of 9 pictures kept" in first.err
    tables = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
    assert data("run", str(work), "--workers", "0").code == 8  # the sources are remembered
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")} == tables


def test_the_filter_that_took_the_most_is_named(data, photos: Path, tmp_path: Path) -> None:
    words = (str(tmp_path / "work"), str(photos / "photos"), "--workers", "0", "--set", "report.near=1")
    run = data("run", *words, "--set", "select.entropy=8", "--json")
    error = run.json["error"]
    assert run.code == 8 and "entropy the most" in error["message"], error
    assert "--set select.entropy=none" in error["hint"]


LATE = (  # what a later stage of `run` refuses, before the first one has read or written anything
    ("bucket.upscale=9", "upscale"), ("bucket.upscal=2", "bucket has no such setting"),
    ("pack.format=gif", "gif"), ("select.photos.entropy=x", "'x' is not"), ("select.other.entropy=3", "no source"),
    ("score.batch=x", "'x' is not"), ("dedup.kinds=x", "kind of duplicate"), ("caption.timeout=x", "'x' is not"),
    ("report.near=x", "'x' is not"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("scan", "WORK"), "no pictures were named", "lens train data scan"),
        (("run", "PHOTOS"), "no pictures were named", "lens train data run WORK /"),
        (("scan", "WORK", "/no/where"), "no such source: /no/where", "NAME=PATH"),
        (("score", "WORK"), "nothing was scanned yet", "lens train data scan"),
        (("select", "WORK"), "nothing was scanned yet", "lens train data scan"),
        (("report", "WORK"), "nothing was scanned yet", "lens train data scan"),
        (("scan", "WORK", "PHOTOS", "--set", "shard=9"), "scan has no such setting", "shard_size"),
        (("scan", "WORK", "PHOTOS", "--set", "shard_size=x"), "'x' is not a whole number", None),
        (("scan", "WORK", "PHOTOS", "--set", "shard_size=0"), "shard_size", None),
        (("scan", "WORK", "PHOTOS", "--engine", "slurm"), "unknown engine 'slurm'", "local, ray"),
        (("run", "WORK", "PHOTOS", "--set", "entropy=3"), "not stage.key=value", "select"),
        *((("run", "WORK", "PHOTOS", "--set", late), message, None) for late, message in LATE),
    ],
)
def test_what_cannot_be_done_says_why(
    data,
    photos: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    hint: str | None,
) -> None:
    places = {"WORK": str(tmp_path / "work"), "PHOTOS": str(photos / "photos")}
    run = data(*(places.get(word, word) for word in words))
    assert run.code in (1, 2)
    assert message in run.err
    assert hint is None or hint in run.err
    assert "Traceback" not in run.err
    assert not (tmp_path / "work" / "scan").exists()


def test_a_config_edited_by_hand(data, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "config.json").write_text("{not json")
    run = data("scan", str(tmp_path / "work"), str(photos / "photos"))
    assert run.code == 1 and "config.json" in run.err and "mend it" in run.err
    (tmp_path / "work" / "config.json").write_text('{"scan": {"shards": 3}}')
    run = data("scan", str(tmp_path / "work"), str(photos / "photos"))
    assert run.code == 2 and "has no setting 'shards'" in run.err
    for section, said in (
        ('{"scan": [3]}', "scan is not a JSON object"),
        ('{"scan": {"shard_size": "many"}}', "shard_size = 'many' is not a whole number"),
        ('{"scan": {"shard_size": null}}', "shard_size = None is not a whole number"),
    ):
        (tmp_path / "work" / "config.json").write_text(section)
        run = data("scan", str(tmp_path / "work"), str(photos / "photos"))
        assert run.code in (1, 2) and said in run.err and "mend it" in run.err, run.err
    (tmp_path / "work" / "config.json").write_text('{"select": {"entropy": "low"}}')
    run = data("select", str(tmp_path / "work"))
    assert run.code == 2 and "entropy = 'low' is not a number" in run.err


def test_a_second_process_in_one_work_folder_is_refused(data, photos: Path, tmp_path: Path) -> None:
    """It took the first one's half-done shards for faults."""
    with claimed(tmp_path / "work", doing="works in"):
        run = data("scan", str(tmp_path / "work"), str(photos / "photos"))
    assert run.code == 1 and f"another process works in {tmp_path / 'work'}" in run.err
    assert not (tmp_path / "work").exists()


def test_a_circle_of_links_is_told_in_one_line(data, tmp_path: Path) -> None:
    loop, other = tmp_path / "loop", tmp_path / "other"
    loop.symlink_to(other)
    other.symlink_to(loop)
    for words in ((str(loop), str(tmp_path)), (str(tmp_path / "work"), str(loop))):
        run = data("scan", *words)
        assert run.code in (1, 2) and "internal error" not in run.err and len(run.err.splitlines()) <= 2
