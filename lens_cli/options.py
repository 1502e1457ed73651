"""Options that several commands share, each defined once: those of a wish by its table, the others here.

Light ring: typer and the standard library.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast, get_origin

import typer

from backend.errors import LensError, UsageError
from backend.packing.schemes import quant_help
from backend.types import Effort, ImageFormat
from backend.wish import OUTPUT, REQUEST, Row, Wish, rows_of
from backend.wishes.devices import THREADS
from lens_cli.terminal.completions import COMPLETIONS
from lens_cli.terminal.console import Talk, looking_at_stdout

if TYPE_CHECKING:
    from backend.picture.outputs import OutputPlan
    from backend.settings import Settings

_SPEECH = "What is printed"  # a panel of --help
_PROMPT_BYTES = 1 << 16  # far above the limit in characters: enough to say that it is too long without reading it all


def complete_model(incomplete: str) -> list[str]:
    """Registry names for the shell's TAB; with none that fits, the shell itself completes paths."""
    from backend.presets import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_id(incomplete: str) -> list[tuple[str, str]]:
    """(id, prompt) of the history's pictures for the shell's TAB; with none that fits, the shell completes paths."""
    from backend.paths import history_file
    from backend.picture.history import History

    if not history_file().is_file():
        return []
    try:
        with History(history_file()) as history:
            return [(entry.id, " ".join(entry.prompt.split())) for entry in history.begins_with(incomplete)]
    except LensError:  # nobody reads an error there
        return []


Thinking = Annotated[
    Effort | None, typer.Option("--effort", help="How long the language model thinks.", rich_help_panel=REQUEST)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done and stop; loads nothing.", rich_help_panel=OUTPUT)
]

Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="A file of prompts (- is stdin), one a line, or JSON Lines (.jsonl) with the keys prompt, seeds, steps, "
        "negative_prompt, ... The model is loaded once.",
        rich_help_panel=REQUEST,
    ),
]
Continue = Annotated[
    bool,
    typer.Option(
        "--continue", help="With --prompts: leave out what an earlier run has finished.", rich_help_panel=REQUEST
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", help="Write a contact sheet of the pictures too: HTML.", rich_help_panel=OUTPUT),
]

Local = Annotated[
    bool,
    typer.Option("--local", help="Draw in this process, whatever server there is.", rich_help_panel=REQUEST),
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST[:PORT]", help="The server that draws.", rich_help_panel=REQUEST),
]

Json = Annotated[bool, typer.Option("--json", help="One JSON answer on stdout.", rich_help_panel=_SPEECH)]
JsonStream = Annotated[
    bool,
    typer.Option("--json-stream", help="JSON lines on stdout: progress, then the answer.", rich_help_panel=_SPEECH),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.", rich_help_panel=_SPEECH)]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="More on stderr; twice: tracebacks.",
        rich_help_panel=_SPEECH,
    ),
]
RecipeSettings = Annotated[
    bool, typer.Option("--settings", help="List every field of the recipe as --set takes it, and stop.")
]
NoTorch = Annotated[bool, typer.Option("--no-torch", help="Leave out torch and its devices: answers at once.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours.", rich_help_panel=_SPEECH)]


def takes_wish(command: str, first: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's function, in the place of its parameter `wish`, the options of the table's rows it takes.

    What was typed arrives as one `Wish`. The rows named `first` stand first in --help, the others as in the table.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        taken = rows_of(command, first)

        @wraps(function)
        def run(**typed: Any) -> None:
            given = {row.name: _as_field(typed.pop(row.name)) for row in taken}
            _limit_threads(given.get("threads"))
            function(wish=Wish(**given), **typed)

        own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [one for item in own for one in ([*map(_option, taken)] if item.name == "wish" else [item])]
        vars(run)["brief"] = command in ("gen", "rerun")  # more options than a screen holds: `lens_cli.help`
        vars(run)["__signature__"] = inspect.Signature(
            [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters]
        )
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def _limit_threads(threads: int | None) -> None:
    """Say how many threads torch and llama.cpp take: both read it when they are imported. `build_request` refuses what
    is no such number."""
    if threads in THREADS:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _as_field(value: Any) -> Any:
    """What Typer gives for an option, as the field of a wish: a tuple in a list's place."""
    return tuple(cast("list[str]", value)) if isinstance(value, list) else value


def read_factor(text: str | float) -> float:
    """`2x`, `2` or `1.5`: so many times as large. Typer words the ValueError."""
    return float(str(text).strip().lower().removesuffix("x"))


def _option(row: Row) -> inspect.Parameter:
    """A row as a parameter that Typer makes an option of."""
    kind = list[str] if get_origin(row.kind) is tuple else row.kind
    about = typer.Option(
        *row.flags,
        help=row.help.replace("{packings}", quant_help()),
        metavar=row.metavar,
        autocompletion=complete_model if row.name == "model" else COMPLETIONS.get(row.name),
        parser=read_factor if row.name == "hires" else None,
        rich_help_panel=row.panel,
    )
    return inspect.Parameter(
        row.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, about]
    )


def talk_for(
    command: str, *, json: bool, stream: bool = False, quiet: bool = False, verbose: int = 0, no_color: bool = False
) -> Talk:
    """The command's way of speaking. Raises UsageError where two ways were asked for."""
    if json and stream:
        raise UsageError("--json and --json-stream exclude each other")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    return Talk(command=command, json=json, stream=stream, quiet=quiet, verbosity=verbose, no_color=no_color)


def load_settings(talk: Talk, *, local: bool, host: str | None) -> Settings:
    """The settings, with what was typed of the server. Raises as `backend.settings.load`."""
    from backend.settings import load

    settings = replace(load(talk.warn), **({"local": True} if local else {}))
    if host is not None:
        settings = replace(settings, host=host, origins={**settings.origins, "host": "--host"})
    return settings


def read_prompt(words: list[str] | None, option: str | None, file: Path | None, talk: Talk) -> str:
    """The prompt from wherever it was given: words, -p, -f FILE (the whole file is one prompt), or stdin.

    Words win over -p, as -p may come from an alias. `-` and `-f -` read stdin, and so does a prompt left out where
    stdin is no terminal. Raises UsageError or FileError.
    """
    if file is not None and (words or option is not None):
        raise UsageError("-f and a prompt on the command line exclude each other", hint="drop one of them")
    if words and option is not None:
        talk.warn("-p is ignored: the prompt was given without a flag as well")
    if words and words != ["-"]:
        if "-" in words:
            raise UsageError(
                "- reads the prompt from stdin, and there are words as well",
                hint='a dash of the prompt goes inside quotes: lens gen "a cat - asleep"',
            )
        if len(words) == 1:
            _refuse_file(words[0])
        return " ".join(words)
    if option is not None and not words:
        return option
    if file is not None and file != Path("-"):
        try:
            with file.open("rb") as source:
                return _read_text(source, str(file))
        except OSError as error:
            from backend.disk import read_error

            raise read_error(file, error, "-f takes a text file, whose whole text is one prompt") from error
    stdin = sys.stdin
    if stdin is None or (not words and file is None and stdin.isatty()):  # pyright: ignore[reportUnnecessaryComparison]
        raise UsageError("no prompt", hint='lens gen "three red balloons over a green hill"')
    if stdin.isatty():
        talk.say("type a prompt, then Ctrl-D on a line of its own")
    return _read_text(stdin.buffer, "stdin")


# What was probably meant by the name of a file in the place of a prompt, by its ending.
_MEANT = {
    (".png", ".jpg", ".jpeg", ".webp"): "how it was made: lens info {0}; again: lens rerun {0}; from it: --init {0}",
    (".txt", ".md"): "its text as one prompt: -f {0}; a prompt a line: --prompts {0}",
    (".jsonl", ".json"): "a file of prompts: --prompts {0}",
    (".safetensors", ".gguf"): "a model: -m {0}; a LoRA: --lora {0}",
}


def _refuse_file(word: str) -> None:
    """Raises UsageError for a word that names a file which is there: its name would be drawn. -p draws it."""
    meant = next((hint for endings, hint in _MEANT.items() if word.lower().endswith(endings)), None)
    if meant is not None and Path(word).is_file():
        raise UsageError(f"{word} is a file, and its name would be drawn", hint=meant.format(shlex.quote(word)))


def plan_for(
    wish: Wish, pictures: int, settings: Settings, talk: Talk, *, usual_format: ImageFormat | None = None
) -> OutputPlan:
    """Where the pictures go, by the wish and the settings. Raises UsageError, also where stdout cannot take them.

    `usual_format` stands before the settings' format; neither flag nor name need say it.
    """
    from backend.picture.credentials import check_signing
    from backend.picture.outputs import plan_output

    chosen = settings.output
    plan = plan_output(
        wish.output,
        format=wish.format,
        quality=wish.quality,
        metadata=chosen.metadata and not wish.no_metadata,
        default_folder=settings.output_dir,
        default_template=chosen.template,
        default_format=usual_format or chosen.format,
        default_quality=chosen.quality,
    )
    signed = chosen.credentials if wish.credentials is None else wish.credentials
    plan = replace(plan, history=settings.history and not wish.no_history, credentials=signed)
    if signed:
        check_signing()
    if plan.template is None:
        if talk.json or talk.stream:
            raise UsageError("-o - and --json both want stdout", hint="save to a file, or drop --json")
        if pictures > 1:
            raise UsageError(f"-o - takes one picture, not {pictures}", hint="save to a folder: -o DIR/")
        if looking_at_stdout():
            raise UsageError("-o - would write a picture's bytes to the terminal", hint="pipe it: lens gen … -o - | …")
    return plan


def _read_text(source: BinaryIO, where: str) -> str:
    """All of it, or a UsageError where that is far too much: what is behind is not counted."""
    text = _decode(source.read(_PROMPT_BYTES), where)
    if source.read(1):
        from backend.requests import PROMPT_LIMIT

        raise UsageError(
            f"the prompt in {where} has more than {len(text):,} characters; the limit is {PROMPT_LIMIT:,}",
            hint="the model reads about the first 400 words",
        )
    return text


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4 and len(data) == _PROMPT_BYTES:
            return data[: error.start].decode("utf-8-sig")  # cut within a character; too long anyway
        raise UsageError(f"the prompt in {where} is not UTF-8 text", hint="save it as UTF-8") from None
