"""What is decided about the picture that another begins from, and every way in which it cannot be.

Why it can be trusted: sizes are compared with the tables that were published, refusals by their words, and a record is
read back through JSON into the same request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.errors import LensError, UsageError
from backend.inputs.begin import last_pass
from backend.picture.metadata import make_record, wish_from
from backend.requests import build_request
from backend.settings import Settings
from backend.types import Fit, GenerationRequest
from backend.wish import Wish
from tests.backend.test_wish import finished

SETTINGS = Settings(generate=Wish(ar="16:9"))  # a shape for pictures made from nothing


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(said: list[str] | None = None, **wish: Any) -> GenerationRequest:
    told = said.append if said is not None else pytest.fail
    return build_request(Wish(prompt="a fish", model="nano", **wish), SETTINGS, told).request


def picture(width: int, height: int, name: str = "a.png", colour: str = "white") -> str:
    Image.new("RGB", (width, height), colour).save(name)
    return name


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((256, 256), (256, 256)),  # as it is
        ((250, 190), (256, 192)),  # the nearest that can be made
        ((800, 600), (304, 224)),  # too large: the model's own 4:3
        ((20, 20), (256, 256)),  # too small to be drawn as it is
    ],
)
def test_the_size_is_the_picture_s(here: Path, size: tuple[int, int], drawn: tuple[int, int]) -> None:
    request = build([], init=picture(*size))
    assert (request.width, request.height, request.fit, request.strength) == (*drawn, Fit.scale, 0.6)


def test_a_typed_size_cuts_or_extends(here: Path) -> None:
    """Larger on a side and smaller on none: drawn around it, from noise; else scaled; either by name."""
    name = picture(256, 256)
    wide = build(init=name, size="352x256")
    assert (wide.fit, wide.strength) == (Fit.extend, 1.0)
    assert build(init=name, size="352x256", fit=Fit.scale).fit is Fit.scale
    assert build(init=name, size="192x192").fit is Fit.scale
    with pytest.raises(LensError, match="needs a size larger than"):
        build(init=name, size="192x256", fit=Fit.extend)


def test_edges_that_are_cut_and_frames_that_are_left_are_said(here: Path) -> None:
    said: list[str] = []
    build(said, init=picture(900, 200))
    assert said == ["a.png is 900x200: scaled to 592x304, its edges cut"]
    Image.new("RGB", (256, 256), "red").save(
        "b.gif", save_all=True, append_images=[Image.new("RGB", (256, 256), "blue")]
    )
    build(said, init="b.gif")
    assert said[1:] == ["b.gif has 2 frames: the first is taken"]


def test_masks(here: Path) -> None:
    name = picture(256, 256)
    assert build(init=name, mask=picture(256, 256, "m.png")).strength == 1.0
    with pytest.raises(LensError, match=r"mask m\.png is 128x256, the picture 256x256"):
        build(init=name, mask=picture(128, 256, "m.png"))
    with pytest.raises(LensError, match="black all over"):
        build(init=name, mask=picture(256, 256, "m.png", "black"))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"strength": 1.5}, "--strength 1.5 is outside 0..1"),
        ({"strength": float("nan")}, "--strength nan is outside"),
        ({"init": "none.png"}, "none.png does not exist"),
        ({"mask": "none.png"}, "none.png does not exist"),
        ({"hires": 1.0}, "--hires 1 is outside"),
        ({"hires": 9.0}, "--hires 9 is outside"),
        ({"hires": float("inf")}, "--hires inf is outside"),
        ({"hires": 4.0}, "goes up to"),
        ({"hires": 1.01}, "makes no larger picture"),
        ({"hires": 1.5, "hires_strength": -1.0}, "--hires-strength -1 is outside"),
        ({"hires": 1.5, "mask": "a.png"}, "keeps a part"),
        ({"variations": 0}, "--variations 0 is outside"),
        ({"variations": 3, "seeds": ("1", "2")}, "vary one seed, not 2"),
        ({"variations": 3, "amount": 2.0}, "--amount 2 is outside"),
        ({"around": -1}, "--around -1 is outside"),
    ],
)
def test_what_cannot_be(here: Path, wish: dict[str, Any], said: str) -> None:
    with pytest.raises(LensError, match=said.replace(".", r"\.")):
        build(**{"init": picture(256, 256), **wish})


def test_what_means_nothing_is_said(here: Path) -> None:
    said: list[str] = []
    request = build(said, strength=0.5, fit=Fit.extend, hires_strength=0.5, amount=0.5)
    assert [text.split(" is ")[0] for text in said] == ["--strength", "--fit", "--hires-strength", "--amount"]
    given = (request.strength, request.fit, request.hires_strength, request.amount)
    assert given == (None,) * 4


def test_a_mask_needs_a_picture() -> None:
    with pytest.raises(UsageError, match="there is no --init"):
        build(mask="m.png")


def test_variations() -> None:
    request = build(variations=3, seeds=("42",))
    assert request.around == 42 and len(set(request.seeds)) == 3 and request.amount == 0.3
    more = build(variations=2, around=42, seeds=("7",))
    assert more.around == 42 and len(more.seeds) == 2 and 7 not in more.seeds
    assert build(around=42, seeds=("7",), amount=0.1).seeds == (7,)


def test_the_last_pass(here: Path) -> None:
    request = build(init=picture(256, 256), hires=1.5)
    after = last_pass(request)
    assert (after.width, after.height, after.strength, after.init, after.hires) == (384, 384, 0.3, None, None)
    assert last_pass(after) is after


def test_a_record_finds_its_pictures_again(here: Path) -> None:
    """By base name where it lies here, by where it was used before, and never another file of that name."""
    folder = here / "elsewhere"
    folder.mkdir()
    Image.new("RGB", (256, 256), "red").save(folder / "photo.png")
    request = build(init="elsewhere/photo.png", mask=picture(256, 256, "m.png"), seeds=("1",), strength=0.5)
    text = json.dumps(make_record(finished(request), pixels=""))
    assert str(here) not in text
    wish = wish_from(json.loads(text), "a.png")
    assert build_request(wish, SETTINGS, pytest.fail).request.init == request.init
    again = build_request(wish, SETTINGS, pytest.fail).request
    assert (again.mask, again.strength, again.fit) == (request.mask, 0.5, Fit.scale)
    Image.new("RGB", (256, 256), "blue").save(folder / "photo.png")
    with pytest.raises(LensError, match=r"photo\.png .* was not found"):
        build_request(wish, SETTINGS, pytest.fail)


@pytest.mark.parametrize("bad", [{"name": "../../etc/passwd", "sha256": "0" * 64}, {"name": "a.png"}, 7, {"name": "a"}])
def test_a_record_leads_nowhere(bad: Any) -> None:
    request = build(seeds=("1",))
    with pytest.raises(LensError, match="damaged: init"):
        wish_from({**make_record(finished(request), pixels=""), "init": bad}, "a.png")
