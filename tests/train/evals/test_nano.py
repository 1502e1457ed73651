"""`evaluate` with generators that are right or wrong by construction: the prompt's own scene, drawn, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from backend.errors import FileError, UsageError
from tests.train.results import result
from train.evals.nano import RESULTS, EvalFolder, EvalReport, evaluate, seed_of
from train.evals.nano_prompts import PROMPT_KINDS, made_prompts, prompts
from train.evals.sheet import contact_sheet
from train.world.drawing import render

SCENES = {m.prompt.brief: m.scene for m in made_prompts()} | {m.prompt.dense: m.scene for m in made_prompts()}


def draw(prompt: str, seed: int) -> Image.Image:
    """A perfect generator."""
    return render(SCENES[prompt], 256, 256)


def blank(prompt: str, seed: int) -> Image.Image:
    return Image.new("RGB", (256, 256), (206, 228, 248))


def test_a_perfect_generator_is_right_and_an_empty_one_wrong() -> None:
    some = prompts(limit=14)
    report = evaluate(draw, some, wording="dense")
    assert [r.id for r in report.results] == [p.id for p in some]
    assert sum(r.right for r in report.results) >= 13, [r.reason for r in report.results]
    assert set(report.by_kind()) == set(PROMPT_KINDS)
    assert evaluate(blank, prompts(limit=7)).overall == 0.0


def test_overall_is_the_mean_of_kinds_and_micro_of_pictures() -> None:
    report = EvalReport(results=[result("counting", 0, True), *(result("text", i, False) for i in range(3))])
    assert report.overall == 0.5
    assert report.micro.rate == 0.25
    low, high = report.overall_interval
    assert 0 < low < 0.5 < high < 1
    assert "overall" in report.table()[-2] and report.data()["kinds"]["text"]["total"] == 3


def test_finished_pictures_are_not_made_again_and_a_cut_line_is(tmp_path: Path) -> None:
    some = prompts(limit=3)
    folder = EvalFolder(tmp_path / "run")
    settings = {"model": "fake", "steps": 1}
    evaluate(blank, some, images_per_prompt=2, done=folder.open(settings), on_result=folder.add)
    lines = (folder.path / RESULTS).read_bytes()
    done = folder.open(settings)
    assert len(done) == 6 and folder.picture(done[0]).exists()

    (folder.path / RESULTS).write_bytes(lines[:-20])  # killed in the middle of a line
    again: list[int] = []

    def count(prompt: str, seed: int) -> Image.Image:
        again.append(seed)
        return blank(prompt, seed)

    report = evaluate(count, some, images_per_prompt=2, done=folder.open(settings), on_result=folder.add)
    assert again == [seed_of(some[-1], 1, 0)]
    assert len(report.results) == 6
    with pytest.raises(UsageError, match="steps"):
        folder.open(settings | {"steps": 2})
    (folder.path / RESULTS).write_bytes(b"{}\n")
    with pytest.raises(FileError, match="damaged"):
        folder.open(settings)


def test_a_rewriter_changes_what_is_read_and_not_what_is_checked() -> None:
    some = prompts(limit=2)
    seen: list[str] = []

    def generate(prompt: str, seed: int) -> Image.Image:
        seen.append(prompt)
        return blank(prompt, seed)

    report = evaluate(generate, some, rewrite=str.upper)
    assert seen == [p.brief.upper() for p in some]
    assert [(r.asked, r.prompt) for r in report.results] == [(p.brief, p.brief.upper()) for p in some]


def test_contact_sheet_shows_every_picture() -> None:
    picture = blank("", 0)
    sheet = contact_sheet([(result("text", i, bool(i % 2)), picture) for i in range(9)], columns=4)
    colours = {colour for _, colour in sheet.getcolors(1 << 24) or []}
    assert (40, 150, 70) in colours and (210, 50, 50) in colours
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
