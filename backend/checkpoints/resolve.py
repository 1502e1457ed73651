"""Where a model's weights lie: a registry name or a path -> the exact files, and what is known about them.

Reads names, small JSON files and weight headers, never tensor data, and never the network: `backend.hub.downloads`
fetches. Standard library only, so that `lens models list` and `lens gen --dry-run` stay quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from backend.checkpoints import layouts, parameters, records
from backend.checkpoints.layouts import Parts
from backend.errors import CheckpointError, LensError, ModelMissingError, UsageError, human_bytes, joined
from backend.params import DiTParams
from backend.paths import expanded, hub_repo, nano_dir
from backend.presets import PRESETS, Component, Embedded, HubSource, Layout, Preset, default_name, get, names

ACCEPTED = (
    f"a model is a name ({', '.join(names())}); a folder with model_index.json (the published layout); a folder with "
    "diffusion_models/, text_encoders/ and vae/ (ComfyUI's); a folder with transformer.gguf, text_encoder.gguf and "
    "vae.safetensors; or one transformer file, .safetensors or .gguf, with encoder and VAE beside it or pulled"
)


@dataclass(frozen=True, kw_only=True)
class ModelAdapter:
    """A LoRA that is part of a model, and how strongly it acts."""

    path: Path
    adjustable: bool  # whether a request may say how strongly
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Everything that is needed to load one model. Paths are absolute; every file exists."""

    name: str  # registry name, or the folder's or file's base name
    preset: Preset  # defaults of the variant, with the parameters that these files have
    layout: Layout
    parts: Parts
    revision: str | None = None  # hub commit, where known
    repo: str | None = None  # hub repository, where known
    assumed: str | None = None  # a sentence about what had to be assumed; None: nothing
    borrowed: str | None = None  # a sentence about what another model lends; None: nothing
    lent: frozenset[Path] = frozenset()  # the files that it lends
    adapters: tuple[ModelAdapter, ...] = ()  # on the transformer, for everybody who reads it

    @property
    def transformer(self) -> tuple[Path, ...]:
        return self.parts.files(Component.transformer)

    @property
    def text_encoder(self) -> tuple[Path, ...]:
        return self.parts.files(Component.text_encoder)

    @property
    def vae(self) -> tuple[Path, ...]:
        return self.parts.files(Component.vae)

    @property
    def tokenizer(self) -> tuple[Path, ...]:
        """tokenizer.json; empty: inside the text encoder's file."""
        return self.parts.files(Component.tokenizer)

    def files(self) -> list[tuple[str, Path, int]]:
        """(component, path, bytes) of every weights and tokenizer file."""
        rows = [(str(part), path) for part in Component for path in self.parts.files(part)]
        rows += [("adapter", adapter.path) for adapter in self.adapters]
        return [(part, path, path.stat().st_size) for part, path in rows]

    @property
    def adjustable(self) -> bool:
        """Whether a request may say how strongly its adapter acts."""
        return any(adapter.adjustable for adapter in self.adapters)

    def with_strength(self, strength: float) -> ModelFiles:
        """The model with its adjustable adapters acting so strongly; 0 is its base."""
        weighed = (replace(a, strength=strength) if a.adjustable else a for a in self.adapters)
        return replace(self, adapters=tuple(weighed))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences a person should read before they use it."""
        return tuple(filter(None, (self.assumed, self.borrowed)))

    @property
    def folder(self) -> Path:
        """The folder that holds the model's own weights: what is lent may lie anywhere, and so may what a link to a
        tokenizer leads to."""
        weights = self.parts.without(Component.tokenizer).all_files - self.lent
        return Path(os.path.commonpath([path.parent for path in weights]))

    @property
    def own_bytes(self) -> int:
        """Bytes of all files but those that another model lends."""
        return sum(size for _, path, size in self.files() if path not in self.lent)

    @property
    def total_bytes(self) -> int:
        return sum(size for _, _, size in self.files())


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was asked for beside the name or path."""

    variant: str | None = None  # which model a path is; None: the files say
    borrow: bool = True  # what is absent may come from other models; not for one that is to lend: it might come back


def resolve_model(name_or_path: str, *, variant: str | None = None) -> ModelFiles:
    """The files of a model. `variant`: which model a path is; None: its files or their names say.

    Raises ModelMissingError (the weights are not on this disk, with the command that fetches them), CheckpointError
    (a file is not what it should be) or UsageError (nothing lens understands, with the accepted forms).
    """
    return _resolve(name_or_path, _Asked(variant=variant))


def _resolve(name_or_path: str, asked: _Asked) -> ModelFiles:
    name, path = name_or_path.strip().lower(), expanded(name_or_path)
    if name in PRESETS:  # before a file of that name, which is ./NAME
        if asked.variant is not None and asked.variant != name:
            raise UsageError(f"{name} is a name of the registry, so it cannot also be {asked.variant}")
        return _of_preset(get(name), asked)
    for applies, layout, find in _RULES:
        if applies(path):
            return _from_path(path.absolute(), layout or layouts.layout_of(path), find(path), asked)
    raise _not_understood(name_or_path, path)


# Registry names ------------------------------------------------------------------------------------------------------


def of_preset(preset: Preset) -> ModelFiles:
    """The files of a registry model. Raises ModelMissingError naming the command that fetches them."""
    return _of_preset(preset, _Asked())


def _of_preset(preset: Preset, asked: _Asked) -> ModelFiles:
    if preset.embedded is not None:
        return _embedded_preset(preset)
    record = records.load(preset.name)
    if record is not None and record.folder.exists():
        return _from_record(preset, record, asked)
    unusable: CheckpointError | None = None
    for source in preset.sources:
        for revision, folder in cached_snapshots(source):
            try:
                parts = _source_parts(source, folder)
            except CheckpointError as error:  # an interrupted pull: shards without their index; a later source may do
                unusable = unusable or error
                continue
            if parts is not None and parts.missing() == ():
                return _finish(preset.name, preset, source.layout, parts, revision, source.repo)
    error = missing(preset)
    if unusable is not None:
        raise ModelMissingError(f"{preset.name} is here only in part: {unusable}", hint=error.hint)
    raise error


def missing(preset: Preset) -> ModelMissingError:
    """The error for a model that is not on this disk."""
    if preset.embedded is not None:
        return ModelMissingError(
            f"the weights of {preset.name} are not in this installation ({nano_dir()})",
            hint="reinstall the package, or make them: lens train nano",
        )
    size = next((source.total for source in preset.sources if source.total is not None), None)
    about = f" (about {human_bytes(size)})" if size is not None else ""
    return ModelMissingError(
        f"{preset.name} is not on this disk", hint=f"fetch it with `lens models pull {preset.name}`{about}"
    )


def _embedded_preset(preset: Preset) -> ModelFiles:
    assert preset.embedded is not None
    parts = layouts.embedded(nano_dir(), preset.embedded)
    adapters = tuple(ModelAdapter(path=nano_dir() / own.file, adjustable=own.adjustable) for own in preset.adapters)
    if parts.missing() or not all(adapter.path.is_file() for adapter in adapters):
        raise missing(preset)
    return replace(_finish(preset.name, preset, Layout.embedded, parts, None, None), adapters=adapters)


def of_record(preset: Preset, record: records.Record) -> ModelFiles:
    """The files of a registry model as a record states them, which need not be written yet. Raises as `of_preset`."""
    return _from_record(preset, record, _Asked())


def _from_record(preset: Preset, record: records.Record, asked: _Asked) -> ModelFiles:
    """What `lens models pull` wrote down: a snapshot in the hub cache, or a folder the person named."""
    if record.repo is None:
        found = _resolve(str(record.folder), _Asked(variant=preset.name, borrow=asked.borrow))
        files = _finish(preset.name, preset, found.layout, found.parts, None, None)
        return replace(files, borrowed=found.borrowed, lent=found.lent)
    source = preset.source_of(record.repo, record.files)
    if source is not None and source.layout is record.layout:
        parts = _source_parts(source, record.folder)
    else:
        parts = _any_parts(record.folder, record.layout)
    if parts is None or parts.missing():
        part = "" if parts is None else f": no {parts.missing()[0]}"
        raise ModelMissingError(
            f"the pulled files of {preset.name} are incomplete in {record.folder}{part}",
            hint=f"fetch what is missing with `lens models pull {preset.name}`",
        )
    return _finish(preset.name, preset, record.layout, parts, record.revision, record.repo)


def cached_snapshots(source: HubSource) -> list[tuple[str, Path]]:
    """(commit, folder) of a source's snapshots in the hub cache: the pinned one, else all, main's first."""
    root = hub_repo(source.repo)
    if source.revision is not None:
        commits = [source.revision]
    else:
        main = root / "refs" / "main"
        commits = [main.read_text(encoding="utf-8").strip()] if main.is_file() else []
        if (root / "snapshots").is_dir():
            commits += sorted(p.name for p in (root / "snapshots").iterdir() if p.name not in commits)
    return [(c, root / "snapshots" / c) for c in commits if (root / "snapshots" / c).is_dir()]


def _source_parts(source: HubSource, folder: Path) -> Parts | None:
    if source.layout is Layout.diffusers:
        return layouts.diffusers(folder) if (folder / "model_index.json").is_file() else None
    # Comfy-Org moved its files once; the older place is accepted for all of them together.
    for root in (folder, folder / "split_files"):
        found = layouts.exact_files({file.component: root / file.path for file in source.files})
        if found is not None:
            return found
    return None


def _any_parts(folder: Path, layout: Layout) -> Parts:
    return layouts.diffusers(folder) if layout is Layout.diffusers else layouts.single_files(folder)


# Paths ---------------------------------------------------------------------------------------------------------------


def _transformer_folder(path: Path) -> Parts:
    parts = Parts({Component.transformer: layouts.transformer_alone(path)})
    beside = layouts.diffusers(path.parent) if (path.parent / "model_index.json").is_file() else Parts()
    return beside.replaced_by(parts)


def _transformer_file(path: Path) -> Parts:
    kind = layouts.kind_of(path)
    if kind is None:
        raise CheckpointError(f"{path}: {layouts.identify_file(path)}, expected a Lens transformer")
    if kind is not Component.transformer:
        raise UsageError(
            f"{path}: {layouts.identify_file(path)}; a model is the transformer's file or a whole folder", hint=ACCEPTED
        )
    return layouts.companions(path)


_RULES: tuple[tuple[Callable[[Path], bool], Layout | None, Callable[[Path], Parts]], ...] = (
    # what a path is, the first that applies; its layout, None: the file tells; how its files are found
    (lambda path: (path / "model_index.json").is_file(), Layout.diffusers, layouts.diffusers),
    (lambda path: (path / Embedded().transformer).is_file(), Layout.embedded, layouts.embedded),
    (lambda path: path.is_dir() and layouts.holds_single_files(path), Layout.single_files, layouts.single_files),
    (lambda path: (path / "config.json").is_file(), Layout.diffusers, _transformer_folder),
    (Path.is_file, None, _transformer_file),
)


def _not_understood(name: str, path: Path) -> UsageError | ModelMissingError | CheckpointError:
    if path.is_dir():
        return CheckpointError(f"{path}: no Lens model in this folder", hint=ACCEPTED)
    if len(path.parts) > 1 or name.startswith(".") or path.suffix:
        return ModelMissingError(f"{name}: no such file or folder", hint=ACCEPTED)
    try:
        get(name)
    except UsageError as error:
        near = error.hint if error.hint and error.hint.startswith("did you mean") else ACCEPTED
        return UsageError(f"no model is called {name!r}, and no file or folder is", hint=near)
    raise AssertionError("a registry name is handled by the first rule")


# Completion ----------------------------------------------------------------------------------------------------------


def _from_path(path: Path, layout: Layout, parts: Parts, asked: _Asked) -> ModelFiles:
    """A model given as an absolute path: borrow shared companions, read the parameters, name the variant."""
    own = parts
    parts, borrowed = _borrow(path, own) if asked.borrow else (own, None)
    parts = _complete(path, parts)
    params = parameters.read_params(parts)
    preset, assumed = _variant(path, parts, asked.variant, params.dit)
    found = _finish(path.name, preset, layout, parts, None, None)
    return replace(found, assumed=assumed, borrowed=borrowed, lent=parts.all_files - own.all_files)


def _borrow(path: Path, parts: Parts) -> tuple[Parts, str | None]:
    """The parts, completed from a pulled model (encoder and autoencoder are stock parts) or from Lens-Nano, and the
    sentence that says so; None: nothing was absent, or nobody has it."""
    absent = [part for part in parts.missing() if part != Component.transformer]
    if Component.transformer not in parts.held or not absent:
        return parts, None
    dit = parameters.read_transformer_params(parts.held[Component.transformer])
    for name in names():
        preset = PRESETS[name]
        if preset.params.dit.enc_hidden_dim != dit.enc_hidden_dim:
            continue  # another encoder's features would not even have the right width
        try:
            donor = _of_preset(preset, _Asked(borrow=False))
        except LensError:  # not here, or damaged: using that one by name says what is wrong with it
            continue
        taken = " and ".join(part.value.replace("_", " ") for part in absent)
        borrowed = f"{path.name}: {taken} of {name}, as there is none beside it"
        return donor.parts.without(Component.transformer).replaced_by(parts), borrowed
    return parts, None


_PLACES = {
    Component.transformer: "diffusion_models/",
    Component.text_encoder: "text_encoders/",
    Component.vae: "vae/",
    Component.tokenizer: "tokenizer/tokenizer.json",
}


def _complete(path: Path, parts: Parts) -> Parts:
    absent = parts.missing()
    if absent:
        folders = " and ".join(_PLACES[part] for part in absent)
        raise ModelMissingError(
            f"{path}: no {' and no '.join(part.value.replace('_', ' ') for part in absent)} beside it "
            "or among the pulled models",
            hint=f"put it beside the transformer ({folders}), or fetch a whole model: "
            f"lens models pull {_published()[0].name}",
        )
    return parts


def _published() -> list[Preset]:
    """The models that are fetched, the one without a mark first among those whose tensors are alike."""
    return [preset for preset in PRESETS.values() if preset.sources]


def _variant(path: Path, parts: Parts, variant: str | None, dit: DiTParams) -> tuple[Preset, str | None]:
    """Which registry row gives the defaults, and the sentence that says so where it was only assumed."""
    variant = variant or parameters.variant(path, parts.held.get(Component.transformer))
    if variant is not None:
        return get(variant), None
    alike = [preset for preset in _published() if preset.params.dit == dit]
    if not alike:
        preset = get(default_name())
        return preset, f"{path.name}: not the published size, so the defaults of {preset.name} apply"
    spoken = ((row, text) for text in _telling(path, parts) for row in alike if row.is_marked(text))
    preset, word = next(spoken, (alike[0], path.name))
    return preset, (
        f"{word}: taken for {preset.name} by its name ({preset.steps} steps, guidance {preset.guidance:g}); the "
        f"tensors of {joined([row.name for row in alike], 'and')} are alike, and `lens models pull NAME --from PATH` "
        "settles it"
    )


def _telling(path: Path, parts: Parts) -> list[str]:
    """The names that may tell a variant, the most telling first: the transformer's file, the folder, its repository."""
    folder = path.parent if path.name == "transformer" else path
    # A snapshot folder of the hub cache is named by its commit; the repository's name is two levels up.
    repo = [folder.parent.parent.name] if folder.parent.name == "snapshots" else []
    return [*(file.name for file in parts.files(Component.transformer)), path.name, folder.name, *repo]


def _finish(
    name: str, preset: Preset, layout: Layout, parts: Parts, revision: str | None, repo: str | None
) -> ModelFiles:
    preset = replace(preset, params=parameters.read_params(parts))
    return ModelFiles(name=name, preset=preset, layout=layout, parts=parts, revision=revision, repo=repo)
