"""A wish as the words of a command line, and a finished request as the wish that gives it again.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_origin

from backend.types import GenerationRequest, InputPicture, LoraUse
from backend.wish import NO_LORA, ROWS, Row, Wish, in_order

# What a person looks for first; the order of the line, not of --help.
_FIRST = "prompt model size steps guidance negative_prompt seeds dtype device encoder quant sampler".split()


def command_words(wish: Wish) -> list[str]:
    """The words behind `lens gen` that say this wish, but for what no flag says (`original_prompt`, `expander`)."""
    return [word for row in in_order(_FIRST) for word in _words(row, getattr(wish, row.name))]


def _words(row: Row, value: Any) -> Iterator[str]:
    if value is None or (not row.flags and row.name != "prompt"):
        return
    if row.name == "prompt":  # one that begins with a hyphen would be read as a flag, and "-" as stdin
        yield f"--prompt={value}" if value.startswith("-") else value
    elif row.kind is bool:
        on, _, off = row.flags[0].partition("/")
        yield from [on] if value else [off] if off else []
    elif get_origin(row.kind) is tuple:
        for part in value:
            yield from (row.flags[0], part.text if isinstance(part, LoraUse) else part)
    elif isinstance(value, InputPicture):
        yield from (row.flags[0], value.path)
    elif row.name == "negative_prompt":
        yield f"{row.flags[0]}={value}"
    else:
        yield from (row.flags[0], _number(value) if isinstance(value, float) else str(value))


def _number(value: float) -> str:
    """As short as a person writes it, and the same number again."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def wish_of(request: GenerationRequest) -> Wish:
    """The wish that gives this very request, whatever the settings are."""
    same = {name: getattr(request, name) for name in ROWS if hasattr(request, name)}
    seeds = tuple(str(first) if first == last else f"{first}..{last}" for first, last in seed_runs(request.seeds))
    more: dict[str, Any] = {
        "style": None,  # the prompt stands in its sentence already
        "variations": None,  # what they were drawn as: seeds around one
        "seeds": seeds,
        "size": f"{request.width}x{request.height}",
        "width": None,
        "height": None,
        "loras": request.loras or (NO_LORA,),
        "lora_mode": request.loras[0].mode if request.loras else None,
        "vram": None if request.vram is None else f"{request.vram / 10**6:.15g}MB",
    }
    return Wish(**same | more)


def seed_runs(seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive seeds as (first, last): 5, 6, 7, 9 -> (5, 7), (9, 9)."""
    runs: list[tuple[int, int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], seed)
        else:
            runs.append((seed, seed))
    return runs
