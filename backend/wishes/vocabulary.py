"""Which words a model knows, where its files say so: `vocabulary.json` beside a small model's transformer.

A large model has read everything and says nothing. Lens-Nano has seen a few hundred words; another one is drawn as
whatever is near in its features, so a person is told before they wonder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from backend.errors import CheckpointError
from backend.foreign import documents

NAME = "vocabulary.json"
_BYTES_LIMIT = 1_000_000
_NEAR = 0.74  # of difflib's ratio, to what a person is shown: "catt" and "grey" are near
_NEARER = 0.85  # to any other word: "baloons" and "undr" are; a bear is not meant to be a beak
QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|'[A-Z ]+'")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_BACKGROUND = re.compile(r"((?:[^\W\d_]+ ){1,2}?)background\b")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a model was trained to read."""

    lists: dict[str, tuple[str, ...]]  # what a person is shown: "things", "colours", "backgrounds", …
    words: frozenset[str]  # every word of its captions, in small letters
    notes: dict[str, str]  # to a list: what of it the model does seldom
    letters_at: frozenset[str] = frozenset()  # "256x256": sizes at which words come out as asked; empty: any


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """What the model in `folder` says of its words; None where it says nothing. Raises CheckpointError."""
    path = folder / NAME
    try:
        data = documents.parse_json(documents.read_bytes(path, _BYTES_LIMIT))
        lists = {str(name): tuple(map(str, words)) for name, words in data["lists"].items()}
        notes = {str(name): str(note) for name, note in data.get("notes", {}).items()}
        sizes = frozenset(map(str, data.get("letters_at", ())))
        return Vocabulary(lists=lists, words=frozenset(map(str, data["words"])), notes=notes, letters_at=sizes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no list of words: {error}", hint="delete it, or export the model again"
        ) from error


def unknown_words(prompt: str, folder: Path, *, near: bool = True) -> str | None:
    """The words of a prompt that the model in `folder` has never read; with `near`, the nearest that it knows.

    None where it knows all, or does not say what it knows. Words in quotation marks are letters to be drawn, and are
    left out. Raises as `read_vocabulary`.
    """
    vocabulary = read_vocabulary(folder)
    if vocabulary is None:
        return None
    text = QUOTED.sub(" ", prompt).lower()
    strange = [word for word in dict.fromkeys(_WORD.findall(text)) if word not in vocabulary.words]
    said = [_with_nearest(word, vocabulary) for word in strange] if near else strange
    background = _strange_background(text, vocabulary)
    if background and not strange:
        said.append(background)
    return ", ".join(said) if said else None


def _with_nearest(word: str, vocabulary: Vocabulary) -> str:
    from difflib import get_close_matches

    # A slip of the fingers keeps the first letter and about the length: else "kitten" would be near "kite".
    alike = [known for known in sorted(vocabulary.words) if known[0] == word[0] and abs(len(known) - len(word)) <= 1]
    alike = [known for known in alike if len(known) > 2]
    shown = {part for words in vocabulary.lists.values() for text in words for part in text.split()}
    near = get_close_matches(word, alike, 2, _NEARER)
    near += get_close_matches(word, [known for known in alike if known in shown and known not in near], 2, _NEAR)
    return f"{word} (near: {' or '.join(near[:2])})" if near else word


def _strange_background(text: str, vocabulary: Vocabulary) -> str | None:
    """A plain background that the model has not seen, with those that it has: each of its words may be known."""
    known = vocabulary.lists.get("backgrounds", ())
    found = _BACKGROUND.search(text)
    if not known or found is None:
        return None
    words = [word for word in found[1].split() if word not in ("a", "an", "the", "on", "plain")]
    if not words or any(" ".join(words[-n:]) in known for n in (1, 2)):
        return None
    return f"a {' '.join(words)} background (it knows {', '.join(known)})"
