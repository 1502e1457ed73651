"""Every block format against an independent statement of it, every layout of tensors against plain ones."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.checkpoints import detect, vae_keys
from backend.checkpoints.formats import TensorTable, open_text_encoder, open_transformer, open_vae
from backend.errors import CheckpointError
from backend.model.tensors import text_encoder_shapes, transformer_shapes
from backend.packing import block_scaled
from backend.params import DiTParams, TextEncoderParams
from tests.backend import tiny_weights as tiny

State = dict[str, torch.Tensor]
RNG = torch.Generator().manual_seed(5)


def equal(table: TensorTable, state: State, dtype: torch.dtype = torch.float32) -> None:
    assert set(table.names()) == set(state)
    for name, expected in state.items():
        assert table.entries[name].shape == tuple(expected.shape), name
        assert torch.equal(table.tensor(name, dtype), expected.to(dtype)), name


# block formats -------------------------------------------------------------------------------------------------------


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """The blocked scale layout written with the index formula, entry by entry: an independent statement."""
    rows, columns = scales.shape
    column_tiles = -(-columns // 4)
    out = torch.zeros(-(-rows // 128) * column_tiles * 512, dtype=scales.dtype)
    for row in range(rows):
        for column in range(columns):
            tile = (row // 128) * column_tiles + column // 4
            inside = (row % 32) * 16 + (row % 128 // 32) * 4 + column % 4
            out[tile * 512 + inside] = scales[row, column]
    return out


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (1, 1), (130, 5), (300, 12)])
def test_unswizzle_inverts_the_index_formula(rows: int, columns: int) -> None:
    scales = torch.randint(0, 255, (rows, columns), dtype=torch.uint8, generator=RNG)
    assert torch.equal(block_scaled.unswizzle(swizzled(scales), rows, columns), scales)


def test_mxfp4_agrees_with_transformers_and_ggml() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8, generator=RNG)
    scales = torch.randint(118, 134, (2, 6, 3), dtype=torch.uint8, generator=RNG)
    ours = block_scaled.mxfp4_experts(blocks, scales, torch.bfloat16)
    assert torch.equal(ours, convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16))
    # ggml keeps elements 0..15 of a block in the low nibbles, 16..31 in the high ones.
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    packed = torch.cat((scales[..., None], codes[..., :16] | codes[..., 16:] << 4), dim=-1).flatten(2)
    theirs = gguf.quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(ours.float().transpose(1, 2).numpy(), theirs)


def nvfp4(shape: tuple[int, int, int]) -> tuple[State, torch.Tensor]:
    """Random NVFP4 experts as Comfy stores them, and their values computed element by element from the description."""
    experts, outputs, inputs = shape
    codes = torch.randint(0, 16, shape, dtype=torch.uint8, generator=RNG)
    scales = torch.rand(experts, outputs, inputs // 16, generator=RNG).to(torch.float8_e4m3fn)
    outer = torch.rand(experts, generator=RNG) + 0.5
    values = torch.tensor(block_scaled.E2M1)[codes.long()]
    plain = values * scales.float().repeat_interleave(16, dim=2) * outer[:, None, None]
    packed = codes[..., 0::2] << 4 | codes[..., 1::2]  # the high nibble is the even element
    stored = torch.stack([swizzled(scale.view(torch.uint8)) for scale in scales]).view(torch.float8_e4m3fn)
    rows = -(-outputs // 128) * 128
    tensors = {"weight": packed, "weight_scale": stored.reshape(experts, rows, -1), "weight_scale_2": outer}
    return tensors, plain.transpose(1, 2).contiguous()


def test_nvfp4_decodes_element_by_element() -> None:
    tensors, plain = nvfp4((2, 130, 96))
    decoded = block_scaled.nvfp4_experts(
        tensors["weight"], tensors["weight_scale"], tensors["weight_scale_2"], torch.float32
    )
    assert torch.allclose(decoded, plain, rtol=1e-6, atol=0)


def mxfp8(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    outputs, inputs = weight.shape
    scales = torch.randint(120, 132, (outputs, inputs // 32), dtype=torch.uint8, generator=RNG)
    stored = (weight * 16).to(torch.float8_e4m3fn)
    plain = stored.float() * torch.exp2(scales.float() - 127).repeat_interleave(32, dim=1)
    return {"weight": stored, "weight_scale": swizzled(scales)}, plain


def test_mxfp8_decodes_element_by_element() -> None:
    tensors, plain = mxfp8(torch.randn(70, 160, generator=RNG))
    assert torch.equal(block_scaled.mxfp8_linear(tensors["weight"], tensors["weight_scale"], torch.float32), plain)


# tables --------------------------------------------------------------------------------------------------------------


def test_published_sizes() -> None:
    shapes = transformer_shapes(DiTParams())
    assert len(shapes) == 1264
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_104_225_152
    total = sum(int(np.prod(shape)) for shape in text_encoder_shapes(TextEncoderParams()).values())
    assert total == 20_914_757_184  # gpt-oss-20b


def test_text_encoder_names_are_those_of_transformers() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        **{k: v for k, v in tiny.text_config().items() if k not in ("architectures", "lens_template")}
    )
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == text_encoder_shapes(tiny.TEXT)


# transformer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "net."])
def test_transformer_plain_with_every_prefix(tmp_path: Path, prefix: str) -> None:
    state = tiny.random_transformer()
    stored = {prefix + name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    if prefix:
        stored["first_stage_model.decoder.conv_in.weight"] = torch.zeros(1)  # the VAE of a full checkpoint
    save_file(stored, tmp_path / "lens.safetensors")
    equal(open_transformer((tmp_path / "lens.safetensors",)), state, torch.bfloat16)


def test_transformer_mxfp8(tmp_path: Path) -> None:
    state = tiny.random_transformer()
    stored: State = {}
    for name in list(state):
        stem = name.removesuffix(".weight")
        if (".attn." in name or "_mlp." in name) and state[name].ndim == 2:
            packed, state[name] = mxfp8(state[name])
            stored |= {f"{stem}.{part}": tensor for part, tensor in packed.items()}
            marker = json.dumps({"format": "mxfp8"}).encode()
            stored[stem + ".comfy_quant"] = torch.frombuffer(bytearray(marker), dtype=torch.uint8)
        else:
            state[name] = stored[name] = state[name].to(torch.bfloat16)
    path = tmp_path / "lens_mxfp8.safetensors"
    save_file(stored, path)
    equal(open_transformer((path,)), state)
    equal(open_transformer((path,)), state, torch.bfloat16)


def test_transformer_fp8_with_one_scale(tmp_path: Path) -> None:
    state = tiny.random_transformer()
    name = "transformer_blocks.0.img_mlp.w1"
    stored = dict(state)
    stored[name + ".weight"] = state[name + ".weight"].to(torch.float8_e4m3fn)
    stored[name + ".scale_weight"] = torch.tensor(0.25)
    state[name + ".weight"] = stored[name + ".weight"].float() * 0.25
    save_file(stored, tmp_path / "scaled.safetensors")
    equal(open_transformer((tmp_path / "scaled.safetensors",)), state)


def test_transformer_fp8_without_a_scale_is_refused(tmp_path: Path) -> None:
    state = tiny.random_transformer()
    state["img_in.weight"] = state["img_in.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"img_in.weight.*F8_E4M3 without a scale"):
        open_transformer((tmp_path / "x.safetensors",))


def test_a_foreign_packing_is_not_decoded_as_ours(tmp_path: Path) -> None:
    state = tiny.random_transformer()
    packed, _ = mxfp8(state["transformer_blocks.0.img_mlp.w1.weight"])
    state |= {f"transformer_blocks.0.img_mlp.w1.{part}": tensor for part, tensor in packed.items()}
    marker = bytearray(json.dumps({"format": "int8_tensorwise"}).encode())
    state["transformer_blocks.0.img_mlp.w1.comfy_quant"] = torch.frombuffer(marker, dtype=torch.uint8)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="int8_tensorwise"):
        open_transformer((tmp_path / "x.safetensors",))


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (("double_blocks.0.img_attn.qkv.weight",), "a FLUX model"),
        (("transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.img_mlp.net.0.proj.weight"), "a Qwen-Image"),
        (("diffusion_model.transformer_blocks.0.attn.img_qkv.lora_A.weight",), "a LoRA"),
        (("model.layers.0.self_attn.q_proj.weight",), "an unknown model"),
    ],
)
def test_other_models_are_named(tmp_path: Path, names: tuple[str, ...], phrase: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    assert detect.identify(names).startswith(phrase)
    with pytest.raises(CheckpointError, match=f"{phrase}.*expected a Lens transformer"):
        open_transformer((path,))
    with pytest.raises(CheckpointError, match=f"{phrase}.*expected a GPT-OSS"):
        open_text_encoder((path,))
    with pytest.raises(CheckpointError, match=f"{phrase}.*expected a FLUX.2"):
        open_vae((path,), 4)


# text encoder --------------------------------------------------------------------------------------------------------


def test_text_encoder_mxfp4_as_published(tmp_path: Path) -> None:
    state = tiny.random_text_encoder()
    stored: State = {}
    for name, tensor in list(state.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            stored[name + "_blocks"] = torch.randint(
                0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=RNG
            )
            stored[name + "_scales"] = torch.randint(
                118, 128, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=RNG
            )
            state[name] = block_scaled.mxfp4_experts(stored[name + "_blocks"], stored[name + "_scales"], torch.float32)
        else:
            stored[name] = state[name] = tensor.to(torch.bfloat16)
    tiny.write_shards(tmp_path, "model", stored, shards=3)
    equal(open_text_encoder(sorted(tmp_path.glob("*.safetensors"))), state)
    del stored["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(stored, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.down_proj_scales' is missing"):
        open_text_encoder((tmp_path / "cut.safetensors",))


def test_text_encoder_nvfp4_with_embedded_tokenizer(tmp_path: Path) -> None:
    state = tiny.random_text_encoder()
    del state["lm_head.weight"]  # Comfy's file has none
    stored: State = {}
    for name, tensor in list(state.items()):
        short = name.removeprefix("model.")
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            packed, state[name] = nvfp4((experts, outputs, inputs))
            stored |= {f"{short}.{part}": value for part, value in packed.items()}
            marker = bytearray(json.dumps({"format": "nvfp4"}).encode())
            stored[short + ".comfy_quant"] = torch.frombuffer(marker, dtype=torch.uint8)
        elif name.endswith(("gate_up_proj_bias", "down_proj_bias")):
            stored[short.removesuffix("_bias") + ".bias"] = tensor
        else:
            stored[short] = tensor
    text = tiny.small_tokenizer().to_str()
    stored["tokenizer_json"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    path = tmp_path / "gpt_oss_nvfp4.safetensors"
    save_file(stored, path)
    table = open_text_encoder((path,))
    assert table.tokenizer_json == text
    assert set(table.names()) == set(state)
    for name, expected in state.items():
        assert torch.allclose(table.tensor(name, torch.float32), expected, rtol=1e-6, atol=0), name


def test_text_encoder_gguf_with_mxfp4_experts(tmp_path: Path) -> None:
    """ggml-org's gpt-oss files: experts in MXFP4, the rest in F16/F32, no keys of ours."""
    state = tiny.random_text_encoder()
    tiny.write_embedded(tmp_path)
    source = gguf.GGUFReader(tmp_path / "text_encoder.gguf")
    writer = gguf.GGUFWriter(tmp_path / "mx.gguf", "gpt-oss")
    for field in source.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture", "lens.", "tokenizer.huggingface")):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for tensor in source.tensors:
        data = np.array(tensor.data)
        if "_exps.weight" in tensor.name:
            kind = gguf.GGMLQuantizationType.MXFP4
            writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    table = open_text_encoder((tmp_path / "mx.gguf",))
    assert isinstance(table.params, TextEncoderParams)
    assert not table.params.rope_truncate  # the published network was trained with the unrounded range
    assert table.params.template == TextEncoderParams().template
    for name, expected in state.items():
        read = table.tensor(name, torch.float32)
        relative = (read - expected).norm() / expected.norm()
        assert relative < (0.15 if name.endswith(("gate_up_proj", "down_proj")) else 1e-6), name


# autoencoder ---------------------------------------------------------------------------------------------------------


def to_bfl(name: str, levels: int) -> str:
    """diffusers -> BFL, written from the table of facts 3.8 the other way round than the code."""
    parts = name.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return f"{'encoder' if parts[0] == 'quant_conv' else 'decoder'}.{name}"
    if parts[0] == "bn":
        return name
    side, rest = parts[0], parts[1:]
    if rest[0] in ("down_blocks", "up_blocks"):
        level = int(rest[1]) if side == "encoder" else levels - 1 - int(rest[1])
        stem = f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"
        if rest[2] == "resnets":
            inner = ".".join(rest[4:]).replace("conv_shortcut", "nin_shortcut")
            return f"{stem}.block.{rest[3]}.{inner}"
        return f"{stem}.{'downsample' if side == 'encoder' else 'upsample'}.{'.'.join(rest[4:])}"
    if rest[0] == "mid_block" and rest[1] == "resnets":
        return f"{side}.mid.block_{int(rest[2]) + 1}.{'.'.join(rest[3:])}"
    if rest[0] == "mid_block":
        inner = ".".join(rest[3:-1])
        short = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}[inner]
        return f"{side}.mid.attn_1.{short}.{rest[-1]}"
    return name.replace("conv_norm_out", "norm_out")


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("attention", [True, False])
def test_vae_with_bfl_names(tmp_path: Path, attention: bool, prefix: str) -> None:
    from dataclasses import replace

    params = replace(tiny.VAE, mid_block_add_attention=attention)
    state = tiny.random_vae(params)
    levels = len(params.block_out_channels)
    stored: State = {}
    for name, tensor in state.items():
        linear = vae_keys.is_attention_linear(name)
        stored[prefix + to_bfl(name, levels)] = tensor[..., None, None] if linear else tensor
    assert len(stored) == len(state)
    save_file(stored, tmp_path / "flux2-vae.safetensors")
    table = open_vae((tmp_path / "flux2-vae.safetensors",), levels)
    equal(
        table,
        {n: t for n, t in state.items() if t.is_floating_point()}
        | {"bn.num_batches_tracked": state["bn.num_batches_tracked"]},
    )


def test_published_vae_names_map_one_to_one() -> None:
    from backend.model.autoencoder import build_vae
    from backend.params import VAEParams

    with torch.device("meta"):
        names = list(build_vae(VAEParams()).state_dict())
    assert len(names) == 251
    assert [vae_keys.to_diffusers(to_bfl(name, 4), 4) for name in names] == names


def test_experts_are_decoded_in_slabs_on_a_cpu_only() -> None:
    """A CPU's cache is why there are slabs; on a GPU each would be ten more launches, 434 an expert of gpt-oss."""
    for device, count in (("cpu", 32), ("cuda", 1), ("mps", 1)):
        slabs = list(block_scaled._slabs(5760, 2880, torch.device(device)))
        assert len(slabs) == count
        assert [row for slab in slabs for row in range(5760)[slab]] == list(range(5760))
