"""The table of settings in docs/settings.md, from the settings and their explanations themselves.

python -m lens_cli.work.settings_table docs/settings.md        # rewrites it in place; a test holds the page to it
"""

from __future__ import annotations

import sys
from pathlib import Path

from backend import fields, settings
from backend.disk import write_atomic
from backend.settings import Settings
from lens_cli.work.config import SECRETS, all_settings, as_text

BEGIN, END = "<!-- every setting: begin -->", "<!-- every setting: end -->"


def table() -> str:
    """Markdown: key, kind, default and what it is, of every setting in order."""
    kinds = dict(settings.keys())
    rows = ["| Setting | Kind | Default | |", "|---|---|---|---|"]
    for item in all_settings(Settings()):
        usual = "" if item.key in SECRETS or item.value is None else as_text(item.value)
        cells = (f"`{item.key}`", fields.words_for(kinds[item.key]), f"`{usual}`" if usual else "", item.about)
        rows.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with the table between its two marks. Raises ValueError where they are missing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END} in the page")
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_atomic(path, with_table(path.read_text(encoding="utf-8")).encode())
