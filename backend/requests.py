"""What a person asked for -> a complete `GenerationRequest`, with its model looked up.

The only place where `None` is resolved, a size checked and a seed drawn. Precedence: flag > environment >
settings files > the model's default (`backend.settings` has already merged the middle ones).

Light ring: standard library only; the registry is imported inside, so that `lens --help` does not read it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import ModelMissingError, UsageError
from backend.inputs.begin import Beginning, decide_amount, decide_beginning, decide_hires, warn_without_init
from backend.paths import expanded
from backend.settings import Settings, env_name
from backend.sizes import resolve_size
from backend.types import GenerationRequest, LoraMode, LoraUse
from backend.wish import NO_LORA, Wish
from backend.wishes.devices import fit_memory
from backend.wishes.seeds import draw_run

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles
    from backend.presets import Preset

PROMPT_LIMIT = 4000  # characters: several times what the encoder reads (512 tokens), far below a pasted book
STEPS_LIMIT = 250  # keeps the schedule small enough for every format's metadata
GUIDANCE_LIMIT = 100.0
RL_LIMIT = 1.5  # beyond what was trained: extrapolated velocities (RLG, arXiv 2508.21016)

Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """What is known of a model by its name or path."""

    name: str  # registry name or absolute path
    preset: Preset
    files: ModelFiles | None  # None: not on this disk; then `missing` says so
    missing: ModelMissingError | None = None

    def need_files(self) -> ModelFiles:
        """The model's files. Raises ModelMissingError with the command that fetches them."""
        return _needed(self.files, self.missing)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A complete request and its model's files, looked up once for everybody below."""

    request: GenerationRequest
    preset: Preset  # of the model
    files: ModelFiles | None  # None: not on this disk; then `missing` says so
    missing: ModelMissingError | None = None

    def need_files(self) -> ModelFiles:
        """The model's files. Raises ModelMissingError with the command that fetches them."""
        return _needed(self.files, self.missing)


def _needed(files: ModelFiles | None, missing: ModelMissingError | None) -> ModelFiles:
    if files is None:
        assert missing is not None, "a model that is not here says why"
        raise missing
    return files


def build_request(wish: Wish, settings: Settings, warn: Warn, *, found: FoundModel | None = None) -> ResolvedRequest:
    """A complete request: every None of the wish decided by the settings, and what they leave open by the model.

    `warn` is called with one line for everything that was asked for and cannot be honoured. `found`: the wish's model,
    where it was looked up already. Raises UsageError; for the model also what `find_model` raises, for a LoRA what
    `parse_lora` and `find_again` raise.
    """
    found = found or find_model(wish.model or settings.model or _default_model())
    preset = found.preset
    full = settings.generate.overridden_by(wish)
    guidance, negative_prompt = _honour_guidance(preset, _origin("guidance", wish.guidance, settings), full, warn)
    begin = _begin(preset, full, wish, warn)
    hires, hires_strength = decide_hires(full, begin, preset.bases, warn)
    around, seeds = draw_run(full)
    device, profile, vram = fit_memory(wish, settings.generate)
    original, loras = full.original_prompt, full.loras or ()
    strength = _honour_strength(found, _origin("rl_strength", wish.rl_strength, settings), full.rl_strength, warn)
    files = found.files if found.files is None or strength is None else found.files.with_strength(strength)
    decided = dict[str, Any](
        prompt=check_prompt(full.prompt or "", "prompt"),
        original_prompt=check_prompt(original, "original prompt") if original is not None else None,
        negative_prompt=check_prompt(negative_prompt, "negative prompt") if negative_prompt else "",
        model=found.name,
        seeds=seeds,
        **vars(begin),
        hires=hires,
        hires_strength=hires_strength,
        around=around,
        amount=decide_amount(full, around, warn),
        steps=_in_range(
            _origin("steps", wish.steps, settings), preset.steps if full.steps is None else full.steps, 1, STEPS_LIMIT
        ),
        guidance=guidance,
        device=device,
        loras=_find_loras(loras, full.lora_mode or LoraMode.auto),
        rl_strength=strength,
        profile=profile,
        vram=vram,
    )
    # What needs no decision is as it was asked for; where it was not, as GenerationRequest has it.
    known = {item.name for item in fields(GenerationRequest)}
    asked = {key: value for key, value in full.given().items() if key in known}
    request = GenerationRequest(**asked | decided)
    return ResolvedRequest(request=request, preset=preset, files=files, missing=found.missing)


def find_model(model: str) -> FoundModel:
    """Look a model up: a registry name wins over a folder of the same name.

    Raises what `resolve_model` does, but not for a registry model that is not on this disk.
    """
    from backend import presets
    from backend.checkpoints.resolve import resolve_model  # reads the files' headers

    try:
        preset = presets.get(model)
    except UsageError:
        path = expanded(model)
        name = str(path.absolute()) if path.exists() else model
        files = resolve_model(name)
        return FoundModel(name=name, preset=files.preset, files=files)
    try:
        files = resolve_model(preset.name)
    except ModelMissingError as error:
        return FoundModel(name=preset.name, preset=preset, files=None, missing=error)
    return FoundModel(name=preset.name, preset=preset, files=files)


def _begin(preset: Preset, full: Wish, wish: Wish, warn: Warn) -> Beginning:
    """The size, and the picture that the request begins from. A shape of the settings says nothing of that one's."""
    if full.init is None:
        warn_without_init(full, warn)
        width, height = _resolve_size(preset, full, wish, warn)
        return Beginning(width=width, height=height)
    typed = any(getattr(wish, name) is not None for name in ("ar", "base", "size", "width", "height"))
    sized = _resolve_size(preset, full, wish, warn) if typed else None
    return decide_beginning(full, sized, preset.bases, preset.default_base, warn)


def _resolve_size(preset: Preset, full: Wish, wish: Wish, warn: Warn) -> tuple[int, int]:
    """(width, height) of the wish over the settings. A base of the settings that the model lacks is named and left."""
    base = full.base
    if wish.base is None and base is not None and base not in preset.bases:
        warn(f"the setting base = {base} is ignored: {preset.name} has {_list(preset.bases)}")
        base = None
    return resolve_size(
        ar=full.ar, base=base, size=full.size, width=full.width, height=full.height,
        bases=preset.bases, default_base=preset.default_base,
    )  # fmt: skip


def check_prompt(text: str, what: str) -> str:
    """The text as it will be encoded: line ends unified, outer blanks gone. Raises UsageError.

    The reference encodes outer blanks. Here they are no part of a prompt: `echo`, a file and an argument say the same
    and get the same picture, and no record or text for other tools, whose grammars drop such blanks, says another.

    Control tokens (`<|start|>`) and `[markup]` are plain text and pass. Control characters do not: they have no meaning
    in a sentence, are illegal in image metadata, and would act on the terminal that prints them.
    """
    plain = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not plain:
        raise UsageError(f"the {what} is empty", hint='write what to draw: lens gen "three red balloons"')
    if len(plain) > PROMPT_LIMIT:
        raise UsageError(
            f"the {what} has {len(plain):,} characters; the limit is {PROMPT_LIMIT:,}",
            hint="the model reads about the first 400 words",
        )
    for position, character in enumerate(plain):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            if "\udc80" <= character <= "\udcff":  # how Python carries a byte of an argument that it cannot decode
                kind, hint = "is not valid UTF-8", "write it in UTF-8"
            else:
                kind, hint = f"holds U+{ord(character):04X}", "remove control characters"
            raise UsageError(f"the {what} {kind} at character {position + 1}", hint=hint)
    return plain


def _find_loras(wanted: Sequence[str | LoraUse], mode: LoraMode) -> tuple[LoraUse, ...]:
    """The files of LoRAs that are named, or that a picture was made with."""
    if not wanted or list(wanted) == [NO_LORA]:
        return ()
    from backend.lora.names import find_again, parse_lora  # with hashlib and what it names; only where there are some

    return tuple(
        replace(find_again(lora), mode=mode) if isinstance(lora, LoraUse) else parse_lora(lora, mode) for lora in wanted
    )


def _honour_guidance(preset: Preset, origin: str, full: Wish, warn: Warn) -> tuple[float, str]:
    """(guidance, negative prompt) that will really run; one warning for each wish that cannot be met. `origin` is what
    a refused guidance is called."""
    guidance, negative_prompt = full.guidance, full.negative_prompt or ""
    if guidance is not None and not (math.isfinite(guidance) and 0 <= guidance <= GUIDANCE_LIMIT):
        raise UsageError(f"{origin} {guidance:g} is outside 0..{GUIDANCE_LIMIT:g}", hint="1 means no guidance")
    if preset.distilled:
        if guidance is not None and guidance != preset.guidance:
            warn(f"guidance {guidance:g} is ignored: {preset.name} is distilled and runs at {preset.guidance:g}")
        guidance = preset.guidance
    elif guidance is None:
        guidance = preset.guidance
    if negative_prompt.strip() and guidance == 1.0:
        why = f"{preset.name} is distilled" if preset.distilled else "guidance is 1"
        warn(f"the negative prompt is ignored: {why}, so nothing runs that would read it")
        negative_prompt = ""
    return guidance, negative_prompt.strip()


def _honour_strength(found: FoundModel, origin: str, wanted: float | None, warn: Warn) -> float | None:
    """How strongly the model's own adapter acts; None: it has none that can be weighed, which a wish is told."""
    if wanted is not None and not (math.isfinite(wanted) and 0 <= wanted <= RL_LIMIT):
        raise UsageError(f"{origin} {wanted:g} is outside 0..{RL_LIMIT:g}", hint="1 is as it was trained")
    if found.files is not None and found.files.adjustable:
        return 1.0 if wanted is None else wanted
    if wanted:
        warn(f"{origin} {wanted:g} is ignored: {Path(found.name).name} has no adapter of its own that it could weigh")
    return None


def _origin(name: str, flag: object, settings: Settings) -> str:
    """What a value is called where it is refused: by its flag, or by the setting that it comes from."""
    if flag is not None:
        return f"--{name.replace('_', '-')}"
    key = f"generate.{name}"
    where = settings.origins.get(key, "settings")
    return f"{where} =" if where == env_name(key) else f"{where}: {key} ="


def _in_range(origin: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UsageError(f"{origin} {value} is outside {low}..{high}")
    return value


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _default_model() -> str:
    from backend import presets

    return presets.default_name()
