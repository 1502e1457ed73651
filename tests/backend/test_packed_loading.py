"""Networks with packed linears: kept packings change nothing, quantised ones are as their formats say; the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backend.checkpoints import packing_plan
from backend.checkpoints.formats import TensorEntry, open_transformer
from backend.checkpoints.layouts import Parts
from backend.checkpoints.packing_plan import BLOCK_LINEAR, MODULATION, plan_quant, stored_packing
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import FileError, NumericsError, UsageError
from backend.loading import load_transformer
from backend.memory.linears import block_linears, check_device, device_note, pack_weight, pack_while_loading
from backend.model.transformer import LensTransformer2DModel
from backend.packing import schemes
from backend.packing.fp8 import Fp8Linear, ScaledFp8Linear
from backend.packing.gguf import GgufLinear
from backend.packing.linears import PackedLinear
from backend.packing.nf4 import Nf4Linear
from backend.picture import metadata
from backend.presets import Component
from backend.types import Quant
from tests.backend import tiny_weights as tiny

GENERATOR = torch.Generator().manual_seed(0)
NOISE, TEXT = torch.randn(1, 12, 128, generator=GENERATOR), torch.randn(1, 5, 2, 64, generator=GENERATOR)
LINEARS_A_BLOCK = 10
ROUNDING = [Quant.fp8, Quant.int8, Quant.nf4, Quant.gguf]


def velocity(network: LensTransformer2DModel, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.inference_mode():
        return network(NOISE.to(dtype), torch.tensor([0.6]), TEXT, (3, 4)).float()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Float32 safetensors."""
    return resolve_model(str(tiny.write_diffusers(tmp_path_factory.mktemp("plain") / "tiny")))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """GGUF with every matrix in Q4_0, as the community's files have them."""
    return resolve_model(str(tiny.write_embedded(tmp_path_factory.mktemp("packed") / "tiny", quant="Q4_0")))


def quantise(network: nn.Module, quant: Quant) -> None:
    """Pack every linear of the blocks of a network with weights, in place."""
    for name, linear in list(block_linears(network)):
        packed = pack_weight(linear.weight.detach(), quant)
        packed.bias = None if linear.bias is None else linear.bias.detach()
        network.set_submodule(name, packed.eval())


def packed_names(network: nn.Module) -> list[str]:
    return [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("quant", ROUNDING)
def test_quantised_while_loading_equals_quantised_afterwards(plain: ModelFiles, quant: Quant) -> None:
    """The same bytes either way, only in the blocks' attention and MLP; the rest untouched."""
    loaded = load_transformer(plain, torch.float32, "cpu", quant=plan_quant(plain, quant))
    network = load_transformer(plain, torch.float32, "cpu")
    exact = velocity(network)
    quantise(network, quant)
    names = packed_names(loaded)
    assert names == packed_names(network)
    assert len(names) == LINEARS_A_BLOCK * tiny.DIT.num_layers
    assert all(BLOCK_LINEAR.fullmatch(name) for name in names)
    assert torch.equal(velocity(loaded), velocity(network))
    error = ((velocity(loaded) - exact).norm() / exact.norm()).item()
    assert 1e-5 < error < {Quant.nf4: 0.2, Quant.fp8: 0.1}.get(quant, 0.02)


def test_codes_do_not_depend_on_the_dtype(plain: ModelFiles) -> None:
    """bfloat16 is not rounded to before quantising: the codes come from what the file holds."""
    networks = [
        load_transformer(plain, dtype, "cpu", quant=plan_quant(plain, Quant.nf4))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for name in packed_names(networks[0]):
        first, second = (network.get_submodule(name.removesuffix(".weight")) for network in networks)
        assert isinstance(first, Nf4Linear) and isinstance(second, Nf4Linear)
        assert torch.equal(first.packed, second.packed) and torch.equal(first.absmax, second.absmax)
        assert second.bias is None or second.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_packed_equals_decoded_at_load(packed: ModelFiles, dtype: torch.dtype) -> None:
    decoded = load_transformer(packed, dtype, "cpu", quant=plan_quant(packed, Quant.none))
    kept = load_transformer(packed, dtype, "cpu", quant=plan_quant(packed, Quant.gguf))
    assert not packed_names(decoded)
    assert len(packed_names(kept)) == LINEARS_A_BLOCK * tiny.DIT.num_layers
    assert torch.equal(velocity(decoded, dtype), velocity(kept, dtype))


@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_only_e4m3_codes_are_taken_as_they_are(plain: ModelFiles, codes: torch.dtype) -> None:
    """--quant fp8 multiplies E4M3; a file of E5M2 is decoded and rounded to it."""
    table, name = open_transformer(plain.transformer), "transformer_blocks.0.img_mlp.w1"
    weight = table.tensor(f"{name}.weight", torch.float32)
    scale = weight.abs().amax() / 448
    stored_codes = (weight / scale).to(codes)

    def make() -> ScaledFp8Linear:
        return ScaledFp8Linear(stored_codes, scale)

    entry = TensorEntry(tuple(weight.shape), lambda dtype: make().decoded(dtype), packed=make)
    network = load_transformer(plain, torch.float32, "cpu")
    pack_while_loading(
        network, replace(table, entries={**table.entries, f"{name}.weight": entry}), plan_quant(plain, Quant.fp8),
        torch.float32, "cpu",
    )  # fmt: skip
    linear = network.get_submodule(name)
    assert isinstance(linear, Fp8Linear) and linear.packed.dtype is torch.float8_e4m3fn
    taken = torch.equal(linear.packed.view(torch.uint8), stored_codes.view(torch.uint8))
    assert taken == (codes is torch.float8_e4m3fn)
    error = (linear.decoded(torch.float32) - make().decoded(torch.float32)).norm() / weight.norm()
    assert float(error) < 0.04


def test_a_kept_linear_is_a_view_of_the_file(packed: ModelFiles) -> None:
    """No copy on a CPU: two linears over the same entry lie at the same address, so both are the mapped file."""
    make = open_transformer(packed.transformer).entries["transformer_blocks.1.img_mlp.w2.weight"].packed
    assert make is not None
    first, second = make(), make()
    assert isinstance(first, GgufLinear) and first.scheme == "q4_0"
    assert first.packed.data_ptr() == second.packed.data_ptr()


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = torch.ones(4, 64)
    weight[1, 2] = torch.inf
    for quant in ROUNDING:
        with pytest.raises(NumericsError, match="not finite"):
            pack_weight(weight, quant)


def test_a_width_without_q8_0_is_named() -> None:
    with pytest.raises(UsageError, match="48 inputs"):
        pack_weight(torch.ones(4, 48), Quant.gguf)


def test_none_leaves_a_network_alone(plain: ModelFiles) -> None:
    network = load_transformer(plain, torch.float32, "cpu", quant=plan_quant(plain, Quant.none))
    assert len(list(block_linears(network))) == LINEARS_A_BLOCK * tiny.DIT.num_layers
    with pytest.raises(UsageError, match="packs nothing"):
        pack_weight(torch.ones(4, 64), Quant.none)


# the plan ------------------------------------------------------------------------------------------------------------


def test_what_is_read_from_headers(plain: ModelFiles, packed: ModelFiles) -> None:
    network = load_transformer(plain, torch.float32, "cpu")
    values = sum(linear.weight.numel() for _, linear in block_linears(network))
    found = stored_packing(plain.transformer)
    assert (found.scheme, found.values, found.nbytes, found.readable) == (None, values, 4 * values, False)
    found = stored_packing(packed.transformer)
    assert (found.scheme, found.values, found.nbytes) == ("q4_0", values, values * 18 // 32)
    assert found.modulation == "q4_0" and found.modulation_bits == 4.5
    modulation = [name for name, _ in network.named_parameters() if MODULATION.fullmatch(name)]
    assert len(modulation) == 2 * tiny.DIT.num_layers


def test_auto_keeps_a_packing_that_saves_enough(packed: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plan_quant(packed, Quant.auto).packed  # tiny: decoding it once is better
    monkeypatch.setattr(packing_plan, "FROM_BYTES", 1000)
    plan = plan_quant(packed, Quant.auto)
    assert plan.keep and plan.scheme == "q4_0" and plan.bits == 4.5 and plan.approximation is None
    plenty, little = 10**9, 10**5
    assert not plan_quant(packed, Quant.auto, on_cpu=True, free_memory=plenty).packed
    assert plan_quant(packed, Quant.auto, on_cpu=True, free_memory=little).keep
    assert not plan_quant(packed, Quant.none).packed


def test_auto_never_rounds(plain: ModelFiles, packed: ModelFiles) -> None:
    for files in (plain, packed):
        for on_cpu in (True, False):
            for itemsize in (2, 4):
                plan = plan_quant(files, Quant.auto, itemsize=itemsize, on_cpu=on_cpu, free_memory=1)
                assert plan.approximation is None and plan.quant is Quant.none


@pytest.mark.parametrize("quant", ROUNDING)
def test_planned_bytes_are_those_that_come(plain: ModelFiles, quant: Quant) -> None:
    plan = plan_quant(plain, quant)
    network = load_transformer(plain, torch.float32, "cpu", quant=plan)
    linears = [module for module in network.modules() if isinstance(module, PackedLinear)]
    held = sum(linear.nbytes - (0 if linear.bias is None else linear.bias.nbytes) for linear in linears)
    assert plan.linear_bytes(4) == held
    assert plan.approximation is quant and not plan.notes


def test_notes_name_what_has_a_catch(packed: ModelFiles) -> None:
    assert any("modulation is quantised too (q4_0, 4.5 bits)" in note for note in plan_quant(packed, Quant.auto).notes)
    assert any("rounds a second time" in note for note in plan_quant(packed, Quant.nf4).notes)
    cpu = torch.device("cpu")
    assert "no fp8 units" in (device_note(plan_quant(packed, Quant.fp8), cpu) or "")
    assert "longer" in (device_note(plan_quant(packed, Quant.nf4), cpu) or "")
    assert device_note(plan_quant(packed, Quant.none), cpu) is None


def test_a_type_that_cannot_stay_packed_is_said(packed: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "SCHEMES", tuple(row for row in schemes.SCHEMES if row.name != "q4_0"))
    plan = plan_quant(packed, Quant.gguf)
    assert not plan.packed and any("decoded while it is loaded" in note for note in plan.notes)


def test_fp8_on_a_device_without_the_type() -> None:
    with pytest.raises(UsageError, match="not available on mps"):
        check_device(Quant.fp8, torch.device("mps"))
    check_device(Quant.nf4, torch.device("mps"))


# records -------------------------------------------------------------------------------------------------------------


def record(quant: object) -> dict[str, object]:
    return {
        "v": 1, "prompt": "a", "negative_prompt": "", "model": {"name": "nano"}, "seed": 1, "width": 64, "height": 64,
        "steps": 1, "guidance": 1.0, "dtype": "float32", "device": "auto", "quant": quant,
    }  # fmt: skip


def test_a_record_brings_back_the_rounding() -> None:
    assert metadata.wish_from(record("nf4"), "x").quant is Quant.nf4
    assert metadata.wish_from(record(None), "x").quant is Quant.auto
    older = {key: value for key, value in record(None).items() if key != "quant"}
    assert metadata.wish_from(older, "x").quant is Quant.auto
    for wrong in ("auto", "q3", 4, ["nf4"]):
        with pytest.raises(FileError, match="damaged: quant"):
            metadata.wish_from(record(wrong), "x")


def test_files_without_linears_hold_nothing(plain: ModelFiles) -> None:
    assert stored_packing(()).values == 0
    plan = plan_quant(replace(plain, parts=Parts({Component.transformer: plain.parts.held[Component.vae]})), Quant.auto)
    assert not plan.packed and plan.linear_bytes(4) == 0
