"""--profile and --vram from the outside: what --dry-run says, what a run says and records, what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.errors import UsageError
from backend.picture.images import read_metadata
from backend.requests import build_request
from backend.settings import Settings
from backend.types import GenerationRequest
from backend.wish import Wish
from tests.lens_cli.cli import lens


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dry_run_plans_for_a_card_that_is_not_here() -> None:
    words = ("gen", "--dry-run", "a fish", "-m", "nano", "--vram", "8GB")
    said = [line for line in lens(*words, real=True).err.splitlines() if line.startswith("plan: ")]
    assert len(said) == 1 and said[0].startswith("plan: 8GB · transformer resident bf16 ")
    plan = lens(*words, "--json", real=True).json["data"]["plan"]
    assert f"plan: {plan['line']}" == said[0]
    assert (plan["profile"], plan["device"], plan["cap"], plan["fits"]) == ("8GB", "cuda", 8_000_000_000, True)
    assert 0 < plan["peak"]["denoise"] <= plan["peak_bytes"] < plan["budget"] < plan["cap"]


def test_dry_run_of_a_model_that_is_not_here() -> None:
    """The same plan that such a card gets in the table, and bytes to fetch, from the registry alone."""
    run = lens("gen", "--dry-run", "a fish", "-m", "lens-turbo", "--vram", "8GB", "--json", real=True)
    data = run.json["data"]
    rows = {row["card"]: row for row in data["cards"] if row["weights"] == "BF16"}
    assert data["plan"]["peak_bytes"] == rows["8 GB"]["peak_bytes"] and data["plan"]["place"] == "resident"
    assert data["download_bytes"] == rows["8 GB"]["download_bytes"] == 22_334_000_000
    assert 0 < rows["24 GB"]["seconds_calculated"] < rows["12 GB"]["seconds_calculated"]


def test_dry_run_says_what_will_not_run() -> None:
    run = lens("gen", "--dry-run", "a fish", "-m", "nano", "--vram", "500MB", "--json", real=True)
    assert run.code == 0 and run.json["data"]["plan"] is None
    assert "will not run" in run.err and "even in the leanest plan" in run.err


def test_a_run_by_profile_says_its_plan_and_records_it() -> None:
    run = lens(
        "gen", "a fish", "-m", "nano", "--profile", "cpu", "--steps", "1", "--base", "128", "-s", "3", "--json",
        real=True, timeout=300, start=True, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    )  # fmt: skip
    assert run.code == 0, run.err
    (line,) = [line for line in run.err.splitlines() if line.startswith("plan: ")]
    assert line.startswith("plan: cpu · transformer float32 ")
    assert f"plan: {run.json['data']['plan']['line']}" == line
    assert "--profile cpu" in run.json["data"]["again"]
    record = read_metadata(Path(run.json["data"]["images"][0]["path"])).record
    assert record is not None and record["plan"]["encoder_on"] == "cpu" and record["plan"]["vae_strips"] >= 1
    assert record["attention"] == "torch" and record["compiled"] is False
    if sys.platform == "linux":  # elsewhere the resident set counts other things
        (peak,) = (line.split()[-2:] for line in run.err.splitlines() if line.startswith("decode: "))
        assert peak[1] == "MB"
        assert run.json["data"]["plan"]["peak_bytes"] == pytest.approx(float(peak[0]) * 1e6, rel=0.15)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vram", "8"], "'8' is no amount of memory"),
        (["--vram", "-8GB"], "is no amount of memory"),
        (["--profile", "9GB"], "unknown profile '9GB'"),
        (["--profile", "8GB", "--vram", "8GB"], "exclude each other"),
        (["--vram", "8GB", "--device", "cpu"], "is about a CUDA GPU"),
        (["--profile", "8GB", "--device", "cpu"], "is about a CUDA GPU"),
        (["--profile", "cpu", "--device", "cuda"], "contradict each other"),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    run = lens("gen", "a fish", "-m", "nano", "--json", *words)
    assert run.code == 2 and run.json["error"]["code"] == "usage"
    assert message in run.json["error"]["message"] and run.json["error"]["hint"]
    assert "\n" not in run.json["error"]["message"]
    assert not list(Path().iterdir())


def built(settings: Wish, **given: Any) -> GenerationRequest:
    asked = Wish(prompt="a fish", model="nano", **given)
    return build_request(asked, Settings(generate=settings), lambda line: None).request


def test_settings_and_flags() -> None:
    capped = Wish(vram="6GiB")
    assert built(capped).vram == 6 * 2**30
    assert built(capped, vram="8GB").vram == 8 * 10**9
    assert (built(capped, profile="12gb").profile, built(capped, profile="12gb").vram) == ("12GB", None)
    assert built(capped, device="cpu").vram is None  # a default for the GPU says nothing there
    assert built(Wish(profile="cpu")).device == "cpu"
    on_a_card = built(Wish(profile="cpu"), device="cuda")
    assert (on_a_card.device, on_a_card.profile) == ("cuda", None)
    assert (built(Wish()).profile, built(Wish()).vram) == (None, None)
    with pytest.raises(UsageError, match="no amount of memory"):
        built(Wish(vram="plenty"))


def test_the_last_line_keeps_the_cap() -> None:
    run = lens("gen", "--dry-run", "a fish", "--vram", "6GiB", "--json")
    assert run.json["data"]["request"]["vram"] == 6 * 2**30
    again = run.json["data"]["again"].split()
    size = again[again.index("--vram") + 1]
    repeated = json.loads(lens("gen", "--dry-run", "a fish", "--vram", size, "--json").out)
    assert repeated["data"]["request"]["vram"] == 6 * 2**30


def test_the_page_shows_what_the_program_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cards.md").read_text()
    for name in ("lens-turbo", "lens"):
        said = lens("models", "show", name).lines
        assert "\n".join(said[said.index("") + 1 :]) in page
