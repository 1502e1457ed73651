"""What a person is told of a prompt before it is drawn: words and styles that a small model has never read, and signs
that other programs read as commands and that are words here."""

from __future__ import annotations

import re

from backend.batch.styles import PLACE, styles
from backend.checkpoints.layouts import reasoner_adapter
from backend.checkpoints.resolve import ModelFiles
from backend.errors import UsageError, shown
from backend.types import GenerationRequest
from backend.wishes.vocabulary import QUOTED, read_vocabulary, unknown_words

_FLAG = re.compile(r"(?:^|\s)(--[a-z][a-z-]*(?:[ =]\d[\w:.]*)?)")
_LETTERS = re.compile(r"\b(?:say|says|saying|read|reads|reading|word|words|text|letters) ([A-Z]{2,}(?: [A-Z]{2,})*)\b")
_WEIGHT = re.compile(r"\([^()]+:\s*\d+(?:\.\d+)?\s*\)")


def prompt_notes(request: GenerationRequest, files: ModelFiles) -> list[str]:
    """A sentence for each thing of a prompt that is not as it was probably meant.

    Raises as `backend.wishes.vocabulary.read_vocabulary`.
    """
    name, folder = files.name, files.folder
    asked, sentence = _apart(request.prompt, request.style)
    found: list[str] = []
    if (flag := _FLAG.search(asked)) is not None:
        found.append(
            f"{shown(flag[1])} stands inside the prompt and is drawn as words; as an option it goes outside it"
        )
    if (weight := _WEIGHT.search(asked)) is not None:
        found.append(f"{shown(weight[0])} weighs nothing here: it is read as plain words")
    asked = _FLAG.sub(" ", asked)
    known = read_vocabulary(folder)
    size = f"{request.width}x{request.height}"
    if known is not None and known.letters_at and size not in known.letters_at and QUOTED.search(asked):
        good = " or ".join(sorted(known.letters_at))
        found.append(f"{name} has learnt letters at {good}: few words come out right at {size}")
    if known is not None and (letters := _LETTERS.search(QUOTED.sub(" ", asked))) is not None:
        found.append(f'letters to draw go into quotation marks: "{letters[1]}"')
        asked = asked.replace(letters[1], " ")
    if (strange := unknown_words(asked, folder)) is not None:
        found.append(
            f"{name} has never read {strange}; what it knows: lens models show {name}{_rewriting(request, files)}"
        )
    if sentence and unknown_words(sentence, folder, near=False) is not None:
        found.append(f"{name} has not learnt the style {request.style}; those it knows: lens models show {name}")
    return found


def _rewriting(request: GenerationRequest, files: ModelFiles) -> str:
    """The advice to let the model's own language model say it otherwise, where it learned to."""
    learned = reasoner_adapter(files.text_encoder) is not None
    return "; --reasoner local may know other words for it" if learned and request.expander is None else ""


def _apart(prompt: str, style: str | None) -> tuple[str, str]:
    """(what was asked for, the words that its style put around it); the whole prompt where nobody can say."""
    try:
        sentence = styles().get(style or "", "")
    except UsageError:  # a file of one's own that was changed meanwhile
        sentence = ""
    before, _, after = sentence.partition(PLACE)
    if not sentence or not (prompt.startswith(before) and prompt.endswith(after)):
        return prompt, ""
    return prompt[len(before) : len(prompt) - len(after)], f"{before} {after}"
