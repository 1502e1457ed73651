"""Prompts that are templates: `{a|b}` picks one, `{2$$a|b|c}` two, `__name__` a line of the wildcards' `name.txt`.

Grammar and drawing are those of the package `dynamicprompts`; what is no such group or name stays as it stands, so that
a percent sign, a `#` or a lone brace beside them is text. A seed of its own draws, apart from the picture's: the same
template, wildcards and seed give the same words.

Light ring: dynamicprompts (0.1 s) is imported with the first template.
"""

from __future__ import annotations

import difflib
import logging
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import UsageError
from backend.requests import PROMPT_LIMIT
from backend.wish import Wish
from backend.wishes.seeds import SEED_END, draw_seeds

if TYPE_CHECKING:
    from dynamicprompts.wildcards import WildcardManager

_NAME = re.compile(r"(?<![^\W_])__((?!_)[\w*/.-]+?)__(?![^\W_])")
AS_IT_STANDS = "--no-wildcards draws the prompt as it stands"


def is_template(prompt: str) -> bool:
    """Whether something in it is drawn by a wildcard seed."""
    return any(drawn for _, drawn in _pieces(prompt))


class Wildcards:
    """The lists of words in one folder: `name.txt` with an alternative a line, YAML or JSON; folders inside are parts
    of names."""

    def __init__(self, folder: Path) -> None:
        """The folder need not exist: then no name is known. Its files are read when a name is."""
        self.folder = folder
        self._manager: WildcardManager | None = None

    def expand(self, template: str, seed: int) -> str:
        """The template with every choice made. Raises UsageError: a name that no list has, a group that is none."""
        if len(template) > PROMPT_LIMIT:
            raise UsageError(f"the template has {len(template):,} characters; the limit is {PROMPT_LIMIT:,}")
        from dynamicprompts.generators.randomprompt import RandomPromptGenerator
        from pyparsing import ParseBaseException

        logging.getLogger("dynamicprompts").setLevel(logging.CRITICAL)  # what it warns of is an error here
        chooser = RandomPromptGenerator(self.manager, seed=seed)
        words = list[str]()
        for text, drawn in _pieces(template):
            if not drawn:
                words.append(text)
                continue
            self._check_names(text)
            try:
                chosen = _choose(chooser, text)
            except ParseBaseException as error:
                raise UsageError(f"{text[:60]} is no wildcard: {error}", hint=AS_IT_STANDS) from None
            except RecursionError:
                raise UsageError(f"the wildcard {text[:60]} contains itself", hint=f"see {self.folder}") from None
            self._check_names(chosen)  # what a list named and no list has stands as it was
            words.append(chosen)
        return "".join(words)

    @property
    def manager(self) -> WildcardManager:
        """The lists as dynamicprompts knows them."""
        if self._manager is None:
            from dynamicprompts.wildcards import WildcardManager

            self._manager = WildcardManager(self.folder) if self.folder.is_dir() else WildcardManager()
        return self._manager

    def names(self) -> list[str]:
        """The names of all lists."""
        found: Any = self.manager.get_collection_names()
        return sorted(map(str, found))

    def _check_names(self, text: str) -> None:
        """Raises UsageError for a `__name__` that no list has, and for one that leads out of the folder."""
        for name in _NAME.findall(text):
            if ".." in name or not self.manager.get_values(name):
                near = difflib.get_close_matches(str(name), self.names(), n=1)
                known = f"did you mean __{near[0]}__?" if near else f"lists of words are {self.folder}/NAME.txt"
                raise UsageError(f"no wildcard __{name}__", hint=f"{known} {AS_IT_STANDS}")


def _choose(chooser: Any, text: str) -> str:
    """One draw; dynamicprompts is half typed."""
    return chooser.generate(text, 1)[0]


def spread(wish: Wish, wildcards: Wildcards) -> list[Wish]:
    """A wish whose pictures have words of their own, as one wish a picture; any other as it is.

    Picture k is worded by the wildcard seed + k. Raises UsageError, as `Wildcards.expand` and `draw_seeds`.
    """
    prompt = wish.prompt or ""
    if wish.wildcards is False or not is_template(prompt):
        return [wish]
    first = secrets.randbelow(2**32) if wish.wildcard_seed is None else wish.wildcard_seed
    if wish.variations is not None:  # of one picture, which has its words
        return [replace(wish, template=prompt, prompt=wildcards.expand(prompt, first), wildcard_seed=first)]
    seeds = draw_seeds(wish.seeds or (), wish.num)
    if not 0 <= first < SEED_END - len(seeds):
        raise UsageError(f"--wildcard-seed {first} is outside 0..{SEED_END - 1 - len(seeds)}")
    one = replace(wish, num=None, template=prompt)
    return [
        replace(one, prompt=wildcards.expand(prompt, first + k), wildcard_seed=first + k, seeds=(str(seed),))
        for k, seed in enumerate(seeds)
    ]


def _pieces(template: str) -> Iterator[tuple[str, bool]]:
    """The template cut into text and what is drawn: balanced braces with a choice in them, and `__names__`."""
    start, place = 0, 0
    while place < len(template):
        end = _group_end(template, place) if template[place] == "{" else _name_end(template, place)
        if end is None:
            place += 1
            continue
        if start < place:
            yield template[start:place], False
        yield template[place:end], True
        start = place = end
    if start < len(template):
        yield template[start:], False


def _group_end(template: str, place: int) -> int | None:
    """Where the group that begins here ends; None: it never does, or there is nothing to choose in it."""
    depth = 0
    for position in range(place, len(template)):
        depth += {"{": 1, "}": -1}.get(template[position], 0)
        if depth == 0:
            group = template[place : position + 1]
            return position + 1 if "|" in group or "$$" in group or _NAME.search(group) else None
    return None


def _name_end(template: str, place: int) -> int | None:
    found = _NAME.match(template, place) if template[place] == "_" else None
    return None if found is None else found.end()
