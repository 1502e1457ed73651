"""The third tab: a training run as its folder tells it. Nothing is asked of the process that trains."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from backend.errors import LensError, os_reason
from backend.paths import expanded
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.dialogs import Ask
from lens_cli.tui.follow.lines import Follower
from lens_cli.tui.keys import bindings
from lens_cli.tui.picture.load import load
from lens_cli.tui.picture.view import PicturePane

if TYPE_CHECKING:
    from PIL import Image
    from textual.app import ComposeResult

EVERY = 2.0  # seconds between two looks
CURVES = ("reward", "loss", "validation")
NO_RUN = "Press o and name the folder of a run: what --run-dir said."


class Followed(Message):
    """A tab follows another folder now: to be remembered."""

    def __init__(self, tab: str, folder: str) -> None:
        super().__init__()
        self.tab, self.folder = tab, folder


class TrainTab(Horizontal, can_focus=True):
    """Looks at the folder every two seconds, in a thread, while the tab is seen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("follow"),
        Binding("c", "curve", "Curve"),
    ]

    def __init__(self, folder: str, *, graphics: Graphics) -> None:
        super().__init__(id="train")
        self.folder, self.graphics = folder, graphics
        self._number = 0  # of the run, where a folder holds several
        self._curve = 0
        self._followers: dict[Path, Follower] = {}
        self._sheet: tuple[Path, float] | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="run"):
            yield Static(Content(NO_RUN), id="run-facts")
            yield Static(Content(""), id="curve")
        yield PicturePane("no samples yet", graphics=self.graphics, id="samples")

    def on_mount(self) -> None:
        self.set_interval(EVERY, self.look)
        self.look()

    def look(self) -> None:
        """Read what is new, if somebody sees it."""
        if self.folder and self.is_on_screen:
            curve = self.query_one("#curve", Static)
            self._look(self.folder, max(20, curve.size.width), max(4, curve.size.height - 2))

    @work(thread=True, exclusive=True, group="look")
    def _look(self, named: str, columns: int, rows: int) -> None:
        from lens_cli.terminal.curves import braille
        from lens_cli.work.train.status import lines
        from train.run.status import folders, run_of

        try:
            places = folders(expanded(named))
            place = places[self._number % len(places)]
            follower = self._followers.setdefault(place, Follower(place / "metrics.jsonl"))
            follower.look()
            run = run_of(place, tuple(_numbers(row) for row in follower.rows if _has_step(row)))
            told = lines(run, columns, rows=0)
            drawn = [name for name in CURVES if run.series(name)]
            plot, title = ["no step was logged yet"], ""
            if drawn:
                title = drawn[self._curve % len(drawn)]
                plot = braille(run.series(title), columns=columns, rows=max(3, rows - 1))
            several = f"run {self._number % len(places) + 1} of {len(places)} · " if len(places) > 1 else ""
            found = _newest(place / "previews")
            picture = None if found is None or found == self._sheet else load(found[0])
        except (LensError, OSError) as error:
            said = str(error) if isinstance(error, LensError) else f"{named}: {os_reason(error)}"
            self.app.call_from_thread(self._fail, said)
            return
        self.app.call_from_thread(self._show, several, told, title, plot, found, picture)

    def _fail(self, text: str) -> None:
        self.query_one("#run-facts", Static).update(Content(f"{text}\n\n{NO_RUN}"))
        self.query_one("#curve", Static).update(Content(""))

    def _show(
        self, several: str, told: list[str], title: str, plot: list[str], found: tuple[Path, float] | None,
        picture: Image.Image | None,
    ) -> None:  # fmt: skip
        name, _, facts = told[0].partition(": ")
        parts = [
            Content.styled(several + name, "$text-accent bold"),
            *map(Content, facts.split(" · ")),
            *map(Content, told[1:]),
        ]
        self.query_one("#run-facts", Static).update(Content("\n").join(parts))
        curve = self.query_one("#curve", Static)
        curve.border_title = Content(title)
        curve.update(Content.styled("\n".join(plot), "$text-success"))
        if found is not None and picture is not None:
            self._sheet = found
            pane = self.query_one("#samples", PicturePane)
            pane.show(picture)
            pane.say(f"samples of {found[0].stem}")

    def follow(self, folder: str) -> None:
        """Another folder."""
        self.folder, self._number, self._sheet = folder, 0, None
        self._followers.clear()
        self.query_one("#samples", PicturePane).clear()
        self.post_message(Followed("train", folder))
        self.look()

    def action_open(self) -> None:
        def take(text: str | None) -> None:
            if text and text.strip():
                self.follow(text.strip())

        self.app.push_screen(Ask("Run", "The folder of a training run, or of several", self.folder), take)

    def action_next(self) -> None:
        self._number, self._sheet = self._number + 1, None
        self.look()

    def action_curve(self) -> None:
        self._curve += 1
        self.look()


def _newest(folder: Path) -> tuple[Path, float] | None:
    """The sheet of samples that was written last, and when."""
    found = [(path.stat().st_mtime, path) for path in folder.glob("*.png")]
    if not found:
        return None
    when, path = max(found)
    return path, when


def _has_step(row: dict[str, Any]) -> bool:
    return isinstance(row.get("step"), (int, float))


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if isinstance(value, (int, float))}
