"""`lens cache` and the `--encoder` flag from the outside; the engine behind `gen` is a stand-in unless said."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from backend import paths
from backend.cache.store import CACHES, Store
from backend.errors import UsageError
from backend.requests import build_request
from backend.session import Session
from backend.settings import Settings
from backend.types import Encoder
from backend.wish import Wish
from tests.backend import tiny_weights as tiny
from tests.lens_cli.cli import lens_inside as inside
from tests.lens_cli.cli import recorded


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    return tmp_path


def fill(name: str, count: int, size: int) -> Path:
    (row,) = (cache for cache in CACHES if cache.name == name)
    row.folder().mkdir(parents=True)
    for number in range(count):
        (row.folder() / f"{number}{row.suffix}").write_bytes(bytes(size))
    return row.folder()


def test_show(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    fill("embeddings", 3, 2000)
    run = inside(monkeypatch, capfd, "cache", "show")
    assert run.code == 0 and len(run.lines) == len(CACHES) and run.err == ""
    assert "3 files, 6.0 kB of 512 MB: encoded prompts" in run.lines[0] and str(paths.embeds_dir()) in run.lines[0]
    row = inside(monkeypatch, capfd, "cache", "show", "--json").json["data"]["caches"][0]
    assert (row["name"], row["files"], row["bytes"], row["limit_bytes"]) == ("embeddings", 3, 6000, 512_000_000)
    assert row["last_used"] > 1e9
    monkeypatch.setenv("LENS_CACHE__EMBEDDINGS_MB", "0")
    assert "(off)" in inside(monkeypatch, capfd, "cache", "show").lines[0]
    monkeypatch.setenv("LENS_CACHE__EMBEDDINGS_MB", "-5")
    run = inside(monkeypatch, capfd, "cache", "show")
    assert run.code == 2 and "embeddings_mb = -5 is negative" in run.err


def test_clear(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    embeds, hashes = fill("embeddings", 2, 10), fill("sha256", 1, 10)
    run = inside(monkeypatch, capfd, "cache", "clear", "embeddings", "--json")
    assert run.json["data"]["caches"] == [{"name": "embeddings", "files": 2, "bytes": 20}]
    assert list(embeds.iterdir()) == [] and len(list(hashes.iterdir())) == 1
    run = inside(monkeypatch, capfd, "cache", "clear")
    assert run.code == 0 and run.lines == [] and "sha256: 1 file removed, 10 B freed" in run.err
    assert list(hashes.iterdir()) == []


@pytest.mark.parametrize("name", ["compiled", "embeddings", "sha256"])
def test_clear_follows_no_link(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """It removed every file behind it."""
    (row,) = (cache for cache in CACHES if cache.name == name)
    link = row.folder()
    inside_it = tmp_path / "elsewhere" / ("sub" if name == "compiled" else "")
    inside_it.mkdir(parents=True)
    (inside_it / f"thesis{row.suffix}").write_text("years")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    run = inside(monkeypatch, capfd, "cache", "clear", name)
    assert run.code == 1 and "is a link: nothing behind it is removed" in run.err
    assert (inside_it / f"thesis{row.suffix}").read_text() == "years"


def test_a_kept_file_pushes_out_none_behind_a_link(tmp_path: Path) -> None:
    other = tmp_path / "models" / "big.safetensors"
    other.parent.mkdir()
    other.write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(other.parent)
    said: list[str] = []
    Store(tmp_path / "link", ".safetensors", 900, said.append).write("key", bytes(500))
    assert other.exists() and "is a link" in said[0]


def test_below_a_file_lies_no_cache(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv("LENS_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/inside"))
    run = inside(monkeypatch, capfd, "cache", "show", "--json")
    assert run.code == 0 and {row["files"] for row in run.json["data"]["caches"]} == {0}
    assert inside(monkeypatch, capfd, "cache", "clear").code == 0
    run = inside(monkeypatch, capfd, "gen", "a fish", "--steps", "1")
    assert run.code == 0 and Path(run.lines[0]).exists()  # a cache that cannot be had stops no picture


def test_an_unknown_cache(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    kept = fill("embeddings", 1, 1)
    run = inside(monkeypatch, capfd, "cache", "clear", "embeddings", "rewritten")
    assert run.code == 2 and "no cache is called 'rewritten'" in run.err
    assert len(list(kept.iterdir())) == 1  # nothing is removed where one name is wrong


def test_the_encoder_travels(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Flag over environment over auto; into the picture, the command line that repeats it, and `lens rerun`."""

    def dry(*words: str) -> str:
        return inside(monkeypatch, capfd, "gen", "x", "--dry-run", "--json", *words).json["data"]["request"]["encoder"]

    assert (dry(), dry("--encoder", "llama")) == ("auto", "llama")
    monkeypatch.setenv("LENS_GENERATE__ENCODER", "llama")
    assert (dry(), dry("--encoder", "exact")) == ("llama", "exact")
    assert "text encoder: llama (near-exact)" in inside(monkeypatch, capfd, "gen", "x", "--dry-run").err
    monkeypatch.setattr(
        "backend.text.choose_encoder.choose_encoder", lambda wanted, files: wanted
    )  # the stand-in has no files
    run = inside(monkeypatch, capfd, "gen", "a fish", "-s", "1", "--steps", "1", "-o", "a.png")
    assert run.code == 0 and "--encoder llama" in run.err.splitlines()[-1]
    assert recorded("a.png").encoder is Encoder.llama
    monkeypatch.delenv("LENS_GENERATE__ENCODER")
    again = inside(monkeypatch, capfd, "rerun", "a.png", "-o", "b.png")
    assert again.code == 0 and recorded("b.png").encoder is Encoder.llama
    words = shlex.split(again.err.splitlines()[-1])
    assert words[words.index("--encoder") + 1] == "llama"
    assert inside(monkeypatch, capfd, "rerun", "a.png", "--encoder", "exact", "-o", "c.png").code == 0
    assert recorded("c.png").encoder is Encoder.exact
    bad = inside(monkeypatch, capfd, "gen", "x", "--encoder", "fast")
    assert bad.code == 2 and "'auto', 'exact', 'llama'" in bad.err


def test_llama_without_a_gguf_is_said_before_anything_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backend.engine", None)  # importing it would fail
    model = str(tiny.write_diffusers(tmp_path / "published"))
    wish = Wish(prompt="x", model=model, encoder=Encoder.llama)
    with pytest.raises(UsageError, match="as one GGUF file"):
        next(Session(Settings()).draw(build_request(wish, Settings(), pytest.fail), on_event=lambda event: None))
