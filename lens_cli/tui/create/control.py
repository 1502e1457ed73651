"""A control of the form: a line with a name and a value, changed by arrows, by typing, or from a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

if TYPE_CHECKING:
    from textual import events

NAME_WIDTH = 11  # cells
_DIGITS = "0123456789."


class Control(Widget, can_focus=True):
    """`choose(by)` gives the value `by` places further, as text; `typed(text)` takes what was typed, or refuses it."""

    DEFAULT_CSS = """
    Control { height: 1; width: 100%; padding: 0 1; }
    Control:focus { background: $primary 30%; }
    Control:hover { background: $boost; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Less", show=False),
        Binding("right", "step(1)", "More", show=False),
        Binding("up", "app.focus_previous", "Up", show=False),
        Binding("down", "app.focus_next", "Down", show=False),
        Binding("enter,space", "open", "Choose", show=False),
        Binding("backspace", "erase", "Erase", show=False),
        Binding("escape", "drop", "Drop", show=False),
        Binding("delete", "forget", "Model's own", show=False),
    ]

    class Changed(Message):
        """A person gave a control another value; "" takes back what was said."""

        def __init__(self, control: Control, text: str) -> None:
            super().__init__()
            self.source, self.text = control, text

    class Opened(Message):
        """A person wants to see all that a control can be, or to write it. `start`: what was typed already."""

        def __init__(self, control: Control, start: str = "") -> None:
            super().__init__()
            self.source, self.start = control, start

    def __init__(
        self, name: str, title: str, *, steps: Callable[[int], str] | None = None, number: bool = False,
        options: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`name`: of the wish's field. `steps`: the text after so many steps from now; None: there are none.
        `number`: digits are taken as they are typed. `options`: all that it can be; none: any text."""
        super().__init__(id=f"control-{name}")
        self.field, self.title, self.steps, self.number, self.options = name, title, steps, number, options
        self.value, self.said, self.gauge = "", False, -1.0
        self._typed = ""

    def put(self, value: str, *, said: bool, gauge: float = -1.0) -> None:
        """Show a value; `said` by a person rather than by settings or model. `gauge` 0..1: how far along it is."""
        if (value, said, gauge) != (self.value, self.said, self.gauge):
            self.value, self.said, self.gauge = value, said, gauge
            self.refresh()

    def render(self) -> Content:
        wide = self.size.width - NAME_WIDTH
        name = Content.styled(f"{self.title:<{NAME_WIDTH}}", "$foreground-muted")
        if self._typed:
            return Content.assemble(name, Content.styled(f"{self._typed}▏", "$text-accent bold"))
        arrows = self.steps is not None
        text = self.value if len(self.value) <= wide - 4 * arrows else self.value[: wide - 4 * arrows - 1] + "…"
        shown = Content.styled(text, "bold" if self.said else "")
        if not arrows:
            return Content.assemble(name, shown)
        edge = "$text-accent" if self.has_focus else "$foreground-disabled"
        parts = [name, Content.styled("◀ ", edge), shown, Content.styled(" ▶", edge)]
        room = wide - len(text) - 6
        if self.gauge >= 0 and room >= 6:
            full = round(min(1.0, self.gauge) * room)
            parts += [
                Content.styled("  " + "━" * full, "$text-accent"),
                Content.styled("━" * (room - full), "$surface-lighten-2"),
            ]
        return Content.assemble(*parts)

    # ------------------------------------------------------------------------------------------------------------ keys

    def on_key(self, event: events.Key) -> None:
        if not event.is_printable or event.character in (None, " "):
            return
        if self.number and event.character in _DIGITS:
            self._typed += str(event.character)
            self.refresh()
        elif not self.number and not self.options:
            self.post_message(self.Opened(self, str(event.character)))
        else:
            return
        event.stop()
        event.prevent_default()

    def on_blur(self) -> None:
        self._take()

    def on_click(self, event: events.Click) -> None:
        place = event.x - NAME_WIDTH - 1
        if self.steps is None:
            self.action_open()
        elif 0 <= place < 2:
            self.action_step(-1)
        elif place >= 2:
            self.action_step(1)

    def _take(self) -> None:
        """What was typed becomes the value."""
        typed, self._typed = self._typed, ""
        if typed:
            self.refresh()
            self.post_message(self.Changed(self, typed))

    def action_step(self, by: int) -> None:
        self._typed = ""
        if self.steps is not None:
            self.post_message(self.Changed(self, self.steps(by)))

    def action_open(self) -> None:
        if self._typed:
            self._take()
        else:
            self.post_message(self.Opened(self))

    def action_erase(self) -> None:
        if self._typed:
            self._typed = self._typed[:-1]
            self.refresh()

    def action_drop(self) -> None:
        if self._typed:
            self._typed = ""
            self.refresh()
        else:
            self.screen.query_one("#prompt").focus()

    def action_forget(self) -> None:
        self._typed = ""
        self.post_message(self.Changed(self, ""))


class Fold(Widget, can_focus=True):
    """The line that opens and closes the rest of the form, and says what in it is not as usual."""

    DEFAULT_CSS = """
    Fold { height: 1; width: 100%; padding: 0 1; color: $text-muted; }
    Fold:focus { background: $primary 30%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space,right,left", "fold", "Fold", show=False),
        Binding("up", "app.focus_previous", "Up", show=False),
        Binding("down", "app.focus_next", "Down", show=False),
    ]

    class Toggled(Message):
        """The rest was opened or closed."""

    def __init__(self, *, open: bool) -> None:  # noqa: A002  its own word
        super().__init__(id="fold")
        self.open, self._said, self._number = open, "", 0

    def put(self, said: dict[str, str]) -> None:
        """What of the rest was said: name -> value."""
        self._said = ", ".join(f"{name} {value}" for name, value in said.items())
        self._number = len(said)
        self.refresh()

    def render(self) -> Content:
        sign = "▾ " if self.open else "▸ "
        if not self._said:
            return Content(f"{sign}More")
        text = f"More ({self._number}): {self._said}"
        room = self.size.width - 2
        return Content(sign + (text if len(text) <= room else text[: room - 1] + "…"))

    def action_fold(self) -> None:
        self.open = not self.open
        self.refresh()
        self.post_message(self.Toggled())

    def on_click(self, event: Any) -> None:
        self.action_fold()
