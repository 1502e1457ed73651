"""LoRAs of every family on a tiny transformer: fused and live, on plain and packed weights, alone and together.

Why it can be trusted: `tests.backend.lora_files` states every key literally and every change in float64 numpy; here the
network's velocity with the LoRA is compared with that of a network whose weights were changed by hand. Each comparison
first proves that the LoRA moves the velocity by a hundred times the tolerance, so that a LoRA left out, a wrong scale
or a transposed factor could not pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.checkpoints import formats
from backend.checkpoints.layouts import PartFiles, Parts
from backend.checkpoints.packing_plan import plan_quant
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.checkpoints.write_gguf import write_transformer_gguf
from backend.errors import CheckpointError
from backend.loading import load_transformer
from backend.lora.apply import LiveLora, LowRank, fingerprint, fuse, live_updates
from backend.lora.names import block_bits, decide_modes, lora_sha256
from backend.lora.write import Factors, Family, write_lora
from backend.memory.linears import pack_weight
from backend.model.transformer import LensTransformer2DModel
from backend.packing.linears import PackedLinear
from backend.presets import Component
from backend.types import LoraMode, LoraUse, Quant
from tests.backend import lora_files as made
from tests.backend import tiny_weights as tiny
from tests.backend.lora_files import LOW_RANK, OUT, QKV, WHOLE, Case, n

GRID = (3, 4)
TOLERANCE = 3e-6  # of the largest velocity: float32 against weights changed in float64
ALL = {**LOW_RANK, **WHOLE}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = tiny.write_embedded(tmp_path_factory.mktemp("model"))
    write_transformer_gguf(folder / "transformer.gguf", base_weights(), tiny.DIT, quant="F32")
    return resolve_model(str(folder))


def base_weights() -> dict[str, Tensor]:
    """Larger than `tiny_weights` has them: what changes a text token should reach the velocity."""
    return {name: tensor * (3.0 if tensor.dim() == 2 else 1.0) for name, tensor in tiny.random_transformer().items()}


def use(path: Path, scale: float = 1.0, mode: LoraMode = LoraMode.fused) -> LoraUse:
    return LoraUse(path=str(path), sha256=lora_sha256(path), scale=scale, mode=mode)


@torch.inference_mode()
def velocity(network: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(1, GRID[0] * GRID[1], tiny.DIT.in_channels, generator=g)
    text = torch.randn(1, 5, len(tiny.DIT.selected_layer_index), tiny.DIT.enc_hidden_dim, generator=g)
    return network(x, torch.tensor([0.4]), text, GRID).double()


def changed(deltas: Sequence[tuple[float, Mapping[str, made.Array]]], base: Mapping[str, Tensor]) -> nn.Module:
    """The network with its weights changed by hand."""
    state = {name: tensor.double().numpy().copy() for name, tensor in base.items()}
    for strength, change in deltas:
        for name, delta in change.items():
            assert delta.shape == state[name].shape
            state[name] += strength * delta
    network = LensTransformer2DModel(**asdict(tiny.DIT))
    network.load_state_dict({name: torch.from_numpy(array).float() for name, array in state.items()})
    return network.eval()


def weights(base: Mapping[str, Tensor]) -> dict[str, made.Array]:
    return {name: n(tensor) for name, tensor in base.items()}


def assert_same(found: Tensor, wanted: Tensor, without: Tensor) -> None:
    largest = float(wanted.abs().max())
    assert float((wanted - without).abs().max()) > 100 * TOLERANCE * largest  # or the test could not fail
    assert float((found - wanted).abs().max()) <= TOLERANCE * largest


# ------------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("strength", [1.0, -0.6])
@pytest.mark.parametrize("name", ALL)
def test_family(name: str, strength: float, model: ModelFiles, tmp_path: Path) -> None:
    base = base_weights()
    path = ALL[name].write(tmp_path / "a=b.safetensors")
    found = load_transformer(model, torch.float32, "cpu", [use(path, strength)])
    wanted = changed([(strength, ALL[name].deltas(weights(base)))], base)
    assert_same(velocity(found), velocity(wanted), velocity(changed([], base)))


def test_peft_folder_keeps_its_scale_beside_it(model: ModelFiles, tmp_path: Path) -> None:
    """`adapter_model.safetensors` says nothing; `adapter_config.json` does, for one module another alpha."""
    bare = LOW_RANK["PEFT while it trains"]
    config: dict[str, object] = {"r": 3, "lora_alpha": 6, "alpha_pattern": {r"transformer_blocks\.1\..*to_out.0": 12}}
    case = Case(bare.tensors, None, bare.deltas, config)
    path = case.write(tmp_path / "adapter_model.safetensors")
    base = base_weights()
    once = bare.deltas(weights(base))
    wanted = changed(
        [(2.0, {f"{QKV}.weight": once[f"{QKV}.weight"]}), (4.0, {f"{OUT}.weight": once[f"{OUT}.weight"]})], base
    )
    found = load_transformer(model, torch.float32, "cpu", [use(path)])
    assert_same(velocity(found), velocity(wanted), velocity(changed([], base)))
    before = lora_sha256(path)
    path.with_name("adapter_config.json").write_text('{"r": 3, "lora_alpha": 3}')
    assert lora_sha256(path) != before  # another scale makes another picture


@pytest.mark.parametrize(
    "module",
    [
        "img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1",
        "transformer_blocks.0.img_mod.1", "transformer_blocks.1.txt_mod.1", "transformer_blocks.0.attn.txt_qkv",
        "transformer_blocks.0.attn.to_add_out", "transformer_blocks.1.img_mlp.w2", "transformer_blocks.0.txt_mlp.w3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [LoraMode.fused, LoraMode.live])
def test_every_linear(module: str, mode: LoraMode, model: ModelFiles, tmp_path: Path) -> None:
    """Also those that are never live: in that mode they are fused, and the velocity is the same."""
    base = base_weights()
    outputs, inputs = base[f"{module}.weight"].shape
    down, up = made.rand(2, inputs, seed=1), made.rand(outputs, 2, seed=2)
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, tmp_path / "x.safetensors")
    found = load_transformer(model, torch.float32, "cpu", [use(tmp_path / "x.safetensors", 2.0, mode)])
    wanted = changed([(2.0, {f"{module}.weight": n(up) @ n(down)})], base)
    assert_same(velocity(found), velocity(wanted), velocity(changed([], base)))
    quantisable = ".attn." in module or "_mlp." in module
    assert any(isinstance(m, LiveLora) for m in found.modules()) == (quantisable and mode is LoraMode.live)


def test_flat_names_tell_every_module_apart() -> None:
    """kohya's names have no dots; at the published size too, each means one module."""
    from backend.model.tensors import transformer_shapes
    from backend.params import DiTParams

    modules = [name.removesuffix(".weight") for name in transformer_shapes(DiTParams()) if name.endswith(".weight")]
    assert len({module.replace(".", "_") for module in modules}) == len(modules) > 700


# ---------------------------------------------------------------------------------------------------- live and together


@pytest.mark.parametrize("name", LOW_RANK)
def test_live_equals_fused(name: str, model: ModelFiles, tmp_path: Path) -> None:
    path = LOW_RANK[name].write(tmp_path / "x.safetensors")
    fused = load_transformer(model, torch.float32, "cpu", [use(path, 0.8)])
    live = load_transformer(model, torch.float32, "cpu", [use(path, 0.8, LoraMode.live)])
    assert [type(live.get_submodule(m)) for m in (QKV, OUT)] == [LiveLora, LiveLora]
    assert_same(velocity(live), velocity(fused), velocity(load_transformer(model, torch.float32, "cpu")))


def test_several_add_up(model: ModelFiles, tmp_path: Path) -> None:
    """Two on the same linears, one of them DoRA, whose norm is of the checkpoint's weight whoever comes first."""
    base = base_weights()
    names = {"kohya": 0.5, "ComfyUI": -1.25, "DoRA of PEFT": 0.75, "full deltas": 0.5}
    paths = {name: ALL[name].write(tmp_path / f"{i}.safetensors") for i, name in enumerate(names)}
    deltas = [(strength, ALL[name].deltas(weights(base))) for name, strength in names.items()]
    wanted, without = velocity(changed(deltas, base)), velocity(changed([], base))
    for order in (list(names), list(names)[::-1]):
        uses = [use(paths[name], names[name]) for name in order]
        assert_same(velocity(load_transformer(model, torch.float32, "cpu", uses)), wanted, without)
    mixed = [use(paths[n], names[n], LoraMode.live if n == "kohya" else LoraMode.fused) for n in names]
    assert_same(velocity(load_transformer(model, torch.float32, "cpu", mixed)), wanted, without)
    both = [use(paths[n], names[n], LoraMode.live) for n in ("kohya", "ComfyUI")]
    network = load_transformer(model, torch.float32, "cpu", both)
    live = network.get_submodule(QKV)
    assert isinstance(live, LiveLora) and live.down_RI.shape[0] == 2 * made.RANK and isinstance(live.linear, nn.Linear)
    assert_same(velocity(network), velocity(changed(deltas[:2], base)), without)


def test_no_strength_changes_nothing(model: ModelFiles, tmp_path: Path) -> None:
    path = WHOLE["DoRA of PEFT"].write(tmp_path / "x.safetensors")  # its magnitudes are not the weight's own
    table = formats.open_transformer(model.transformer)
    assert fuse(table, [use(path, 0.0)]) is table and fuse(table, []) is table
    found = load_transformer(model, torch.float32, "cpu", [use(path, 0.0), use(path, 0.0, LoraMode.live)])
    assert torch.equal(velocity(found), velocity(load_transformer(model, torch.float32, "cpu")))


def test_live_spares_a_small_update_the_rounding(model: ModelFiles, tmp_path: Path) -> None:
    """Why live exists: an update far below a step of NF4 is rounded away where it is fused, but not beside it."""
    plan = plan_quant(model, Quant.nf4)
    path = LOW_RANK["bare PEFT"].write(tmp_path / "x.safetensors")
    packed = velocity(load_transformer(model, torch.float32, "cpu", (), plan))
    plain, strength = velocity(load_transformer(model, torch.float32, "cpu")), 0.02
    wanted = velocity(load_transformer(model, torch.float32, "cpu", [use(path, strength)])) - plain
    change: dict[LoraMode, Tensor] = {}
    for mode in (LoraMode.fused, LoraMode.live):
        network = load_transformer(model, torch.float32, "cpu", [use(path, strength, mode)], plan)
        assert isinstance(network.get_submodule(QKV), LiveLora if mode is LoraMode.live else PackedLinear)
        change[mode] = velocity(network) - packed
    errors = {mode: float((found - wanted).norm() / wanted.norm()) for mode, found in change.items()}
    # Beside packed weights the update acts almost as beside plain ones; inside, what comes out is mostly rounding.
    assert errors[LoraMode.live] < 0.5 * errors[LoraMode.fused], errors


def held_bytes(network: nn.Module) -> int:
    """Of the blocks' linears, packed or not, with what lies beside them, without biases."""
    found = 0
    for name, module in network.named_modules():
        if re.fullmatch(r"transformer_blocks\.\d+\.(attn|(img|txt)_mlp)\.(?!norm_).*", name):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found += sum(tensor.nbytes for key, tensor in own if key != "bias")
    return found


@pytest.mark.parametrize(
    ("lora", "mode", "quant"),
    [
        ("kohya", LoraMode.auto, Quant.none), ("kohya", LoraMode.live, Quant.none),
        ("kohya", LoraMode.auto, Quant.gguf), ("kohya", LoraMode.fused, Quant.gguf),
        ("LoKr with a header", LoraMode.auto, Quant.gguf), ("LoKr with a header", LoraMode.auto, Quant.nf4),
    ],
)  # fmt: skip
def test_the_plan_counts_its_bytes(lora: str, mode: LoraMode, quant: Quant, model: ModelFiles, tmp_path: Path) -> None:
    """Beside linears where it is live, in linears that it makes plain where the file's own packing is kept."""
    write_transformer_gguf(tmp_path / "q.gguf", base_weights(), tiny.DIT, quant="Q4_0")
    files = replace(model, parts=Parts({**model.parts.held, Component.transformer: PartFiles((tmp_path / "q.gguf",))}))
    plan, uses = plan_quant(files, quant), [use(ALL[lora].write(tmp_path / "x.safetensors"), 0.5, mode)]
    assert plan.keep == (quant is Quant.gguf)
    bits = block_bits(uses, tiny.DIT, plan, itemsize=4)
    decided = decide_modes(uses, tiny.DIT, quantised=plan.packed, warn=lambda _: None)
    network = load_transformer(files, torch.float32, "cpu", decided, plan)
    assert (32.0 if bits is None else bits) * plan.values / 8 == pytest.approx(held_bytes(network), rel=2e-3)
    without = block_bits([], tiny.DIT, plan, itemsize=4)
    changes = quant is Quant.gguf or mode is LoraMode.live
    assert (bits != without) == changes and without == plan.bits


# -------------------------------------------------------------------------------------------------------- base formats


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "BF16"])
def test_gguf_base(quant: str, tmp_path: Path) -> None:
    """Added to what the packed weight decodes to, in float32: no second rounding."""
    path = tmp_path / "t.gguf"
    write_transformer_gguf(path, base_weights(), tiny.DIT, quant=quant)
    table = formats.open_transformer([path])
    base = {name: table.tensor(name, torch.float32) for name in table.names()}
    lora = LOW_RANK["kohya"].write(tmp_path / "x.safetensors")
    fused = fuse(table, [use(lora, 0.8)])
    for name, delta in LOW_RANK["kohya"].deltas({}).items():
        wanted = torch.from_numpy(n(base[name]) + 0.8 * delta)
        assert float((fused.tensor(name, torch.float32).double() - wanted).abs().max()) < 1e-6
        assert torch.equal(fused.tensor(name, torch.bfloat16), fused.tensor(name, torch.float32).bfloat16())
    assert fused.entries["img_in.weight"] is table.entries["img_in.weight"]  # what no LoRA names is left alone


def test_the_file_is_not_written_to(tmp_path: Path) -> None:
    """A float32 tensor is a view of the file's pages: reading it fused twice gives the same, and so does the file."""
    base = base_weights()
    save_file(base, tmp_path / "t.safetensors")
    lora = LOW_RANK["kohya"].write(tmp_path / "x.safetensors")
    table = formats.open_transformer([tmp_path / "t.safetensors"])
    fused = fuse(table, [use(lora), use(lora)])
    first = fused.tensor(f"{QKV}.weight", torch.float32).clone()
    assert torch.equal(fused.tensor(f"{QKV}.weight", torch.float32), first)
    assert torch.equal(table.tensor(f"{QKV}.weight", torch.float32), base[f"{QKV}.weight"])
    assert torch.equal(load_file(tmp_path / "t.safetensors")[f"{QKV}.weight"], base[f"{QKV}.weight"])


# ---------------------------------------------------------------------------------------------------------------- parts


def test_live_lora() -> None:
    """Several are one pair of matrices; the arithmetic is the network's, not that of the stored weight."""
    linear = nn.Linear(4, 6).requires_grad_(False)
    down, up, x = made.rand(2, 4, seed=1), made.rand(6, 2, seed=2), made.rand(5, 4, seed=3)
    live = LiveLora(linear, [LowRank(down, up, 0.5), LowRank(down, up, 0.25)], torch.float32)
    assert torch.allclose(live(x), linear(x) + 0.75 * x @ down.T @ up.T, atol=1e-6)
    packed = pack_weight(made.rand(6, 64, seed=4), Quant.int8)
    beside = LiveLora(packed, [LowRank(made.rand(2, 64, seed=5), up, 1.0)], torch.bfloat16)
    assert beside.down_RI.dtype is beside.up_OR.dtype is torch.bfloat16 and not list(beside.parameters())


def test_fingerprint_changes_with_everything_that_changes_weights(tmp_path: Path) -> None:
    one, two = LoraUse(path="/a", sha256="1"), LoraUse(path="/b", sha256="2")
    assert fingerprint([]) == fingerprint([LoraUse(path="/a", sha256="1", scale=0.0)]) == ""
    different = [
        [one], [two], [one, two], [LoraUse(path="/a", sha256="1", scale=0.5)],
        [LoraUse(path="/a", sha256="1", mode=LoraMode.live)],
    ]  # fmt: skip
    assert len({fingerprint(uses) for uses in different}) == len(different)
    assert fingerprint([one]) == fingerprint([LoraUse(path="/elsewhere", sha256="1")])


def test_a_factor_that_is_not_finite(model: ModelFiles, tmp_path: Path) -> None:
    case = LOW_RANK["bare PEFT"]
    bad = {name: tensor.clone() for name, tensor in case.tensors.items()}
    bad[f"{QKV}.lora_B.weight"][0, 0] = float("nan")
    save_file(bad, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"img_qkv.lora_B.weight' is not finite"):
        load_transformer(model, torch.float32, "cpu", [use(tmp_path / "x.safetensors")])


# -------------------------------------------------------------------------------------------------------------- writing

FACTORS = {QKV: Factors(made.A1, made.B1, 6.0), OUT: Factors(made.A2[:2], made.B2[:, :2], 5.0)}
WRITTEN = {  # by hand
    Family.peft: {f"{m}.lora_{f}.weight" for m in (QKV, OUT) for f in "AB"},
    Family.diffusers: {f"transformer.{m}.lora_{f}.weight" for m in (QKV, OUT) for f in "AB"},
    Family.comfyui: {f"diffusion_model.{m}.lora_{f}.weight" for m in (QKV, OUT) for f in "AB"},
    Family.kohya: {
        f"lora_unet_transformer_blocks_{m}.{part}"
        for m in ("0_attn_img_qkv", "1_attn_to_out_0")
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    },
}  # fmt: skip


@pytest.mark.parametrize("family", Family)
def test_written_and_read_back(family: Family, model: ModelFiles, tmp_path: Path) -> None:
    """Two ranks and two alphas: 6 / 3 and 5 / 2."""
    path = tmp_path / "x.safetensors"
    write_lora(path, FACTORS, family=family, metadata={"trigger": "sks"})
    assert set(load_file(path)) == WRITTEN[family]
    base = base_weights()
    wanted = changed(
        [
            (
                1.0,
                {
                    f"{QKV}.weight": 2 * n(made.B1) @ n(made.A1),
                    f"{OUT}.weight": 2.5 * n(made.B2[:, :2]) @ n(made.A2[:2]),
                },
            )
        ],
        base,
    )
    found = load_transformer(model, torch.float32, "cpu", [use(path)])
    assert_same(velocity(found), velocity(wanted), velocity(changed([], base)))
    if family is Family.comfyui:  # which reads no header: the product alone must be the update
        tensors = load_file(path)
        stem = f"diffusion_model.{OUT}.lora_"
        product = n(tensors[f"{stem}B.weight"]) @ n(tensors[f"{stem}A.weight"])
        assert np.allclose(product, 2.5 * n(made.B2[:, :2]) @ n(made.A2[:2]), atol=1e-6)


def test_readers_of_the_diffusers_form_agree(tmp_path: Path) -> None:
    """Rank 8, alpha 4 is half the product, for whoever reads the header and for whoever does not.

    What diffusers hands to PEFT is the config in the header or, without one, what `get_peft_kwargs` makes of the keys;
    PEFT then applies lora_alpha / r, each module's own where a pattern has it.
    """
    from diffusers.utils.peft_utils import get_peft_kwargs

    given = {
        QKV: Factors(made.rand(8, 64, seed=1), made.rand(192, 8, seed=2), 4.0),
        OUT: Factors(made.A2[:2], made.B2[:, :2], 5.0),
    }
    path = tmp_path / "x.safetensors"
    write_lora(path, given, family=Family.diffusers)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as file:
        stated = json.loads(file.metadata()["lora_adapter_metadata"])
    header = {name.removeprefix("transformer."): value for name, value in stated.items()}
    ranks = {name: tensor.shape[1] for name, tensor in tensors.items() if "lora_B" in name}
    for config in (header, get_peft_kwargs(ranks, None, tensors)):
        for module, strength in ((QKV, 4 / 8), (OUT, 5 / 2)):
            alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
            rank = config["rank_pattern"].get(module, config["r"])
            up, down = tensors[f"{module}.lora_B.weight"], tensors[f"{module}.lora_A.weight"]
            assert rank == len(down)
            applied = alpha / rank * n(up) @ n(down)
            assert np.allclose(applied, strength * n(given[module].up_OR) @ n(given[module].down_RI), atol=1e-6)


def test_writing_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for bad, why in (
        ({}, "no updates"),
        ({QKV: Factors(made.A1, made.B1[:, :2], 1.0)}, r"\[3, 64\] and \[192, 2\]"),
        ({QKV: Factors(made.A1 * float("inf"), made.B1, 1.0)}, "is not finite"),
    ):
        with pytest.raises(CheckpointError, match=why):
            write_lora(path, bad, family=Family.peft)
    assert not path.exists()


def test_live_updates_are_read_in_float32(model: ModelFiles, tmp_path: Path) -> None:
    write_lora(tmp_path / "x.safetensors", FACTORS, family=Family.kohya, dtype=torch.bfloat16)
    table = formats.open_transformer(model.transformer)
    found = live_updates(table, [use(tmp_path / "x.safetensors", 0.5, LoraMode.live)])
    assert list(found) == [QKV, OUT]
    (only,) = found[QKV]
    assert only.down_RI.dtype is torch.float32 and torch.equal(only.down_RI, made.A1.bfloat16().float())
    assert only.scale == pytest.approx(0.5 * 6 / 3)
