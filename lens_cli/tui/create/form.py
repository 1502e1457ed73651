"""What the app's form says, as data: the six essentials, the folded rest, and the wish that they make.

Light ring: standard library only; a test needs no terminal.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, cast, get_origin

from backend import presets
from backend.errors import LensError, UsageError
from backend.fields import from_text, words_for
from backend.presets import Preset
from backend.requests import GUIDANCE_LIMIT, STEPS_LIMIT
from backend.settings import Settings
from backend.sizes import TRAINED_RATIOS, ratio_and_base, resolve_size
from backend.types import Expander, LoraUse
from backend.wish import ROWS, USUAL, Row, Wish
from backend.wishes.seeds import PICTURES_LIMIT, SEED_END

# Rows of the table with a control of their own, and those that only a command line has a use for.
ESSENTIAL = "prompt model ar size width height steps guidance num seeds".split()
# The reasoner is asked by a key, and what it wrote is seen before it is drawn.
_ELSEWHERE = (
    "output no_metadata no_history show wildcard_seed profile vram quality open reasoner system_prompt variations"
).split()
_FIRST = "negative_prompt base sampler loras preview wildcards format".split()
_APPS_OWN = {"preview": "proj"}  # where neither a person nor the settings say anything
_NOT_ASKED = frozenset([*ESSENTIAL, *_ELSEWHERE])


class SeedMode(StrEnum):
    """What the seed is, the next time something is drawn."""

    random = "random"  # drawn
    fixed = "fixed"  # the same
    next = "next"  # one more than the last


@dataclass(frozen=True, kw_only=True)
class Form:
    """None, and a row that is missing: not said, so that settings and model decide."""

    prompt: str = ""
    model: str | None = None
    shape: str | None = None  # a ratio such as 16:9, or WxH
    steps: int | None = None
    guidance: float | None = None
    seed_mode: SeedMode = SeedMode.random
    seed: int = 0
    count: int = 1
    rest: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # row's name -> as typed
    # A rewrite that was accepted: (its text, what it was made of, by whom). Holds while the prompt is that text.
    rewrite: tuple[str, str, Expander | None] | None = None

    def said(self, **values: Any) -> Form:
        return replace(self, **values)

    def with_rest(self, name: str, text: str) -> Form:
        """The form with a row of the rest said, or with "" no longer."""
        kept = {key: value for key, value in self.rest.items() if key != name}
        return replace(self, rest=MappingProxyType(kept | ({name: text} if text else {})))


def preset_of(form: Form, settings: Settings) -> Preset:
    """The model's row; of a path, whose files only the server reads, the row that its name speaks of."""
    name = form.model or settings.model or presets.default_name()
    try:
        return presets.get(name)
    except UsageError:
        marked = [preset for preset in presets.PRESETS.values() if preset.is_marked(name)]
        return marked[0] if marked else presets.PRESETS["lens"]


# ------------------------------------------------------------------------------------------------------------ the rest


def rest_rows() -> list[Row]:
    """The rows of the folded rest: whatever `lens gen` takes and no control of its own has, the usual ones first."""
    asked = [row for row in ROWS.values() if "gen" in row.commands and row.name not in _NOT_ASKED]
    return sorted(asked, key=lambda row: _FIRST.index(row.name) if row.name in _FIRST else len(_FIRST))


def choices(row: Row) -> tuple[str, ...]:
    """What a row can be; none: any text."""
    if row.kind is bool:
        return ("yes", "no")
    return tuple(str(item) for item in row.kind) if isinstance(row.kind, type) and issubclass(row.kind, StrEnum) else ()


def hidden(preset: Preset) -> frozenset[str]:
    """The controls that the model cannot honour."""
    return frozenset({"guidance", "negative_prompt"}) if preset.distilled else frozenset()


def check(row: Row, text: str) -> Any:
    """The text of a row as its field; the parts of a list are the words of a shell. Raises UsageError."""
    flag = (row.flags or (row.name,))[0].partition("/")[0]
    try:
        if get_origin(row.kind) is tuple:
            return tuple(shlex.split(text))
        return from_text(text, row.kind)
    except ValueError:  # Misfit among them
        raise UsageError(f"{flag} {text} does not fit", hint=f"it must be {words_for(row.kind)}") from None


def usual_text(row: Row, preset: Preset) -> str:
    """What a row of the rest is where neither a person nor the settings say it."""
    if row.name == "base":
        return str(preset.default_base)
    usual = USUAL.get(row.name)
    return _APPS_OWN.get(row.name) or ("–" if usual in (None, (), "") else text_of(usual))


def text_of(value: Any) -> str:
    """A field as the form shows it: what `check` reads back."""
    if isinstance(value, tuple):
        return shlex.join(use.text if isinstance(use, LoraUse) else str(use) for use in cast("tuple[Any, ...]", value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------------- the wishes


def wish_from_form(form: Form, settings: Settings) -> Wish:
    """The wish of a form, without what its model cannot honour. Raises UsageError for a row that does not fit."""
    chosen, cannot = settings.generate, hidden(preset_of(form, settings))
    usual = {name: text for name, text in _APPS_OWN.items() if name in ROWS and getattr(chosen, name) is None}
    said = usual | dict(form.rest)
    rest = {name: check(ROWS[name], text) for name, text in said.items() if name in ROWS and name not in cannot}
    given: dict[str, Any] = {
        "prompt": form.prompt,
        "model": form.model,
        "steps": form.steps,
        "guidance": None if "guidance" in cannot else form.guidance,
        "seeds": None if form.seed_mode is SeedMode.random else (str(form.seed),),
        "num": form.count if form.count != 1 else None,
    }
    if form.shape is not None:
        given["size" if "x" in form.shape else "ar"] = form.shape
        if "x" in form.shape:
            rest.pop("base", None)
    if form.rewrite is not None and form.rewrite[0] == form.prompt:
        given |= {"original_prompt": form.rewrite[1], "expander": form.rewrite[2]}
    return Wish(**rest | given)


def form_from_wish(wish: Wish, *, seed: bool, before: Form | None = None) -> Form:
    """A form that says a wish: of a pasted line, or of a picture. `seed` False: with a random one.

    What the form cannot say (several seeds that are no run) is left out. Raises UsageError for a size that is none.
    """
    values = wish.given()
    form = Form(prompt=wish.prompt or "", model=wish.model, steps=wish.steps, guidance=wish.guidance)
    if wish.seeds and seed:
        first, _, last = wish.seeds[0].partition("..")
        runs = len(wish.seeds) if len(wish.seeds) > 1 else int(last or first) - int(first) + 1 if last else 1
        if first.isdigit():
            form = form.said(seed_mode=SeedMode.fixed, seed=int(first), count=max(1, runs))
    if wish.num is not None:
        form = form.said(count=wish.num)
    shape = wish.ar or wish.size
    if wish.width is not None and wish.height is not None:
        shape = f"{wish.width}x{wish.height}"
    form = form.said(shape=shape)
    for row in rest_rows():
        value = values.get(row.name)
        if value is not None and (text := text_of(value)) not in ("", "auto", USUAL.get(row.name)):
            form = form.with_rest(row.name, text)
    if wish.original_prompt is not None:
        form = form.said(rewrite=(form.prompt, wish.original_prompt, wish.expander))
    return _at_a_base(form)


def _at_a_base(form: Form) -> Form:
    """WxH as a ratio and a base, where the model was trained on that size."""
    if form.shape is None or "x" not in form.shape:
        return form
    preset = preset_of(form, Settings())
    try:
        width, height = resolve_size(size=form.shape, bases=preset.bases, default_base=preset.default_base)
    except LensError:
        return form  # refused when it is drawn, with the nearest size
    ratio, base = ratio_and_base(width, height, preset.bases)
    if ratio not in TRAINED_RATIOS:
        return form
    form = form.said(shape=ratio)
    return form.with_rest("base", "" if base == preset.default_base else str(base))


# -------------------------------------------------------------------------------------------------- what will be drawn


@dataclass(frozen=True)
class Decided:
    """A value of an essential as it would be drawn, and who said it."""

    text: str
    origin: str  # "you", a settings file, an environment variable, or "the model"


def decided(form: Form, settings: Settings) -> dict[str, Decided]:
    """What the essentials come to: flag over settings over model."""
    preset, chosen = preset_of(form, settings), settings.generate
    found: dict[str, Decided] = {
        "model": _first(settings, "model", form.model, settings.model, presets.default_name()),
        "steps": _first(settings, "generate.steps", form.steps, chosen.steps, preset.steps),
        "guidance": _first(settings, "generate.guidance", form.guidance, chosen.guidance, preset.guidance),
        "ar": Decided(*_size(form, settings, preset)),
    }
    seed = "random" if form.seed_mode is SeedMode.random else f"{form.seed}"
    found["seeds"] = Decided(seed + (", then one more" if form.seed_mode is SeedMode.next else ""), "you")
    found["num"] = Decided(str(form.count), "you")
    return found


def _first(settings: Settings, key: str, said: object, set_: object, usual: object) -> Decided:
    value, origin = (
        (said, "you") if said is not None
        else (set_, settings.origins.get(key, "the settings")) if set_ is not None
        else (usual, "the model")
    )  # fmt: skip
    return Decided(f"{value:g}" if isinstance(value, float) else str(value), origin)


def _size(form: Form, settings: Settings, preset: Preset) -> tuple[str, str]:
    chosen = settings.generate
    if form.shape is not None and "x" in form.shape:
        return form.shape.replace("x", "×"), "you"
    ratio = form.shape or chosen.ar or "1:1"
    base = form.rest.get("base") or (chosen.base if chosen.base in preset.bases else None)
    origin = "you" if form.shape else settings.origins.get("generate.ar", "the settings") if chosen.ar else "the model"
    try:
        width, height = resolve_size(
            ar=ratio, base=int(base) if base else None, bases=preset.bases, default_base=preset.default_base
        )
    except (LensError, ValueError):
        return f"{ratio}, base {base}", origin
    return f"{ratio} · {width}×{height}", origin


def advance(form: Form) -> Form:
    """The form after something was drawn: the seed that follows, where it was to."""
    return form.said(seed=min(form.seed + form.count, SEED_END - 1)) if form.seed_mode is SeedMode.next else form


LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"steps": (1, STEPS_LIMIT), "guidance": (0, GUIDANCE_LIMIT), "seeds": (0, SEED_END - 1), "num": (1, PICTURES_LIMIT)}
)
