"""`lens train lora` from the outside: what it prints, what it refuses, and that its last line draws a picture."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from backend import presets
from tests.lens_cli.cli import Run, lens, real_inside
from tests.train.drawn_folder import draw_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`lens train lora` in this process, nothing of it replaced."""

    def call(*words: str) -> Run:
        return real_inside(monkeypatch, capfd, "train", "lora", *words)

    return call


@pytest.mark.nano
def test_the_last_line_draws_with_what_was_trained(folder: Path) -> None:
    """The shipped model, two steps: from a folder of pictures to a picture."""
    draw_folder(folder / "my zorbs", 3, scale=2, captions=False)
    words = ["train", "lora", "my zorbs", "-m", "nano", "--run-dir", "run", "--set", "caption=a zorb's ladder"]
    fields = ("steps=2", "previews=0", "rank=4", "batch=2", "held_out=0", "saving.log_every=1")
    words += [word for field in fields for word in ("--set", field)]
    run = lens(*words, real=True)
    assert run.code == 0, run.err
    assert run.lines[0] == "run/lora.safetensors" and all(Path(line).is_file() for line in run.lines)
    last = shlex.split(run.err.splitlines()[-1])
    assert last == ["lens", "gen", "a zorb's ladder", "-m", "nano", "--lora", "run/lora.safetensors"]
    drawn = lens(*last[1:], "--steps", "2", "-s", "1", "-o", "x.png", real=True)
    assert drawn.code == 0 and drawn.lines == ["x.png"] and "left aside" not in drawn.err, drawn.err
    base = presets.get("nano").default_base
    assert Image.open("x.png").size == (base, base)
    status = lens("train", "status", "run", "--json")
    assert status.code == 0 and (status.json["data"]["runs"][0]["step"], status.json["data"]["runs"][0]["steps"]) == (
        2,
        2,
    )
    quiet = lens(*words, "--set", "steps=3", "-q", real=True)
    assert quiet.code == 0 and quiet.err == "" and quiet.lines == run.lines
    plan = lens(*words, "--set", "steps=3", "--dry-run", "--json").json["data"]["plan"]
    assert plan["pictures_per_s"] > 0 and plan["hours"] == 0  # as measured in this run; nothing is left


def test_the_help_shows_what_is_left_out(inside: Callable[..., Run]) -> None:
    shown = " ".join(inside("--help").out.decode().replace("│", " ").split())
    assert "[default: runs/PICTURES]" in shown and "[default: nano for nano, else lora]" in shown


def test_dry_run(folder: Path, inside: Callable[..., Run]) -> None:
    draw_folder(folder / "pictures", 12, scale=2)
    words = ("pictures", "--run-dir", "run", "--dry-run", "--set", "rank=4")
    shown = inside(*words).out.decode()
    assert "not known before" in shown
    data = inside(*words, "--json").json["data"]
    small = [row for row in data["buckets"] if row["pictures"] < 4]  # 3 wide and 3 tall ones, one perhaps held out
    assert len(data["buckets"]) == 3 and len(small) == 2
    for row in small:
        assert f"{row['width']} x {row['height']} has {row['pictures']}, fewer than a batch of 4" in shown
    assert (data["training"], data["held_out"]) == (11, 1) and data["plan"]["hours"] is None
    # By hand for rank 4: a block has 2 qkv (256 to 768), 2 outputs (256 to 256) and 6 of the MLPs (256, 672).
    block = 2 * (256 + 768) + 2 * (256 + 256) + 6 * (256 + 672)
    assert data["plan"]["learned"] == 10 * 4 * block
    assert data["plan"]["epochs"] == pytest.approx(400 * 4 / 11)
    pixels = 6 * 128 * 128 + 6 * 192 * 96  # of all 12, held out or not
    assert data["plan"]["latents"] == 4 * 128 * pixels / 256
    whole = inside(*words[:4], "--full", "--json").json["data"]
    assert whole["plan"]["learned"] > 15_000_000 and whole["config"]["tune"] == "full"
    assert not (folder / "run").exists()


def test_dry_run_of_a_model_that_is_not_here(folder: Path, inside: Callable[..., Run]) -> None:
    """The published sizes: 4,104,225,152 numbers, of which NF4 packs the blocks' attention and MLPs to 4.5 bits."""
    draw_folder(folder / "pictures", 4, scale=12)
    words = ("pictures", "-m", "lens-base", "--dry-run", "--json", "--set", "machine.device=cuda")
    plain, packed = inside(*words), inside(*words, "--recipe", "lora-8gb")
    assert "not on this disk" in plain.json["warnings"][0] and plain.json["data"]["plan"]["base"] == 2 * 4_104_225_152
    values = 48 * (8 * 1536 * 1536 + 6 * 1536 * 4096)
    expected = 2 * (4_104_225_152 - values) + values * 4.5 / 8
    assert packed.json["data"]["plan"]["base"] == expected and packed.json["data"]["plan"]["scheme"] == "nf4"
    here = inside(
        *words[:-2], "--recipe", "lora-8gb", "--quant", "auto"
    )  # no GPU is here: planned for the card of 8 GB
    data = here.json["data"]
    assert data["plan"]["base"] == expected and data["card"]["fits"] and data["plan"]["memory"] < data["card"]["room"]
    assert data["card"]["room"] == 7_000_000_000 - 564_000_000 and "plan for the card of 8 GB" in here.err
    large = inside(*words[:-2], "--recipe", "lora-8gb", "--quant", "none")
    assert not large.json["data"]["card"]["fits"] and "does not fit a card of 8 GB" in large.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 2, "nowhere: no such folder"),
        (["pictures", "-m", "nanoo"], 2, "nanoo"),
        (["pictures", "--recipe", "dreambooth"], 2, "known recipes: lora, lora-8gb, full, nano"),
        (["pictures", "--set", "rank=1000"], 2, "rank=1000"),
        (["pictures", "--set", "ranks=8"], 2, "unknown field 'ranks'"),
        (["pictures", "--quant", "fp8"], 2, "no gradient"),
        (["pictures", "--set", "bases=1024"], 1, "too small for every base"),
    ],
)
def test_mistakes(folder: Path, inside: Callable[..., Run], words: list[str], code: int, says: str) -> None:
    draw_folder(folder / "pictures", 3, scale=2)
    run = inside(*words, "--run-dir", "run")
    assert run.code == code and says in run.err, run.err
    answer = inside(*words, "--run-dir", "run", "--json").json
    assert answer["ok"] is False and (says in answer["error"]["message"] or says in answer["error"]["hint"])
    assert not (folder / "run").exists()
