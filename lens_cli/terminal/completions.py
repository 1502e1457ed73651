"""What the shell's TAB offers for names that lie on this disk. Nobody reads an error there, so there is none.

Light ring: each list is read where it is asked for, without torch and without what draws wildcards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from backend.errors import LensError

WORDS = (".txt", ".yaml", ".yml", ".json")  # files that hold wildcards


def complete_lora(incomplete: str) -> list[str]:
    """Names in the folder of LoRAs; none fits: the shell completes paths."""
    from backend.lora.names import known_loras

    return _fitting(incomplete, known_loras)


def complete_system_prompt(incomplete: str) -> list[str]:
    """Names of system prompts, and of one's own."""
    import prompts
    from backend.paths import prompts_dir

    return _fitting(incomplete, lambda: [*prompts.names(), *(path.stem for path in prompts_dir().glob("*.md"))])


def complete_style(incomplete: str) -> list[str]:
    """Names of styles, and of one's own."""
    from backend.batch.styles import styles

    return _fitting(incomplete, styles)


def complete_prompt(incomplete: str) -> list[str]:
    """The prompt so far with its last, unfinished `__name` finished, for every list of words that begins so."""
    before, begun, name = incomplete.rpartition("__")
    if not begun or incomplete.count("__") % 2 == 0:
        return []
    return [f"{before}__{known}__" for known in _fitting(name, _wildcards)]


def _wildcards() -> list[str]:
    from backend.paths import wildcards_dir

    folder = wildcards_dir()
    found = (path for path in folder.rglob("*") if path.suffix in WORDS) if folder.is_dir() else ()
    return [path.relative_to(folder).with_suffix("").as_posix() for path in found]


def _fitting(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return sorted(name for name in names() if name.startswith(incomplete))
    except (LensError, OSError, ValueError):
        return []


COMPLETIONS: dict[str, Callable[[str], list[str]]] = {  # by the row of a wish
    "loras": complete_lora,
    "system_prompt": complete_system_prompt,
    "style": complete_style,
}
