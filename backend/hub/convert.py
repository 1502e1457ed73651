"""`lens models quantize`: a transformer on this disk -> a smaller file of it that lens and other programs load.

Planned from headers alone (names, bytes, disk, what is in the way), then written tensor by tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.checkpoints import layouts, parameters
from backend.checkpoints.config_files import TRANSFORMER_METADATA_KEY
from backend.checkpoints.headers import read_summary
from backend.checkpoints.packing_plan import BLOCK_LINEAR, MODULATION, stored_packing
from backend.checkpoints.resolve import resolve_model
from backend.disk import claimed, free_bytes, make_folder, write_atomic
from backend.errors import FileError, LensError, ModelMissingError, UsageError, human_bytes
from backend.model.tensors import transformer_shapes
from backend.packing.schemes import Container, Scheme, by_target
from backend.params import DiTParams
from backend.paths import expanded
from backend.presets import Component
from backend.types import QuantTarget

if TYPE_CHECKING:
    import torch

    from backend.checkpoints.formats import TensorTable
    from backend.packing.storage import TensorGroup

MARGIN = 64 * 2**20  # bytes of disk that stay free
_HEADER = 2**20  # a GGUF header is smaller


@dataclass(frozen=True)
class Source:
    """The transformer to be quantised; encoder and autoencoder need not be here."""

    name: str  # for file names and titles
    paths: tuple[Path, ...]
    params: DiTParams
    variant: str | None  # registry row whose defaults apply; None: nobody said
    licence: str | None


@dataclass(frozen=True)
class Conversion:
    """What will be written where."""

    source: Source
    scheme: Scheme
    file: Path  # the weights
    config: Path | None  # config.json beside it; None: the weights' header says it all
    result: Path  # what `lens gen -m` is given: the file, or its folder
    modulation: bool  # it is quantised too
    nbytes: int  # of the weights file, about
    free: int  # bytes of its disk
    replaces: bool  # a file that is there
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """What came out. `kinds`: how many matrices are stored as what."""

    nbytes: int
    kinds: dict[str, int]


def plan_conversion(
    source: str, target: QuantTarget, output: Path, *, modulation: bool = False, force: bool = False
) -> Conversion:
    """Decide names and check everything that can be checked before the first byte.

    `output`: a file (.gguf or .safetensors, as the target needs) or a folder. `modulation`: quantise it as well.
    Raises UsageError, FileError (something is there and `force` is not; too little disk), or what finding SRC raises.
    """
    found = find_source(source)
    scheme = by_target(target)
    file, config = _places(found, scheme, expanded(output))
    _check_way(found, file, expanded(output), force)
    packs = packed_names(found.params, modulation)
    nbytes = _bytes(found.params, scheme, packs)
    free = free_bytes(file.parent)
    if nbytes + MARGIN > free:
        raise FileError(
            f"{file.parent}: {human_bytes(free)} free, {human_bytes(nbytes + MARGIN)} needed",
            hint="free some space, or name another folder with -o",
        )
    notes: list[str] = []
    held = stored_packing(found.paths).scheme
    if held is not None:
        notes.append(f"{found.name} is stored as {held} already: {target} rounds it a second time")
    before = sum(path.stat().st_size for path in found.paths)
    if nbytes > before:
        more = "" if modulation else "; the modulation, a third of the weights, stays bfloat16"
        notes.append(f"it will be larger: about {human_bytes(nbytes)} from {human_bytes(before)}{more}")
    if modulation:
        notes.append("the modulation is quantised as well, which is reported to break pictures at 4 bits")
    result = file if _names_a_file(expanded(output)) else file.parent
    return Conversion(found, scheme, file, config, result, modulation, nbytes, free, file.exists(), tuple(notes))


def convert(plan: Conversion, on_tensor: Callable[[int], None] = lambda nbytes: None) -> Written:
    """Write the file, and its config. `on_tensor` is told the bytes of each tensor written; it may raise to stop.

    Interrupted or failing, nothing stays but what was there before. Of two at once that write the same file one is
    refused. Raises CheckpointError, FileError, LensError.
    """
    with claimed(plan.file, doing="writes"):
        if plan.file.exists() and not plan.replaces:
            raise FileError(f"{plan.file} is there by now", hint="--force replaces it")
        return _convert(plan, on_tensor)


def _convert(plan: Conversion, on_tensor: Callable[[int], None]) -> Written:
    from backend.checkpoints.compare import compare
    from backend.checkpoints.formats import open_transformer

    table = open_transformer(plan.source.paths)
    shapes = transformer_shapes(plan.source.params)
    compare(dict(shapes), {name: entry.shape for name, entry in table.entries.items()}, table.origin)
    new_folder = not plan.file.parent.exists()
    make_folder(plan.file.parent)
    try:
        kinds = _write(plan, table, on_tensor)
        if plan.config is not None:
            write_atomic(plan.config, (json.dumps(_config(plan), indent=2) + "\n").encode())
    except BaseException:
        if new_folder and not any(plan.file.parent.iterdir()):
            plan.file.parent.rmdir()
        raise
    read_summary(plan.file)  # what was written can be read
    return Written(plan.file.stat().st_size, kinds)


def missing_companions(plan: Conversion) -> str | None:
    """Why `lens gen -m RESULT` would not run yet: the encoder or autoencoder is not here, or is one of several; None:
    it would. The file is written by then, so this is a remark and no failure."""
    try:
        resolve_model(str(plan.result))
    except LensError as error:
        return str(error)
    return None


def packed_names(params: DiTParams, modulation: bool) -> frozenset[str]:
    """The weights that are quantised."""
    return frozenset(
        name
        for name in transformer_shapes(params)
        if BLOCK_LINEAR.fullmatch(name) or (modulation and MODULATION.fullmatch(name))
    )


def find_source(source: str) -> Source:
    """A model's name or path. A transformer without encoder and autoencoder will do.

    Raises ModelMissingError, CheckpointError or UsageError.
    """
    try:
        found = resolve_model(source)
    except ModelMissingError:
        path = expanded(source)
        if not path.exists():
            raise
        part = layouts.transformer_alone(path)
        params = parameters.read_transformer_params(part)
        return Source(path.stem, part.files, params, parameters.variant(path, part), None)
    variant = None if found.assumed else found.preset.name
    licence = found.preset.licences.get(Component.transformer) if variant is not None else None
    name = Path(found.name).stem if expanded(source).is_file() else found.name
    return Source(name, found.transformer, found.preset.params.dit, variant, licence)


def _write(plan: Conversion, table: TensorTable, on_tensor: Callable[[int], None]) -> dict[str, int]:
    import torch

    params, packs = plan.source.params, packed_names(plan.source.params, plan.modulation)

    def read(name: str) -> torch.Tensor:
        return table.tensor(name, torch.float32)

    if plan.scheme.container is Container.gguf:
        from backend.checkpoints.write_gguf import stream_transformer_gguf

        kinds = stream_transformer_gguf(
            plan.file,
            read,
            params,
            quant=plan.scheme.name.upper(),
            plain=lambda name: name not in packs,
            metadata=_facts(plan),
            on_tensor=on_tensor,
        )
        return dict(kinds)
    from backend.checkpoints.write_safetensors import stream_safetensors

    stream_safetensors(plan.file, _items(params, plan.scheme, packs, read), _facts(plan), on_tensor)
    matrices = sum(len(shape) == 2 for shape in transformer_shapes(params).values())
    return {str(plan.scheme.target): len(packs), "BF16": matrices - len(packs)}


def _facts(plan: Conversion) -> dict[str, str]:
    """What the header says of itself."""
    facts = {} if plan.source.variant is None else {parameters.VARIANT_KEY: plan.source.variant}
    if plan.scheme.container is Container.gguf:
        facts["general.name"] = plan.source.name
        return facts if plan.source.licence is None else {**facts, "general.license": plan.source.licence}
    return {"format": "pt", **facts, TRANSFORMER_METADATA_KEY: json.dumps(_config(plan), sort_keys=True)}


def _config(plan: Conversion) -> dict[str, object]:
    from backend.checkpoints.write_packed import diffusers_config

    return diffusers_config(plan.source.params, plan.scheme, modulation=plan.modulation)


def _places(source: Source, scheme: Scheme, output: Path) -> tuple[Path, Path | None]:
    """(weights file, config.json or None). Raises UsageError for a file name of the other format."""
    suffix = ".gguf" if scheme.container is Container.gguf else ".safetensors"
    if _names_a_file(output):
        if output.suffix != suffix:
            raise UsageError(
                f"{scheme.target} is written as {suffix}, not as {output.name}", hint=f"-o NAME{suffix}, or a folder"
            )
        return output, None
    stem = source.name.replace("-", "_")
    if scheme.container is Container.gguf:
        return output / f"{stem}-{scheme.spelt}.gguf", None
    if scheme.container is Container.diffusers:
        return output / "diffusion_pytorch_model.safetensors", output / "config.json"
    return output / f"{stem}_{scheme.spelt}.safetensors", None


def _names_a_file(output: Path) -> bool:
    return output.suffix in (".gguf", ".safetensors") and not output.is_dir()


def _check_way(source: Source, file: Path, output: Path, force: bool) -> None:
    """Nothing is overwritten unasked, the source never."""
    folder = file.parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", hint="give another name with -o")
    if file.exists():
        if any(file.samefile(path) for path in source.paths):
            raise UsageError(f"{file} is the model itself", hint="give another name with -o")
        if not force:
            raise FileError(f"{file} is there already", hint="--force replaces it")
    if output == folder and folder.is_dir():
        others = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".gguf", ".safetensors") and p != file]
        if others:
            raise UsageError(
                f"{folder} holds other weights ({', '.join(others[:3])}), so as a model it would be ambiguous",
                hint="name a new folder, or a file: -o " + str(folder / file.name),
            )


def _bytes(params: DiTParams, scheme: Scheme, packs: frozenset[str]) -> int:
    if scheme.container is Container.gguf:
        from backend.checkpoints.write_gguf import transformer_gguf_bytes

        return transformer_gguf_bytes(params, scheme.name.upper(), lambda name: name not in packs) + _HEADER
    from backend.checkpoints.write_safetensors import file_bytes

    def read(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} is read while planning")

    return file_bytes(_items(params, scheme, packs, read), {}) + _HEADER


def _items(
    params: DiTParams, scheme: Scheme, packs: frozenset[str], read: Callable[[str], torch.Tensor]
) -> list[TensorGroup]:
    from backend.checkpoints.write_packed import items

    return items(transformer_shapes(params), read, scheme, packs.__contains__)
