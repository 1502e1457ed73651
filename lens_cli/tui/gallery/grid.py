"""Thumbnails in rows, with a cursor: only those that are looked at are read, in a thread."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import work
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input

from backend.errors import LensError
from lens_cli.tui.gallery.library import caption
from lens_cli.tui.keys import bindings
from lens_cli.tui.picture.cells import cells, fit
from lens_cli.tui.picture.load import load

if TYPE_CHECKING:
    from textual import events

    from backend.picture.history import Entry

THUMB = Size(18, 9)  # cells
CELL = Size(20, 11)  # with a caption, and a gap around
KEPT = 600  # thumbnails in memory


class Grid(ScrollView, can_focus=True):
    """Thumbnails in rows; only those that are looked at are read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "go(-1)", show=False), Binding("right", "go(1)", show=False),
        Binding("up", "row(-1)", show=False), Binding("down", "row(1)", show=False),
        Binding("pageup", "row(-3)", show=False), Binding("pagedown", "row(3)", show=False),
        Binding("home", "go(-1000000)", show=False), Binding("end", "go(1000000)", show=False),
        *bindings("gallery"),
    ]  # fmt: skip

    class Chosen(Message):
        """Another picture is under the cursor; None: there is none."""

        def __init__(self, entry: Entry | None) -> None:
            super().__init__()
            self.entry = entry

    class Ended(Message):
        """The cursor is near the last picture that was read."""

    class Asked(Message):
        """A person wants something of the picture under the cursor: same, remix, compare, copy or rate."""

        def __init__(self, what: str, entry: Entry, number: int = 0) -> None:
            super().__init__()
            self.what, self.entry, self.number = what, entry, number

    def __init__(self) -> None:
        super().__init__(id="grid")
        self.entries: list[Entry] = []
        self.cursor = 0
        self.marked: str | None = None
        self._thumbs: dict[str, list[Strip] | None] = {}  # None: cannot be shown
        self._wanted: list[str] = []
        self._reading = False

    @property
    def entry(self) -> Entry | None:
        return self.entries[self.cursor] if self.cursor < len(self.entries) else None

    @property
    def columns(self) -> int:
        return max(1, self.size.width // CELL.width)

    def put(self, entries: list[Entry], *, stay: bool = False) -> None:
        """Other pictures. `stay`: the cursor stays with its own, if it is still there."""
        before = self.entry.id if stay and self.entry is not None else None
        self.entries = entries
        self.cursor = next((place for place, one in enumerate(entries) if one.id == before), 0)
        self._measure()
        self.post_message(self.Chosen(self.entry))

    def change(self, entry: Entry) -> None:
        """One picture is rated otherwise."""
        self.entries = [entry if one.id == entry.id else one for one in self.entries]
        self.refresh()

    def _measure(self) -> None:
        rows = -(-len(self.entries) // self.columns)
        self.virtual_size = Size(self.columns * CELL.width, rows * CELL.height)
        self._follow()
        self.refresh()

    def on_resize(self) -> None:
        self._measure()

    def _follow(self) -> None:
        """Keep the cursor in sight."""
        row, column = divmod(self.cursor, self.columns)
        place = Region(column * CELL.width, row * CELL.height, CELL.width, CELL.height)
        self.scroll_to_region(place, animate=False)

    # --------------------------------------------------------------------------------------------------------- drawing

    def render_line(self, y: int) -> Strip:
        place = y + self.scroll_offset.y
        row, line = divmod(place, CELL.height)
        parts = list[Segment]()
        for column in range(self.columns):
            number = row * self.columns + column
            if number >= len(self.entries):
                break
            parts += self._piece(number, line)
        return Strip(parts).adjust_cell_length(self.size.width, self.rich_style)

    def _piece(self, number: int, line: int) -> list[Segment]:
        """One line of one picture's cell: a gap above, the thumbnail, the caption."""
        entry, here = self.entries[number], number == self.cursor
        base = self.rich_style
        edge = self._edge(here, entry.id == self.marked)
        if line == 0:
            top = "╭" + "─" * (CELL.width - 2) + "╮" if here else " " * CELL.width
            return [Segment(top, edge)]
        side = Segment("│" if here else " ", edge)
        if line <= THUMB.height:
            strips = self._thumb(entry)
            inner = self._absent(entry, line) if strips is None else list(strips[line - 1].apply_style(base))
            return [side, *inner, side]
        text = caption(entry, CELL.width - 2)
        style = edge if here or entry.id == self.marked else base + Style(dim=True)
        return [
            Segment("╰" if here else " ", edge),
            Segment(f"{text:<{CELL.width - 2}}", style),
            Segment("╯" if here else " ", edge),
        ]

    def _edge(self, here: bool, marked: bool) -> Style:
        if not here and not marked:
            return self.rich_style
        name = "warning" if marked else "accent" if self.has_focus else "foreground"
        return self.rich_style + Style(color=self.app.theme_variables.get(name), bold=True)

    def _absent(self, entry: Entry, line: int) -> list[Segment]:
        middle = line == THUMB.height // 2 + 1
        text = ("·" if entry.id not in self._thumbs else "no file") if middle else ""
        return [Segment(f"{text:^{THUMB.width}}", self.rich_style + Style(dim=True))]

    def _thumb(self, entry: Entry) -> list[Strip] | None:
        if entry.id not in self._thumbs and entry.id not in self._wanted:
            self._wanted.append(entry.id)
            self.call_after_refresh(self._read)
        return self._thumbs.get(entry.id)

    def _read(self) -> None:
        if self._wanted and not self._reading:
            self._reading = True
            known = {one.id: one.path for one in self.entries}
            wanted, self._wanted = self._wanted, []
            self._read_files([(name, known.get(name)) for name in wanted], colours=not self.app.no_color)

    @work(thread=True)
    def _read_files(self, wanted: list[tuple[str, Path | None]], *, colours: bool) -> None:
        for name, path in wanted:
            strips: list[Strip] | None = None
            try:
                if path is not None and self.app.is_running:
                    strips = _thumbnail(path, colours)
            except LensError:
                strips = None
            self.app.call_from_thread(self._have, name, strips)
        self.app.call_from_thread(self._done)

    def _have(self, name: str, strips: list[Strip] | None) -> None:
        self._thumbs[name] = strips
        while len(self._thumbs) > KEPT:
            del self._thumbs[next(iter(self._thumbs))]
        self.refresh()

    def _done(self) -> None:
        self._reading = False
        self._read()

    # ------------------------------------------------------------------------------------------------------------ keys

    def on_click(self, event: events.Click) -> None:
        row, column = (event.y + self.scroll_offset.y) // CELL.height, event.x // CELL.width
        number = row * self.columns + column
        if column < self.columns and number < len(self.entries):
            self.action_go(number - self.cursor)

    def action_go(self, by: int) -> None:
        if not self.entries:
            return
        self.cursor = min(len(self.entries) - 1, max(0, self.cursor + by))
        self._follow()
        self.refresh()
        self.post_message(self.Chosen(self.entry))
        if self.cursor > len(self.entries) - 3 * self.columns:
            self.post_message(self.Ended())

    def action_row(self, by: int) -> None:
        self.action_go(by * self.columns)

    def _ask(self, what: str, number: int = 0) -> None:
        if self.entry is not None:
            self.post_message(self.Asked(what, self.entry, number))

    def action_remix(self, same: bool) -> None:
        self._ask("same" if same else "remix")

    def action_compare(self) -> None:
        self._ask("compare")

    def action_copy(self) -> None:
        self._ask("copy")

    def action_rate(self, number: int) -> None:
        self._ask("rate", number)

    def action_find(self) -> None:
        self.screen.query_one("#find", Input).focus()


def _thumbnail(path: Path, colours: bool) -> list[Strip]:
    """A thumbnail in the middle of its cell."""
    image = load(path, 256)
    columns, rows = fit(image.width, image.height, THUMB.width, THUMB.height)
    left, top = (THUMB.width - columns) // 2, (THUMB.height - rows) // 2
    before, after = Segment(" " * left, Style()), Segment(" " * (THUMB.width - columns - left), Style())
    middle = [Strip([before, *strip, after], THUMB.width) for strip in cells(image, columns, rows, colours=colours)]
    blank = Strip([Segment(" " * THUMB.width, Style())], THUMB.width)
    return [*[blank] * top, *middle, *[blank] * (THUMB.height - rows - top)]
