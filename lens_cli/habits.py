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
    **dict.fromkeys(("search", "find"), 'lens history -q "red fish"'),
    **dict.fromkeys(("queue", "jobs", "status"), "lens ps"),
    "cancel": "lens stop JOB",
    **dict.fromkeys(("upscale", "enlarge"), 'lens gen "a blue fish" --init PICTURE --hires 2x'),
    "batch": "lens gen --prompts FILE",
    "loras": "lens help lora",
    "styles": "lens help styles",
    "prompts": "lens help prompts",
    "settings": "lens config show --all",
}
# Sub-commands by what they are called elsewhere, below each group.
INSIDE: dict[str, dict[str, str]] = {
    "models": {
        "check": "lens models verify NAME",
        "ls": "lens models list",
        "info": "lens models show NAME",
        **dict.fromkeys(("download", "fetch", "get", "install", "add", "import", "update"), "lens models pull NAME"),
        **dict.fromkeys(("remove", "delete", "uninstall", "prune"), "lens models rm NAME"),
        **dict.fromkeys(("convert", "quantise"), "lens models quantize NAME"),
        "create": "lens train lora PICTURES",
    },
    "history": {
        "show": "lens history tree ID, or lens info ID",
        "info": "lens info ID",
        "open": "lens info ID says where its file is",
        **dict.fromkeys(("list", "ls"), "lens history"),
        **dict.fromkeys(("search", "find", "grep"), 'lens history -q "red fish"'),
        **dict.fromkeys(
            ("rm", "remove", "delete", "clear", "prune"), "lens history forget ID, which leaves the file in its place"
        ),
        "rerun": "lens rerun ID",
        "add": "lens history import FOLDER",
    },
    "cache": {
        **dict.fromkeys(("list", "ls", "info", "size"), "lens cache show"),
        **dict.fromkeys(("rm", "remove", "delete", "prune", "clean", "purge"), "lens cache clear"),
    },
    "config": {
        **dict.fromkeys(("list", "ls"), "lens config show"),
        **dict.fromkeys(("rm", "remove", "delete", "reset"), "lens config unset NAME"),
        "add": "lens config set NAME VALUE",
    },
    "train": {
        **dict.fromkeys(("dreambooth", "finetune", "fine-tune", "sft"), "lens train lora PICTURES"),
        **dict.fromkeys(("dpo", "grpo", "nft"), "lens train rl"),
        **dict.fromkeys(("turbo", "dmd", "distil"), "lens train distill"),
        "resume": "the same command again goes on where it stopped",
        **dict.fromkeys(("list", "ls"), "lens train status RUN"),
        "caption": "lens train data caption WORK",
    },
    "eval": {
        "run": "lens eval generate SUITE, then lens eval score RUN",
        "ls": "lens eval list",
        "compare": "lens eval report RUN RUN",
    },
    "credentials": dict.fromkeys(("create", "make", "new", "generate"), "lens credentials init"),
    "prompt-search": {"start": "lens prompt-search init RUN, then lens prompt-search run RUN"},
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


def foreign_word(group: str, word: str) -> str | None:
    """What a sub-command of another program is called here, below the group; None: nobody teaches it."""
    return INSIDE.get(group, {}).get(word)


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
