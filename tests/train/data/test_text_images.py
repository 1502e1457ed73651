"""Text images: what the caption quotes is drawn, whole, readable, and nowhere over another text.

Why it can be trusted: on plain grounds every pixel outside the told boxes has the ground's colour, so the boxes hold
all ink; the contrast is compared with WCAG's published examples; captions are read with the quotation reader that the
reasoner is judged by.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from backend.errors import UsageError
from backend.reasoner.answers import quoted
from tests.train.packed import picture
from train.data.text_images import draw as textdraw
from train.data.text_images.draw import Materials, contrast, draw_picture, has_letters, materials
from train.data.text_images.stage import TextImages, draw
from train.data.text_images.texts import TextImageSettings, made_up

SMALL = TextImageSettings(bases=(192,))


@pytest.fixture(scope="module")
def drawn() -> list[textdraw.TextImage]:
    given = materials(SMALL)
    return [draw(number, SMALL, given) for number in range(40)]


def test_captions_quote_what_is_drawn(drawn: list[textdraw.TextImage]) -> None:
    for made in drawn:
        assert sorted(quoted(made.caption)) == sorted(piece.text for piece in made.pieces)
        for piece in made.pieces:
            assert piece.colour in made.caption.lower() and piece.place in made.caption.lower().replace("In", "in")
            assert "".join(piece.lines).replace(" ", "") == piece.text.replace(" ", "")
    assert Counter(len(made.pieces) for made in drawn).keys() >= {1, 2, 3}


def test_texts_are_whole_apart_and_varied(drawn: list[textdraw.TextImage]) -> None:
    pieces = [piece for made in drawn for piece in made.pieces]
    for made in drawn:
        width, height = made.image.size
        boxes = [piece.box for piece in made.pieces]
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        for one, other in itertools.pairwise(boxes):
            assert one[3] <= other[1]  # one ends above where the next begins
    assert len({piece.colour for piece in pieces}) > 8 and len({piece.size for piece in pieces}) > 15
    assert 0.3 < sum(piece.degrees != 0 for piece in pieces) / len(pieces) < 0.7
    for some in ([bool(piece.blur) for piece in pieces], [bool(piece.outline) for piece in pieces]):
        assert 0.08 < sum(some) / len(pieces) < 0.35
    assert all(piece.size >= 14 and abs(piece.degrees) <= 25 for piece in pieces)


def test_all_ink_is_in_the_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a ground of one colour, turned, blurred, outlined."""
    monkeypatch.setattr(textdraw, "_ground", lambda width, height, *_: (Image.new("RGB", (width, height), "teal"), ""))
    settings = TextImageSettings(bases=(192,), turned=1.0, blurred=0.5, outlined=0.5)
    for number in range(20):
        made = draw(number, settings, Materials((None,), None, ()))
        ink = (np.asarray(made.image) != (0, 128, 128)).any(axis=2)
        for left, top, right, bottom in (piece.box for piece in made.pieces):
            inside = ink[top:bottom, left:right]
            assert 0.03 < inside.mean() < 0.9
            # The box is tight: there is ink at all four borders; the outermost of a blur may be too faint to show.
            assert inside[:4].any() and inside[-4:].any() and inside[:, :4].any() and inside[:, -4:].any()
            ink[top:bottom, left:right] = False
        assert not ink.any()


def test_contrast_is_wcags_and_is_kept(drawn: list[textdraw.TextImage]) -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)  # the least grey that passes AA
    image = Image.new("RGB", (10, 10), (128, 128, 128))
    chosen = {textdraw._standing_out(image, (0, 0, 10, 10), share / 20) for share in range(20)}
    assert chosen == {"white", "black", "navy blue"}  # the three of the palette with 3:1 and more against this grey


def test_a_number_gives_the_same_picture(drawn: list[textdraw.TextImage]) -> None:
    again = draw(7, SMALL, materials(SMALL))
    assert again.image.tobytes() == drawn[7].image.tobytes() and again.caption == drawn[7].caption
    other = draw(7, TextImageSettings(bases=(192,), seed=1), materials(SMALL))
    assert other.caption != again.caption


def test_tars_with_captions_and_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.text_images.stage.A_TAR", 4)
    stage = TextImages(tmp_path / "out", TextImageSettings(count=6, bases=(128,)))
    assert stage.shards == [0, 1]
    for shard in stage.shards:
        assert not stage.done(shard)
        stage(shard)
        assert stage.done(shard)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    samples = [sample for tar in tars for sample in WebDataset(str(tar), shardshuffle=False)]
    assert len(samples) == 6
    for sample in samples:
        assert sorted(json.loads(sample["json"])["texts"]) == sorted(quoted(sample["txt"].decode()))
    more = TextImages(tmp_path / "out", TextImageSettings(count=9, bases=(128,)))
    assert [more.done(shard) for shard in more.shards] == [True, False, False]  # full tars stay as they are


def test_texts_and_backgrounds_of_ones_own(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text('\ufeffRoad to Rome\n\n  two   blanks  \nsaid "so"\n', encoding="utf-8")
    grounds = tmp_path / "grounds"
    grounds.mkdir()
    (grounds / "a.png").write_bytes(picture(77, 90, 40))
    settings = TextImageSettings(bases=(192,), texts=texts, backgrounds=grounds)
    given = materials(settings)
    made = [draw(number, settings, given) for number in range(20)]
    assert {piece.text for one in made for piece in one.pieces} == {"Road to Rome", "two blanks", 'said "so"'}
    assert all("background" not in one.caption for one in made)
    assert all(sorted(quoted(one.caption)) == sorted(piece.text for piece in one.pieces) for one in made)
    assert all((np.asarray(one.image) == (77, 0, 128)).all(axis=2).mean() > 0.3 for one in made)


def test_letters_that_no_font_has(tmp_path: Path) -> None:
    assert has_letters(None, "Room 12, $5.95 & more") and not has_letters(None, "猫") and not has_letters(None, "é")
    rng = random.Random(1)
    assert all(has_letters(None, made_up(rng)) for _ in range(3000))
    texts = tmp_path / "texts.txt"
    texts.write_text("猫の手\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no font has all letters of '猫の手'") as caught:
        materials(TextImageSettings(texts=texts))
    assert "fonts=FOLDER" in str(caught.value.hint)


def test_long_texts_are_broken_and_chinese_at_any_letter() -> None:
    assert textdraw._broken("one two three four", 2) == ["one two", "three four"]
    assert textdraw._broken("狐狸小径三千里", 2) == ["狐狸小径", "三千里"]
    assert textdraw._broken("unbreakable", 3) == ["unbreakable"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [("texts", b"\xff\xfe\x00binary", "not UTF-8"), ("texts", b"\n \n", "holds no text"),
     ("texts", b"x" * 300, "longer than"), ("fonts", None, "holds no fonts"),
     ("backgrounds", None, "holds no pictures")],
)  # fmt: skip
def test_inputs_of_no_use(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    path = tmp_path / "given"
    path.mkdir() if data is None else path.write_bytes(data)
    settings: dict[str, Any] = {name: path}
    with pytest.raises(UsageError, match=said):
        materials(TextImageSettings(**settings))


def test_a_font_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font at all")
    with pytest.raises(UsageError, match="cannot read the font"):
        materials(TextImageSettings(fonts=tmp_path))
    for wrong in ({"count": 0}, {"turned": 2.0}, {"bases": (8,)}, {"most_texts": 9}):
        with pytest.raises(UsageError):
            TextImageSettings(**wrong)  # type: ignore[arg-type]


def test_no_text_that_cannot_be_read() -> None:
    """Where a text would be smaller than 14 pixels it is left out, and the caption with it."""
    given = Materials((None,), ("a long text that has no room at all in so small a picture, however it is broken",), ())
    made = draw_picture(64, 64, TextImageSettings(most_texts=1), given, random.Random(0))
    assert made.pieces == () and "no words" in made.caption
