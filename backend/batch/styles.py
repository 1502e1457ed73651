"""Named styles: `--style sticker` puts what was asked for into a sentence that says how it looks.

They lie in `prompts/styles.toml`; a person's own in `styles.toml` beside the settings, with the same form, go first.
A style is applied before anything is drawn of wildcards, and before a reasoner reads the prompt.

Light ring: standard library only.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from backend.errors import UsageError, os_reason
from backend.foreign import documents
from backend.paths import styles_file
from backend.wish import Wish
from prompts import FOLDER

PLACE = "{prompt}"
FILE_BYTES = 1 << 20
_FORM = f'a style is name = "… {PLACE} …"'


def styled(wish: Wish) -> Wish:
    """The wish with its prompt in its style's sentence; without a style as it is. Raises UsageError."""
    if wish.style is None or wish.prompt is None:
        return wish
    known = styles()
    if wish.style not in known:
        near = difflib.get_close_matches(wish.style, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise UsageError(f"no style is called {wish.style[:60]!r}", hint=f"{hint}; your own go into {styles_file()}")
    return replace(wish, prompt=known[wish.style].replace(PLACE, wish.prompt.strip()))


def styles() -> dict[str, str]:
    """Name -> sentence of all styles. Raises UsageError for a file of one's own that is none."""
    return read_styles(FOLDER / "styles.toml") | read_styles(styles_file())


def read_styles(path: Path) -> dict[str, str]:
    """The styles of a file; a missing one has none. Raises UsageError naming the entry that is no style."""
    try:
        found = documents.parse_toml(documents.read_text(path, FILE_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {os_reason(error)}") from error
    except documents.Unreadable as error:
        raise UsageError(f"{path} {error}", hint=_FORM) from error
    styles = dict[str, str]()
    for name, text in found.items():
        if not isinstance(text, str) or PLACE not in text:
            raise UsageError(f"{path}: {name!r} is no style", hint=_FORM)
        styles[name] = text
    return styles
