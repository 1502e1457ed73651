"""What a person set once: config.toml, lens.toml and the environment -> typed `Settings`, each value with its origin.

Precedence: flag > environment > `lens.toml` in the working folder > user's config.toml > the model's default. Flags
are applied by `backend.requests`; `None` here always means "the next one decides".

Environment names derive from the fields: `model` is LENS_MODEL, `generate.steps` is LENS_GENERATE__STEPS. A list is
written there as PATH is: its parts joined by ":" (";" on Windows).

Light ring: standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, cast, get_origin

from backend import fields, paths
from backend.errors import UsageError, os_reason, shown
from backend.foreign import documents
from backend.paths import resolved
from backend.types import DrawingEngine, Effort, ImageFormat, ReasonerMode
from backend.wish import Wish

_SETTINGS_BYTES = 1_000_000  # of a settings file
DEFAULT_TEMPLATE = "{slug}-{seed}"  # of a picture's file name


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    template: str = DEFAULT_TEMPLATE  # file name: {slug} {seed} {index} {model} {date} {time} {w} {h} {steps}
    format: ImageFormat = ImageFormat.png  # png, jpeg or webp
    quality: int | None = None  # 1..100; unset: JPEG 95, WebP lossless
    metadata: bool = True  # write the request into the picture
    credentials: bool = False  # sign every picture (C2PA), see `lens credentials`
    show: bool | None = None  # draw the picture in the terminal; unset: where stdout is one


@dataclass(frozen=True, kw_only=True)
class ReasonerSettings:
    """Who rewrites requests, and with what; the limits hold for one rewrite."""

    mode: ReasonerMode = ReasonerMode.auto  # auto, off, local or api, as --reasoner has them
    system_prompt: str | None = None  # a name or a file; unset: the model's own (local), or general (api)
    effort: Effort = Effort.low  # how long the model thinks
    temperature: float | None = None  # 0: the likeliest words; unset: the model's own (local), the endpoint's (api)
    seed: int = 0  # seed of the words, not of the picture: one rewrite serves all pictures of a run
    think_tokens: int = 512  # local: most tokens of the thought, then it has to answer
    answer_tokens: int = 1024  # local: most tokens of the answer
    adapter: bool = True  # local: with the updates for rewriting that lie beside the language model, where some do
    max_tokens: int = 2048  # api: most tokens of thought and answer together
    timeout: float = 120.0  # api: seconds to wait for an answer
    base_url: str | None = None  # api: the address, such as https://api.openai.com/v1 or http://127.0.0.1:8080/v1
    model: str | None = None  # api: the model's name there
    api_key: str | None = None  # api: the key for that address; unset: none is sent


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Size caps; the least recently used files go first."""

    embeddings_mb: int = 512  # encoded prompts, in MB; 0: none are kept
    schedules_mb: int = 512  # modulation of a model's blocks for a schedule, in MB; 0: none is kept
    prefixes_mb: int = 256  # beginnings that prompts and rewrites share, as llama.cpp computed them, in MB; 0: none
    rewrites_mb: int = 16  # rewritten requests, in MB; 0: none are kept


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`origins` maps a dotted key to where its value came from; a key that is absent has its default."""

    model: str | None = None  # a name of `lens models list`, or a path; unset: the one inside the package
    output_dir: str | None = None  # folder for pictures; unset: the folder you are in
    history: bool = True  # enter every saved picture into the history
    host: str | None = None  # the server that draws, such as 127.0.0.1:5367; unset: the one that runs here
    api_key: str | None = None  # key shown to that server, or demanded by `lens serve`; unset: none
    engine: DrawingEngine = DrawingEngine.local  # what draws behind `lens serve`: local, or ray (several machines)
    local: bool = False  # draw in the process of the command, whatever server there is
    keep_alive: str | None = None  # of an idle model, 5m, 90s, 0, -1 (for ever); unset: gen starts no server
    generate: Wish = field(default_factory=Wish)  # defaults of what is drawn; the rows of the table that are settings
    output: OutputSettings = field(default_factory=OutputSettings)
    reasoner: ReasonerSettings = field(default_factory=ReasonerSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    origins: Mapping[str, str] = field(default_factory=dict[str, str], metadata={"setting": False})


# A project's file comes with a folder that others wrote: it may not send prompts elsewhere, nor hold a key.
USER_ONLY = ("reasoner.base_url", "reasoner.api_key", "host", "api_key")
# What names files: it may lead out of the project's folder, but not without being said.
PATHS = ("model", "output_dir", "output.template", "generate.loras", "reasoner.system_prompt")


def load(say: Callable[[str], None] = lambda line: None) -> Settings:
    """Read all sources. Raises UsageError naming the file and key of a value that does not fit.

    `say` is told, a line each, which paths of the project's file lead out of its folder.
    """
    known = dict(keys())
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, project in ((paths.config_file(), False), (paths.project_file(), True)):
        for key, value in _read(path).items():
            if key not in known:
                raise UsageError(f"{path}: unknown setting {key!r}", hint=_did_you_mean(key, list(known)))
            if project and key in USER_ONLY:
                raise UsageError(
                    f"{path}: {key} belongs into your own settings", hint=f"move it to {paths.config_file()}"
                )
            if project and key in PATHS and (outside := _outside(value, path.parent)):
                say(f"{path}: {key} leads out of this folder: {shown(outside)}")
            values[key], origins[key] = _check(value, known[key], f"{path}: {key}"), str(path)
    for name, text in _environment(known):
        key = _key(name)
        values[key], origins[key] = _check_text(text, known[key], name), name
    return _build(values, origins)


def keys(owner: type = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key and the type that a written value must have, in the order of the dataclasses."""
    own = {item.name: item.metadata.get("setting", True) for item in dataclasses.fields(owner)}
    for name, kind in fields.types_of(owner).items():
        if not own[name]:
            continue
        if is_dataclass(kind):
            yield from keys(cast("type", kind), f"{prefix}{name}.")
        else:
            yield prefix + name, fields.plain(kind)


def env_name(key: str) -> str:
    """`generate.steps` -> LENS_GENERATE__STEPS."""
    return "LENS_" + key.upper().replace(".", "__")


def _key(name: str) -> str:
    return name.removeprefix("LENS_").lower().replace("__", ".")


def _environment(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of every setting in the environment. Raises UsageError on an unknown name within a section."""
    sections = {env_name(key).split("__")[0] + "__" for key in known if "." in key}
    for name, text in sorted(os.environ.items()):
        key = _key(name)
        if name == env_name(key) and key in known:
            if text != "":  # an empty variable is how a shell says "not set"
                yield name, text
        elif any(name.startswith(section) for section in sections):
            hint = _did_you_mean(name, [env_name(key) for key in known])
            raise UsageError(f"the environment variable {name} is no setting", hint=hint)


def _did_you_mean(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _read(path: Path) -> dict[str, Any]:
    """A TOML file as dotted keys; a missing file has none. Raises UsageError."""
    try:
        return dict(_flatten(documents.parse_toml(documents.read_text(path, _SETTINGS_BYTES))))
    except (FileNotFoundError, NotADirectoryError):  # nor is anything below a path that is a file
        if os.environ.get("LENS_CONFIG") and path == paths.config_file():
            raise UsageError(f"the settings file {path} is missing", hint="LENS_CONFIG names it") from None
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {os_reason(error)}") from error
    except documents.Unreadable as error:
        raise UsageError(f"{path} {error}") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _fit(read: Callable[[], Any], value: object, kind: Any, where: str) -> Any:
    """What `read` gives. Raises UsageError where `value` does not fit the field's type."""
    try:
        return read()
    except fields.Misfit:
        wanted = {tuple: 'a list of texts, such as ["sky=0.8"]', str: "text in quotes"}
        words = wanted.get(get_origin(kind) or kind) or fields.words_for(kind)
        raise UsageError(f"{where} = {value!r} does not fit", hint=f"it must be {words}") from None


def _check(value: Any, kind: Any, where: str) -> Any:
    """A TOML value as the field's type. Raises UsageError."""
    return _fit(lambda: fields.from_data(value, kind), value, kind, where)


def _check_text(text: str, kind: Any, where: str) -> Any:
    """An environment variable's text as the field's type. Raises UsageError."""
    return _fit(lambda: fields.from_text(text, kind, separator=os.pathsep), text, kind, where)


def _outside(value: object, folder: Path) -> str | None:
    """The first path in a value that does not lie below `folder`; None: there is none."""
    for text in cast("list[object]", value) if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        path = text.rpartition("=")[0] or text  # a LoRA's strength
        absolute = path.startswith(("/", "~")) or Path(path).is_absolute()
        if absolute or not resolved(folder / path).is_relative_to(resolved(folder)):
            return text
    return None


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    parts: dict[str, Any] = {key: value for key, value in values.items() if "." not in key}
    for name, section in fields.types_of(Settings).items():
        if is_dataclass(section):
            prefix = name + "."
            inside = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
            parts[name] = cast("Any", section)(**inside)
    return Settings(**parts, origins=dict(origins))
