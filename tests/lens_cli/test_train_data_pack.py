"""`lens train data` from duplicates to tars, as it is typed, with a captioning endpoint on the loopback.

One work folder in the order in which a person would go; what comes out is read by the reader that training uses.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.backend.scripted_endpoint import Endpoint, completion
from tests.lens_cli.cli import Run, lens_inside
from tests.train.data.test_captions import FOX, answered, write
from tests.train.data.test_dedup import scene
from tests.train.data_files import write_tar
from train.data.tars.reader import PackedIndex, TarReader, TarSample


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(stage: str, *words: str) -> Run:
        return lens_inside(monkeypatch, capfd, "train", "data", stage, *words)

    return run


RUN = ("--set", "select.area=none", "--set", "select.clarity=none", "--set", "select.entropy=none",
       "--set", "bucket.bases=64,128", "--set", "pack.format=png", "--workers", "0")  # fmt: skip


@dataclass
class Ready:
    """A work folder that `run` made, for all tests of this file: each takes a copy."""

    work: Path
    photos: Path
    said: str


@pytest.fixture(scope="module")
def made() -> list[Ready]:
    return []


@pytest.fixture
def work(data, made: list[Ready], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """Four pictures with captions, one of them of a bucket's own size, and a fifth that is another, scaled."""
    if not made:
        top = tmp_path_factory.mktemp("made")
        folder = top / "photos"
        folder.mkdir()
        for number in range(4):
            scene(number, 200 if number else 128, 150 if number else 128).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(f"alt text {number}")
        scene(1, 200, 150).resize((120, 90), Image.Resampling.LANCZOS).save(folder / "copy.jpg")
        run = data("run", str(top / "work"), str(folder), *RUN)
        assert run.code == 0, run.err
        made.append(Ready(top / "work", folder, run.err))
    shutil.copytree(made[0].work, tmp_path / "work")
    return tmp_path / "work"


def samples(work: Path) -> list[TarSample]:
    """Every packed picture, as training reads it."""
    reader = TarReader(PackedIndex.load(work / "pack"), seed=0, batches={64: 1, 128: 1})
    planned = (reader.plan(position) for position in range(reader.epoch_batches))
    return [reader.sample(bucket, int(numbers[0])) for _, bucket, numbers in planned]


def texts(work: Path) -> list[str]:
    return sorted(sample.text for sample in samples(work))


def test_run_packs_what_came_with_the_pictures(work: Path, made: list[Ready]) -> None:
    assert "1 duplicates dropped (0 exact, 1 perceptual)" in made[0].said
    assert "caption: passed over" in made[0].said
    assert "the texts that came with the pictures become the texts" in made[0].said
    assert texts(work) == [f"alt text {number}" for number in range(4)]


def test_the_report_shows_duplicates_beside_what_stays(data, work: Path) -> None:
    page = (work / "report.html").read_text(encoding="utf-8")
    duplicates = "<strong>5 kept</strong> by the filters\n(100.0 %), <strong>4</strong> of them no duplicates"
    assert f"{duplicates}, <strong>4</strong> packed" in page
    pair = page.split("perceptual: what was dropped, and what stays instead")[1].split("<h2>")[0]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", pair) == ["photos/copy.jpg", "photos/1.png"]
    assert "<h2>Buckets</h2>" in page and "not up to date" not in page
    assert data("select", str(work), "--workers", "0", "--set", "area=20000").code == 0
    assert data("report", str(work)).code == 0
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "Not shown, as not up to date with this selection: dedup, bucket, pack" in page
    assert "<h2>Buckets</h2>" not in page and "<h2>Duplicates</h2>" not in page


def test_the_funnel_ends_where_training_begins(data, tmp_path: Path) -> None:
    """One duplicate, one too small for a bucket, two without a caption: every picture that is lost is in the table."""
    photos, work = tmp_path / "photos", tmp_path / "work"
    photos.mkdir()
    for number in range(6):
        scene(number, *((200, 150) if number else (50, 40))).save(photos / f"{number}.png")
        if number < 4:
            (photos / f"{number}.txt").write_text(f"alt text {number}")
    scene(1, 200, 150).resize((120, 90), Image.Resampling.LANCZOS).save(photos / "copy.jpg")
    run = data("run", str(work), str(photos), *RUN)
    assert run.code == 0, run.err
    page = (work / "report.html").read_text(encoding="utf-8")
    table = page.split("<h2>Funnel</h2>")[1].split("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        ["duplicates", "1", "", "6"],
        ["bucket: too small for every base", "1", "", "5"],
        ["pack: no caption", "2", "", "3"],
    ]
    assert "<strong>6</strong> of them no duplicates, <strong>3</strong> packed" in page
    assert len(texts(work)) == 3
    assert "mathdefault" not in page


def test_a_duplicate_does_not_cost_the_caption(data, tmp_path: Path) -> None:
    """An enlarged copy without a caption stays only where captions are asked for, at whatever stage that is said."""
    photos, work = tmp_path / "photos", tmp_path / "work"
    photos.mkdir()
    scene(1, 200, 150).save(photos / "told.png")
    (photos / "told.txt").write_text("a hill")
    scene(1, 200, 150).resize((400, 300), Image.Resampling.LANCZOS).save(photos / "large.png")
    assert data("run", str(work), str(photos), *RUN).code == 0
    assert texts(work) == ["a hill"]
    with Endpoint(completion(FOX)) as endpoint:
        words = ("--set", "caption.model=eye", "--set", f"caption.base_url={endpoint.url}")
        asked = data("run", str(work), *words, "--workers", "0")
    assert asked.code == 0, asked.err
    assert texts(work) == [FOX] and len(endpoint.asked) == 1
    assert samples(work)[0].record["key"] == "photos/large.png"
    assert data("run", str(work), "--set", "pack.text=alt", "--workers", "0").code == 0
    assert texts(work) == ["a hill"]


def test_a_caption_that_times_out_names_its_own_setting(data, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.captions.ask._GIVE_UP", 1)
    with Endpoint(replace(completion(FOX), delay=0.5)) as endpoint:
        words = ("--set", "model=eye", "--set", f"base_url={endpoint.url}", "--set", "timeout=0.1")
        late = data("caption", str(work), *words)
    assert late.code == 4 and "within 0.1 s" in late.err and "raise --set timeout=…" in late.err
    assert "LENS_REASONER" not in late.err


def test_an_address_that_came_with_the_folder_gets_nothing_until_it_is_named(
    data, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's config.json: no picture and no key leave, and one line says how to allow it. Once is enough."""
    monkeypatch.setenv("LENS_REASONER__API_KEY", "sk-mine")
    with Endpoint(completion(FOX)) as endpoint:
        config = json.loads((work / "config.json").read_text())
        config["caption"] = {"base_url": endpoint.url, "model": "eye"}
        (work / "config.json").write_text(json.dumps(config))
        for words in (("caption", str(work)), ("run", str(work), "--workers", "0")):
            refused = data(*words)
            assert refused.code == 2 and "neither pictures nor a key go there" in refused.err
            assert f"--set base_url={endpoint.url}" in refused.err and "sk-mine" not in refused.err
        assert endpoint.asked == []
        assert data("caption", str(work), "--set", f"base_url={endpoint.url}").code == 0
        asked = len(endpoint.asked)
        assert asked == 4
        assert data("caption", str(work)).code == 0  # named before, and everything is answered
        assert len(endpoint.asked) == asked


def test_pixels_reach_training_as_they_are(work: Path, made: list[Ready]) -> None:
    """The picture of a bucket's own size is neither scaled nor cropped: in PNG not a bit changed."""
    (found,) = [sample for sample in samples(work) if sample.text == "alt text 0"]
    assert (found.pixels() == np.asarray(Image.open(made[0].photos / "0.png"))).all()


def test_captions_by_asking_then_packed(data, work: Path) -> None:
    nobody = data("caption", str(work))
    assert nobody.code == 2 and "no model was named" in nobody.err and "--set model=NAME" in nobody.err
    nowhere = data("caption", str(work), "--set", "model=eye")
    assert nowhere.code == 2 and "no endpoint was named" in nowhere.err and "--set base_url=" in nowhere.err
    money = data("caption", str(work), "--dry-run", "--set", "price_in=2", "--set", "price_out=8", "--json")
    told = money.json["data"]
    assert told["pictures"] == 4
    assert told["dollars"] == pytest.approx(4 * (told["tokens_in"] * 2 + told["tokens_out"] * 8) / 1e6)
    with Endpoint(completion(FOX)) as endpoint:
        asked = data("caption", str(work), "--set", "model=eye", "--set", f"base_url={endpoint.url}", "--json")
        assert asked.code == 0, asked.err
    assert asked.json["data"]["captions"] == 4 == len(endpoint.asked)  # the duplicate was not paid for
    pack = data("pack", str(work), "--workers", "0")
    assert pack.out.decode().strip() == str(work / "pack") and "dense captions become the texts" in pack.err
    assert texts(work) == [FOX] * 4
    assert data("pack", str(work), "--workers", "0", "--set", "text=alt").code == 0
    assert texts(work) == [f"alt text {number}" for number in range(4)]


def test_batch_files(data, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = data("caption", str(work), "--set", "model=eye", "--batch-out", str(out))
    assert asked.code == 0, asked.err
    (file,) = map(Path, asked.out.decode().split())
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    assert {json.loads(line)["body"]["model"] for line in lines} == {"eye"}
    answers = write(tmp_path / "answers.jsonl", answered(file, size=None))
    taken = data("caption", str(work), "--batch-in", str(answers), "--json")
    assert taken.json["data"]["captions"] == 4 and taken.json["data"]["mean_words"] == pytest.approx(67)
    both = data("caption", str(work), "--batch-in", str(answers), "--batch-out", str(out))
    assert both.code == 2 and "exclude each other" in both.err


def test_captions_of_ones_own_need_no_model(data, work: Path) -> None:
    own = data("caption", str(work), "--set", "own=photos", "--json")
    assert own.code == 0 and own.json["data"]["captions"] == 4


def test_a_new_selection_reaches_the_tars_or_is_told(data, work: Path, made: list[Ready]) -> None:
    """Stages by hand on an old selection are refused; `run` redoes what hangs on it, captions among them."""
    answers = "model=eye"
    with Endpoint(completion(FOX)) as endpoint:
        asked = data("caption", str(work), "--set", answers, "--set", f"base_url={endpoint.url}")
        assert asked.code == 0, asked.err
        assert data("pack", str(work), "--workers", "0").code == 0
        assert data("select", str(work), "--workers", "0", "--set", "area=20000").code == 0  # picture 0 has 128 x 128
        early = data("pack", str(work), "--workers", "0")
        assert early.code == 1 and "bucket of shard 0 is out of date: select has changed since" in early.err
        assert "lens train data run" in early.err
        assert texts(work) == [FOX] * 4  # training goes on with what was packed
        run = data("run", str(work), "--workers", "0", "--json")
    assert run.code == 0 and run.json["data"] == {"work": str(work)}  # one answer, and nothing else on stdout
    assert texts(work) == [FOX] * 3 and len(endpoint.asked) == 4


def test_captions_by_file_and_then_run(data, work: Path, tmp_path: Path) -> None:
    """Nobody can be asked where only batch files were used: `run` takes what they brought."""
    file = data("caption", str(work), "--set", "model=eye", "--batch-out", str(tmp_path / "out"))
    answers = write(tmp_path / "answers.jsonl", answered(Path(file.out.decode().strip()), size=None))
    assert data("caption", str(work), "--batch-in", str(answers)).code == 0
    run = data("run", str(work), "--workers", "0", "--set", "select.area=20000")
    assert run.code == 0, run.err
    assert texts(work) == [FOX] * 3


def test_shards_that_are_gone_leave_no_tars(data, work: Path, made: list[Ready], tmp_path: Path) -> None:
    scene(9, 200, 150).save(tmp_path / "one.png")
    more = tmp_path / "more.tar"
    image = (tmp_path / "one.png").read_bytes()
    write_tar(more, {"one.png": image, "one.txt": b"from the tar"})
    both = data("run", str(work), f"photos={made[0].photos}", str(more), "--workers", "0")
    assert both.code == 0 and len(texts(work)) == 5, both.err
    alone = data("run", str(work), str(more), "--workers", "0")
    assert alone.code == 0 and texts(work) == ["from the tar"], alone.err
    assert [tar.name for tar in work.glob("pack/*/*.tar")] == ["00000-0.tar"]


def test_stages_out_of_order_and_wrong_settings(data, tmp_path: Path) -> None:
    photos, work = tmp_path / "photos", tmp_path / "work"
    photos.mkdir()
    scene(0, 64, 64).save(photos / "a.png")
    assert data("scan", str(work), str(photos), "--workers", "0").code == 0
    for words in (("dedup",), ("bucket",), ("pack",), ("caption", "--set", "own=photos")):
        early = data(words[0], str(work), *words[1:])
        assert early.code == 1, early.err
        assert "is not done for shard 0" in early.err and "run the stage first: lens train data" in early.err
    wrong = data("bucket", str(work), "--set", "bases=512,100")
    assert wrong.code == 2 and "rising" in wrong.err
    assert data("pack", str(work), "--set", "format=gif").code == 2


def test_text_images(data, tmp_path: Path) -> None:
    out = tmp_path / "texts"
    words = ("text-images", str(out), "--set", "count=5", "--set", "bases=64", "--workers", "0")
    dry = data(*words, "--dry-run", "--json")
    assert dry.json["data"]["pictures"] == 5 and not out.exists()
    drawn = data(*words)
    assert drawn.code == 0 and drawn.out.decode().strip() == str(out) and (out / "00000-0.tar").exists()
    scan = data("scan", str(tmp_path / "work"), f"texts={out}", "--workers", "0", "--json")
    assert scan.json["data"]["pictures"] == 5 == scan.json["data"]["captions"]
    for name in ("00001-0.tar", "00001.done", "00002-0.tar"):
        (out / name).write_bytes(b"of an earlier run, and somebody's own")
    assert data(*words).code == 0
    assert sorted(file.name for file in out.glob("*[!n]")) == ["00000-0.tar", "00000.done", "00002-0.tar"]
    assert data("text-images", str(out), "--set", "fonts=" + str(tmp_path / "work")).code == 2
