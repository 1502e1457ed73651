"""Quantised files, read back by the programs they are for: the gguf package, safetensors, bitsandbytes, and lens."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backend.checkpoints.formats import open_transformer
from backend.checkpoints.packing_plan import plan_quant, stored_packing
from backend.checkpoints.resolve import resolve_model
from backend.disk import claimed
from backend.errors import CancelledError, CheckpointError, FileError, ModelMissingError, UsageError
from backend.hub import convert as conversion
from backend.hub.convert import convert, missing_companions, packed_names, plan_conversion
from backend.loading import load_transformer
from backend.model.tensors import transformer_shapes
from backend.packing.bitsandbytes import library
from backend.packing.linears import PackedLinear
from backend.params import DiTParams
from backend.types import Quant, QuantTarget
from tests.backend import tiny_weights as tiny

WIDE = DiTParams(  # of 256, which the K types can hold; its MLP of 96 they cannot
    num_layers=1, num_attention_heads=4, enc_hidden_dim=64, selected_layer_index=(0, 1), mlp_hidden_dim=96
)
GGUF = (QuantTarget.q8_0, QuantTarget.q6_k, QuantTarget.q5_k, QuantTarget.q4_k)
# Relative error of a decoded weight with normal values, about the format's step over sqrt(12).
BOUNDS = {
    "q8_0": 0.007, "q6_k": 0.022, "q5_k": 0.045, "q4_k": 0.085, "nf4": 0.11, "int8": 0.01, "fp8": 0.035, "mxfp8": 0.035,
}  # fmt: skip
STATE = tiny.random_transformer(WIDE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model in the published layout; its transformer is one float32 file of width 256."""
    folder = tiny.write_diffusers(tmp_path_factory.mktemp("source") / "tiny")
    for shard in (folder / "transformer").iterdir():
        shard.unlink()
    save_file(STATE, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text(json.dumps(tiny.transformer_config(WIDE)))
    return folder


def quantize(source: Path, target: QuantTarget, output: Path, **options: Any) -> Path:
    plan = plan_conversion(str(source), target, output, **options)
    written = convert(plan)
    assert written.nbytes == plan.file.stat().st_size <= plan.nbytes
    return plan.file


def with_companions(file: Path, source: Path) -> None:
    """Encoder and autoencoder beside a transformer, as ComfyUI arranges them."""
    for part in ("text_encoder", "vae"):
        config = (source / part / "config.json").read_text()
        shards = {
            name: tensor for path in (source / part).glob("*.safetensors") for name, tensor in load_file(path).items()
        }
        save_file(shards, file.parent / f"{part}.safetensors")
        (file.parent / f"{part}.json").write_text(config)
    (file.parent / "tokenizer.json").write_text((source / "tokenizer" / "tokenizer.json").read_text())


@pytest.mark.parametrize("target", QuantTarget)
@pytest.mark.parametrize("modulation", [False, True])
def test_round_trip_through_our_own_loader(source: Path, tmp_path: Path, target: QuantTarget, modulation: bool) -> None:
    """Every tensor within the format's error or bfloat16's; packed and decoded at load the same to the last bit."""
    file = quantize(source, target, tmp_path / "out", modulation=modulation)
    table, packs = open_transformer((file,)), packed_names(WIDE, modulation)
    assert set(table.names()) == set(STATE)
    for name, expected in STATE.items():
        back = table.tensor(name, torch.float32)
        error = ((back - expected).norm() / expected.norm()).item()
        if name not in packs:
            assert table.entries[name].packed is None and error < 2**-8, name
            continue
        fallback = target in GGUF and expected.shape[1] % 256 and "Q8_0"
        assert error < BOUNDS["q8_0" if fallback else target], name
        make = table.entries[name].packed
        assert make is not None, name
        assert torch.equal(make().decoded(torch.float32), back), name
    found = stored_packing((file,))
    assert (found.modulation is not None) == modulation


@pytest.mark.parametrize("target", GGUF)
def test_gguf_is_read_by_the_gguf_package(source: Path, tmp_path: Path, target: QuantTarget) -> None:
    plan = plan_conversion(str(source), target, tmp_path / "out")
    kinds = convert(plan).kinds
    reader = gguf.GGUFReader(plan.file)
    assert reader.fields["general.architecture"].contents() == "lens"
    assert reader.fields["lens.num_attention_heads"].contents() == WIDE.num_attention_heads
    found: dict[str, int] = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = STATE[tensor.name].numpy()
        assert values.shape == expected.shape
        assert np.linalg.norm(values - expected) <= BOUNDS[target] * np.linalg.norm(expected) + 1e-6, tensor.name
        if expected.ndim == 2:
            found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + 1
    assert found == kinds
    if target is not QuantTarget.q8_0:  # the two w2, 96 wide, fall back
        assert (kinds[target.name.upper()], kinds["Q8_0"]) == (8, 2)
    assert plan.file.name == f"tiny-{target[:-1]}{target[-1].upper() if target.endswith('k') else target[-1]}.gguf"


def test_gguf_with_a_community_prefix_loads_packed(source: Path, tmp_path: Path) -> None:
    """stable-diffusion.cpp writes `model.diffusion_model.` before each name, and no header keys at all."""
    file = quantize(source, QuantTarget.q4_k, tmp_path / "plain.gguf")
    writer = gguf.GGUFWriter(tmp_path / "prefixed.gguf", "")
    for tensor in gguf.GGUFReader(file).tensors:
        writer.add_tensor("model.diffusion_model." + tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = open_transformer((file,)), open_transformer((tmp_path / "prefixed.gguf",))
    for name in STATE:
        assert torch.equal(ours.tensor(name, torch.float32), theirs.tensor(name, torch.float32))
        assert (ours.entries[name].packed is None) == (theirs.entries[name].packed is None)
    assert stored_packing((tmp_path / "prefixed.gguf",)) == stored_packing((file,))


def test_nf4_is_read_by_bitsandbytes(source: Path, tmp_path: Path) -> None:
    """Through Params4bit.from_prequantized, which is how transformers and diffusers open such a file."""
    from bitsandbytes.nn.modules import Params4bit

    tensors = load_file(quantize(source, QuantTarget.nf4, tmp_path / "out"))
    for name in packed_names(WIDE, False):
        if STATE[name].shape[1] % 64:
            continue  # its own CPU kernel takes blocks that cross rows wrongly: see test_packed
        beside = {key: tensors[key] for key in tensors if key.startswith(name + ".")}
        weight = Params4bit.from_prequantized(tensors[name], beside, device="cpu")
        back = library().dequantize_4bit(weight.data, weight.quant_state)
        assert back.shape == STATE[name].shape and back.dtype == torch.bfloat16
        assert (back.float() - STATE[name]).norm() < BOUNDS["nf4"] * STATE[name].norm()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    from diffusers.quantizers.quantization_config import BitsAndBytesConfig

    stated: Any = BitsAndBytesConfig.from_dict(config["quantization_config"])
    assert stated.load_in_4bit and stated.quantization_method() == "nf4"


def test_int8_is_read_by_bitsandbytes(source: Path, tmp_path: Path) -> None:
    """Linear8bitLt takes it from a state dict and, on a CPU too, multiplies with it."""
    from bitsandbytes.nn.modules import Linear8bitLt

    tensors = load_file(quantize(source, QuantTarget.int8, tmp_path / "out"))
    stem = "transformer_blocks.0.img_mlp.w1"
    linear = Linear8bitLt(256, 96, bias=False, has_fp16_weights=False).to("cpu")  # which makes it int8
    linear.load_state_dict({key.removeprefix(stem + "."): tensors[key] for key in tensors if key.startswith(stem)})
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    expected = x @ STATE[f"{stem}.weight"].T
    assert ((linear(x.half()).float() - expected).norm() / expected.norm()).item() < 0.03  # its activations too
    assert torch.equal(linear.weight.data, tensors[f"{stem}.weight"])


@pytest.mark.parametrize("target", [QuantTarget.fp8, QuantTarget.mxfp8])
def test_comfy_files_have_its_tensors(source: Path, tmp_path: Path, target: QuantTarget) -> None:
    """Names, dtypes and shapes as ComfyUI's own files have them; the values by the formats' definitions."""
    file = quantize(source, target, tmp_path / "lens.safetensors")
    stem = "transformer_blocks.0.attn.img_qkv"
    with safe_open(file, "pt") as opened:
        names = set(opened.keys())
        weight, scale = opened.get_tensor(f"{stem}.weight"), opened.get_tensor(f"{stem}.weight_scale")
        marker = json.loads(bytes(opened.get_tensor(f"{stem}.comfy_quant").tolist()))
        assert opened.metadata()["format"] == "pt"
        assert opened.get_tensor("img_in.weight").dtype == torch.bfloat16
    packs = packed_names(WIDE, False)
    beside = {f"{name.removesuffix('.weight')}.{part}" for name in packs for part in ("weight_scale", "comfy_quant")}
    assert names == set(STATE) | beside
    assert weight.dtype == torch.float8_e4m3fn and weight.shape == (768, 256)
    if target is QuantTarget.fp8:
        assert marker == {"format": "float8_e4m3fn"} and scale.dtype == torch.float32 and scale.shape == ()
        back = weight.float() * scale
    else:
        assert marker == {"format": "mxfp8"} and scale.dtype == torch.uint8 and scale.shape == (768, 8)
        back = torch.empty(768, 256)
        flat = scale.flatten()
        for row in (0, 31, 32, 127, 128, 500, 767):  # the blocked layout by its index formula
            for column in range(8):
                tile = (row // 128) * 2 + column // 4
                at = tile * 512 + (row % 32) * 16 + (row % 128 // 32) * 4 + column % 4
                block = slice(32 * column, 32 * column + 32)
                back[row, block] = weight[row, block].float() * 2.0 ** (int(flat[at]) - 127)
        rows = torch.tensor([0, 31, 32, 127, 128, 500, 767])
        expected = STATE[f"{stem}.weight"][rows]
        assert ((back[rows] - expected).norm() / expected.norm()).item() < BOUNDS["mxfp8"]
        return
    assert ((back - STATE[f"{stem}.weight"]).norm() / STATE[f"{stem}.weight"].norm()).item() < BOUNDS["fp8"]


@pytest.mark.parametrize("target", [QuantTarget.q4_k, QuantTarget.nf4, QuantTarget.mxfp8])
def test_the_result_loads_as_a_model(source: Path, tmp_path: Path, target: QuantTarget) -> None:
    """From the single file, whose header states what no shape tells, and from a folder."""
    suffix = ".gguf" if target in GGUF else ".safetensors"
    alone = quantize(source, target, tmp_path / f"one{suffix}")
    with_companions(alone, source)
    folder = tmp_path / "whole" / "transformer"
    plan = plan_conversion(str(source), target, folder)
    convert(plan)
    assert plan.result == folder
    assert "text encoder" in (missing_companions(plan) or "")
    if target is QuantTarget.nf4:  # a diffusers folder: the other parts stand beside it
        for part in ("text_encoder", "vae", "tokenizer"):
            (folder.parent / part).symlink_to(source / part)
        (folder.parent / "model_index.json").write_text((source / "model_index.json").read_text())
    else:
        with_companions(plan.file, source)
    for path in (alone, plan.result):
        files = resolve_model(str(path))
        assert files.preset.params.dit == WIDE
        kept = replace(plan_quant(files, Quant.auto), keep=True)
        network = load_transformer(files, torch.float32, "cpu", quant=kept)
        assert sum(isinstance(module, PackedLinear) for module in network.modules()) == 10
    assert missing_companions(plan) is None
    if target is QuantTarget.q4_k:  # as in the folders that people keep their models in
        (alone.parent / "another.safetensors").write_bytes((alone.parent / "text_encoder.safetensors").read_bytes())
        assert "several" in (missing_companions(replace(plan, result=alone)) or "")


@pytest.mark.parametrize("target", [QuantTarget.nf4, QuantTarget.int8, QuantTarget.fp8])
def test_a_file_is_not_rounded_again_to_what_it_holds(source: Path, tmp_path: Path, target: QuantTarget) -> None:
    """--quant of the file's own kind takes its codes; fp8 then rounds the activations as well."""
    file = quantize(source, target, tmp_path / "model.safetensors")
    with_companions(file, source)
    files = resolve_model(str(file))
    plan = plan_quant(files, Quant(str(target)))
    assert not plan.notes and (plan.approximation is None) == (target is not QuantTarget.fp8)
    network = load_transformer(files, torch.float32, "cpu", quant=plan)
    stem = "transformer_blocks.0.txt_mlp.w2"
    linear, stored_codes = network.get_submodule(stem), load_file(file)[f"{stem}.weight"]
    assert isinstance(linear, PackedLinear) and linear.scheme == str(target)
    assert torch.equal(linear.packed.view(torch.uint8), stored_codes.view(torch.uint8))
    decoded = open_transformer((file,)).tensor(f"{stem}.weight", torch.float32)
    assert torch.equal(linear.decoded(torch.float32), decoded)


def test_a_lone_transformer_can_be_quantised(source: Path, tmp_path: Path) -> None:
    """Without encoder and autoencoder; the name is the file's."""
    lone = tmp_path / "mine-turbo.safetensors"
    save_file(STATE, lone)
    lone.with_suffix(".json").write_text(json.dumps(tiny.transformer_config(WIDE)))
    plan = plan_conversion(str(lone), QuantTarget.q8_0, tmp_path / "out")
    assert plan.file.name == "mine_turbo-q8_0.gguf"
    convert(plan)


def test_a_registry_model_says_which_it_is(tmp_path: Path) -> None:
    """nano's own file is Q8_0, which is said; the variant goes into the header, so its defaults apply again."""
    plan = plan_conversion("nano", QuantTarget.mxfp8, tmp_path / "out", modulation=True)
    assert [note.split(":")[0] for note in plan.notes[1:2]] == ["it will be larger"]
    assert "nano is stored as q8_0 already" in plan.notes[0] and "modulation" in plan.notes[-1]
    assert plan.file.name == "nano_mxfp8.safetensors"
    assert conversion._facts(plan)["lens.variant"] == "nano"


# what goes wrong -----------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(source: Path, tmp_path: Path) -> None:
    file = quantize(source, QuantTarget.q8_0, tmp_path / "a.gguf")
    before = file.read_bytes()
    with pytest.raises(FileError, match="is there already"):
        plan_conversion(str(source), QuantTarget.q4_k, file)
    assert file.read_bytes() == before
    quantize(source, QuantTarget.q4_k, file, force=True)
    assert file.read_bytes() != before


def test_of_two_that_write_one_file_one_is_refused(source: Path, tmp_path: Path) -> None:
    """Both were planned before either wrote: the second replaced the first one's file without a word."""
    file = tmp_path / "q.gguf"
    first, second = (plan_conversion(str(source), target, file) for target in (QuantTarget.q8_0, QuantTarget.q4_k))
    with claimed(file, doing="writes"), pytest.raises(FileError, match="another process writes"):
        convert(second)
    convert(first)
    whole = file.read_bytes()
    with pytest.raises(FileError, match="is there by now"):
        convert(second)
    assert file.read_bytes() == whole


def test_the_source_is_never_replaced(source: Path) -> None:
    weights = source / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UsageError, match="is the model itself"):
        plan_conversion(str(source), QuantTarget.nf4, weights, force=True)
    with pytest.raises(UsageError, match="is the model itself"):
        plan_conversion(str(source), QuantTarget.nf4, source / "transformer", force=True)


def test_a_folder_with_other_weights_is_refused(source: Path, tmp_path: Path) -> None:
    quantize(source, QuantTarget.q8_0, tmp_path)
    with pytest.raises(UsageError, match="ambiguous"):
        plan_conversion(str(source), QuantTarget.q4_k, tmp_path, force=True)


@pytest.mark.parametrize(("target", "name"), [(QuantTarget.q4_k, "x.safetensors"), (QuantTarget.nf4, "x.gguf")])
def test_the_wrong_ending_is_named(source: Path, tmp_path: Path, target: QuantTarget, name: str) -> None:
    with pytest.raises(UsageError, match="is written as"):
        plan_conversion(str(source), target, tmp_path / name)


def test_a_file_in_the_way_of_the_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        plan_conversion(str(source), QuantTarget.q4_k, tmp_path / "taken")


def test_the_disk_is_checked_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**5))
    with pytest.raises(FileError, match="free"):
        plan_conversion(str(source), QuantTarget.q4_k, tmp_path / "out" / "deep")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [QuantTarget.q4_k, QuantTarget.nf4, QuantTarget.mxfp8])
@pytest.mark.parametrize("error", [CancelledError("stopped"), KeyboardInterrupt()])
def test_an_interruption_leaves_nothing(
    source: Path, tmp_path: Path, target: QuantTarget, error: BaseException
) -> None:
    plan = plan_conversion(str(source), target, tmp_path / "out")
    calls: list[int] = []

    def stop(nbytes: int) -> None:
        calls.append(nbytes)
        if len(calls) == 5:
            raise error

    with pytest.raises(type(error)):
        convert(plan, stop)
    assert len(calls) == 5 and not (tmp_path / "out").exists()


def test_a_replaced_file_survives_an_interruption(source: Path, tmp_path: Path) -> None:
    file = quantize(source, QuantTarget.q8_0, tmp_path / "a.gguf")
    before = file.read_bytes()
    plan = plan_conversion(str(source), QuantTarget.q4_k, file, force=True)

    def stop(nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(plan, stop)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("target", [QuantTarget.q4_k, QuantTarget.int8])
def test_weights_that_are_not_finite_are_named(source: Path, tmp_path: Path, target: QuantTarget) -> None:
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state["transformer_blocks.0.txt_mlp.w3.weight"][1, 1] = torch.nan
    save_file(state, tmp_path / "bad.safetensors")
    (tmp_path / "bad.json").write_text(json.dumps(tiny.transformer_config(WIDE)))
    with pytest.raises(CheckpointError, match=r"txt_mlp\.w3\.weight.*not finite"):
        quantize(tmp_path / "bad.safetensors", target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_width_that_mxfp8_cannot_hold_is_named(source: Path, tmp_path: Path) -> None:
    params = replace(WIDE, mlp_hidden_dim=48)
    save_file(tiny.random_transformer(params), tmp_path / "odd.safetensors")
    (tmp_path / "odd.json").write_text(json.dumps(tiny.transformer_config(params)))
    with pytest.raises(UsageError, match="48 inputs"):
        plan_conversion(str(tmp_path / "odd.safetensors"), QuantTarget.mxfp8, tmp_path / "out")


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="lens-turbo is not on this disk"):
        plan_conversion("lens-turbo", QuantTarget.nf4, tmp_path / "out")
    with pytest.raises(UsageError, match="no model is called"):
        plan_conversion("lense-tubro", QuantTarget.nf4, tmp_path / "out")


# damaged packings ----------------------------------------------------------------------------------------------------


def damaged(file: Path, target: Path, change: dict[str, torch.Tensor | None]) -> Path:
    tensors = load_file(file)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, target)
    return target


def test_damaged_packings_are_named(source: Path, tmp_path: Path) -> None:
    stem = "transformer_blocks.0.attn.img_qkv"
    weight = f"{stem}.weight"
    state = f"{weight}.quant_state.bitsandbytes__nf4"
    nf4 = quantize(source, QuantTarget.nf4, tmp_path / "nf4")
    int8 = quantize(source, QuantTarget.int8, tmp_path / "int8")
    fp4 = torch.tensor(list(json.dumps({"quant_type": "fp4", "blocksize": 64, "shape": [768, 256]}).encode()))
    cases: list[tuple[Path, dict[str, torch.Tensor | None], str]] = [
        (nf4, {f"{weight}.absmax": None}, "absmax' is missing"),
        (nf4, {f"{weight}.absmax": torch.ones(7)}, "do not fit a weight of"),
        (nf4, {state: torch.tensor([1, 2], dtype=torch.uint8)}, "unreadable bitsandbytes state"),
        (nf4, {state: fp4.to(torch.uint8)}, "fp4 in blocks of 64"),
        (int8, {f"{stem}.SCB": torch.ones(7)}, "is no int8 linear"),
    ]
    for number, (file, change, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            open_transformer((damaged(file, tmp_path / f"bad{number}.safetensors", change),))


def test_every_tensor_is_planned(source: Path) -> None:
    assert len(packed_names(DiTParams(), False)) == 480 and len(packed_names(DiTParams(), True)) == 576
    shapes = transformer_shapes(DiTParams())
    values = sum(shapes[name][0] * shapes[name][1] for name in packed_names(DiTParams(), False))
    assert values == 48 * (2 * 4 * 1536**2 + 6 * 4096 * 1536)  # 2.718 billion
