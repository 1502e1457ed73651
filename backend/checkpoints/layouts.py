"""How the files of a model lie in folders. Standard library only; what they state: `backend.checkpoints.parameters`.

Three layouts (`backend.presets.Layout`): the published diffusers folder, Comfy-Org's single files, and Lens-Nano's
three files. Everything is told from model_index.json, index files and weight headers; tensor data is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.checkpoints import config_files, detect
from backend.checkpoints.headers import FileFormat, read_summary
from backend.errors import CheckpointError, UsageError
from backend.presets import Component, Embedded, Layout

Paths = tuple[Path, ...]

_SUFFIXES = (".safetensors", ".gguf")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Where ComfyUI keeps each part; the second name is its older one.
_FOLDERS: Mapping[Component, tuple[str, ...]] = {
    Component.transformer: ("diffusion_models", "unet"),
    Component.text_encoder: ("text_encoders", "clip"),
    Component.vae: ("vae",),
}
_CLASSES = {  # model_index.json: part -> accepted class names
    "transformer": ("LensTransformer2DModel",),
    "text_encoder": ("LensGptOssEncoder", "GptOssForCausalLM", "GptOssModel"),
    "vae": ("AutoencoderKLFlux2",),
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The files of a model, part by part; an empty tuple is a part that is not there (yet)."""

    transformer: Paths = ()
    text_encoder: Paths = ()
    vae: Paths = ()
    tokenizer: Paths = ()
    transformer_config: Path | None = None
    text_encoder_config: Path | None = None
    vae_config: Path | None = None

    def replaced_by(self, other: Parts) -> Parts:
        """These parts, each with its config, replaced by `other`'s where `other` has them."""
        dit, text, vae = bool(other.transformer), bool(other.text_encoder), bool(other.vae)
        # A tokenizer belongs to its encoder: another encoder with one inside does not keep the old file.
        keep = () if text and _has_tokenizer(other.text_encoder) else self.tokenizer
        return Parts(
            transformer=other.transformer or self.transformer,
            text_encoder=other.text_encoder or self.text_encoder,
            vae=other.vae or self.vae,
            tokenizer=other.tokenizer or keep,
            transformer_config=other.transformer_config if dit else self.transformer_config,
            text_encoder_config=other.text_encoder_config if text else self.text_encoder_config,
            vae_config=other.vae_config if vae else self.vae_config,
        )

    def missing(self) -> tuple[Component, ...]:
        absent = [c for c in (Component.transformer, Component.text_encoder, Component.vae) if not getattr(self, c)]
        if self.text_encoder and not self.tokenizer and not _has_tokenizer(self.text_encoder):
            absent.append(Component.tokenizer)
        return tuple(absent)


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


def by_hand(
    *,
    transformer: Path | None = None,
    text_encoder: Path | None = None,
    vae: Path | None = None,
    tokenizer: Path | None = None,
) -> Parts:
    """Single parts that a person names: a file, or a folder with one file or an index; configs beside them count.

    Raises CheckpointError where a file is another part than it is given as.
    """
    return Parts(
        transformer=_part_files(transformer, Component.transformer),
        text_encoder=_part_files(text_encoder, Component.text_encoder),
        vae=_part_files(vae, Component.vae),
        tokenizer=_tokenizer_file(tokenizer),
        transformer_config=_part_config(transformer),
        text_encoder_config=_part_config(text_encoder),
        vae_config=_part_config(vae),
    )


def _part_files(path: Path | None, part: Component) -> Paths:
    if path is None:
        return ()
    path = path.expanduser().absolute()
    if path.is_dir():
        found = _folder_files(path)
        if not found:
            raise CheckpointError(f"{path}: no .safetensors or .gguf weights in this folder")
        return found
    if kind_of(path) is not part:
        raise CheckpointError(f"{path}: {identify_file(path)}, expected a {part.value.replace('_', ' ')}")
    return (path,)


def _part_config(path: Path | None) -> Path | None:
    if path is None:
        return None
    path = path.expanduser().absolute()
    return _if_file(path / "config.json") if path.is_dir() else _sidecar(path)


def _tokenizer_file(path: Path | None) -> Paths:
    if path is None:
        return ()
    path = path.expanduser().absolute()
    found = path / "tokenizer.json" if path.is_dir() else path
    if not found.is_file():
        raise UsageError(f"{found}: no such file", hint="a tokenizer is a tokenizer.json or its folder")
    return (found,)


def diffusers(folder: Path) -> Parts:
    """The published layout: model_index.json, one folder a part. Parts without a folder stay empty."""
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
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    return Parts(
        transformer=_folder_files(folder / "transformer"),
        text_encoder=_folder_files(folder / "text_encoder"),
        vae=_folder_files(folder / "vae"),
        tokenizer=(tokenizer,) if tokenizer.is_file() else (),
        transformer_config=_if_file(folder / "transformer" / "config.json"),
        text_encoder_config=_if_file(folder / "text_encoder" / "config.json"),
        vae_config=_if_file(folder / "vae" / "config.json"),
    )


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
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise CheckpointError(
                    f"{folder}: the shard {shard!r} named by {indexes[0].name} is not there",
                    hint="an interrupted download; fetch the rest with `lens models pull`",
                )
        return tuple(folder / shard for shard in shards)
    weights = _weights_in(folder)
    if len(weights) > 1:
        raise CheckpointError(f"{folder}: several weights files and no index ({', '.join(p.name for p in weights)})")
    if not weights:
        pickles = [p for p in folder.iterdir() if p.suffix in _PICKLES]
        if pickles:
            raise CheckpointError(
                f"{pickles[0]}: a pickle; opening one can run code, so lens never does",
                hint="use a .safetensors or .gguf file of the same weights",
            )
    return tuple(weights)


def embedded(folder: Path, files: Embedded | None = None) -> Parts:
    """Lens-Nano's three files in one folder; a file that is not there stays empty."""
    files = files or Embedded()
    folder = folder.absolute()
    return Parts(
        transformer=_existing(folder / files.transformer),
        text_encoder=_existing(folder / files.text_encoder),
        vae=_existing(folder / files.vae),
    )


def chosen(files: Mapping[Component, Path]) -> Parts | None:
    """Exactly these files; None where one is not there."""
    if not all(path.is_file() for path in files.values()):
        return None
    return Parts(
        transformer=_chosen(files, Component.transformer),
        text_encoder=_chosen(files, Component.text_encoder),
        vae=_chosen(files, Component.vae),
        tokenizer=_chosen(files, Component.tokenizer),
    )


def _chosen(files: Mapping[Component, Path], part: Component) -> Paths:
    return (files[part],) if part in files else ()


def holds_single_files(folder: Path) -> bool:
    """True for a folder of ComfyUI's parts, or with weights of a transformer directly in it (and no config.json)."""
    if any((root / sub).is_dir() for root in _roots(folder) for sub in _FOLDERS[Component.transformer]):
        return True
    return not (folder / "config.json").is_file() and any(
        kind_of(path) is Component.transformer for path in _weights_in(folder)
    )


def single_files(folder: Path, *, need_transformer: bool = True) -> Parts:
    """Comfy-Org's arrangement, also under split_files/, or the files side by side."""
    folder = folder.absolute()
    found = {part: _search([folder], part) for part in _FOLDERS}
    if need_transformer and len(found[Component.transformer]) > 1:
        choices = ", ".join(path.name for path in found[Component.transformer])
        raise UsageError(f"{folder}: several transformers ({choices})", hint="give one of the files as the model")
    return _single(folder, found[Component.transformer], found[Component.text_encoder], found[Component.vae])


def companions(transformer: Path) -> Parts:
    """Encoder, autoencoder and tokenizer beside a single transformer file, or in the folder above it."""
    folder = transformer.absolute().parent
    folders = [folder, folder.parent] if folder.name in _FOLDERS[Component.transformer] else [folder]
    found = {part: _search(folders, part) for part in (Component.text_encoder, Component.vae)}
    beside = _single(folders[-1], (), found[Component.text_encoder], found[Component.vae])
    return beside.replaced_by(Parts(transformer=(transformer.absolute(),), transformer_config=_sidecar(transformer)))


def _single(folder: Path, transformer: Paths, text_encoder: Paths, vae: Paths) -> Parts:
    for part, files in ((Component.text_encoder, text_encoder), (Component.vae, vae)):
        if len(files) > 1:
            raise UsageError(
                f"{folder}: several files are a {part.value.replace('_', ' ')} ({', '.join(p.name for p in files)})",
                hint="leave one of them in that folder",
            )
    places = [root / sub for root in _roots(folder) for sub in (".", "tokenizer", "text_encoders", "clip")]
    tokenizer = next((p / "tokenizer.json" for p in places if (p / "tokenizer.json").is_file()), None)
    return Parts(
        transformer=transformer[:1],
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=(tokenizer.resolve(strict=True),) if tokenizer is not None else (),
        transformer_config=_sidecar(transformer[0]) if transformer else None,
        text_encoder_config=_sidecar(text_encoder[0]) if text_encoder else None,
        vae_config=_sidecar(vae[0]) if vae else None,
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


def _existing(path: Path) -> Paths:
    return (path,) if path.is_file() else ()


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _sidecar(path: Path) -> Path | None:
    """`lens_bf16.json` beside `lens_bf16.safetensors`: a config.json for one file."""
    return _if_file(path.with_suffix(".json"))
