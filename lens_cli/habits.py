"""Words that other programs taught: commands and options of theirs, and what they are called here.

Light ring: standard library only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from difflib import SequenceMatcher

from backend.errors import UsageError

COMMANDS = {
    "pull": "lens models pull NAME",
    "list": "lens models list",
    "ls": "lens models list",
    "show": "lens models show NAME",
    "rm": "lens models rm NAME",
    "run": 'lens gen "a blue fish"',
    "generate": 'lens gen "a blue fish"',
    "draw": 'lens gen "a blue fish"',
    "image": 'lens gen "a blue fish"',
    "txt2img": 'lens gen "a blue fish"',
    "img2img": 'lens gen "a blue fish" --init PICTURE',
    "edit": 'lens gen "a blue fish" --init PICTURE',
    "version": "lens --version",
    "log": "lens history",
    "logs": "lens history",
    "gallery": "lens history, or lens tui",
}
OPTIONS = {
    "--image": "--init",
    "--image-path": "--init",
    "--init-image": "--init",
    "--image-strength": "--strength",
    "--denoise": "--strength",
    "--negative": "--negative-prompt",
    "--quantize": "--quant",
    "--count": "--num",
    "--batch-size": "--num",
    "--aspect-ratio": "--ar",
    "--ratio": "--ar",
    "--resolution": "--size",
    "--scheduler": "--sampler",
    "--out": "--output",
    "--output-dir": "--output",
    "--low-ram": "--profile",
    "--lora-paths": "--lora",
    "--no-nsfw": "--reasoner",
    "--upscale": "--hires",
}
_ALIKE = 0.75  # of difflib's ratio; below it a suggestion is no better than chance


def refuse_foreign_command(word: str) -> None:
    """Raises UsageError that names our command, where `word` is what another program calls it."""
    if word in COMMANDS:
        raise UsageError(f"no command is called {word!r} here", hint=COMMANDS[word])


def unknown_option(option: str, known: Sequence[str], command: str) -> UsageError:
    """The error for an option that a command does not have, with what was probably meant, or where to look."""
    meant = OPTIONS.get(option)
    if meant in known:
        hint = f"{meant} is what it is called here"
    else:
        alike = [name for name in known if SequenceMatcher(None, option, name).ratio() >= _ALIKE]
        hint = f"did you mean {' or '.join(sorted(alike))}?" if alike else f"{command} --help"
    return UsageError(f"{command} has no option {option}", hint=hint)


def refuse_quantise_habit(words: Sequence[str]) -> None:
    """Raises UsageError for `-q 8`: elsewhere it quantises, here it would be quiet and draw an 8."""
    for flag, value in itertools.pairwise(words):
        if flag == "-q" and value in ("3", "4", "5", "6", "8"):
            raise UsageError(
                f"-q is quiet here, and {value} would be drawn",
                hint="to quantise: --quant nf4, --quant int8 or --quant fp8",
            )
        if flag == "--":
            return
