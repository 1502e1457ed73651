"""A picture on the whole screen, and two beside each other with what differs between them."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from backend.errors import LensError
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.gallery.library import details
from lens_cli.tui.picture.load import load
from lens_cli.tui.picture.view import PicturePane

if TYPE_CHECKING:
    from PIL import Image
    from textual.app import ComposeResult

    from backend.picture.history import Entry

_CLOSE: list[BindingType] = [Binding("escape,enter,q,f3", "close", "Close")]
_SHORT = {"prompt", "asked", "avoid", "file", "made", "took", "id", "rating"}  # no settings


class Full(ModalScreen[None]):
    """One picture, as large as the terminal."""

    BINDINGS: ClassVar[list[BindingType]] = _CLOSE

    def __init__(self, image: Image.Image, caption: str, *, graphics: Graphics) -> None:
        super().__init__()
        self._image, self._caption, self._graphics = image, caption, graphics

    def compose(self) -> ComposeResult:
        yield PicturePane("", graphics=self._graphics, id="full")

    def on_mount(self) -> None:
        pane = self.query_one(PicturePane)
        pane.show(self._image)
        pane.say(f"{self._caption} · Esc closes")

    def action_close(self) -> None:
        self.dismiss(None)


class Compare(ModalScreen[None]):
    """Two pictures of the history. 1 and 2 ask that the left or the right one be rated the better."""

    BINDINGS: ClassVar[list[BindingType]] = [*_CLOSE, Binding("x", "swap", "Swap")]

    def __init__(self, first: Entry, second: Entry, *, graphics: Graphics) -> None:
        super().__init__()
        self._pair, self._graphics = [first, second], graphics

    def compose(self) -> ComposeResult:
        with Vertical(id="pair"):
            with Horizontal(id="both"):
                for place in range(2):
                    yield PicturePane("", graphics=self._graphics, id=f"side-{place}")
            yield Static(Content(""), id="differs")

    def on_mount(self) -> None:
        self._fill()

    def _fill(self) -> None:
        self.query_one("#differs", Static).update(differences(*self._pair))
        for place, entry in enumerate(self._pair):
            self._open(place, entry)

    @work(thread=True)
    def _open(self, place: int, entry: Entry) -> None:
        image: Any = None
        problem = "it has no file"
        try:
            if entry.path is not None:
                image = load(entry.path)
        except LensError as error:
            problem = str(error)
        self.app.call_from_thread(self._show, place, entry, image, problem)

    def _show(self, place: int, entry: Entry, image: Any, problem: str) -> None:
        if not self.is_mounted or self._pair[place] is not entry:
            return
        pane = self.query_one(f"#side-{place}", PicturePane)
        if image is None:
            pane.clear(Content(problem))
        else:
            pane.show(image)
        pane.say(f"seed {entry.seed} · {entry.id[:8]}")

    def action_swap(self) -> None:
        self._pair.reverse()
        self._fill()

    def action_close(self) -> None:
        self.dismiss(None)


def differences(first: Entry, second: Entry) -> Content:
    """What is not alike, a line each: left value, right value."""
    one, two = dict(details(first)), dict(details(second))
    lines = [Content.styled("x swaps · Esc closes", "$foreground-disabled")]
    for name in dict.fromkeys((*one, *two)):
        left, right = one.get(name, "–"), two.get(name, "–")
        if left != right and name not in _SHORT - {"prompt", "rating"}:
            lines.append(
                Content.assemble(
                    Content.styled(f"{name:<9}", "$foreground-muted"),
                    left,
                    Content.styled("  →  ", "$text-accent"),
                    right,
                )
            )
    if len(lines) == 1:
        lines.append(Content("the same settings"))
    return Content("\n").join(lines)
