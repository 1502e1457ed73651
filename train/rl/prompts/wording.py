"""Grammar of noun phrases as the taxonomy writes them: countable, in the singular, without an article.

    "basket weaver from the Andes" -> "a basket weaver from the Andes", "basket weavers from the Andes", "basket weaver"

English alone. Light ring: standard library only.
"""

from __future__ import annotations

import re

QUOTED = re.compile(r'"[^"]+"')  # words that shall be written in the picture, with their marks
_TAIL = re.compile(
    r"\s(?:of|in|on|at|with|from|under|over|beside|by|for|between|among|near|behind|above|against|without|inside|into"
    r"|out|around|through|across|before|after|that|as|and|full|cut|come|carved|seen|crowded|to|off|made|down|beneath|below)\s"
)
_VOWEL_SOUND = re.compile(r"[aeiouàáâäèéêëìíîïòóôöùúûüœ]|h(?:our|onest|eir)|[FHLMNRSX]-|8")
_CONSONANT_SOUND = re.compile(r"(?:uni(?!n)|use|usu|uku|euro|eu|one\b|once|ewe|u-)", re.IGNORECASE)
_SAME = ("fish", "sheep", "deer", "moose", "bison", "elk", "carp", "salmon", "shrimp", "samurai", "banh mi")
_ENDS = (
    ("woman", "women"), ("person", "people"), ("child", "children"), ("goose", "geese"), ("mouse", "mice"),
    ("dormouse", "dormice"), ("musk ox", "musk oxen"), ("cactus", "cacti"), ("fungus", "fungi"), ("foot", "feet"),
    ("tooth", "teeth"),
    ("wolf", "wolves"), ("calf", "calves"), ("leaf", "leaves"), ("loaf", "loaves"), ("half", "halves"),
    ("shelf", "shelves"), ("knife", "knives"), ("wife", "wives"), ("scarf", "scarves"), ("elf", "elves"),
    ("dwarf", "dwarves"), ("potato", "potatoes"), ("tomato", "tomatoes"), ("buffalo", "buffaloes"), ("hero", "heroes"),
    ("mango", "mangoes"), ("man", "men"),
)  # fmt: skip
_NO_MEN = ("human", "shaman", "caiman", "ottoman", "talisman", "doberman", "ataman")


def head(phrase: str) -> str:
    """What a sentence calls it again, up to the first preposition but "of": "bowl of pho with lime", "bowl of pho"."""
    tail = next((found for found in _TAIL.finditer(phrase) if found.group().strip() != "of"), None)
    return phrase[: tail.start()] if tail else phrase


def article(phrase: str) -> str:
    """The phrase with "a" or "an"."""
    vowel = _VOWEL_SOUND.match(phrase if phrase[1:2] == "-" else phrase.lower())
    return f"{'an' if vowel and not _CONSONANT_SOUND.match(phrase) else 'a'} {phrase}"


def plural(phrase: str) -> str:
    """Several of it: the last word before the first preposition takes the ending."""
    tail = _TAIL.search(phrase)
    noun, rest = (phrase[: tail.start()], phrase[tail.start() :]) if tail else (phrase, "")
    return _plural(noun) + rest


def _plural(noun: str) -> str:
    lower = noun.lower()
    if lower.endswith(_SAME):
        return noun
    for one, many in _ENDS:
        if lower.endswith(one) and not (one == "man" and lower.endswith(_NO_MEN)):
            return noun[: len(noun) - len(one)] + many
    if re.search(r"(?:s|x|z|ch|sh)$", lower):
        return noun + "es"
    if re.search(r"[^aeiou]y$", lower):
        return noun[:-1] + "ies"
    return noun + "s"
