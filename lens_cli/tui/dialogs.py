"""Small screens over the app: a list to choose from, a line to write, an error in full, and help."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

if TYPE_CHECKING:
    from textual.app import ComposeResult

_CLOSE: list[BindingType] = [Binding("escape", "close", "Close")]


class Pick(ModalScreen[str | None]):
    """One of a list; None: closed without."""

    BINDINGS: ClassVar[list[BindingType]] = _CLOSE

    def __init__(self, title: str, options: Sequence[str], now: str) -> None:
        super().__init__()
        self._title, self._options, self._now = title, list(options), now

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield OptionList(*(Option(Content(text)) for text in self._options), markup=False)

    def on_mount(self) -> None:
        choices = self.query_one(OptionList)
        choices.highlighted = self._options.index(self._now) if self._now in self._options else 0

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        self.dismiss(self._options[message.option_index])

    def action_close(self) -> None:
        self.dismiss(None)


class Ask(ModalScreen[str | None]):
    """A line of text; None: closed without."""

    BINDINGS: ClassVar[list[BindingType]] = _CLOSE

    def __init__(self, title: str, about: str, text: str) -> None:
        super().__init__()
        self._title, self._about, self._text = title, about, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield Static(Content(self._about), classes="about")
            yield Input(self._text, select_on_focus=False)
            yield Static(Content("Enter takes it · Esc leaves it as it was"), classes="keys")

    def on_input_submitted(self, message: Input.Submitted) -> None:
        self.dismiss(message.value)

    def action_close(self) -> None:
        self.dismiss(None)


class Told(ModalScreen[None]):
    """Something to read: an error in full, or the help of what has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,f1", "close", "Close"),
        Binding("y", "copy", "Copy"),
    ]

    def __init__(self, title: str, text: Content) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog tall") as box:
            box.border_title = self._title
            box.border_subtitle = "Esc closes · y copies"
            yield Static(self._text)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._text.plain)
        self.notify("copied", markup=False)

    def action_close(self) -> None:
        self.dismiss(None)
