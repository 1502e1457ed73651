"""The exact path: one layer at a time, from every format, against transformers' GptOss on the same numbers.

Why it can be trusted: the reference holds what other code decodes from the same files (transformers' own MXFP4
decoder, the gguf library, element-wise NVFP4), it is run whole, and the residual stream is read by hooks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GptOssForCausalLM

from backend.checkpoints import formats
from backend.checkpoints.gguf_keys import text_names
from backend.checkpoints.resolve import resolve_model
from backend.checkpoints.write_gguf import write_text_encoder_gguf
from backend.errors import CheckpointError
from backend.loading import load_text_encoder
from backend.params import TextEncoderParams
from backend.text.streaming import StreamingEncoder
from tests.backend import tiny_weights as tiny
from tests.backend.checkpoints.test_formats import nvfp4
from tests.backend.model.test_text_encoder import error, run_reference
from tests.backend.model.test_text_encoder import reference as sharp_reference

TOLERANCE = 1e-5
MANY = replace(tiny.TEXT, num_local_experts=9, sliding_window=5, rope_truncate=False)
FEW = replace(MANY, num_local_experts=4)
State = dict[str, Tensor]
RNG = torch.Generator().manual_seed(7)
PROMPTS = [torch.randint(0, 512, (length,), generator=RNG).tolist() for length in (40, 3, 1)]


def reference(params: TextEncoderParams) -> GptOssForCausalLM:
    """Attention as soft as in a trained network: random weights of this width double float32's rounding each layer."""
    model = sharp_reference(params)
    for name, p in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            p.data *= 0.5
    return model


def is_expert(name: str) -> bool:
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


# Each writer puts the reference's weights into files and its experts' new values back into the reference. ------------


def mxfp4_shards(folder: Path, model: GptOssForCausalLM, params: TextEncoderParams) -> list[Path]:
    """As OpenAI publishes it: experts as blocks and scales, the rest bfloat16, over three files."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored: State = {}
    for name, tensor in model.state_dict().items():
        if is_expert(name):
            experts, inputs, outputs = tensor.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=RNG)
            scales = torch.randint(121, 125, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=RNG)
            stored |= {name + "_blocks": blocks, name + "_scales": scales}
            tensor.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
        else:
            stored[name] = tensor.to(torch.bfloat16)
            tensor.copy_(stored[name].float())
    tiny.write_shards(folder, "model", stored, shards=3)
    return sorted(folder.glob("*.safetensors"))


def nvfp4_file(folder: Path, model: GptOssForCausalLM, params: TextEncoderParams) -> list[Path]:
    """As Comfy-Org publishes it: no head, no `model.` prefix, the tokenizer inside (of odd length)."""
    stored: State = {"tokenizer_json": torch.frombuffer(bytearray(b"{}\n"), dtype=torch.uint8)}
    for name, tensor in model.state_dict().items():
        short = name.removeprefix("model.")
        if is_expert(name):
            experts, inputs, outputs = tensor.shape
            packed, plain = nvfp4((experts, outputs, inputs))
            packed["weight_scale_2"] /= 10
            tensor.copy_(plain / 10)
            stored |= {f"{short}.{part}": value for part, value in packed.items()}
        elif name.endswith("proj_bias"):
            stored[short.removesuffix("_bias") + ".bias"] = tensor.clone()
        elif not name.startswith("lm_head"):
            stored[short] = tensor.clone()
    save_file(stored, folder / "nvfp4.safetensors")
    return [folder / "nvfp4.safetensors"]


def plain_file(dtype: torch.dtype) -> Callable[[Path, GptOssForCausalLM, TextEncoderParams], list[Path]]:
    def write(folder: Path, model: GptOssForCausalLM, params: TextEncoderParams) -> list[Path]:
        stored = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        for name, tensor in model.state_dict().items():
            tensor.copy_(stored[name].float())
        save_file(stored, folder / "plain.safetensors")
        return [folder / "plain.safetensors"]

    return write


def gguf_file(kind: str) -> Callable[[Path, GptOssForCausalLM, TextEncoderParams], list[Path]]:
    """llama.cpp's layout; the reference gets what the gguf library reads. MXFP4: the experts alone, the rest F16."""

    def write(folder: Path, model: GptOssForCausalLM, params: TextEncoderParams) -> list[Path]:
        path = folder / "text.gguf"
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        dtype = "F32" if kind == "MXFP4" else kind
        write_text_encoder_gguf(path, state, params, tiny.small_tokenizer().to_str(), dtype=dtype)
        if kind == "MXFP4":
            path = with_mxfp4_experts(path, folder / "mxfp4.gguf")
        stored = {
            t.name: torch.from_numpy(
                np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32).reshape(t.shape[::-1])
            )
            for t in gguf.GGUFReader(path).tensors
        }
        own = model.state_dict()
        for theirs, name in text_names(params.num_hidden_layers).items():
            own[name].copy_(stored[theirs])
        for i in range(params.num_hidden_layers):
            block, experts = f"blk.{i}.ffn_", f"model.layers.{i}.mlp.experts."
            for offset, part in enumerate(("gate", "up")):
                own[experts + "gate_up_proj"][:, :, offset::2] = stored[f"{block}{part}_exps.weight"].transpose(1, 2)
                own[experts + "gate_up_proj_bias"][:, offset::2] = stored[f"{block}{part}_exps.bias"]
            own[experts + "down_proj"].copy_(stored[block + "down_exps.weight"].transpose(1, 2))
        return [path]

    return write


def with_mxfp4_experts(source: Path, target: Path) -> Path:
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "gpt-oss")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if "_exps.weight" in tensor.name:
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.MXFP4)
            writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(tensor.name, data)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return target


FORMATS: dict[str, Callable[[Path, GptOssForCausalLM, TextEncoderParams], list[Path]]] = {
    "mxfp4 safetensors": mxfp4_shards,
    "nvfp4 safetensors": nvfp4_file,
    "float32 safetensors": plain_file(torch.float32),
    "bfloat16 safetensors": plain_file(torch.bfloat16),
    "gguf mxfp4": gguf_file("MXFP4"),
    "gguf f16": gguf_file("F16"),
    "gguf q8_0": gguf_file("Q8_0"),
}


@pytest.mark.parametrize("params", [MANY, FEW], ids=["many experts", "few experts"])
@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_equal_to_transformers_in_every_format(tmp_path: Path, name: str, params: TextEncoderParams) -> None:
    model = reference(params)
    paths = FORMATS[name](tmp_path, model, params)
    encoder = StreamingEncoder(formats.open_text_encoder(paths), params, torch.float32, "cpu")
    found = encoder.hidden_states(PROMPTS, (0, 2))
    for ids, got in zip(PROMPTS, found, strict=True):
        wanted, _ = run_reference(model, torch.tensor([ids]), None)
        assert got.shape == (len(ids), 2, params.hidden_size)
        for column, block in enumerate((0, 2)):
            assert error(got[:, column], wanted[block][0]) < TOLERANCE


@torch.no_grad()
def test_the_unrounded_range_shows(tmp_path: Path) -> None:
    """The comparison above would notice llama.cpp's rounding of the YaRN range."""
    model = reference(MANY)
    table = formats.open_text_encoder(plain_file(torch.float32)(tmp_path, model, MANY))
    wanted, _ = run_reference(model, torch.tensor([PROMPTS[0]]), None)
    rounded = StreamingEncoder(table, replace(MANY, rope_truncate=True), torch.float32, "cpu")
    assert error(rounded.hidden_states(PROMPTS[:1], (2,))[0][:, 0], wanted[2][0]) > 100 * TOLERANCE


@pytest.mark.parametrize("params", [MANY, FEW], ids=["many experts", "few experts"])
def test_a_prompt_does_not_depend_on_its_neighbours(tmp_path: Path, params: TextEncoderParams) -> None:
    """To the last bit: features are kept by prompt, and a picture must not depend on what was encoded beside it."""
    model = reference(params)
    table = formats.open_text_encoder(plain_file(torch.float32)(tmp_path, model, params))
    encoder = StreamingEncoder(table, params, torch.float32, "cpu")
    together = encoder.hidden_states(PROMPTS, (1, 2))
    for ids, got in zip(PROMPTS, together, strict=True):
        assert torch.equal(encoder.hidden_states([ids], (1, 2))[0], got)


def test_equal_to_the_whole_encoder_with_few_experts(tmp_path: Path) -> None:
    """Bit by bit, in both dtypes: Lens-Nano's pictures are those of the encoder that its transformer was trained on."""
    files = resolve_model(str(tiny.write_embedded(tmp_path, dtype="F16")))
    ids = torch.tensor([PROMPTS[0]])
    for dtype in (torch.float32, torch.bfloat16):
        whole = load_text_encoder(files, dtype, "cpu").hidden_states(ids, (0, 2))
        table = formats.open_text_encoder(files.text_encoder)
        streamed = StreamingEncoder(table, tiny.TEXT, dtype, "cpu").hidden_states([PROMPTS[0]], (0, 2))[0]
        assert streamed.dtype == dtype
        assert torch.equal(streamed, torch.stack([state[0] for state in whole], dim=1))


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers up to the last one taken; of their experts the chosen ones; of the embedding the rows that occur."""
    model = reference(MANY)
    table = formats.open_text_encoder(plain_file(torch.float32)(tmp_path, model, MANY))
    read: list[tuple[str, int]] = []
    part = formats.TensorTable.part

    def spied(self: formats.TensorTable, name: str, *rest: Any) -> Tensor:
        read.append((name, rest[2]))
        return part(self, name, *rest)

    monkeypatch.setattr(formats.TensorTable, "part", spied)
    StreamingEncoder(table, MANY, torch.float32, "cpu").hidden_states([PROMPTS[1]], (0, 1))
    assert sorted(row for name, row in read if "embed" in name) == sorted(set(PROMPTS[1]))
    experts = {(name, row) for name, row in read if "experts" in name}
    assert len(experts) == len([name for name, _ in read if "experts" in name])  # none twice
    assert {name.split(".")[2] for name, _ in experts} == {"0", "1"}
    for layer in ("0", "1"):  # three tokens choose two each
        assert 2 * 2 <= len([name for name, _ in experts if name.split(".")[2] == layer]) <= 2 * 6 < 2 * 9


def test_wrong_tensors_are_named_before_anything_runs(tmp_path: Path) -> None:
    state = tiny.random_text_encoder()
    del state["model.layers.2.self_attn.sinks"]
    state["model.layers.0.mlp.router.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.sinks.*router\.bias is \[5\], expected \[4\]"):
        StreamingEncoder(formats.open_text_encoder([tmp_path / "bad.safetensors"]), tiny.TEXT, torch.float32, "cpu")
    with pytest.raises(ValueError, match="float16 overflows"):
        StreamingEncoder(formats.open_text_encoder([tmp_path / "bad.safetensors"]), tiny.TEXT, torch.float16, "cpu")


# ------------------------------------------------------------------------------------------------------------- memory

DEEP = replace(
    MANY, num_hidden_layers=12, num_local_experts=16, hidden_size=256, intermediate_size=256, num_experts_per_tok=2
)
# Without this module, whose imports take longer than all the rest.
_CHILD = f"""
import sys, torch
from backend.checkpoints import formats
from backend.params import TemplateParams, TextEncoderParams
from backend.text.streaming import StreamingEncoder
DEEP = {DEEP!r}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
from pathlib import Path
table = formats.open_text_encoder([Path(sys.argv[1])])
encoder = StreamingEncoder(table, DEEP, torch.float32, "cpu")
if sys.argv[2] == "streamed":
    encoder.hidden_states([[1, 2, 3]], (0,))  # the libraries' own pages
    before = resident()
    encoder.hidden_states([list(range(60))], (DEEP.num_hidden_layers - 1,))
else:
    before = resident()
    whole = {{name: table.tensor(name, torch.float32) for name in table.names()}}
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_that_of_one_layer(tmp_path: Path) -> None:
    """12 layers of 6.8 MB as MXFP4 (51 MB each in float32): streaming stays below one, loading needs them all."""
    generator = torch.Generator().manual_seed(3)
    stored: State = {}
    for name, shape in formats_shapes(DEEP).items():
        if is_expert(name):
            experts, inputs, outputs = shape
            packed = (experts, outputs, inputs // 32, 16)
            stored[name + "_blocks"] = torch.randint(0, 256, packed, dtype=torch.uint8, generator=generator)
            stored[name + "_scales"] = torch.full(packed[:3], 121, dtype=torch.uint8)
        else:
            stored[name] = torch.randn(shape, generator=generator) * 0.1
    save_file(stored, tmp_path / "deep.safetensors")
    layer = sum(
        4 * int(np.prod(shape)) for name, shape in formats_shapes(DEEP).items() if name.startswith("model.layers.0.")
    )
    used = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", _CHILD, str(tmp_path / "deep.safetensors"), how],
                capture_output=True, text=True, check=True, timeout=300, cwd=Path(__file__).parents[3],
            ).stdout
        )
        for how in ("streamed", "whole")
    }  # fmt: skip
    assert used["whole"] > 10 * layer
    assert used["streamed"] < layer, (used, layer)


def formats_shapes(params: TextEncoderParams) -> dict[str, tuple[int, ...]]:
    from backend.model.tensors import text_encoder_shapes

    return text_encoder_shapes(params)
