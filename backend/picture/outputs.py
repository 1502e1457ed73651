"""Where a picture goes and what it is called.

`-o DIR/` a folder, `-o file.png` a name, `-o "{date}/{slug}-{seed}.png"` a template, `-o -` bytes on stdout. Nothing is
ever replaced: a taken name gets -1, -2, … (`backend.disk`).

Light ring: standard library only.
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from backend.disk import PART_BYTES, names
from backend.errors import UsageError, shown
from backend.inputs.begin import last_pass
from backend.paths import expanded
from backend.types import GenerationRequest, ImageFormat

SLUG_LENGTH = 40  # characters


EXTENSIONS = {
    ".png": ImageFormat.png,
    ".jpg": ImageFormat.jpeg,
    ".jpeg": ImageFormat.jpeg,
    ".webp": ImageFormat.webp,
}
SUFFIX = {ImageFormat.png: ".png", ImageFormat.jpeg: ".jpg", ImageFormat.webp: ".webp"}

# What may stand in braces, and what it becomes.
FIELDS = {
    "date": "2026-11-21",
    "time": "085203",
    "slug": "the prompt in short",
    "seed": "the seed",
    "model": "the model's name",
    "w": "width in pixels",
    "h": "height in pixels",
    "steps": "sampler steps",
    "guidance": "guidance scale",
    "index": "0, 1, 2, … in this run",
}


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """Checked answer to "where to": made once per run, before any work."""

    template: str | None  # a path with fields, without its suffix; None: bytes on stdout
    suffix: str  # ".png", ".jpg", ".jpeg", ".webp"
    format: ImageFormat
    quality: int | None = None  # 1..100; None: JPEG 95, WebP lossless
    metadata: bool = True
    credentials: bool = False  # whether each file is signed
    history: bool = True  # whether the pictures enter the history
    first: int = 0  # {index} of the request's first picture

    def path(self, request: GenerationRequest, index: int, now: datetime) -> Path:
        """The wished path of picture `index`; `backend.disk.write_new` settles what is taken.

        Raises UsageError for a name that no file can have, or that leaves no room for -1 where it is taken.
        """
        assert self.template is not None, "bytes on stdout have no path"
        finished = last_pass(request)
        values: dict[str, object] = {
            "date": f"{now:%Y-%m-%d}",
            "time": f"{now:%H%M%S}",
            "slug": slug(request.original_prompt or request.prompt),
            "seed": request.seeds[index],
            "model": slug(Path(request.model).name) or "model",
            "w": finished.width,
            "h": finished.height,
            "steps": request.steps,
            "guidance": f"{request.guidance:g}",
            "index": self.first + index,
        }
        return _checked(Path(self.template.format_map(values) + self.suffix))

    def paths(self, request: GenerationRequest, now: datetime) -> Iterator[Path]:
        """Every path of a run as it would be taken now, without writing: for `--dry-run`."""
        taken: set[Path] = set()
        tried: dict[Path, Iterator[Path]] = {}  # of each wish the names that are left: ten thousand may be one
        for index in range(len(request.seeds)):
            wished = self.path(request, index, now)
            left = tried.setdefault(wished, names(wished))
            path = next(name for name in left if name not in taken and not os.path.lexists(name))
            taken.add(path)
            yield path

    def folders(self, request: GenerationRequest, now: datetime) -> set[Path]:
        """Every folder that will be written to."""
        return {self.path(request, index, now).parent for index in range(len(request.seeds))}


def plan_output(
    output: str | None,
    *,
    format: ImageFormat | None,  # noqa: A002  the flag's own name
    quality: int | None,
    metadata: bool,
    default_folder: str | None,
    default_template: str,
    default_format: ImageFormat,
    default_quality: int | None = None,
) -> OutputPlan:
    """What a person gave with -o, --format and --quality, checked. Raises UsageError.

    The `default_*` come from the settings; a relative `default_template` lies under `default_folder` (None: the working
    folder). An `output` given by flag is relative to the working folder.
    """
    for value, where in ((quality, "--quality"), (default_quality, "the setting output.quality =")):
        if value is not None and not 1 <= value <= 100:
            raise UsageError(f"{where} {value} is outside 1..100")
    if output == "-":
        chosen = format or default_format
        return OutputPlan(
            template=None,
            suffix=SUFFIX[chosen],
            format=chosen,
            quality=_quality(chosen, quality, default_quality),
            metadata=metadata,
        )
    if output is None:
        template = str(expanded(default_folder or "") / default_template)
    elif output == "":
        raise UsageError("--output is empty", hint="give a folder, a file name, or - for stdout")
    elif output.endswith(("/", os.sep)) or Path(output).is_dir():
        # An existing folder's own name may hold braces: they are text, not fields.
        folder = output.replace("{", "{{").replace("}", "}}") if Path(output).is_dir() else output
        template = str(Path(folder) / Path(default_template).name)
    else:
        template = output
    _check_fields(template)
    template, suffix = _split_suffix(template, format)
    chosen = EXTENSIONS[suffix.lower()] if suffix else (format or default_format)
    return OutputPlan(
        template=template,
        suffix=suffix or SUFFIX[chosen],
        format=chosen,
        quality=_quality(chosen, quality, default_quality),
        metadata=metadata,
    )


def _quality(format: ImageFormat, quality: int | None, default: int | None) -> int | None:  # noqa: A002  the flag's name
    """A flag that means nothing is refused; a setting is a wish for the formats it fits."""
    if format is not ImageFormat.png:
        return quality if quality is not None else default
    if quality is not None:
        raise UsageError("--quality has no meaning for PNG, which loses nothing", hint="add --format jpeg or webp")
    return None


def _check_fields(template: str) -> None:
    """Only the names of FIELDS, plain: `{seed.__class__}` and `{0}` are refused, and so is a form that makes a seed a
    character (`c`) or a name of a thousand blanks. Raises UsageError.
    """
    known = ", ".join(f"{{{name}}}" for name in FIELDS)
    try:
        parts = list(string.Formatter().parse(template))
        for _, name, spec, conversion in parts:
            if name is not None and (name not in FIELDS or conversion is not None or "{" in (spec or "")):
                raise UsageError(f"unknown field {{{name}}} in the output name", hint=f"known: {known}")
            if not _FORM.fullmatch(spec or ""):
                raise UsageError(f"the output name has {{{name}:{spec}}}", hint="such as {seed:06d} or {slug:.20}")
        template.format_map({name: 0 if name in ("seed", "w", "h", "steps", "index") else "x" for name in FIELDS})
    except ValueError as error:
        raise UsageError(
            f"the output name {template!r} is no template: {error}", hint=f"known: {known}; a brace is {{{{"
        ) from None


# Fill and side, sign, zeros, width, separator, precision, kind: as `format` has them, short of what makes no name.
_FORM = re.compile(r"([ \w.\-+#]?[<>=^])?[+\- ]?#?0?\d{0,2}[,_]?(\.\d{1,2})?[bdoxXeEfFgGs%]?")

_PART_BYTES = PART_BYTES - len("-999999")


def _checked(path: Path) -> Path:
    """A path that can be written to. Raises UsageError."""
    for part in path.parts:
        try:
            size = len(os.fsencode(part))
        except UnicodeEncodeError:
            raise UsageError(f"the output name {shown(part)} is no name on this system") from None
        if any(unicodedata.category(character) == "Cc" for character in part):
            raise UsageError(f"the output name {shown(part)} holds control characters", hint="give another with -o")
        if size > _PART_BYTES:
            raise UsageError(
                f"the output name {shown(part)} has {size} bytes; {_PART_BYTES} are the most", hint="shorten it: -o"
            )
    return path


def _split_suffix(template: str, format: ImageFormat | None) -> tuple[str, str]:  # noqa: A002
    """(template without its picture suffix, that suffix or ""). Raises UsageError on another suffix."""
    stem, suffix = os.path.splitext(template)
    if "}" in suffix or not re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", suffix):
        return template, ""  # "{slug}-{seed}", "v1.5": no suffix at all
    if suffix.lower() not in EXTENSIONS:
        raise UsageError(f"cannot save {suffix} pictures", hint=f"known: {' '.join(EXTENSIONS)}")
    if format is not None and EXTENSIONS[suffix.lower()] is not format:
        raise UsageError(f"--format {format} and the name's {suffix} differ", hint="drop one of them")
    return stem, suffix


def slug(text: str) -> str:
    """A short name a file system and a shell both like: lower case letters of any script, digits, single hyphens."""
    plain = unicodedata.normalize("NFKC", text).lower()
    short = re.sub(r"[\W_]+", "-", plain).strip("-")
    if len(short) > SLUG_LENGTH:  # end at a word where that keeps most of it
        cut = short[: SLUG_LENGTH + 1].rfind("-")
        short = short[: cut if cut > SLUG_LENGTH // 2 else SLUG_LENGTH].strip("-")
    # File systems count bytes: 255 at most, and a template adds more around the slug.
    while len(short.encode()) > 120:
        short = short[:-1]
    return short or "picture"
