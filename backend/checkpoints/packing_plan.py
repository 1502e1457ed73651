"""Which packing the transformer's linears will have in memory, decided from file headers alone, with its bytes.

Only the attention and MLP linears of the blocks are ever quantised here: two thirds of the published parameters. The
rest stays in the network's dtype; modulation above all, a third of the parameters, whose quantisation is what breaks
4-bit Lens and whose values are tables computed once anyhow.

Light ring: standard library only; weight headers are read, never weights.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.checkpoints.headers import FileFormat, TensorHeader, read_summary
from backend.packing import schemes
from backend.packing.ggml_layout import GGML_NAMES, ggml_name
from backend.types import Quant

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles

_LINEAR = r"transformer_blocks\.\d+\.(?:attn\.(?:img_qkv|txt_qkv|to_out\.0|to_add_out)|(?:img|txt)_mlp\.w[123])"
_MODULATION = r"transformer_blocks\.\d+\.(?:img|txt)_mod\.1"
BLOCK_LINEAR = re.compile(rf"{_LINEAR}\.weight")  # public names
MODULATION = re.compile(rf"{_MODULATION}\.weight")
_STORED = re.compile(rf"(?:^|\.)(?P<stem>(?P<block>{_LINEAR})|{_MODULATION})\.(?P<rest>.+)$")

FROM_BYTES = 256 * 2**20  # auto keeps a packing that saves at least so much; below, decoding once is worth more
ON_CPU = 0.5  # a CPU decodes for longer than it multiplies: auto unpacks there what fits in this part of free memory
_WEAK_BITS = 8.0  # modulation of fewer bits is warned of; 4 are reported to give grids and broken letters


@dataclass(frozen=True, kw_only=True)
class StoredPacking:
    """What the transformer's files hold."""

    scheme: str | None  # packing of most block linears (of `schemes.SCHEMES`, or another type of ggml); None: plain
    values: int  # weights of all block linears
    rows: int  # their outputs together
    nbytes: int  # their bytes in the files
    readable: bool  # the packing can stay packed in memory
    modulation: str | None  # packing of the modulation; None: plain
    modulation_bits: float  # of a weight of it


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """How the blocks' linears will lie in memory."""

    quant: Quant  # what packs them while they are read, never auto; none: nothing does
    keep: bool  # the packing of the files stays: nothing is rounded that they had not rounded
    scheme: str | None  # for people: "q4_k", "nf4", ...; None: not packed
    bits: float | None  # of a weight of the blocks' linears in memory, scales included; None: the dtype's
    values: int  # weights of the blocks' linears
    notes: tuple[str, ...]  # one line each: what was asked for and has a catch

    @property
    def packed(self) -> bool:
        return self.keep or self.quant is not Quant.none

    @property
    def bitsandbytes(self) -> bool:
        """Whether bitsandbytes' operations decode the linears."""
        row = schemes.by_name(self.scheme)
        return row is not None and row.library == "bitsandbytes"

    def linear_bytes(self, itemsize: int) -> int:
        """Bytes of the blocks' linears in memory; `itemsize`: bytes of a number of the network's dtype."""
        return round(self.values * (8 * itemsize if self.bits is None else self.bits) / 8)

    @property
    def approximation(self) -> Quant | None:
        """What a record says: the rounding beyond the files'; None: there is none."""
        return None if self.keep or self.quant is Quant.none else self.quant


def plan_quant(
    files: ModelFiles, quant: Quant, *, itemsize: int = 2, on_cpu: bool = False, free_memory: int | None = None
) -> QuantPlan:
    """Decide. `itemsize`: bytes of a number of the network's dtype. `free_memory`: bytes; None: asks the system.

    auto never rounds: it keeps a packing or undoes it, whichever suits the machine. Raises CheckpointError for a file
    that is damaged.
    """
    found = stored_packing(files.transformer)
    notes = [*_modulation_note(found)]
    if quant is Quant.auto:
        keep = _worth_keeping(found, itemsize, on_cpu, free_memory)
        return _plan(found, Quant.none, keep, notes)
    if found.scheme == quant or (quant is Quant.gguf and _is_gguf(found.scheme)):
        if found.readable:
            return _plan(found, Quant.none, True, notes)
        notes.append(f"{found.scheme} is not kept packed: it is decoded while it is loaded")
        return _plan(found, Quant.none, False, notes)
    row = schemes.by_quant(quant)
    if row is not None and found.scheme is not None and found.scheme != row.takes:
        notes.append(f"the file holds {found.scheme} already; --quant {quant} rounds a second time")
    return _plan(found, quant, False, notes)


def _plan(found: StoredPacking, quant: Quant, keep: bool, notes: list[str]) -> QuantPlan:
    if not keep:
        return plan_plain(quant, found.values, found.rows, tuple(notes))
    bits = 8 * found.nbytes / found.values
    return QuantPlan(quant=quant, keep=True, scheme=found.scheme, bits=bits, values=found.values, notes=tuple(notes))


def plan_plain(quant: Quant, values: int, rows: int, notes: tuple[str, ...] = ()) -> QuantPlan:
    """The plan for `values` weights with `rows` outputs together that no file holds packed. auto packs nothing."""
    row = schemes.by_quant(quant)
    return QuantPlan(
        quant=Quant.none if row is None else quant,
        keep=False,
        scheme=None if row is None else row.name,
        bits=None if row is None or not values else row.total_bits(values, rows),
        values=values,
        notes=notes,
    )


def _worth_keeping(found: StoredPacking, itemsize: int, on_cpu: bool, free_memory: int | None) -> bool:
    if not found.readable or found.values * itemsize - found.nbytes < FROM_BYTES:
        return False
    if not on_cpu:
        return True
    if free_memory is None:
        import psutil

        free_memory = psutil.virtual_memory().available
    return found.values * itemsize > ON_CPU * free_memory


def _is_gguf(scheme: str | None) -> bool:
    return scheme is not None and (scheme in GGML_NAMES.values() or scheme.startswith("ggml "))


def _modulation_note(found: StoredPacking) -> list[str]:
    if found.modulation is None or found.modulation_bits >= _WEAK_BITS:
        return []
    return [
        f"this file's modulation is quantised too ({found.modulation}, {found.modulation_bits:.1f} bits), which is "
        "reported to break pictures of the published model; a file that keeps it in bf16 is safer"
    ]


# What is in the files ------------------------------------------------------------------------------------------------

_GGML_FLOATS = (0, 1, 30)


@dataclass
class _Linear:
    """What belongs to one weight."""

    scheme: str | None = None
    values: int = 0
    rows: int = 0
    nbytes: int = 0


def stored_packing(paths: tuple[Path, ...]) -> StoredPacking:
    """What the headers say. A file of other names than Lens's has nothing to count. Raises CheckpointError."""
    linears: dict[str, _Linear] = {}
    blocks: set[str] = set()
    for path in paths:
        header = read_summary(path)
        for name, tensor in header.tensors.items():
            match = _STORED.search(name)
            if match is None or match["rest"] in ("bias", "comfy_quant"):
                continue
            linear = linears.setdefault(match["stem"], _Linear())
            if match["block"]:
                blocks.add(match["stem"])
            linear.nbytes += tensor.nbytes
            if match["rest"] == "weight":
                stem = name.removesuffix(".weight")
                gguf = header.format is FileFormat.gguf
                linear.scheme = _ggml(tensor.dtype) if gguf else _safetensors(tensor, stem, header.tensors)
                row = schemes.by_name(linear.scheme)
                inside = 1 if row is None else row.values
                linear.values = math.prod(tensor.shape) * inside
                linear.rows = tensor.shape[0] if inside == 1 else 0
    inside = [linear for stem, linear in linears.items() if stem in blocks]
    outside = [linear for stem, linear in linears.items() if stem not in blocks]
    scheme = _most(inside)
    return StoredPacking(
        scheme=scheme,
        values=sum(linear.values for linear in inside),
        rows=sum(linear.rows for linear in inside),
        nbytes=sum(linear.nbytes for linear in inside),
        readable=(row := schemes.by_name(scheme)) is not None and row.in_files,
        modulation=_most(outside),
        modulation_bits=8 * _bytes_a_value(outside),
    )


def _bytes_a_value(linears: list[_Linear]) -> float:
    return sum(linear.nbytes for linear in linears) / max(1, sum(linear.values for linear in linears))


def _most(linears: list[_Linear]) -> str | None:
    """The packing of most weights; None: most are plain."""
    counts: Counter[str | None] = Counter()
    for linear in linears:
        counts[linear.scheme] += linear.values
    return counts.most_common(1)[0][0] if counts else None


def _ggml(dtype: str) -> str | None:
    kind = int(dtype)
    return None if kind in _GGML_FLOATS else ggml_name(kind)


def _safetensors(tensor: TensorHeader, stem: str, tensors: Mapping[str, TensorHeader]) -> str | None:
    scale = tensors.get(f"{stem}.weight_scale") or tensors.get(f"{stem}.scale_weight")
    row = schemes.by_tensor(tensor.dtype, None if scale is None else scale.dtype)
    return None if row is None else row.name
