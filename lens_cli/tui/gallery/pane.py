"""The second tab: every picture that was made, searched by its words, and one of them in full."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from backend.errors import LensError
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.gallery.grid import Grid
from lens_cli.tui.gallery.library import Library, command_of, details, wish_of_entry
from lens_cli.tui.picture.load import load
from lens_cli.tui.picture.view import PicturePane

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from backend.picture.history import Entry
    from backend.wish import Wish


class Gallery(Horizontal):
    """Whoever owns it hears `Remixed`, `Copied` and `Compared`."""

    class Remixed(Message):
        """What made a picture goes into the form, with its seed or without."""

        def __init__(self, wish: Wish, entry: Entry, same: bool) -> None:
            super().__init__()
            self.wish, self.entry, self.same = wish, entry, same

    class Copied(Message):
        """A line is to be copied."""

        def __init__(self, line: str) -> None:
            super().__init__()
            self.line = line

    class Compared(Message):
        """Two pictures are to be seen beside each other."""

        def __init__(self, first: Entry, second: Entry) -> None:
            super().__init__()
            self.first, self.second = first, second

    class Failed(Message):
        """Something that a person has to know."""

        def __init__(self, error: LensError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, library: Library, *, graphics: Graphics) -> None:
        super().__init__(id="gallery")
        self.library, self.graphics = library, graphics
        self._first: Entry | None = None  # marked to be compared
        self._all = False  # the last page was read

    def compose(self) -> ComposeResult:
        with Vertical(id="shelf"):
            yield Input(placeholder="find: words of the prompt", id="find", compact=True)
            yield Grid()
        with Vertical(id="one"):
            yield PicturePane("no picture", graphics=self.graphics, id="chosen")
            with VerticalScroll(id="details", can_focus=False):
                yield Static(Content(""), id="facts")

    def on_mount(self) -> None:
        self.load()

    @property
    def grid(self) -> Grid:
        return self.query_one(Grid)

    # --------------------------------------------------------------------------------------------------------- reading

    def load(self, *, stay: bool = False) -> None:
        """Read the first page again."""
        self._search(self.query_one("#find", Input).value, None, stay)

    @work(thread=True, exclusive=True, group="search")
    def _search(self, words: str, before: str | None, stay: bool) -> None:
        try:
            found = self.library.search(words, before)
        except LensError as error:
            self.app.call_from_thread(self._failed, error)
            return
        self.app.call_from_thread(self._found, found, words, before, stay)

    def _found(self, found: list[Entry], words: str, before: str | None, stay: bool) -> None:
        if words != self.query_one("#find", Input).value:
            return  # more was typed by now
        self._all = not found if before is not None else False
        grid = self.grid
        if before is not None:
            grid.entries = [*grid.entries, *found]
            grid.put(grid.entries, stay=True)
            return
        grid.put(found, stay=stay)
        if not found:
            self._empty("no prompt has these words" if words.strip() else "no picture was made yet")

    def _failed(self, error: LensError) -> None:
        self.grid.put([])
        self._empty(f"{error}\n\n{error.hint or ''}")

    def _empty(self, text: str) -> None:
        self.query_one("#chosen", PicturePane).clear(Content(text))
        self.query_one("#facts", Static).update(Content(""))

    @on(Input.Changed, "#find")
    def _typed(self, message: Input.Changed) -> None:
        message.stop()
        self.load()

    @on(Input.Submitted, "#find")
    def _entered(self, message: Input.Submitted) -> None:
        message.stop()
        self.grid.focus()

    @on(Grid.Ended)
    def _more(self) -> None:
        if not self._all and self.grid.entries:
            self._search(self.query_one("#find", Input).value, self.grid.entries[-1].id, True)

    # ----------------------------------------------------------------------------------------------------- one of them

    @on(Grid.Chosen)
    def _chosen(self, message: Grid.Chosen) -> None:
        entry = message.entry
        if entry is None:
            return
        rows = [
            Content.assemble(Content.styled(f"{name:<9}", "$foreground-muted"), text) for name, text in details(entry)
        ]
        self.query_one("#facts", Static).update(Content("\n").join(rows))
        self._open(entry)

    @work(thread=True, exclusive=True, group="open")
    def _open(self, entry: Entry) -> None:
        try:
            if entry.path is None:
                raise LensError("it was written to stdout, so it has no file")
            image = load(entry.path)
        except LensError as error:
            self.app.call_from_thread(self._show, entry, None, str(error))
            return
        self.app.call_from_thread(self._show, entry, image, "")

    def _show(self, entry: Entry, image: Any, problem: str) -> None:
        if self.grid.entry is None or self.grid.entry.id != entry.id:
            return  # the cursor has moved on
        pane = self.query_one("#chosen", PicturePane)
        if image is None:
            pane.clear(Content(problem))
        else:
            pane.show(image)

    @on(Grid.Asked)
    def _asked(self, message: Grid.Asked) -> None:
        entry, what = message.entry, message.what
        try:
            if what in ("same", "remix"):
                self.post_message(self.Remixed(wish_of_entry(entry), entry, what == "same"))
            elif what == "copy":
                self.post_message(self.Copied(command_of(entry)))
            elif what == "compare":
                self._compare(entry)
            elif what == "rate":
                self._rate(entry, None if message.number < 0 else message.number)
        except LensError as error:
            self.post_message(self.Failed(error))

    def _compare(self, entry: Entry) -> None:
        first, self._first = self._first, entry
        if first is not None and first.id != entry.id:
            self._first = None
            self.post_message(self.Compared(first, entry))
        elif first is not None:
            self._first = None  # the same again: no longer marked
        self.grid.marked = self._first.id if self._first is not None else None
        self.grid.refresh()

    @work(thread=True, group="rate")
    def _rate(self, entry: Entry, rating: int | None) -> None:
        try:
            rated = self.library.rate(entry.id, rating)
        except LensError as error:
            self.app.call_from_thread(self.post_message, self.Failed(error))
            return
        self.app.call_from_thread(self._rated, rated)

    def _rated(self, entry: Entry) -> None:
        self.grid.change(entry)
        if self.grid.entry is not None and self.grid.entry.id == entry.id:
            self.grid.post_message(Grid.Chosen(entry))
