"""-o in all its forms."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backend.errors import UsageError
from backend.picture.outputs import OutputPlan, plan_output, slug
from backend.settings import DEFAULT_TEMPLATE
from backend.types import GenerationRequest, ImageFormat

NOW = datetime(2026, 11, 21, 8, 52, 3)
REQUEST = GenerationRequest(
    prompt="Three RED balloons, over a hill!",
    model="/home/someone/models/my model",
    seeds=(7, 8),
    width=336,
    height=192,
    steps=20,
    guidance=2.5,
)


def plan(output: str | None, **wish: Any) -> OutputPlan:
    defaults: dict[str, Any] = {
        "format": None,
        "quality": None,
        "metadata": True,
        "default_folder": None,
        "default_template": DEFAULT_TEMPLATE,
        "default_format": ImageFormat.png,
    }
    return plan_output(output, **{**defaults, **wish})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (None, "three-red-balloons-over-a-hill-7.png"),
        ("out/", "out/three-red-balloons-over-a-hill-7.png"),
        ("a.png", "a.png"),
        ("a.JPG", "a.JPG"),
        ("a.jpeg", "a.jpeg"),
        ("a", "a.png"),
        ("v1.5", "v1.5.png"),
        ("{date}/{time}-{seed:04d}.webp", "2026-11-21/085203-0007.webp"),
        ("{model}-{w}x{h}-{steps}-{guidance}-{index}", "my-model-336x192-20-2.5-0.png"),
        ("{{a}}.png", "{a}.png"),
        ("../x.png", "../x.png"),
    ],
)
def test_paths(output: str | None, path: str) -> None:
    assert plan(output).path(REQUEST, 0, NOW) == Path(path)


def test_settings_give_folder_name_and_format() -> None:
    wish = plan(None, default_folder="pics/{model}", default_template="{date}/{seed}", default_format=ImageFormat.webp)
    assert wish.path(REQUEST, 1, NOW) == Path("pics/my-model/2026-11-21/8.webp")
    assert wish.format is ImageFormat.webp
    assert plan("d/", default_template="{date}/{seed}").path(REQUEST, 1, NOW) == Path("d/8.png")


def test_an_existing_folder_with_braces_is_a_folder() -> None:
    Path("{x}").mkdir()
    assert plan("{x}").path(REQUEST, 0, NOW).parent == Path("{x}")


def test_formats_follow_the_name() -> None:
    assert plan("a.jpg").format is ImageFormat.jpeg
    assert plan("a", format=ImageFormat.jpeg).path(REQUEST, 0, NOW) == Path("a.jpg")
    assert plan("a.jpg", format=ImageFormat.jpeg).suffix == ".jpg"
    assert plan("-").template is None


def test_names_of_a_run_are_distinct_and_free() -> None:
    Path("a.png").write_bytes(b"")
    assert [path.name for path in plan("a.png").paths(REQUEST, NOW)] == ["a-1.png", "a-2.png"]


@pytest.mark.parametrize(
    ("output", "wish"),
    [
        ("", {}),
        ("a.gif", {}),
        ("a.png", {"format": ImageFormat.webp}),
        ("{a|b}.png", {}),
        ("{seed.__class__}", {}),
        ("{0}", {}),
        ("{}", {}),
        ("{seed", {}),
        ("{seed!r}", {}),
        ("{slug:d}", {}),
        ("{seed:{w}}", {}),
        ("a.png", {"quality": 90}),
        ("a.jpg", {"quality": 0}),
        ("a.jpg", {"quality": 101}),
        ("a.jpg", {"default_quality": 101}),
        ("{seed:c}", {}),
        ("{index:c}.png", {}),
        ("{seed:>300}.png", {}),
        ("{seed:>9999999999}", {}),
        ("{slug:.20}{slug:>999}", {}),
    ],
)
def test_refused(output: str, wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan(output, **wish)


@pytest.mark.parametrize("output", ["x" * 247 + ".png", "{slug}" * 30, "a\0b.png", "a\x1b[31m.png", "d\ud800/a.png"])
def test_a_name_that_no_file_can_have_is_told_before_the_picture_is_drawn(output: str) -> None:
    """With room for the -1 that a name gets where it is taken: by then the picture would be lost."""
    with pytest.raises(UsageError, match="the output name"):
        plan(output).folders(REQUEST, NOW)


def test_the_longest_name_can_still_be_numbered() -> None:
    (path,) = {plan("x" * 244 + ".png").path(REQUEST, index, NOW) for index in (0, 1)}
    for number in (1, 999_999):
        path.with_name(f"{path.stem}-{number}{path.suffix}").write_bytes(b"")


def test_ten_thousand_wishes_of_one_name_take_no_time_squared() -> None:
    many = replace(REQUEST, seeds=tuple(range(10_000)))
    began = time.monotonic()
    assert len(set(plan("a.png").paths(many, NOW))) == 10_000
    assert time.monotonic() - began < 20  # it was minutes


def test_a_quality_setting_fits_where_it_can() -> None:
    assert plan("a.png", default_quality=80).quality is None
    assert plan("a.jpg", default_quality=80).quality == 80
    assert plan("a.jpg", quality=70, default_quality=80).quality == 70


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Hello, World!", "hello-world"),
        ("../../etc/passwd", "etc-passwd"),
        ("🎈🎈", "picture"),
        ("...", "picture"),
        ("Äpfel & Öl", "äpfel-öl"),
        ("a" * 100, "a" * 40),
        ("one two three four five six seven eight nine ten", "one-two-three-four-five-six-seven-eight"),
        ("snake_case", "snake-case"),
    ],
)
def test_slug(text: str, short: str) -> None:
    assert slug(text) == short


def test_slug_fits_a_file_system() -> None:
    assert len(slug("\N{MATHEMATICAL BOLD CAPITAL A}文" * 100).encode()) <= 120
