"""Every key of the app, as one table: what it does, where, and what it is called in `keys.toml` to be given another.

Light ring but for Textual's own record of a binding, which arrives with `bindings`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import UsageError, os_reason
from backend.foreign import documents

if TYPE_CHECKING:
    from textual.binding import BindingType

_MOST = 1 << 16  # bytes of a file of keys


@dataclass(frozen=True)
class KeyRow:
    """One key."""

    name: str  # in keys.toml
    key: str  # as Textual calls it; several with commas
    action: str
    label: str  # one or two words, for the last line of the screen
    about: str  # a sentence, for the palette and the help
    foot: bool = True  # whether the last line shows it


# where -> its keys; "app" works everywhere, the others while that part has the focus.
KEYS: dict[str, tuple[KeyRow, ...]] = {
    "app": (
        KeyRow("help", "f1", "app.help", "Help", "Explain what has the focus, and its keys."),
        KeyRow("refine", "f2", "app.refine", "Refine", "Let the reasoner rewrite the prompt."),
        KeyRow("draw", "ctrl+g", "app.draw", "Draw", "Draw the prompt; in the prompt box Enter does so too.", False),
        KeyRow("view", "f3", "app.view", "Large", "Show the picture on the whole screen.", False),
        KeyRow("edit", "f4", "app.edit", "Editor", "Write the prompt in $VISUAL or $EDITOR.", False),
        KeyRow("create", "f5", "app.tab('create')", "Create", "Go to the prompt.", False),
        KeyRow("gallery", "f6", "app.tab('gallery')", "Gallery", "Go to the pictures that were made.", False),
        KeyRow("train", "f7", "app.tab('train')", "Train", "Follow a training run.", False),
        KeyRow("search", "f8", "app.tab('search')", "Search", "Follow a prompt search.", False),
        KeyRow("copy", "f9", "app.copy_command", "Copy line", "Copy the form as a `lens gen` line."),
        KeyRow("stop", "ctrl+t", "app.stop", "Stop", "Stop the picture that is being drawn.", False),
        KeyRow("palette", "ctrl+p", "app.command_palette", "Palette", "Find any command by its name."),
        KeyRow("quit", "ctrl+q", "app.quit", "Quit", "Leave; pictures in the queue are drawn all the same."),
    ),
    "queue": (
        KeyRow("queue-cancel", "x,delete", "cancel", "Cancel", "Cancel the job: at once, or after its current step."),
        KeyRow("queue-up", "shift+up,K", "move(-1)", "Sooner", "Move the waiting job one place up."),
        KeyRow("queue-down", "shift+down,J", "move(1)", "Later", "Move the waiting job one place down."),
    ),
    "gallery": (
        KeyRow("gallery-view", "enter", "app.view", "Large", "Show the picture on the whole screen."),
        KeyRow("gallery-remix", "r", "remix(False)", "Remix", "Fill the form with what made it, but its seed."),
        KeyRow("gallery-same", "s", "remix(True)", "With seed", "Fill the form with what made it, its seed too."),
        KeyRow("gallery-compare", "c", "compare", "Compare", "Mark the picture; with the second one, show both."),
        KeyRow("gallery-copy", "y", "copy", "Copy line", "Copy the `lens gen` line that makes it again.", False),
        KeyRow("gallery-find", "slash", "find", "Find", "Search the prompts."),
        KeyRow("gallery-unrate", "u", "rate(-1)", "Unrate", "Take the rating back.", False),
        *(KeyRow(f"gallery-rate-{n}", str(n), f"rate({n})", f"Rate {n}", f"Rate it {n}.", False) for n in range(6)),
    ),
    "follow": (
        KeyRow("follow-open", "o", "open", "Folder", "Name the folder to follow."),
        KeyRow("follow-next", "n", "next", "Next run", "Show the next run of the folder."),
    ),
}  # fmt: skip


def bindings(where: str) -> list[BindingType]:
    """The keys of a part of the app, as Textual wants them."""
    from textual.binding import Binding

    return [
        Binding(row.key, row.action, row.label, show=row.foot, id=row.name, tooltip=row.about, priority=where == "app")
        for row in KEYS[where]
    ]


def rows() -> Iterable[KeyRow]:
    """The whole table."""
    return (row for part in KEYS.values() for row in part)


def read_keys(path: Path) -> dict[str, str]:
    """{name: keys} of a file such as `draw = "ctrl+d"`; none where there is no file. Raises UsageError."""
    try:
        found = documents.parse_toml(documents.read_text(path, _MOST))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {os_reason(error)}") from error
    except documents.Unreadable as error:
        raise UsageError(f"{path} {error}") from error
    known = {row.name: row for row in rows()}
    for name, key in found.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"{path}: no key is called {name!r}", hint=f"did you mean {near[0]}?" if near else None)
        if not isinstance(key, str) or not key.strip():
            raise UsageError(f"{path}: {name} = {key!r} is no key", hint='such as "ctrl+d", or "f2,ctrl+r" for two')
    _check_twice(found, path)
    return {name: str(key) for name, key in found.items()}


def _check_twice(found: dict[str, Any], path: Path) -> None:
    """Raises UsageError where one key would do two things in one place."""
    for where, part in KEYS.items():
        taken = dict[str, str]()
        for row in (*KEYS["app"], *(part if where != "app" else ())):
            for key in (one.strip() for one in str(found.get(row.name, row.key)).split(",")):
                if taken.setdefault(key, row.name) != row.name:
                    raise UsageError(f"{path}: {key} is both {taken[key]} and {row.name}", hint="give one another key")


def shown(key: str) -> str:
    """A key as keyboards have it: f1 -> F1, ctrl+g -> Ctrl+G, K -> K."""
    names = {"slash": "/", "delete": "Del"}

    def one(word: str) -> str:
        *held, last = word.split("+")
        last = names.get(last, last.capitalize() if len(last) > 1 else last.upper() if held else last)
        return "+".join([*(part.capitalize() for part in held), last])

    return ", ".join(one(word.strip()) for word in key.split(","))


def table() -> list[str]:
    """The keys as lines of text: what `lens tui --keys` prints, and what a `keys.toml` may hold."""
    return [f"{row.name:<16} {row.key:<16} {row.about}" for row in rows()]
