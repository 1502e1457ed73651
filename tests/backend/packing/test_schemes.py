"""The table of packings: every row keeps its promises, and every choice a person has is a row.

The bytes, the rounding and the formats themselves are compared elsewhere (`test_linears`, `test_convert`); here it is
what those tests cannot see: a row that no code stands behind, or a value of an option without a row.
"""

from __future__ import annotations

import pytest
import torch

from backend.packing import ggml, schemes
from backend.packing.ggml_layout import GGML_NAMES
from backend.packing.linears import PackedLinear
from backend.packing.schemes import SCHEMES, Container, Scheme
from backend.types import Quant, QuantTarget


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda row: row.name)
def test_a_row_has_the_code_it_promises(scheme: Scheme) -> None:
    code = scheme.load()
    if scheme.in_files:
        assert callable(code.find)
    if scheme.takes is not None:
        assert callable(code.take) and schemes.by_name(scheme.takes) is not None
    if scheme.container in (Container.comfyui, Container.diffusers):
        assert callable(code.item)
    if scheme.container is Container.diffusers:
        assert code.DIFFUSERS["load_in_4bit"] != code.DIFFUSERS["load_in_8bit"]
    assert (scheme.target is None) == (scheme.container is None)
    assert bool(scheme.spelt) == (scheme.container in (Container.gguf, Container.comfyui))


@pytest.mark.parametrize("quant", [quant for quant in Quant if quant not in (Quant.auto, Quant.none)])
def test_every_quant_packs_as_its_row_says(quant: Quant) -> None:
    scheme = schemes.by_quant(quant)
    assert scheme is not None
    outputs, inputs = 8, 256
    linear = scheme.load().pack(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)))
    assert isinstance(linear, PackedLinear) and linear.scheme == scheme.name
    assert 8 * linear.nbytes == scheme.total_bits(outputs * inputs, outputs) * outputs * inputs


def test_the_rows_and_the_options_are_the_same_list() -> None:
    packing = [row.quant for row in SCHEMES if row.quant is not None]
    assert sorted([*packing, Quant.auto, Quant.none]) == sorted(Quant)
    assert sorted(row.target for row in SCHEMES if row.target is not None) == sorted(QuantTarget)
    assert len({row.name for row in SCHEMES}) == len(SCHEMES)
    assert schemes.by_quant(Quant.auto) is schemes.by_quant(Quant.none) is None


def test_the_ggml_rows_are_what_torch_decodes() -> None:
    decoded = {GGML_NAMES[kind] for kind in GGML_NAMES if ggml.can_dequantise(kind)}
    assert decoded == {row.name for row in SCHEMES if row.code == "gguf"}


def test_what_headers_tell() -> None:
    def name(dtype: str, scale: str | None) -> str | None:
        row = schemes.by_tensor(dtype, scale)
        return None if row is None else row.name

    assert name("F8_E4M3", "F32") == name("F8_E5M2", "F32") == "fp8 weights"
    assert name("F8_E4M3", "F8_E8M0") == name("F8_E4M3", "U8") == "mxfp8"
    assert (name("I8", None), name("U8", None), name("BF16", None)) == ("int8", "nf4", None)


def test_what_is_said_for_people() -> None:
    assert schemes.quant_help() == "fp8, int8, nf4 and gguf (as Q8_0, for a file that is none)"
    assert schemes.quants_on("mps") == (Quant.int8, Quant.nf4, Quant.gguf)
    assert schemes.targets_in(Container.gguf) == tuple(map(QuantTarget, ("q8_0", "q6_k", "q5_k", "q4_k")))
    assert schemes.trainable() == (Quant.int8, Quant.nf4, Quant.gguf)
