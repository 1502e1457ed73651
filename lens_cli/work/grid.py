"""What `lens grid` does: every cell drawn in one run, the sheet written when all are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from backend.batch.grid import Axis, Cell, cells
from backend.batch.lines import Line
from backend.disk import check_folder, make_folder, write_new
from backend.errors import UsageError
from backend.inputs.begin import last_pass
from backend.picture.outputs import OutputPlan
from backend.wish import Wish
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.show import show, wanted
from lens_cli.terminal.viewer import view
from lens_cli.work.backend import open_session
from lens_cli.work.batch import Batch, Planner, draw_all, explain
from lens_cli.work.interrupt import Interrupt

if TYPE_CHECKING:
    from PIL import Image

SHEET_PIXELS = 200_000_000  # of one sheet: 600 MB of memory


def make_grid(planner: Planner, base: Wish, x: Axis, y: Axis, *, cells: str | None, dry_run: bool) -> None:
    """Draw and write it. `cells`: where the single pictures go, too; None: nowhere.

    A cell that failed stays empty, and the sheet is written nevertheless. Raises typer.Exit with the code of what went
    wrong, if something did, and what planning raises.
    """
    talk, settings = planner.talk, planner.settings
    batch, sheet = plan_grid(planner, base, x, y, cells)
    if dry_run:
        explain(batch, talk)
        return
    for item in batch.items:
        item.resolved.need_files()
    check_folder(sheet.parent)
    with (
        open_session(settings, talk) as session,
        Interrupt(says=None) as interrupt,
        Meter(talk=talk, total=batch.total) as meter,
    ):
        draw_all(batch, session, interrupt, meter, show=(False, False))
    error, data = batch.error(), batch.data()
    if batch.images:
        picture = _sheet(batch.images, x, y)
        path = _write(picture, sheet, base, planner)
        data["sheet"] = str(path)
        talk.data(path)
        if base.open:
            view(path, talk)
        if wanted(base.show, settings.output.show, talk):
            show(picture, talk)
    if error is None:
        talk.result(data)
        return
    talk.fail(error, data)
    raise typer.Exit(error.exit_code)


def plan_grid(planner: Planner, base: Wish, x: Axis, y: Axis, kept: str | None) -> tuple[Batch, Path]:
    """The requests of all cells, and where the sheet goes. Raises UsageError."""
    if base.output == "-":
        raise UsageError("a grid is a file", hint="-o grid.png")
    every = cells(base, x, y)
    lines = [Line(where=cell.label, number=0, wish=_to(cell, kept), key=_key(cell.column, cell.row)) for cell in every]
    batch = planner.lines(lines)
    batch.relation, batch.images = "grid", {}
    requests = [item.resolved.request for item in batch.items]
    finished = [last_pass(request) for request in requests]
    most = max(request.width * request.height for request in finished) * len(finished)
    if most > SHEET_PIXELS:
        raise UsageError(
            f"a sheet of {most / 1e6:,.0f} megapixels is too large", hint="make smaller pictures, or fewer"
        )
    if kept is None:
        batch.items = [replace(item, plan=_nowhere(item.plan)) for item in batch.items]
    plan = planner.places(replace(base, output=base.output), 1)
    assert plan.template is not None
    plan = plan if base.output is not None else replace(plan, template=plan.template + "-grid")
    return batch, plan.path(requests[0], 0, datetime.now())


def _to(cell: Cell, kept: str | None) -> Wish:
    """A cell's wish with the place of its own picture; the sheet's format is its own."""
    return replace(cell.wish, output=kept, format=None, quality=None)


def _nowhere(plan: OutputPlan) -> OutputPlan:
    """Bytes that nobody writes; the history has no picture that no file has."""
    return replace(plan, template=None, history=False)


def _key(column: int, row: int) -> str:
    return f"{column},{row}"


def _sheet(images: dict[str, Any], x: Axis, y: Axis) -> Image.Image:
    from backend.picture.sheets import grid_sheet

    rows: list[Sequence[Image.Image | None]] = [
        [images.get(_key(column, row)) for column in range(len(x.values))] for row in range(len(y.values))
    ]
    return grid_sheet(rows, x.labels, y.labels)


def _write(picture: Image.Image, path: Path, base: Wish, planner: Planner) -> Path:
    from backend.picture.images import encode

    plan = planner.places(base, 1)
    make_folder(path.parent)
    return write_new(path, encode(picture, plan.format, quality=plan.quality, record=None))
