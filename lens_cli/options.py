"""Options that several commands share, each defined once. `None` means "left out": the request decides later.

Light ring: typer and the standard library.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from backend.errors import FileError, UsageError, os_reason
from backend.packing.schemes import quant_help
from backend.types import DType, Effort, Encoder, ImageFormat, LoraMode, Quant, ReasonerMode
from lens_cli.terminal.console import Talk, looking_at_stdout

if TYPE_CHECKING:
    from backend.picture.outputs import OutputPlan
    from backend.settings import Settings

_REQUEST, _PICTURE, _WHERE, _SPEECH = "Request", "Picture", "Output", "Speech"
_PROMPT_BYTES = 1 << 16  # far above the limit in characters: enough to say that it is too long without reading it all


def complete_model(incomplete: str) -> list[str]:
    """Registry names for the shell's TAB; with none that fits, the shell itself completes paths."""
    from backend.presets import names

    return [name for name in names() if name.startswith(incomplete)]


NegativePrompt = Annotated[
    str | None, typer.Option("--negative-prompt", help="What to avoid.", rich_help_panel=_PICTURE)
]
Reasoner = Annotated[
    ReasonerMode | None,
    typer.Option(
        "--reasoner",
        help="Who rewrites the request first, or refuses it: local is the model's own language model, api the endpoint "
        "of the settings, off nobody; auto takes the endpoint where there is one, else the model's default.",
        rich_help_panel=_REQUEST,
    ),
]
SystemPromptName = Annotated[
    str | None,
    typer.Option(
        "--system-prompt",
        metavar="NAME|FILE",
        help="The reasoner's instructions: general, geneval, oneig, text, nano, or a file.",
        rich_help_panel=_REQUEST,
    ),
]
Thinking = Annotated[
    Effort | None, typer.Option("--effort", help="How long the language model thinks.", rich_help_panel=_REQUEST)
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A name from `lens models list`, or a path.",
        autocompletion=complete_model,
        rich_help_panel=_PICTURE,
    ),
]
Num = Annotated[int | None, typer.Option("--num", "-n", help="Number of pictures.", rich_help_panel=_PICTURE)]
Seed = Annotated[
    list[str] | None,
    typer.Option(
        "--seed", "-s", help="A seed, a range 100..120, or -1 to draw one. Repeatable.", rich_help_panel=_PICTURE
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Sampler steps. Default: the model's.", rich_help_panel=_PICTURE)
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "--cfg",
        "--cfg-scale",
        help="How strongly to follow the prompt; 1 is off.",
        rich_help_panel=_PICTURE,
    ),
]
Ratio = Annotated[
    str | None,
    typer.Option("--ar", help="Shape W:H from 1:2 to 2:1, or portrait, landscape, square.", rich_help_panel=_PICTURE),
]
Base = Annotated[
    int | None,
    typer.Option("--base", help="Base resolution: about base² pixels, whatever the shape.", rich_help_panel=_PICTURE),
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Exact size in pixels.", rich_help_panel=_PICTURE)
]
Width = Annotated[int | None, typer.Option("--width", "-W", help="Exact width in pixels.", rich_help_panel=_PICTURE)]
Height = Annotated[int | None, typer.Option("--height", "-H", help="Exact height in pixels.", rich_help_panel=_PICTURE)]
Arithmetic = Annotated[
    DType | None, typer.Option("--dtype", help="Arithmetic of the networks.", rich_help_panel=_PICTURE)
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_PICTURE)
]
TextEncoder = Annotated[
    Encoder | None,
    typer.Option(
        "--encoder",
        help="What reads the prompt: exact (torch, any format; the default), or llama (llama.cpp, GGUF only), which is "
        "near-exact: it rounds gpt-oss's positions. Lens-Nano was trained with the rounding.",
        rich_help_panel=_PICTURE,
    ),
]
Quantise = Annotated[
    Quant | None,
    typer.Option(
        "--quant",
        help="How the transformer's linears lie in memory. auto keeps a packed file packed where that saves memory, "
        f"none unpacks it: the same picture. {quant_help()} approximate.",
        rich_help_panel=_PICTURE,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME|PATH[=SCALE]",
        help="A LoRA (.safetensors): a file, or the name of one in the folder of LoRAs; =0.8 weakens it, 1 if left "
        "out. Repeatable: they add up. `none`: without those of the settings.",
        rich_help_panel=_PICTURE,
    ),
]
LoraHow = Annotated[
    LoraMode | None,
    typer.Option(
        "--lora-mode",
        help="fused adds them to the weights, live runs low-rank ones beside the weights; auto: live where those are "
        "quantised.",
        rich_help_panel=_PICTURE,
    ),
]

Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Plan memory for a class of machine: 4GB, 6GB, 8GB, 12GB, 16GB, 24GB, 80GB, 141GB or cpu. Left out: for "
        "what is free.",
        rich_help_panel=_PICTURE,
    ),
]
Vram = Annotated[
    str | None,
    typer.Option(
        "--vram",
        metavar="SIZE",
        help="Use at most so much of the GPU, such as 8GB: planned for, and kept to.",
        rich_help_panel=_PICTURE,
    ),
]
Compiled = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Let torch.compile fuse the transformer's blocks. The first picture waits for it; kept for later runs. "
        "Other last bits than without, just as exact.",
        rich_help_panel=_PICTURE,
    ),
]

Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="DIR/, a file name, a template such as '{date}/{slug}-{seed}.png', or - for bytes on stdout.",
        rich_help_panel=_WHERE,
    ),
]
Format = Annotated[ImageFormat | None, typer.Option("--format", help="File format.", rich_help_panel=_WHERE)]
Quality = Annotated[
    int | None,
    typer.Option("--quality", help="1..100 for JPEG (95) and WebP (lossless if left out).", rich_help_panel=_WHERE),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Write pixels only: no prompt, no seed.", rich_help_panel=_WHERE)
]
Show = Annotated[
    bool | None,
    typer.Option("--show/--no-show", help="Draw the picture in the terminal.", rich_help_panel=_WHERE),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done and stop; loads nothing.", rich_help_panel=_WHERE)
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
NoTorch = Annotated[bool, typer.Option("--no-torch", help="Leave out torch and its devices: answers at once.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours.", rich_help_panel=_SPEECH)]


def talk_for(
    command: str, *, json: bool, stream: bool = False, quiet: bool = False, verbose: int = 0, no_color: bool = False
) -> Talk:
    """The command's way of speaking. Raises UsageError where two ways were asked for."""
    if json and stream:
        raise UsageError("--json and --json-stream exclude each other")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    return Talk(command=command, json=json, stream=stream, quiet=quiet, verbosity=verbose, no_color=no_color)


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
        return " ".join(words)
    if option is not None and not words:
        return option
    if file is not None and file != Path("-"):
        try:
            with file.open("rb") as source:
                return _read_text(source, str(file))
        except OSError as error:
            raise FileError(f"cannot read {file}: {os_reason(error)}") from error
    stdin = sys.stdin
    if stdin is None or (not words and file is None and stdin.isatty()):  # pyright: ignore[reportUnnecessaryComparison]
        raise UsageError("no prompt", hint='lens gen "three red balloons over a green hill"')
    return _read_text(stdin.buffer, "stdin")


def plan_for(
    output: str | None,
    format: ImageFormat | None,  # noqa: A002  the flag's own name
    quality: int | None,
    no_metadata: bool,
    pictures: int,
    settings: Settings,
    talk: Talk,
    *,
    usual_format: ImageFormat | None = None,
) -> OutputPlan:
    """Where the pictures go, from flags and settings. Raises UsageError, also where stdout cannot take them.

    `usual_format` stands before the settings' format; neither flag nor name need say it.
    """
    from backend.picture.outputs import plan_output

    chosen = settings.output
    plan = plan_output(
        output,
        format=format,
        quality=quality,
        metadata=chosen.metadata and not no_metadata,
        default_folder=settings.output_dir,
        default_template=chosen.template,
        default_format=usual_format or chosen.format,
        default_quality=chosen.quality,
    )
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
