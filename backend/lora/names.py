"""LoRAs as a person names them: `NAME=0.8` or a path -> exact files; and what is said about them before anything loads.

Light ring: standard library only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backend.checkpoints.headers import PICKLES, a_pickle
from backend.errors import UsageError
from backend.paths import expanded, loras_dir
from backend.types import LoraMode, LoraUse

if TYPE_CHECKING:
    from backend.checkpoints.packing_plan import QuantPlan
    from backend.params import DiTParams

SUFFIX = ".safetensors"
SCALE_LIMIT = 100.0  # far above any that leaves a picture
_IN_FOLDER = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # as diffusers and PEFT save


def parse_lora(text: str, mode: LoraMode = LoraMode.auto) -> LoraUse:
    """`PATH`, `NAME`, or either with `=SCALE` behind it; a path may hold "=", so the last one counts, before a number.

    Raises UsageError for a file that is not there or a scale that cannot be meant, CheckpointError for a pickle.
    """
    where, sign, number = text.rpartition("=")
    scale = 1.0
    try:
        scale = float(number) if sign else scale
    except ValueError:
        sign = ""
    if not math.isfinite(scale) or abs(scale) > SCALE_LIMIT:
        limit = f"{SCALE_LIMIT:g}"
        raise UsageError(f"the LoRA scale {scale:g} is outside -{limit}..{limit}", hint="1 is as trained")
    where = where if sign else text
    path = find_lora(where)
    return LoraUse(path=str(path), sha256=lora_sha256(path), scale=scale, mode=mode)


def find_lora(named: str) -> Path:
    """A file, a folder that holds one, or a name in the folder of LoRAs -> the absolute path of the file.

    Raises UsageError or, for a pickle, CheckpointError.
    """
    for place in (expanded(named), loras_dir() / named, loras_dir() / f"{named}{SUFFIX}"):
        if place.is_file():
            if place.suffix in PICKLES:
                raise a_pickle(place)
            return place.absolute()
        if named and place.is_dir() and any(place.glob(f"*{SUFFIX}")):
            return _in_folder(place).absolute()
    known = sorted(known_loras())
    hint = f"one of {', '.join(known)}, or a path" if known else f"a path, or the name of a file in {loras_dir()}"
    raise UsageError(f"no LoRA is called {named!r}", hint=hint)


def known_loras() -> dict[str, Path]:
    """Name -> file of every LoRA in the folder of LoRAs; a name is a path below it without its suffix."""
    folder = loras_dir()
    files = folder.rglob(f"*{SUFFIX}") if folder.is_dir() else ()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files if path.is_file()}


def _in_folder(folder: Path) -> Path:
    usual = [folder / name for name in _IN_FOLDER if (folder / name).is_file()]
    found = usual or sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    if len(found) != 1:
        raise UsageError(
            f"{folder}: holds {len(found)} files that may be a LoRA: {', '.join(path.name for path in found)}",
            hint="name the file",
        )
    return found[0]


def lora_sha256(path: Path) -> str:
    """SHA-256 of a LoRA's file; where PEFT's adapter_config.json beside it decides its scale, of both."""
    from backend.checkpoints.identity import files_sha256
    from backend.lora.scales import sidecar

    beside = sidecar(path)
    return files_sha256([path] if beside is None else [path, beside])


def find_again(use: LoraUse) -> LoraUse:
    """A LoRA that a picture names by base name and hash -> where it lies here, by its hash.

    Looked for in the folder of LoRAs and wherever a file of that name was used before; an absolute path is one that
    the user trusts. Raises UsageError naming the hash.
    """
    for path in _places(use.path):
        if path.is_file() and lora_sha256(path) == use.sha256:
            return replace(use, path=str(path.absolute()))
    raise UsageError(
        f"the picture was made with the LoRA {Path(use.path).name!r} (SHA-256 {use.sha256}), which was not found",
        hint=f"say where it lies: --lora PATH={use.scale:g}; or put it into {loras_dir()}",
    )


def _places(name: str) -> Iterator[Path]:
    from backend.cache.notes import paths_with_notes

    if Path(name).is_absolute():
        yield Path(name)
        name = Path(name).name
    known = list(known_loras().values())
    yield from (path for path in known if path.name == name)
    yield from (path for path in paths_with_notes("sha256") if path.name == name)
    yield from (path for path in known if path.name != name)  # renamed since


# Before anything loads -----------------------------------------------------------------------------------------------


def decide_modes(
    uses: Sequence[LoraUse], params: DiTParams, *, quantised: bool, warn: Callable[[str], None]
) -> tuple[LoraUse, ...]:
    """The LoRAs with the mode each will run in, fused or live; reads headers only.

    `quantised`: whether the blocks' linears will be. Warns of keys that are left aside and of updates that quantising
    rounds. Raises CheckpointError for a file that does not fit, UsageError for a wish that cannot be met.
    """
    return tuple(_decide_mode(use, params, quantised, warn) for use in uses)


def block_bits(uses: Sequence[LoraUse], params: DiTParams, quant: QuantPlan, *, itemsize: int) -> float | None:
    """Bits of a weight of the blocks' linears in memory, on average, with the LoRAs; None: those of the dtype.

    A live LoRA lies beside its linear; one that is fused makes a linear plain that its file's packing would keep.
    `itemsize`: bytes of a number of the dtype. Raises as `decide_modes` does.
    """
    from backend.checkpoints.headers import read_header
    from backend.lora.keys import read_lora
    from backend.model.tensors import transformer_shapes

    held = quant.bits if quant.packed else None
    shapes = transformer_shapes(params)
    beside, plain = 0, set[str]()
    for use in decide_modes(uses, params, quantised=quant.packed, warn=lambda _: None):
        if not use.scale:
            continue
        tensors = read_header(Path(use.path)).tensors
        for update in read_lora(Path(use.path), shapes).updates:
            if not update.quantisable:
                continue
            if use.mode is LoraMode.live and update.can_be_live:
                rank = tensors[update.stored["down"]].shape[0]
                beside += rank * sum(shapes[update.target])
            elif quant.keep:
                plain.add(update.target)
    if not (beside or plain) or not quant.values:
        return held
    bits = 8.0 * itemsize if held is None else held
    decoded = sum(math.prod(shapes[name]) for name in plain)
    return bits + ((8 * itemsize - bits) * decoded + 8 * itemsize * beside) / quant.values


def _decide_mode(use: LoraUse, params: DiTParams, quantised: bool, warn: Callable[[str], None]) -> LoraUse:
    from backend.lora.keys import listed, read_lora
    from backend.model.tensors import transformer_shapes

    found = read_lora(Path(use.path), transformer_shapes(params))
    name = os.path.basename(use.path)
    if found.unmatched:
        warn(f"{name}: left aside, as this model has no such part: {listed(found.unmatched)}")
    if found.text_encoder:
        warn(f"{name}: left aside, as lens applies LoRAs to the transformer only: {listed(found.text_encoder)}")
    heavy = [update for update in found.updates if update.quantisable and not update.can_be_live]
    kind = f"DoRA ({heavy[0].kind})" if heavy and heavy[0].magnitude else str(heavy[0].kind) if heavy else ""
    live = any(update.can_be_live for update in found.updates)
    if use.mode is LoraMode.live and (heavy or not live):
        why = f"its {kind} updates exist as whole matrices only" if heavy else "it changes no linear of a block"
        raise UsageError(f"{name} cannot run live: {why}", hint="leave --lora-mode out, or use --lora-mode fused")
    mode = use.mode
    if mode is LoraMode.auto:
        mode = LoraMode.live if quantised and live else LoraMode.fused
    if quantised and mode is LoraMode.fused and (heavy or live):
        what = f"its {kind} updates are" if heavy else "it is"
        warn(f"{name}: {what} fused before the weights are quantised, which rounds part of it away")
    elif quantised and heavy:
        warn(f"{name}: its {kind} updates are fused before the weights are quantised, which rounds part of them away")
    return replace(use, mode=mode)
