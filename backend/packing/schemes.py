"""Every packing of the transformer's linears, one row each: what plans, commands, readers and writers know of it.

What computes a packing is one module of this folder with the functions of `backend.packing.storage.Code` that its row
promises; `Scheme.load` imports it where it is needed. A new packing is that module and a row here, with a member of
`Quant` or `QuantTarget` where a command shall offer it.

Light ring: standard library only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from backend.errors import joined
from backend.packing.ggml_layout import GGML_BLOCKS, GGML_NAMES
from backend.types import Quant, QuantTarget

if TYPE_CHECKING:
    from backend.packing.storage import Code

COMFY = ("weight_scale", "scale_weight", "input_scale", "scale_input", "comfy_quant")  # ComfyUI's, beside a weight


class Container(StrEnum):
    """What `lens models quantize` writes a packing as."""

    gguf = "gguf"
    comfyui = "comfyui"  # one safetensors file, as ComfyUI reads it
    diffusers = "diffusers"  # safetensors and a config.json in a folder, as bitsandbytes and diffusers write it


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One packing."""

    name: str  # as `lens gen -v`, records and messages say it
    what: str  # one phrase
    code: str  # the module of this folder that computes it
    bits: float  # of a weight in memory, its block's scales included
    row_scale: bool = False  # a float32 an output comes on top
    # In memory.
    quant: Quant | None = None  # the --quant that packs plain weights so while they are read: an approximation; None:
    # only files hold it
    rounds_activations: bool = False  # what goes into the linear is rounded too; so it has no gradient
    takes: str | None = None  # packing of a file whose codes serve this one as they are
    library: str | None = None  # Python package that decodes it; None: torch alone
    not_on: tuple[str, ...] = ()  # torch's types of devices that cannot hold it
    # In files.
    in_files: bool = True  # a file's weights are read in this packing, and can stay in it
    dtypes: tuple[str, ...] = ()  # of the weight's tensor, by safetensors' names; (): a GGUF's, which names its type
    scales: tuple[str, ...] = ()  # dtypes of the scale that tells it from another packing of the same `dtypes`
    values: int = 1  # weights in one element of that tensor; several: it is stored flat
    beside: tuple[str, ...] = ()  # ends of the names of tensors that only describe the weight
    target: QuantTarget | None = None  # of `lens models quantize`; None: not written
    container: Container | None = None  # what it is written as
    spelt: str = ""  # how the names of files in circulation write it

    def load(self) -> Code:
        """What computes it. Imports torch."""
        return cast("Code", importlib.import_module(f"backend.packing.{self.code}"))

    def total_bits(self, values: int, rows: int) -> float:
        """Bits of a weight in memory, all scales included, for `values` weights with `rows` outputs together."""
        return self.bits + (32 * rows / values if self.row_scale and values else 0)


def _ggml(name: str, *, quant: Quant | None = None, target: QuantTarget | None = None, spelt: str = "") -> Scheme:
    """A type of ggml: a GGUF names it tensor by tensor."""
    elements, size = GGML_BLOCKS[next(number for number, known in GGML_NAMES.items() if known == name)]
    return Scheme(
        name=name, what=f"ggml's {name.upper()}", code="gguf", bits=8 * size / elements, quant=quant, target=target,
        container=None if target is None else Container.gguf, spelt=spelt,
    )  # fmt: skip


SCHEMES = (
    Scheme(
        name="fp8", what="E4M3 weights and activations, scaled by row; fast where the GPU has fp8 units", code="fp8",
        bits=8, row_scale=True, quant=Quant.fp8, rounds_activations=True, takes="fp8 weights", not_on=("mps",),
        in_files=False,
    ),
    Scheme(
        name="fp8 weights", what="E4M3 weights with one scale, or one an output", code="fp8",
        bits=8, dtypes=("F8_E4M3", "F8_E5M2"), scales=("F32",), beside=COMFY,
        target=QuantTarget.fp8, container=Container.comfyui, spelt="fp8_scaled",
    ),
    Scheme(
        name="int8", what="weights only, scaled by row", code="int8",
        bits=8, row_scale=True, quant=Quant.int8, dtypes=("I8",), beside=("SCB", "weight_format"),
        target=QuantTarget.int8, container=Container.diffusers,
    ),
    Scheme(
        name="nf4", what="weights only, 4.5 bits a value", code="nf4",
        bits=4.5, quant=Quant.nf4, library="bitsandbytes", dtypes=("U8",), values=2,
        beside=tuple(
            f"weight.{end}"
            for end in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
        ),
        target=QuantTarget.nf4, container=Container.diffusers,
    ),
    Scheme(
        name="mxfp8", what="E4M3 weights with a power of two for every 32", code="mxfp8",
        bits=8.25, dtypes=("F8_E4M3",), beside=COMFY,
        target=QuantTarget.mxfp8, container=Container.comfyui, spelt="mxfp8",
    ),
    _ggml("q8_0", quant=Quant.gguf, target=QuantTarget.q8_0, spelt="q8_0"),
    _ggml("q6_k", target=QuantTarget.q6_k, spelt="q6_K"),
    _ggml("q5_k", target=QuantTarget.q5_k, spelt="q5_K"),
    _ggml("q4_k", target=QuantTarget.q4_k, spelt="q4_K"),
    _ggml("q5_1"),
    _ggml("q5_0"),
    _ggml("q4_1"),
    _ggml("q4_0"),
)  # fmt: skip


def by_name(name: str | None) -> Scheme | None:
    """The row called `name`; None: none is (a packing that is only ever decoded whole, or no packing at all)."""
    return next((scheme for scheme in SCHEMES if scheme.name == name), None)


def by_quant(quant: Quant) -> Scheme | None:
    """What `--quant` packs plain weights into; None for auto and none, which pack nothing."""
    return next((scheme for scheme in SCHEMES if scheme.quant is quant), None)


def by_target(target: QuantTarget) -> Scheme:
    """What `lens models quantize --to` writes."""
    return next(scheme for scheme in SCHEMES if scheme.target is target)


def by_tensor(dtype: str, scale: str | None) -> Scheme | None:
    """The packing of a weight in a safetensors file, by safetensors' names of its dtype and of its scale's."""
    rows = (scheme for scheme in SCHEMES if dtype in scheme.dtypes)
    return next((scheme for scheme in rows if not scheme.scales or scale in scheme.scales), None)


def quant_help() -> str:
    """The part of the help of --quant that says which of its values approximate."""
    rows = [scheme for scheme in SCHEMES if scheme.quant is not None]
    return joined(
        (
            f"{row.quant}" if row.quant == row.name else f"{row.quant} (as {row.name.upper()}, for a file that is none)"
            for row in rows
        ),
        "and",
    )


def quants_on(device: str) -> tuple[Quant, ...]:
    """Every --quant that packs, and that torch can hold on this type of device."""
    return tuple(scheme.quant for scheme in SCHEMES if scheme.quant is not None and device not in scheme.not_on)


def trainable() -> tuple[Quant, ...]:
    """Every --quant that packs, and beneath which an adapter can be trained."""
    return tuple(row.quant for row in SCHEMES if row.quant is not None and not row.rounds_activations)


def targets_in(*containers: Container) -> tuple[QuantTarget, ...]:
    """What `lens models quantize` writes into such a container, the most bits first within GGUF."""
    return tuple(scheme.target for scheme in SCHEMES if scheme.target is not None and scheme.container in containers)
