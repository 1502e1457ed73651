"""The prompt: a box of text. Enter draws; a pasted `lens gen` line or the name of a picture fills the whole form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message
from textual.widgets import TextArea

from lens_cli.terminal.console import printable

if TYPE_CHECKING:
    from textual import events

NEWLINE = ("ctrl+j", "shift+enter", "alt+enter")
_PASTE = 1 << 16  # characters: far above what a prompt may have


class PromptBox(TextArea):
    """What to draw."""

    class Entered(Message):
        """Enter: draw it."""

    class Pasted(Message):
        """Something was pasted that may be a command line or a file; the box takes it as text where it is neither."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(
            id="prompt", soft_wrap=True, show_line_numbers=False, compact=True, highlight_cursor_line=False,
            placeholder="what to draw, such as: three red balloons over a green hill",
        )  # fmt: skip
        self.border_title = "Prompt"
        self.border_subtitle = "Enter draws"

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Entered())
        elif event.key in NEWLINE:
            event.stop()
            event.prevent_default()
            self.insert("\n")
        else:
            await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.post_message(self.Pasted(event.text[:_PASTE]))

    def take(self, text: str) -> None:
        """Put pasted text where the cursor is."""
        start, end = self.selection
        self.replace(printable(text), start, end, maintain_selection_offset=False)

    def put(self, text: str) -> None:
        """Another prompt in place of this one."""
        if text != self.text:
            self.load_text(text)
            self.move_cursor(self.document.end)
