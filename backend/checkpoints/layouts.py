"""How the files of a model lie in folders. Standard library only; what they state: `backend.checkpoints.parameters`.

Three layouts (`backend.presets.Layout`): the published diffusers folder, Comfy-Org's single files, and Lens-Nano's
three files. Everything is told from model_index.json, index files and weight headers; tensor data is never read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend.checkpoints import config_files, detect
from backend.checkpoints.headers import PICKLES, FileFormat, a_pickle, read_summary
from backend.errors import CheckpointError, UsageError, shown
from backend.paths import expanded
from backend.presets import Component, Embedded, Layout

Paths = tuple[Path, ...]

REASONER_ADAPTER = "reasoner.gguf"  # beside a language model: what it adds to itself while it rewrites
_SUFFIXES = (".safetensors", ".gguf")
# Where ComfyUI keeps each part; the second name is its older one.
_FOLDERS: Mapping[Component, tuple[str, ...]] = {
    Component.transformer: ("diffusion_models", "unet"),
    Component.text_encoder: ("text_encoders", "clip"),
    Component.vae: ("vae",),
}
NETWORKS = (Component.transformer, Component.text_encoder, Component.vae)
_CLASSES = {  # model_index.json: part -> accepted class names
    Component.transformer: ("LensTransformer2DModel",),
    Component.text_encoder: ("LensGptOssEncoder", "GptOssForCausalLM", "GptOssModel"),
    Component.vae: ("AutoencoderKLFlux2",),
}


@dataclass(frozen=True)
class PartFiles:
    """The files of one part of a model."""

    files: Paths  # its weights, never none; of the tokenizer its tokenizer.json
    config: Path | None = None  # config.json that came with them; None: told from the tensors or the files' headers


@dataclass(frozen=True)
class Parts:
    """The files of a model, part by part; a part that is not there (yet) has no entry."""

    held: Mapping[Component, PartFiles] = field(default_factory=dict[Component, PartFiles])

    def files(self, part: Component) -> Paths:
        """The files of a part; () where it is not there, or is a tokenizer inside the text encoder's file."""
        return self.held[part].files if part in self.held else ()

    def config(self, part: Component) -> Path | None:
        return self.held[part].config if part in self.held else None

    @property
    def all_files(self) -> frozenset[Path]:
        return frozenset(path for part in self.held.values() for path in part.files)

    def replaced_by(self, other: Parts) -> Parts:
        """These parts, each with its config, replaced by `other`'s where `other` has them."""
        # A tokenizer belongs to its encoder: another encoder with one inside does not keep the old file.
        own = self.without(Component.tokenizer) if _has_tokenizer(other.files(Component.text_encoder)) else self
        return Parts({**own.held, **other.held})

    def without(self, part: Component) -> Parts:
        return Parts({name: held for name, held in self.held.items() if name is not part})

    def missing(self) -> tuple[Component, ...]:
        inside = Component.text_encoder not in self.held or _has_tokenizer(self.files(Component.text_encoder))
        return tuple(
            part for part in Component if part not in self.held and not (part is Component.tokenizer and inside)
        )


def _there(found: Mapping[Component, PartFiles | None]) -> Parts:
    """The parts that were found."""
    return Parts({part: held for part, held in found.items() if held is not None})


def _one_file(path: Path) -> PartFiles | None:
    """A file that is there, with a config.json of its own: `lens_bf16.json` beside `lens_bf16.safetensors`."""
    config = path.with_suffix(".json")
    return PartFiles((path,), config if config.is_file() and config != path else None) if path.is_file() else None


def _one_folder(folder: Path) -> PartFiles | None:
    """The weights of a folder that holds one part, with its config.json; None: there are none."""
    files, config = _folder_files(folder), folder / "config.json"
    return PartFiles(files, config if config.is_file() else None) if files else None


# One file ------------------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> Component | None:
    """Which part of a Lens model a weights file is; None: none. Raises CheckpointError for a broken file."""
    names = read_summary(path).tensors.keys()
    if detect.is_transformer(names):
        return Component.transformer
    if detect.is_text_encoder(names):
        return Component.text_encoder
    return Component.vae if detect.is_vae(names) else None


def identify_file(path: Path) -> str:
    """A phrase for what a weights file is, for error messages."""
    return detect.identify(read_summary(path).tensors.keys())


def layout_of(path: Path) -> Layout:
    return Layout.embedded if read_summary(path).format is FileFormat.gguf else Layout.single_files


def _has_tokenizer(text_encoder: Paths) -> bool:
    """True where the encoder's file carries its tokenizer (Comfy's, and every GGUF)."""
    return any(
        "tokenizer_json" in header.tensors or "tokenizer.ggml.tokens" in header.metadata
        for header in map(read_summary, text_encoder)
    )


# Layouts -------------------------------------------------------------------------------------------------------------


def transformer_alone(path: Path) -> PartFiles:
    """A transformer that a person names: a file, or a folder with one file or an index; a config beside it counts.

    Raises CheckpointError where it is none.
    """
    path = expanded(path).absolute()
    held = _one_folder(path) if path.is_dir() else _one_file(path)
    if held is None:
        raise CheckpointError(f"{path}: no .safetensors or .gguf weights in this folder")
    if not path.is_dir() and kind_of(path) is not Component.transformer:
        raise CheckpointError(f"{path}: {identify_file(path)}, expected a transformer")
    return held


def diffusers(folder: Path) -> Parts:
    """The published layout: model_index.json, and one folder for each part that is there. Raises CheckpointError."""
    folder = folder.absolute()
    index = config_files.read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind != "LensPipeline":
        raise CheckpointError(f"{folder}: model_index.json names {kind!r}, expected 'LensPipeline'")
    for part, accepted in _CLASSES.items():
        entry = index.get(part)
        named = entry[-1] if isinstance(entry, list) and entry else None
        if named is not None and named not in accepted:
            raise CheckpointError(
                f"{folder}: model_index.json names {named!r} as {part}, expected {' or '.join(accepted)}"
            )
    weights = {part: _one_folder(folder / part) for part in _FOLDERS}
    return _there({**weights, Component.tokenizer: _tokenizer_in(folder / "tokenizer")})


def _tokenizer_in(folder: Path) -> PartFiles | None:
    path = folder / "tokenizer.json"
    return PartFiles((path,)) if path.is_file() else None


def _folder_files(folder: Path) -> Paths:
    """The shards an index names, or the only weights file; () where there is none."""
    if not folder.is_dir():
        return ()
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise CheckpointError(f"{folder}: several index files ({', '.join(p.name for p in indexes)})")
    if indexes:
        table = config_files.read_json(indexes[0]).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise CheckpointError(f"{indexes[0]}: no weight_map")
        shards = sorted({str(shard) for shard in table.values()})
        for shard in shards:
            if Path(shard).name != shard or not os.path.isfile(folder / shard):  # too long a name is none
                raise CheckpointError(
                    f"{folder}: the shard {shown(shard)} named by {indexes[0].name} is not there",
                    hint="an interrupted download; fetch the rest with `lens models pull`",
                )
        return tuple(folder / shard for shard in shards)
    weights = _weights_in(folder)
    if len(weights) > 1:
        raise CheckpointError(f"{folder}: several weights files and no index ({', '.join(p.name for p in weights)})")
    if not weights:
        pickle = next((path for path in folder.iterdir() if path.suffix in PICKLES), None)
        if pickle is not None:
            raise a_pickle(pickle)
    return tuple(weights)


def embedded(folder: Path, files: Embedded | None = None) -> Parts:
    """Lens-Nano's three files in one folder; a file that is not there is no part."""
    return _there({part: _one_file(folder.absolute() / name) for part, name in (files or Embedded()).names().items()})


def exact_files(files: Mapping[Component, Path]) -> Parts | None:
    """Exactly these files; None where one is not there."""
    if not all(path.is_file() for path in files.values()):
        return None
    return Parts({part: PartFiles((path,)) for part, path in files.items()})


def holds_single_files(folder: Path) -> bool:
    """True for a folder of ComfyUI's parts, or with weights of a transformer directly in it (and no config.json)."""
    if any((root / sub).is_dir() for root in _roots(folder) for sub in _FOLDERS[Component.transformer]):
        return True
    return not (folder / "config.json").is_file() and any(
        kind_of(path) is Component.transformer for path in _weights_in(folder)
    )


def single_files(folder: Path) -> Parts:
    """Comfy-Org's arrangement, also under split_files/, or the files side by side."""
    folder = folder.absolute()
    found = {part: _search([folder], part) for part in _FOLDERS}
    transformers = found[Component.transformer]
    if len(transformers) > 1:
        choices = ", ".join(path.name for path in transformers)
        raise UsageError(f"{folder}: several transformers ({choices})", hint="give one of the files as the model")
    return _side_by_side(folder, found)


def companions(transformer: Path) -> Parts:
    """A single transformer file with encoder, autoencoder and tokenizer beside it, or in the folder above it."""
    path = transformer.absolute()
    folder = path.parent
    folders = [folder, folder.parent] if folder.name in _FOLDERS[Component.transformer] else [folder]
    found = {part: _search(folders, part) for part in (Component.text_encoder, Component.vae)}
    return _side_by_side(folders[-1], {Component.transformer: (path,), **found})


def _side_by_side(folder: Path, found: Mapping[Component, Paths]) -> Parts:
    """One file a part, and the tokenizer of the folder. Raises UsageError for several files of a part."""
    for part, files in found.items():
        if len(files) > 1:
            raise UsageError(
                f"{folder}: several files are a {part.value.replace('_', ' ')} ({', '.join(p.name for p in files)})",
                hint="leave one of them in that folder",
            )
    places = [root / sub for root in _roots(folder) for sub in (".", "tokenizer", "text_encoders", "clip")]
    tokenizer = next((path for place in places if (path := place / "tokenizer.json").is_file()), None)
    weights = {part: _one_file(files[0]) if files else None for part, files in found.items()}
    return _there(
        {**weights, Component.tokenizer: None if tokenizer is None else PartFiles((tokenizer.resolve(strict=True),))}
    )


def _search(folders: Iterable[Path], part: Component) -> Paths:
    """Files that are `part`, from the first place that has any; other files of ComfyUI's folders are passed over.

    Raises CheckpointError for a broken file in a folder of that part where its name says that it is meant, or where
    nothing else serves: another model's would be used in its stead.
    """
    broken: list[CheckpointError] = []
    for folder in folders:
        for root in _roots(folder):
            for place in (*(root / sub for sub in _FOLDERS[part]), root):
                found = tuple(path for path in _weights_in(place) if _is(path, part, broken))
                if found:
                    return found
    if broken:
        raise broken[0]
    return ()


def _is(path: Path, part: Component, broken: list[CheckpointError]) -> bool:
    """True where the file is `part`; the error of one that is broken in such a part's folder goes to `broken`."""
    try:
        return kind_of(path) is part
    except CheckpointError as error:
        if path.parent.name in _FOLDERS[part]:
            if "lens" in path.name or "gpt_oss" in path.name:
                raise
            broken.append(error)
        return False


def _roots(folder: Path) -> tuple[Path, ...]:
    return folder, folder / "split_files"


def _weights_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file()) if folder.is_dir() else []


def reasoner_adapter(text_encoder: Paths) -> Path | None:
    """The adapter beside a language model that is one file; None: there is none."""
    if len(text_encoder) != 1:
        return None
    path = text_encoder[0].with_name(REASONER_ADAPTER)
    return path if path.is_file() else None
