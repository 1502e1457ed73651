"""What F1 says: of the thing that has the focus what it is, what it is now and why, and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from textual.content import Content

from backend.wish import ROWS
from lens_cli.tui.create.about import about
from lens_cli.tui.create.control import Control
from lens_cli.tui.create.form import decided, preset_of
from lens_cli.tui.create.prompt_box import PromptBox
from lens_cli.tui.keys import KEYS, shown

if TYPE_CHECKING:
    from textual.widget import Widget

    from backend.settings import Settings
    from lens_cli.tui.create.form import Form

_PLACES = {
    "prompt": (
        "Prompt",
        "What to draw. Enter draws, Ctrl+J begins a new line. Paste a `lens gen` line, or drop a picture that lens "
        "made, and the whole form is filled. {a|b} draws one of the words.",
    ),
    "queue": (
        "Queue",
        "What is drawn and what waits. The queue belongs to the server: it goes on when the app is closed.",
    ),
    "fold": ("More", "What is rarely changed. The line says what in it is not as usual."),
    "grid": ("Gallery", "Every picture of the history, the last made first; those of lens gen are here too."),
    "find": ("Find", "Words of a prompt, or their beginnings."),
    "train": (
        "Train",
        "A training run, read from its folder every two seconds: loss, speed, what is left, samples.",
    ),
    "search": ("Search", "A prompt search, read from its folder every two seconds."),
}


def help_for(widget: Widget | None, form: Form, settings: Settings, keymap: Mapping[str, str]) -> tuple[str, Content]:
    """(title, text) about what has the focus."""
    name = "prompt" if isinstance(widget, PromptBox) or widget is None else str(widget.id)
    if isinstance(widget, Control):
        title, text, where = widget.title, Content("\n").join(_control(widget, form, settings)), ""
    else:
        title, plain = _PLACES.get(name, ("lens", ""))
        text, where = Content(plain), {"queue": "queue", "grid": "gallery", "find": "gallery"}.get(name, "")
        where = "follow" if name in ("train", "search") else where
    parts = [text, Content(""), *_keys(where, keymap), *_keys("app", keymap)]
    parts += [Content(""), Content.styled("Other keys: lens tui --keys", "$foreground-disabled")]
    return title, Content("\n").join(parts)


def _control(widget: Control, form: Form, settings: Settings) -> list[Content]:
    lines = [Content(about(widget.field)), Content("")]
    known = decided(form, settings).get(widget.field)
    origin = known.origin if known is not None else "you" if widget.said else "the settings or the model"
    lines.append(Content(f"now: {widget.value or '–'} (said by {origin})"))
    preset = preset_of(form, settings)
    if widget.field in ("steps", "guidance"):
        lines.append(Content(f"{preset.name} was made for {preset.steps} steps, guidance {preset.guidance:g}"))
    if widget.options or widget.steps is not None:
        lines.append(Content("◀ ▶ change it"))
    enter = "takes what was typed" if widget.number else "chooses from a list" if widget.options else "writes it"
    lines.append(Content(f"Enter {enter}, Delete takes it back"))
    if row := ROWS.get(widget.field):
        lines.append(Content.styled(f"on the command line: {', '.join(row.flags)}", "$foreground-muted"))
    return lines


def _keys(where: str, keymap: Mapping[str, str]) -> list[Content]:
    return [
        Content.assemble(Content.styled(f"{shown(keymap.get(row.name, row.key)):<16}", "$text-accent"), row.about)
        for row in KEYS.get(where, ())
    ]
