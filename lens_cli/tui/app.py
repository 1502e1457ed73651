"""`lens tui`: the app. It holds the tabs, the keys and what is remembered; each tab does its own work.

Nothing waits on the thread that draws the screen: the server, the history and every file are asked in threads.
"""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.theme import Theme
from textual.widgets import ContentSwitcher, Footer, Static

from backend.errors import LensError
from backend.settings import Settings
from lens_cli.terminal.console import one_line
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui import keys
from lens_cli.tui.create.form import preset_of
from lens_cli.tui.create.pane import Create
from lens_cli.tui.jobs.connection import Connect
from lens_cli.tui.jobs.link import Link
from lens_cli.tui.jobs.queue import Queue
from lens_cli.tui.picture.view import PicturePane
from lens_cli.tui.state import TABS, State, write_state

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.screen import Screen
    from textual.widget import Widget

    from lens_cli.tui.gallery.pane import Gallery

SMALLEST = (60, 18)  # columns and lines that the app can be used in
LONG = 10.0  # seconds after which the end of a job rings, when nobody looks
REMEMBER = 2.0  # seconds after a change until it is written
THEME = Theme(
    name="lens", primary="#5b8def", secondary="#8a7cd8", accent="#f0b35a", success="#6cc08b", warning="#e0a84e",
    error="#e5646e", background="#101216", surface="#181b21", panel="#1e222a", foreground="#dfe3ea", dark=True,
)  # fmt: skip
_OF_THE_FORM = ("draw", "refine", "edit", "copy_command")
_FOCUS = {"create": "#prompt", "gallery": "#grid"}
_PICTURES = {"create": "#picture", "gallery": "#chosen", "train": "#samples"}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Files of the app. None: it has none, and nothing is read or written there."""

    state: Path | None = None
    history: Path | None = None
    pictures: Path | None = None  # the folder of new ones; None: the settings'


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the app begins with beside its state."""

    graphics: Graphics = Graphics.half
    keymap: dict[str, str] = field(default_factory=dict[str, str])  # of `keys.read_keys`
    notes: tuple[str, ...] = ()  # to be said
    typed: str = ""  # what a person typed before the app could read it


class LensApp(App[None], inherit_bindings=False):
    """The app of one person; `connect` says who draws."""

    TITLE = "lens"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("app"),
        Binding("ctrl+c", "help_quit", show=False, system=True),
    ]

    def __init__(
        self, settings: Settings, state: State, *, connect: Connect, places: Places | None = None,
        start: Start | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_theme(THEME)  # before the first rule of style is read: a change reads all of them again
        self.set_reactive(App.theme, state.theme if state.theme in self.available_themes else THEME.name)
        self.stylesheet.set_variables(self.get_css_variables())
        self.settings, self.state = settings, state
        self.places, self.start = places or Places(), start or Start()
        self.link = Link(settings, connect)
        self.create = Create(
            state.form, settings, self.link, open=state.open, graphics=self.start.graphics, folder=self.places.pictures
        )
        self._server, self._looked_at, self._remembering = "connecting", True, False

    # ------------------------------------------------------------------------------------------------------- the screen

    def compose(self) -> ComposeResult:
        with Horizontal(id="head"):
            yield Heading(id="tabs")
            yield Static(Content(""), id="status")
        with ContentSwitcher(initial="create"):
            yield self.create
        yield Static(Content(""), id="small")
        yield Footer(show_command_palette=False)
        yield self.link

    def on_mount(self) -> None:
        self.set_keymap(self.start.keymap)
        self.create.prompt.focus()
        if self.start.typed:
            self.create.prompt.take(self.start.typed)
        self._say_status()
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """After the first screen is there: everything that takes time."""
        for note in self.start.notes:
            self.notify(note, severity="warning", markup=False)
        self.link.open()
        if self.state.tab != "create":
            await self.action_tab(self.state.tab)

    def on_resize(self, event: events.Resize) -> None:
        wide, high = event.size
        sizes = {"narrow": wide < 100, "short": high < 32, "tiny": wide < SMALLEST[0] or high < SMALLEST[1]}
        first = self.screen_stack[0]
        for name, holds in sizes.items():
            first.set_class(holds, name)
        small = f"{wide}×{high} is too small\n{SMALLEST[0]}×{SMALLEST[1]} or more"
        first.query_one("#small", Static).update(Content(small))

    def on_app_focus(self) -> None:
        self._looked_at = True

    def on_app_blur(self) -> None:
        self._looked_at = False

    @property
    def current(self) -> str:
        """The name of the tab that is seen."""
        return str(self.screen_stack[0].query_one(ContentSwitcher).current)

    def _say_status(self) -> None:
        form = self.create.form
        model = preset_of(form, self.settings).name if form.model is None else Path(form.model).name
        text = Content(f"{self.link.jobs.summary() or self._server} · {model}")
        self.screen_stack[0].query_one("#status", Static).update(text)

    def fail(self, error: LensError) -> None:
        """A line or two that go away."""
        hint = f"\n{error.hint}" if error.hint else ""
        self.notify(f"{one_line(str(error))}{hint}", severity="error", timeout=8, markup=False)

    # ---------------------------------------------------------------------------------------------------- what is told

    @on(Link.Opened)
    def _opened(self, message: Link.Opened) -> None:
        self._server = "ready"
        self.create.controls.models = message.models
        self._say_status()

    @on(Link.Failed)
    def _lost(self, message: Link.Failed) -> None:
        self._server = "no server" if message.lost else self._server
        self._say_status()
        self.fail(message.error)

    @on(Link.Changed)
    def _jobs_changed(self) -> None:
        self.create.query_one(Queue).refresh()
        self._say_status()

    @on(Link.Heard)
    def _heard(self, message: Link.Heard) -> None:
        self.create.heard(message)

    @on(Link.Ended)
    def _ended(self, message: Link.Ended) -> None:
        job = message.job
        if job.error is not None and str(job.state) == "failed":
            hint = job.error.get("hint")
            self.fail(LensError(str(job.error.get("message")), hint=None if hint is None else str(hint)))
        if job.ended and job.started and job.ended - job.started > LONG and not self._looked_at:
            self.bell()

    @on(Create.Said)
    def _said(self) -> None:
        self._say_status()
        self.remember()

    @on(Create.Failed)
    def _failed(self, message: Create.Failed) -> None:
        self.fail(message.error)

    @on(Create.Saved)
    def _saved(self) -> None:
        if self.current == "gallery":
            self._gallery().load(stay=True)

    # --------------------------------------------------------------------------------------------------------- actions

    def action_draw(self) -> None:
        self.create.draw()

    def action_stop(self) -> None:
        self.create.stop()

    def action_refine(self) -> None:
        self.create.refine()

    def action_edit(self) -> None:
        self.create.edit()

    def action_copy_command(self) -> None:
        line = self.create.command()
        if line is not None:
            self._copy(line)

    def _copy(self, line: str) -> None:
        self.copy_to_clipboard(line)
        self.notify(line, title="copied", markup=False)

    def action_view(self) -> None:
        """The picture of this tab on the whole screen."""
        from lens_cli.tui.gallery.full import Full

        name = _PICTURES.get(self.current, "#picture")
        pane = self.screen_stack[0].query_one(name, PicturePane)
        if pane.image is not None and len(self.screen_stack) == 1:
            caption = self.create.caption if name == "#picture" else ""
            self.push_screen(Full(pane.image, caption, graphics=self.start.graphics))

    def action_help(self) -> None:
        """What has the focus, in words."""
        from lens_cli.tui.dialogs import Told
        from lens_cli.tui.help import help_for

        if len(self.screen_stack) == 1:
            title, text = help_for(self.focused, self.create.form, self.settings, self.start.keymap)
            self.push_screen(Told(title, text))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Over the app lies a small screen: its own keys alone, and leaving."""
        if len(self.screen_stack) > 1 and any(row.action.startswith(f"app.{action}") for row in keys.KEYS["app"]):
            return action in ("quit", "command_palette")
        return self.current == "create" or action not in _OF_THE_FORM

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every command of the table, for the palette; and Textual's own for themes and screenshots."""
        for row in keys.KEYS["app"]:
            if row.name != "palette":
                key = self.start.keymap.get(row.name, row.key)
                yield SystemCommand(row.label, f"{row.about} ({key})", self._runner(row.action))
        yield SystemCommand("Theme", "Choose other colours.", self.action_change_theme)
        yield SystemCommand("Screenshot", "Save the screen as SVG.", lambda: self.deliver_screenshot())

    def _runner(self, action: str) -> Callable[[], Any]:
        return lambda: self.run_action(action)

    # -------------------------------------------------------------------------------------------------------- the tabs

    async def action_tab(self, name: str) -> None:
        """Go to a tab; the others are made when they are first seen."""
        switcher = self.screen_stack[0].query_one(ContentSwitcher)
        if not switcher.query(f"#{name}"):
            await switcher.add_content(self._make_tab(name), id=name)
        elif name == "gallery":
            self._gallery().load(stay=True)
        switcher.current = name
        self.screen_stack[0].query_one(Heading).refresh()
        self.screen_stack[0].query_one(_FOCUS.get(name, f"#{name}")).focus()
        self.remember()

    def _make_tab(self, name: str) -> Widget:
        if name == "gallery":
            from lens_cli.tui.gallery.library import Library
            from lens_cli.tui.gallery.pane import Gallery

            return Gallery(Library(self.places.history), graphics=self.start.graphics)
        if name == "train":
            from lens_cli.tui.follow.train import TrainTab

            return TrainTab(self.state.folders.get("train", ""), graphics=self.start.graphics)
        from lens_cli.tui.follow.search import SearchTab

        return SearchTab(self.state.folders.get("search", ""))

    def _gallery(self) -> Gallery:
        from lens_cli.tui.gallery.pane import Gallery

        return self.screen_stack[0].query_one(Gallery)

    async def on_gallery_remixed(self, message: Gallery.Remixed) -> None:
        await self.action_tab("create")
        self.create.fill(message.wish, seed=message.same, parent=message.entry.id)

    def on_gallery_copied(self, message: Gallery.Copied) -> None:
        self._copy(message.line)

    def on_gallery_failed(self, message: Gallery.Failed) -> None:
        self.fail(message.error)

    def on_gallery_compared(self, message: Gallery.Compared) -> None:
        from lens_cli.tui.gallery.full import Compare

        self.push_screen(Compare(message.first, message.second, graphics=self.start.graphics))

    def on_followed(self, message: Any) -> None:
        folders = {**self.state.folders, message.tab: message.folder}
        self.state = replace(self.state, folders=MappingProxyType(folders))
        self.remember()

    # ------------------------------------------------------------------------------------------------------ remembered

    def watch_theme(self, name: str) -> None:
        if self.is_running:
            self.remember()

    def remember(self) -> None:
        """Write what the app is to be the next time, a moment after the last change."""
        if self.places.state is not None and not self._remembering:
            self._remembering = True
            self.set_timer(REMEMBER, self._write_state)

    def _write_state(self) -> None:
        self._remembering = False
        if self.places.state is None:
            return
        try:
            write_state(self.places.state, self.now())
        except (LensError, OSError) as error:
            self.places = replace(self.places, state=None)  # said once
            self.notify(f"nothing is remembered: {error}", severity="warning", markup=False)

    def now(self) -> State:
        """The app as it is to be remembered."""
        return replace(
            self.state, form=self.create.form, tab=self.current if self.current in TABS else "create",
            theme="" if self.theme == THEME.name else self.theme, open=self.create.controls.unfolded,
        )  # fmt: skip

    async def action_quit(self) -> None:
        self._write_state()
        self.exit()


class Heading(Static):
    """The names of the tabs with their keys, that of the shown one lit; a click goes there."""

    def _labels(self) -> list[tuple[str, str, str]]:
        keymap = self.app.start.keymap if isinstance(self.app, LensApp) else {}
        found = {row.name: keymap.get(row.name, row.key) for row in keys.KEYS["app"]}
        return [(name, f" {found[name].partition(',')[0].upper()} ", f"{name.capitalize()} ") for name in TABS]

    def render(self) -> Content:
        current = self.app.current if isinstance(self.app, LensApp) else ""
        parts = [Content.styled(_LOGO, "$text-accent bold")]
        for name, key, title in self._labels():
            here = name == current
            parts.append(Content.styled(key, "$text-accent on $primary 40%" if here else "$foreground-disabled"))
            parts.append(Content.styled(title, "bold on $primary 40%" if here else "$foreground-muted"))
        return Content.assemble(*parts)

    async def on_click(self, event: events.Click) -> None:
        place = len(_LOGO)
        for name, key, title in self._labels():
            if place <= event.x < place + len(key + title) and isinstance(self.app, LensApp):
                await self.app.action_tab(name)
            place += len(key + title)


_LOGO = " ◉ lens "
