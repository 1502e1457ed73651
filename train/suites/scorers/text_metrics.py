"""Count how much of a picture's text was read back, as three suites do. What a reader saw goes in as text.

Each suite twice: as its official evaluator counts, with that evaluator's faults, and corrected, under other names.

| suite | faults of the official count, kept under the official-compatible name | corrected |
|---|---|---|
| LongText | of the phrases that are no text of the picture only the last is cut; text that nobody asked for is free | all are cut; text beyond what was asked for counts against it |
| OneIG | a prompt none of whose pictures was made is counted with what was read for the one before | such a prompt counts as unread |
| CVTG | targets are whatever stands between single quotes, apostrophes among them; a word asked for twice may stand once; "sale," is not "sale" | targets are the published sentences, else quotes that are no apostrophes; as often as asked; without marks at a word's ends |
"""  # noqa: E501

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

# What Qwen2.5-VL answers where it reads nothing; the official evaluators cut these from what was read.
NO_TEXT = ("addCriterion", "No text recognized.")
_LETTERS = "一-龥a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
_CHINESE = re.compile("[一-鿿]")
_MARKS = ".,;:!?\"'“”‘’()[]{}«»…-–—"


# ----------------------------------------------------------------------------------------------------------- LongText


def longtext(texts: Sequence[str], read: str, language: str) -> dict[str, float]:
    """Numbers of one picture: `matched` of `words`, and corrected `fair_matched` of `fair_words`."""
    target = longtext_units(" ".join(texts), language)
    seen = longtext_units(read.replace(NO_TEXT[-1], ""), language)  # the last one only
    fair = longtext_units(without_no_text(read), language)
    return {
        "matched": bag_match(target, seen), "words": len(target),
        "fair_matched": bag_match(target, fair), "fair_words": max(len(target), len(fair)),
    }  # fmt: skip


def longtext_units(text: str, language: str) -> list[str]:
    """Lower-case words (en), or characters with their case (zh), without other signs."""
    cleaned = re.sub(rf"[^{_LETTERS}\s]", "", text)
    return cleaned.lower().split() if language == "en" else [*"".join(cleaned.split())]


def without_no_text(read: str) -> str:
    """What was read, without any phrase that says that there was nothing to read."""
    for phrase in NO_TEXT:
        read = read.replace(phrase, "")
    return "" if read.strip().rstrip(".").lower() == "no text recognized" else read


def bag_match(target: Sequence[str], seen: Sequence[str]) -> int:
    """How many of `target` are among `seen`, each as often as it is there; the order does not matter."""
    return sum((Counter(target) & Counter(seen)).values())


# ---------------------------------------------------------------------------------------------------------- OneIG text


def oneig(target: str, read: str) -> dict[str, float]:
    """Numbers of one picture: `edits` (characters), `exact` (1 or 0), `matched` of `words`."""
    for phrase in NO_TEXT:
        read = read.replace(phrase, "")
    wanted, seen = oneig_text(target), oneig_text(read)
    units, others = ([*wanted], [*seen]) if _CHINESE.search(wanted) else (wanted.split(), seen.split())
    edits = edit_distance(seen, wanted)
    return {"edits": edits, "exact": float(edits == 0), "matched": bag_match(units, others), "words": len(units)}


def oneig_text(text: str) -> str:
    """Case is kept; signs go, and of a text with Chinese in it the blanks as well."""
    cleaned = re.sub(rf"[^{_LETTERS}\s]", "", text)
    return "".join(cleaned.split()) if _CHINESE.search(cleaned) else " ".join(cleaned.split())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: how many letters to put in, take out or change."""
    before = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
        before = row
    return before[-1]


# ---------------------------------------------------------------------------------------------------------------- CVTG


def cvtg(prompt: str, sentences: Sequence[str], lines: Iterable[str]) -> dict[str, float]:
    """Numbers of one picture: `found` of `words`, `closeness` (a sum over words); corrected `fair_…`."""
    seen = [word for line in lines for word in line.lower().split()]
    asked = cvtg_words(prompt)
    fair, plain = fair_words(prompt, sentences), [word for word in map(_bare, seen) if word]
    return {
        "words": len(asked), "found": sum(word in seen for word in asked),
        "closeness": sum(_closeness(word, seen or [""]) for word in asked),
        "fair_words": len(fair), "fair_found": bag_match(fair, plain),
        "fair_closeness": sum(_closeness(word, plain or [""]) for word in fair),
    }  # fmt: skip


def cvtg_words(prompt: str) -> list[str]:
    """The words between single quotes, as the official evaluator takes them: an apostrophe opens and ends one too."""
    return [word for quoted in re.findall(r"'(.*?)'", prompt) for word in quoted.lower().split()]


def fair_words(prompt: str, sentences: Sequence[str]) -> list[str]:
    """The words to be written: the published sentences, else what stands between quotes that are no apostrophes."""
    quoted = sentences or re.findall(r"(?<!\w)['‘](.+?)['’](?!\w)", prompt)
    return [word for word in map(_bare, " ".join(quoted).lower().split()) if word]


def _bare(word: str) -> str:
    return word.strip(_MARKS)


def _closeness(word: str, seen: Sequence[str]) -> float:
    """1 - normalised edit distance to the word of `seen` that difflib finds the most alike."""
    best = difflib.get_close_matches(word, seen, n=1, cutoff=0)
    return 1 - edit_distance(word, best[0]) / (max(len(word), len(best[0])) + 1e-5) if best else 0.0
