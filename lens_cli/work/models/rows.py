"""What `lens models list` and `show` say about a model, as lines and as JSON data. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from backend import presets
from backend.checkpoints import records
from backend.checkpoints.layouts import reasoner_adapter
from backend.checkpoints.resolve import ModelFiles, of_preset, resolve_model
from backend.errors import LensError, ModelMissingError, UsageError, human_bytes
from backend.hub.installed import partial_bytes
from backend.memory.cards import Drawing, encoder_seconds, smallest_card
from backend.presets import HubSource, Preset
from backend.wishes.vocabulary import Vocabulary, read_vocabulary
from lens_cli.terminal.cards_table import answers, table

HEADER = f"{'NAME':<10} {'STATE':<8} {'SIZE':>7} {'RUNS ON':<8} {'STEPS':>5} WHAT"

LABEL = 12  # columns of the labels of `details`


@dataclass(frozen=True)
class ModelRow:
    """One model of the list."""

    text: str
    data: dict[str, Any]


def listing() -> list[ModelRow]:
    """Every registry model in order; a damaged one is listed with what is wrong, it does not end the list."""
    return [_row(presets.get(name)) for name in presets.names()]


def _row(preset: Preset) -> ModelRow:
    found, problem = _find(preset)
    size = found.total_bytes if found is not None else None
    download = next((s.total for s in preset.sources if s.total is not None), None)
    partial = partial_bytes(preset)
    state = "damaged" if problem else "partial" if found is None and partial else "absent" if found is None else "here"
    if state == "here" and preset.embedded is not None:
        state = "embedded"
    told = size or download
    shown = human_bytes(told) if told else "-"
    card = smallest_card(_usual(preset), preset.sources[0]) if preset.sources else None
    needs = "any" if preset.embedded is not None else "no card" if card is None else f"{card.name} GPU"
    what = preset.title.partition(":")[0]
    text = f"{preset.name:<10} {state:<8} {shown:>7} {needs:<8} {preset.steps:>5} {what}"
    data = {
        "name": preset.name,
        "title": preset.title,
        "state": state,
        "problem": problem,
        "default": preset.name == presets.default_name(),
        "bytes": size,
        "partial_bytes": partial,
        "download_bytes": None if preset.embedded is not None or found is not None else download,
        "smallest_card": None if card is None else card.name,
        "steps": preset.steps,
        "guidance": preset.guidance,
        "distilled": preset.distilled,
        "bases": list(preset.bases),
        "repo": found.repo if found is not None else None,
        "revision": found.revision if found is not None else None,
    }
    return ModelRow(f"{text}{f' ({problem})' if problem else ''}", data)


def _usual(preset: Preset) -> Drawing:
    """A picture with the model's own defaults."""
    base = preset.default_base
    return Drawing(
        params=preset.params, width=base, height=base, steps=preset.steps, guided=preset.guidance != 1.0
    )  # fmt: skip


def _find(preset: Preset) -> tuple[ModelFiles | None, str | None]:
    try:
        return of_preset(preset), None
    except ModelMissingError:
        return None, None
    except LensError as error:
        return None, str(error)


def details(name: str) -> tuple[list[str], dict[str, Any]]:
    """Lines and data about one model. Raises UsageError for an unknown name, or what a path's files are refused for."""
    problem: str | None = None
    try:
        preset = presets.get(name)
        found, problem = _find(preset)
    except UsageError:
        found = resolve_model(name)  # a path; raises with the accepted forms
        preset = found.preset
    params = found.preset.params if found is not None else preset.params
    known = read_vocabulary(found.folder) if found is not None else None
    record = records.load(preset.name) if name.strip().lower() == preset.name else None
    cards = answers(preset, _usual(preset)) if preset.sources else []
    lines = _lines(preset, found, problem, known)
    lines += ["", *table(preset, _usual(preset), cards)] if cards else []
    data = {
        "name": found.name if found is not None else preset.name,
        "preset": preset.name,
        "title": preset.title,
        "steps": preset.steps,
        "guidance": preset.guidance,
        "distilled": preset.distilled,
        "bases": list(preset.bases),
        "default_base": preset.default_base,
        "params": asdict(params),
        "licences": {part.value: text for part, text in preset.licences.items()},
        "sources": [asdict(source) for source in preset.sources],
        "packed": [asdict(source) for source in preset.packed],
        "cards": [one.data() for one in cards],
        "encoder_seconds_calculated": round(encoder_seconds(params.text), 1) if cards else None,
        "vocabulary": known.lists if known else None,
        "problem": problem,
        "assumed": found.assumed if found is not None else None,
        "borrowed": found.borrowed if found is not None else None,
        "pulled": None if record is None else {"when": record.when, "repo": record.repo, "revision": record.revision},
        "files": []
        if found is None
        else [{"component": part, "path": str(path), "bytes": size} for part, path, size in found.files()],
    }
    return lines, data


def _lines(preset: Preset, found: ModelFiles | None, problem: str | None, known: Vocabulary | None) -> list[str]:
    """What is told of a model: its numbers, its licences and sources, and where it lies."""
    params = found.preset.params if found is not None else preset.params
    lines = [
        f"{preset.name}: {preset.title}" if found is None or found.name == preset.name else f"{found.name}",
        f"defaults    {preset.steps} steps, guidance {preset.guidance:g}{', distilled' if preset.distilled else ''}",
        f"bases       {', '.join(map(str, preset.bases))} (default {preset.default_base})",
        f"networks    transformer {params.dit.num_layers} blocks of width {params.dit.dim}, text encoder "
        f"{params.text.num_hidden_layers} of width {params.text.hidden_size}, vocabulary {params.text.vocab_size}",
    ]
    if found is not None and found.assumed:
        lines.append(f"assumed     {found.assumed}")
    if found is not None and found.borrowed:
        lines.append(f"borrowed    {found.borrowed}")
    lines += [f"licence     {part.value.replace('_', ' ')}: {text}" for part, text in preset.licences.items()]
    lines += [line for source in (*preset.sources, *preset.packed) for line in _source_lines(source)]
    lines += [] if known is None else [_words_line(known, category) for category in known.lists]
    if problem is not None:
        lines.append(f"damaged     {problem}")
    elif found is None:
        lines.append(f"on disk     no; fetch it with `lens models pull {preset.name}`")
    else:
        origin = f", {found.repo}@{(found.revision or '')[:12]}" if found.repo else ""
        lent = f", {human_bytes(found.total_bytes - found.own_bytes)} borrowed" if found.lent else ""
        lines.append(f"on disk     {human_bytes(found.own_bytes)} in {found.folder}{origin}{lent}")
        lines += [f"  {part:<13}{human_bytes(size):>8}  {path}" for part, path, size in found.files()]
        if (path := reasoner_adapter(found.text_encoder)) is not None:  # read by --reasoner local alone
            lines.append(f"  {'reasoner':<13}{human_bytes(path.stat().st_size):>8}  {path}")
    return lines


def _words_line(known: Vocabulary, category: str) -> str:
    note = f" ({known.notes[category]})" if category in known.notes else ""
    return f"{category:<12}{', '.join(known.lists[category])}{note}"


def _source_lines(source: HubSource) -> list[str]:
    size = f", about {human_bytes(source.total)}" if source.total is not None else ""
    commit = f"@{source.revision[:12]} (pinned)" if source.revision else ""
    lines = [f"source      {source.repo}{commit}{size}: {source.note}"]
    lines += [f"              {file.path}  SHA-256 {file.sha256}" for file in source.files if file.sha256]
    return lines
