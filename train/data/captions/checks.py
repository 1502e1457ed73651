"""Whether what a model wrote is a caption to train on. Pure functions of the text.

What is asked: within a band of words, no refusal, no running in circles, and in the wanted language apart from what
stands within quotation marks, which is the picture's own text and keeps its language (paper section 2.1).

What is not asked, since the text alone cannot tell: whether it is true of the picture.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from backend.reasoner.answers import declines, unquoted
from train.data.text_rules import unusable

_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")  # kana, Chinese characters, Thai
JUDGED_LETTERS = 40  # fewer say too little of a language: "A cat." is taken for Galician
_RUN, _TIMES = 6, 3  # a run of so many words that comes so often is running in circles
_LEAD = re.compile(
    r"(?:(?:sure|certainly|of course)[,.!]\s*)?"
    r"(?:here(?:'s| is) (?:a|the|your)[^:.]{0,60}:\s*|(?:caption|description)\s*:\s*)",
    re.IGNORECASE,
)
# Only these two words: "this watercolour shows" says something of the picture.
_SHOWS = re.compile(
    r"(?:the|this) (?:image|picture) (?:shows|depicts|features|presents|displays|captures|portrays|contains)\s+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Band:
    """How long a caption may be, in words, both ends included."""

    least: int
    most: int


def tidy(text: str) -> str:
    """The caption without what models put around it: headings, emphasis, "Here is …:", "The image shows", breaks."""
    text = re.sub(r"^\s*(?:```\w*|#+[^\n]*\n)", "", text.strip()).removesuffix("```")
    text = " ".join(text.replace("**", "").split())
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    if text[:1] == '"' == text[-1:] and text.count('"') == 2:  # the whole caption within marks
        text = text[1:-1].strip()
    if found := _SHOWS.match(text):
        text = text[found.end() :]
        text = text[:1].upper() + text[1:]
    return text


def count_words(text: str) -> int:
    """Words by blanks; of scripts that put none between words every letter counts as half of one."""
    unspaced = len(_UNSPACED.findall(text))
    words = [word for word in _UNSPACED.sub(" ", text).split() if any(char.isalnum() for char in word)]
    return len(words) + (unspaced + 1) // 2


def language_of(text: str) -> str | None:
    """ISO 639-1 of what is not quoted; None where that is too little to tell."""
    plain = unquoted(text)
    if sum(char.isalpha() for char in plain) < JUDGED_LETTERS:
        return None
    import py3langid

    return str(py3langid.classify(plain)[0])


def repeats(text: str) -> bool:
    """Whether it runs in circles: some six words come three times. Quoted words may, as on a wall of posters."""
    words = re.findall(r"\w+", unquoted(text).casefold())
    runs = Counter(tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1))
    return any(times >= _TIMES for times in runs.values())


def flaw(text: str, band: Band, language: str | None) -> str | None:
    """The first thing that speaks against a tidied caption, or None. `language` None: any."""
    if reason := unusable(text):
        return reason
    if declines(text):
        return "a refusal"
    words = count_words(text)
    if not band.least <= words <= band.most:
        return f"{words} words, not {band.least} to {band.most}"
    if repeats(text):
        return "repeats itself"
    found = language_of(text) if language is not None else None
    if found is not None and found != language:
        return f"in {found}, not in {language}"
    return None
