"""A picture on the screen, as large as its box: half blocks while it changes, the terminal's graphics once it stays."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.segment import Segment
from textual.containers import Container
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.picture.cells import cells, fit

if TYPE_CHECKING:
    from PIL import Image
    from textual.app import ComposeResult
    from textual.visual import VisualType

_ROOM = 512  # pixels of the longer side kept for half blocks, whatever the screen


class CellPicture(Widget):
    """Half blocks in the middle of the box; made anew when box or picture change."""

    def __init__(self, image: Image.Image | None = None) -> None:
        super().__init__()
        self._image: Image.Image | None = None
        self._strips: list[Strip] = []
        self._made_for: tuple[int, Size] = (0, Size())
        self._count = 0
        if image is not None:
            self.put(image)

    def put(self, image: Image.Image) -> None:
        """Show another picture in the place of this one."""
        self._image = image
        if max(image.size) > _ROOM:
            self._image = image.copy()
            self._image.thumbnail((_ROOM, _ROOM))
        self._count += 1
        self.refresh()

    def render_line(self, y: int) -> Strip:
        if self._image is None:
            return Strip.blank(self.size.width)
        if self._made_for != (self._count, self.size):
            self._made_for, self._strips = (self._count, self.size), self._make(self._image)
        return self._strips[y] if y < len(self._strips) else self._blank()

    def _blank(self) -> Strip:
        return Strip.blank(self.size.width, self.rich_style)

    def _make(self, image: Image.Image) -> list[Strip]:
        wide, high = self.size
        columns, rows = fit(image.width, image.height, wide, high)
        drawn = self._cells(image, columns, rows)
        left, top, style = (wide - columns) // 2, (high - rows) // 2, self.rich_style
        before, after = Segment(" " * left, style), Segment(" " * (wide - columns - left), style)
        middle = [Strip([before, *strip, after], wide) for strip in drawn]
        return [self._blank() for _ in range(top)] + middle

    def _cells(self, image: Image.Image, columns: int, rows: int) -> list[Strip]:
        return cells(image, columns, rows, colours=not self.app.no_color)


class KittyPicture(CellPicture):
    """The pixels themselves, sent once within the screen's own update. A new widget for each picture."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__()
        self._image, self._number = image, 0
        self._unsent = ""

    def _cells(self, image: Image.Image, columns: int, rows: int) -> list[Strip]:
        from lens_cli.tui.picture import kitty

        columns, rows = min(columns, kitty.MOST), min(rows, kitty.MOST)
        before = kitty.forget(self._number) if self._number else ""
        self._number, text = kitty.send(image, columns, rows)
        first, *rest = kitty.placeholders(self._number, columns, rows)
        return [Strip([kitty.control(before + text), *first], columns), *rest]

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        if any(segment.control for segment in strip):  # sent with this line, and never again
            self._strips[y] = Strip([segment for segment in strip if not segment.control], strip.cell_length)
        return strip


class PicturePane(Container):
    """The place of one picture, with a line below that says what it is."""

    DEFAULT_CSS = """
    PicturePane { layout: vertical; }
    PicturePane > CellPicture, PicturePane > .graphics { width: 100%; height: 1fr; }
    PicturePane > .graphics { align: center middle; }
    PicturePane > .caption { height: 1; color: $text-muted; text-align: center; text-wrap: nowrap; }
    PicturePane > .empty { height: 1fr; content-align: center middle; text-align: center; color: $text-disabled; }
    """

    def __init__(self, empty: str, *, graphics: Graphics, **more: Any) -> None:
        """`empty`: what stands there while there is no picture."""
        super().__init__(**more)
        self.graphics, self._empty = graphics, empty
        self.image: Image.Image | None = None
        self._final = False

    def compose(self) -> ComposeResult:
        yield Static(Content(self._empty), classes="empty body")
        yield Static(Content(""), classes="caption")

    def say(self, caption: str) -> None:
        """The line below the picture. Its text is never markup."""
        self.query_one(".caption", Static).update(Content(caption))

    def clear(self, empty: VisualType | None = None) -> None:
        """No picture."""
        self.image = None
        self._put(Static(Content(self._empty) if empty is None else empty, classes="empty body"))

    def show(self, image: Image.Image, *, final: bool = True) -> None:
        """Show a picture; `final`: it stays, so that the terminal's graphics are worth their bytes."""
        self.image = image
        if self.graphics is Graphics.none:
            return
        if not final or self.graphics is Graphics.half or self.app.no_color:
            found = self.query(".body")
            body = found.first() if found else None
            if type(body) is CellPicture:
                body.put(image)
                return
            self._put(CellPicture(image))
        else:
            self._put(KittyPicture(image) if self.graphics is Graphics.kitty else self._sixel(image))

    def _sixel(self, image: Image.Image) -> Widget:
        from textual_image.widget import SixelImage  # was imported before the app ran: it asks the terminal

        picture = SixelImage(image)
        # The library reads these as the size of the picture, so they have to be one.
        columns, rows = fit(image.width, image.height, self.size.width, max(1, self.size.height - 1))
        picture.styles.width, picture.styles.height = columns, rows
        holder = Container(picture, classes="graphics")
        return holder

    def _put(self, body: Widget) -> None:
        """A new widget in the old one's place, both in one update of the screen."""
        if not self.is_mounted:
            return
        body.add_class("body")
        with self.app.batch_update():
            for old in self.query_children(".body"):
                old.remove()
            self.mount(body, before=0)
