"""The prompt before and after the reasoner: the rewrite can be edited, taken or left."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import LoadingIndicator, Static, TextArea

from lens_cli.terminal.console import one_line

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult


class Refine(ModalScreen[str | None]):
    """Opens at once and waits for `answer` or `refuse`; gives the text that was accepted, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Keep mine"),
        Binding("f2,ctrl+g", "accept", "Take it", priority=True),
    ]

    def __init__(self, before: str, *, waits: bool = False) -> None:
        """`waits`: the model that rewrites draws at the moment."""
        super().__init__()
        self.before, self._waits = before, waits
        self.answered: Mapping[str, Any] = {}  # as the server has it
        self._refused: Content | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            with VerticalScroll(id="before", can_focus=False) as box:
                box.border_title = "Yours"
                yield Static(Content(self.before), id="mine")
            with Vertical(id="after") as box:
                box.border_title = "Rewritten"
                yield LoadingIndicator()
            asked = "the model draws, and rewrites after this job …" if self._waits else "the reasoner is asked …"
            yield Static(Content(f"{asked} · Esc keeps yours"), classes="keys")

    def answer(self, answer: Mapping[str, Any]) -> None:
        """The rewrite has come; perhaps before the screen is there."""
        self.answered = answer
        if self.is_mounted:
            self._show_answer()

    def refuse(self, reason: Content) -> None:
        """There is no rewrite, and this is why."""
        self._refused = reason
        if self.is_mounted:
            self._show_refusal(reason)

    def on_mount(self) -> None:
        if self.answered:
            self._show_answer()
        elif self._refused is not None:
            self._show_refusal(self._refused)

    def _show_answer(self) -> None:
        text, told = str(self.answered.get("prompt", "")), self.answered.get("expander")
        who = "the reasoner" if not isinstance(told, dict) else one_line(str(cast("dict[str, Any]", told).get("model")))
        place = self.query_one("#after", Vertical)
        place.border_title = Content(f"Rewritten by {who}")
        place.remove_children()
        box = _Box(text, soft_wrap=True, show_line_numbers=False, compact=True, highlight_cursor_line=False)
        place.mount(box)
        box.focus()
        self.query_one("#mine", Static).update(difference(self.before, text))
        self._say("Enter takes it · edit as you like, Ctrl+J is a new line · Esc keeps yours")

    def _show_refusal(self, reason: Content) -> None:
        place = self.query_one("#after", Vertical)
        place.border_title = "No rewrite"
        place.remove_children()
        place.mount(Static(reason, classes="error"))
        self._say("Esc closes")

    def _say(self, text: str) -> None:
        self.query_one(".keys", Static).update(Content(text))

    def action_accept(self) -> None:
        found = self.query(TextArea)
        if found:
            self.dismiss(found.first().text)

    def action_leave(self) -> None:
        self.dismiss(None)


class _Box(TextArea):
    async def _on_key(self, event: events.Key) -> None:
        if event.key in ("enter", "ctrl+j"):
            event.stop()
            event.prevent_default()
            if event.key == "enter" and isinstance(self.screen, Refine):
                self.screen.action_accept()
            else:
                self.insert("\n")
        else:
            await super()._on_key(event)


def difference(before: str, after: str) -> Content:
    """The words of `before`: plain where `after` has them too, struck where it dropped them."""
    mine, theirs = before.split(), after.split()
    kept = set[int]()
    matcher = difflib.SequenceMatcher(a=[w.lower() for w in mine], b=[w.lower() for w in theirs], autojunk=False)
    for block in matcher.get_matching_blocks():
        kept.update(range(block.a, block.a + block.size))
    words = [
        Content(word) if place in kept else Content.styled(word, "$text-warning strike")
        for place, word in enumerate(mine)
    ]
    return Content(" ").join(words)
