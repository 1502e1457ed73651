"""A library of guideline sentences: what a system prompt for a reasoner can be put together from.

Each sentence is against one way in which pictures fail, its theme. A search that finds a theme among the failures adds
a sentence of that theme, or takes one away; no language model is needed for it. The sentences lie in `guidelines.toml`;
a file of one's own has the same form. Light ring: standard library only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from prompts import FOLDER, PromptError

THEMES = (
    "missing thing", "extra thing", "counting", "colours", "position", "text", "background", "size", "look", "style",
    "length",
)  # fmt: skip
# What stands before and after the guidelines in the prompts that Lens-Nano's reasoner was trained on.
TASK = "Rewrite the request as one prompt for a picture."
REFUSING = "Refuse what the policy forbids and name the rule."
_ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
_LIMITS = 64_000, 300  # bytes of a file, characters of a sentence
_FORM = 'an entry is [id] with theme = "…" and text = "…"'


@dataclass(frozen=True, kw_only=True)
class Guideline:
    """One sentence of instructions."""

    id: str
    theme: str  # the failure it is meant against: a name in THEMES
    text: str  # ends with a full stop


def load_guidelines(path: Path = FOLDER / "guidelines.toml") -> tuple[Guideline, ...]:
    """Every sentence of a library, in the order of the file.

    Raises PromptError, which names the file and the entry: a file that cannot be read or is no TOML, an unknown key or
    theme, an id that is none, a text that is empty, too long, no single line, without a full stop, or there twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LIMITS[0] + 1)
        if len(data) > _LIMITS[0]:
            raise PromptError(f"{path} is longer than {_LIMITS[0]:,} bytes", hint="a library is a page of sentences")
        table = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PromptError(f"cannot read the guidelines {path}: {reason}", hint="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PromptError(f"{path} is no TOML: {error}", hint=_FORM) from error
    found = tuple(_guideline(name, entry, path) for name, entry in table.items())
    if not found:
        raise PromptError(f"{path} holds no guideline", hint=_FORM)
    texts = [guideline.text.casefold() for guideline in found]
    if twice := [guideline.id for guideline in found if texts.count(guideline.text.casefold()) > 1]:
        raise PromptError(f"{path}: [{twice[0]}] and [{twice[1]}] are the same sentence", hint="leave one out")
    return found


def compose_guidelines(chosen: Iterable[Guideline]) -> str:
    """The body of a `complete` system prompt: the task, the sentences in the order given, the policy's sentence."""
    return " ".join([TASK, *(guideline.text for guideline in chosen), REFUSING])


def _guideline(name: str, entry: object, path: Path) -> Guideline:
    where = f"{path}: [{name[:40]}]"
    if not _ID.fullmatch(name):
        raise PromptError(f"{where} is no id", hint="small letters, digits and hyphens, 40 at most")
    if not isinstance(entry, dict):
        raise PromptError(f"{where} is no entry", hint=_FORM)
    fields = cast("dict[str, object]", entry)
    if set(fields) != {"theme", "text"}:
        raise PromptError(f"{where} has the keys {', '.join(sorted(fields)) or 'none'}", hint=_FORM)
    theme, text = fields["theme"], fields["text"]
    if theme not in THEMES:
        raise PromptError(f"{where}: unknown theme {str(theme)[:40]!r}", hint=f"one of {', '.join(THEMES)}")
    if not isinstance(text, str) or not text.strip().endswith(".") or not text.strip().isprintable():
        raise PromptError(f"{where}: the text is no sentence on one line that ends with a full stop", hint=_FORM)
    if len(text) > _LIMITS[1]:
        raise PromptError(f"{where}: the text is longer than {_LIMITS[1]} characters", hint="one short sentence")
    return Guideline(id=name, theme=str(theme), text=text.strip())
