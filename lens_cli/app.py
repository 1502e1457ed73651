"""The `lens` command: registers the sub-commands and is the one boundary where errors become text and exit codes.

Light ring: typer and the standard library. Command modules keep the same promise, so `lens --help` stays fast.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import takewhile
from typing import Annotated, Any

import typer

from backend.errors import (
    CancelledError,
    FileError,
    LensError,
    OutOfMemoryError,
    UsageError,
    as_missing_package,
    os_reason,
    shown,
)
from lens_cli.habits import foreign_word, refuse_foreign_command, unknown_option
from lens_cli.lazy import Lazy, LazyGroup, build, load
from lens_cli.terminal.console import Talk

COMMANDS = {
    "gen": Lazy("lens_cli.commands.gen:gen", "Make pictures from a sentence. Their paths go to stdout, one per line."),
    "tui": Lazy(
        "lens_cli.commands.tui:tui",
        "Make pictures in an app: prompt, preview, queue, gallery. `lens` alone opens it too.",
    ),
    "grid": Lazy(
        "lens_cli.commands.grid:grid",
        "Draw a labelled grid of pictures with one load; its path is the last line on stdout.",
    ),
    "refine": Lazy(
        "lens_cli.commands.refine:refine",
        "Rewrite a request and print the prompt, and nothing else, on stdout. A refusal exits with 7.",
    ),
    "rerun": Lazy(
        "lens_cli.commands.rerun:rerun",
        "Make a picture again, with any of its settings changed. Flags left out keep what the picture recorded.",
    ),
    "info": Lazy(
        "lens_cli.commands.info:info", "Show prompt, seed and settings of pictures, made by lens or by other tools."
    ),
    "history": Lazy("lens_cli.commands.history:app", "Search, rate and follow the pictures that were made."),
    "help": Lazy("lens_cli.commands.help:help", "Explain a topic such as sizes, memory or output, or a command."),
    "config": Lazy("lens_cli.commands.config:app", "Show and change settings."),
    "credentials": Lazy("lens_cli.commands.credentials:app", "Make the key that signs pictures (C2PA), and show it."),
    "doctor": Lazy(
        "lens_cli.commands.doctor:doctor",
        "Show Python, memory, disks, torch and its devices, packages, models and the terminal's graphics.",
    ),
    "bench": Lazy(
        "lens_cli.commands.bench:bench",
        "Time every phase, cold and warm, with its peak memory. Makes pictures, saves none.",
    ),
    "models": Lazy("lens_cli.commands.models:app", "List, fetch, check, quantize and remove models."),
    "cache": Lazy("lens_cli.commands.cache:app", "Show and clear what is kept to save time."),
    "serve": Lazy(
        "lens_cli.commands.serve:serve",
        "Keep a model in memory and draw for `lens gen`, the terminal app, and clients of OpenAI's and A1111's "
        "interfaces.",
    ),
    "ps": Lazy(
        "lens_cli.commands.ps:ps",
        "Show the server: what lies in memory until when, what is drawn and what waits. Without one it exits with 3.",
    ),
    "stop": Lazy(
        "lens_cli.commands.stop:stop",
        "End the server. Finished pictures are kept, and jobs that are not finished go on with the next one.",
    ),
    "mcp": Lazy(
        "lens_cli.commands.mcp:mcp",
        "Serve the Model Context Protocol on stdin and stdout: draw, refine, history, models.",
    ),
    "train": Lazy("lens_cli.commands.train.group:app", "Train models."),
    "eval": Lazy("lens_cli.commands.eval.group:app", "Measure models."),
    "prompt-search": Lazy(
        "lens_cli.commands.train.prompt_search:app", "Search a better system prompt for the reasoner."
    ),
}


@contextmanager
def _ctrl_c_as_ours() -> Generator[None]:
    """Typer makes a silent exit code of a KeyboardInterrupt; a LensError it lets through to the boundary."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise CancelledError("stopped") from error


PANELS = {
    "Pictures": ("gen", "tui", "grid", "refine", "rerun", "info", "history"),
    "Models and machine": ("models", "config", "cache", "credentials", "doctor", "bench", "help"),
    "A server": ("serve", "ps", "stop", "mcp"),
    "Making better models": ("train", "eval", "prompt-search"),
}


class Root(LazyGroup):
    lazy = COMMANDS
    panels = PANELS

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The sub-command. Raises UsageError for a word that other programs taught, with what it is called here."""
        if args and args[0] not in self.lazy:
            refuse_foreign_command(args[0])
        return super().resolve_command(ctx, args)

    def make_context(self, *words: Any, **more: Any) -> Any:
        """Reads the flags before the sub-command; --help and --version are answered here."""
        with _ctrl_c_as_ours():
            return super().make_context(*words, **more)

    def invoke(self, ctx: Any) -> Any:
        """Imports the sub-command, reads its flags and runs it."""
        with _ctrl_c_as_ours():
            return super().invoke(ctx)


app = typer.Typer(
    name="lens",
    cls=Root,
    help="From a sentence to a picture on your own machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # the boundary below speaks for all errors
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lens {version('lens')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[  # read by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """From a sentence to a picture on your own machine."""
    if context.invoked_subcommand is None:
        if _before_a_person():
            from lens_cli.commands.tui import tui

            tui()
        else:
            print(context.get_help())


def _before_a_person() -> bool:
    """Whether the app can open: a terminal on all sides, which can move its cursor."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream and stream.isatty() for stream in streams) and os.environ.get("TERM", "") not in ("", "dumb")


def main(*, stopped: Callable[[], bool] = lambda: False) -> None:
    """Every error a person can act on leaves as one line (or one JSON envelope) and an exit code.

    `stopped`: whether Ctrl-C has come, also before there was anybody to answer it (`lens_cli.entry`).
    """
    # OpenMP's threads spin while they wait: beside other busy processes a picture took 3 to 8 times as long.
    # Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # diffusers imports bitsandbytes, which warns on a CPU about an optional kernel package that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # None where the caller closed it, or put a buffer there
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # help has signs that Latin-1 and ASCII lack
    try:
        if stopped():
            raise KeyboardInterrupt
        code = app(standalone_mode=False)
        if sys.stdout:  # None where the caller closed it
            sys.stdout.flush()
    except BrokenPipeError:  # `lens … | head`: the reader has what it wanted
        code = 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the one boundary: nothing passes it unnamed
        if _wants_traceback():
            import traceback

            traceback.print_exception(error)
        if _is_page(error) and not _talk().json and sys.stderr:
            print(str(error), file=sys.stderr)
        known = as_lens_error(KeyboardInterrupt() if stopped() and not isinstance(error, LensError) else error)
        code = known.exit_code
        try:
            _talk().fail(known)
        except OSError:  # the envelope has nowhere to go: a full disk or a closed pipe behind stdout
            _talk(plain=True).fail(known)
    _let_go_of_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def _let_go_of_stdout() -> None:
    """Python flushes stdout at exit, and would complain once more about a reader or a disk that is gone."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _is_page(error: BaseException) -> bool:
    """Whether a group was called without a command: Typer then raises its help."""
    return type(error).__name__ == "NoArgsIsHelpError"


def as_lens_error(error: BaseException) -> LensError:
    """Any exception in the one form that is shown: what, and what to do."""
    if isinstance(error, LensError):
        return error
    if isinstance(error, typer.TyperException):  # a flag or argument that Typer refused
        command = " ".join(["lens", *_words()])
        option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
        if option is not None and context is not None and type(error).__name__ == "NoSuchOption":
            return unknown_option(option, [flag for param in context.command.params for flag in param.opts], command)
        if _is_page(error):  # its message is the whole page, which `main` prints
            return UsageError(f"{command} needs a command")
        if (unknown := _unknown_command(error, context)) is not None:
            return unknown
        if (unread := _unread_number(error, command)) is not None:
            return unread
        # "Value error, " is pydantic's, which reads the values for Typer.
        return UsageError(error.format_message().replace("Value error, ", ""), hint=f"{command} --help")
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return CancelledError("stopped")
    if isinstance(error, MemoryError):
        return OutOfMemoryError("the machine ran out of memory", hint="make a smaller picture, or use a smaller model")
    if isinstance(error, ImportError) and (package := as_missing_package(error)) is not None:
        return package
    if isinstance(error, OSError):  # the machine refused something that no command expected
        where = f"{error.filename}: " if error.filename else ""
        return FileError(f"{where}{os_reason(error)}")
    return LensError(
        f"internal error: {type(error).__name__}: {error}", hint="this is a bug; LENS_DEBUG=1 shows where it happened"
    )


def _unread_number(error: typer.TyperException, command: str) -> UsageError | None:
    """The error for a value that is no number, in our words instead of pydantic's, which reads the values for Typer."""
    param, errors = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if param is None or errors is None:
        return None
    found = errors()[0]
    kind = {"int": "whole number", "float": "number"}.get(found["type"].split("_")[0])
    if kind is None:
        return None
    flag = param.opts[0]
    hint = f"{command} --help"
    if command == "lens gen" and re.search(r",|\.\.", str(found["input"])):
        hint = f"several values against each other: lens grid PROMPT --x {flag.lstrip('-')}={found['input']}"
    return UsageError(f"{flag} {found['input']!r} is not a {kind}", hint=hint)


def _unknown_command(error: typer.TyperException, context: Any) -> UsageError | None:
    """The error for a sub-command that a group has not: what it is called here, what is alike, or what there is."""
    group: Any = getattr(context, "command", None)
    known = list(getattr(group, "commands", {}))
    word = next((part for part in sys.argv[1:] if repr(part) in str(error.format_message())), None)
    if not known or word is None or not error.format_message().startswith("No such command"):
        return None
    path = " ".join(_words())
    meant, alike = foreign_word(path, word), get_close_matches(word, known, 2)
    what = f"lens {path}".rstrip()
    hint = f"{what} has {', '.join(known)}" if path else "lens --help lists the commands"
    if not path and (sentence := _sentence(word)):
        hint = f"to draw it: lens gen {shlex.quote(sentence)}"
    if alike:
        hint = f"did you mean {' or '.join(alike)}?"
    return UsageError(f"{what} has no command {shown(word)}", hint=meant or hint)


def _sentence(word: str) -> str:
    """What was typed from `word` on up to the first option, if that is several words: a prompt without its command."""
    words = " ".join(takewhile(lambda part: part[:1] != "-", sys.argv[sys.argv.index(word) :])).split()
    return " ".join(words) if len(words) > 1 and len(words) < 100 else ""


def _words() -> list[str]:
    """The command's own words on the command line: ["gen"], ["train", "data", "scan"], or []."""
    words: list[str] = []
    inside: Mapping[str, Any] = COMMANDS
    for word in sys.argv[1:]:
        if word not in inside:
            break
        words.append(word)
        command = inside[word]
        if isinstance(command, Lazy):
            command = build(word, load(command.target))
        inside = getattr(command, "commands", {})  # a group has them
    return words


def _talk(*, plain: bool = False) -> Talk:
    """How to speak when the command's own Talk does not exist yet: by the words on the command line."""
    words = sys.argv[1:]
    words = words[: words.index("--")] if "--" in words else words
    command = " ".join(_words())
    if plain:
        return Talk(command=command)
    return Talk(command=command, json="--json" in words, stream="--json-stream" in words)


def _wants_traceback() -> bool:
    words = sys.argv[1:]
    verbose = sum(
        word == "--verbose" or (word[:1] == "-" and set(word[1:]) == {"v"} and len(word) - 1) for word in words
    )
    return os.environ.get("LENS_DEBUG", "0") not in ("", "0") or verbose >= 2
