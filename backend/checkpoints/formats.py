"""Every accepted file format, as one table: public tensor name -> shape and a function that reads it.

A table knows nothing about networks; `checkpoint` compares it with one and fills it. Whatever a reader does not
recognise stays in the table under its stored name, so that it is reported as unexpected and never dropped.
Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from backend.checkpoints import detect, gguf_keys, vae_keys
from backend.checkpoints.headers import FileFormat
from backend.checkpoints.tensor_files import TensorFiles
from backend.errors import CheckpointError
from backend.packing import block_scaled, comfyui
from backend.packing.linears import PackedLinear
from backend.packing.schemes import SCHEMES
from backend.packing.storage import PackedWeight
from backend.params import DiTParams, TextEncoderParams

Read = Callable[[torch.dtype], torch.Tensor]
# Rows first to last (exclusive) of the first axis, on a device, with any strides: (dtype, device, first, last).
ReadPart = Callable[[torch.dtype, torch.device | str, int, int], torch.Tensor]

# What stands beside a packed weight: scales, markers, descriptions.
_BESIDE = re.compile(rf"\.(?:{'|'.join(sorted({re.escape(end) for scheme in SCHEMES for end in scheme.beside}))})$")
_PACKINGS = tuple({scheme.code: scheme for scheme in SCHEMES if scheme.in_files}.values())  # one a module
# Parts of a full ComfyUI checkpoint that are not the one asked for; known, so not reported as unexpected.
_OTHER_PARTS = ("first_stage_model.", "vae.", "text_encoders.", "cond_stage_model.", "model.diffusion_model.")


@dataclass(frozen=True)
class TensorEntry:
    """One public tensor: its shape once decoded, and how to read it, whole or some rows of it alone."""

    shape: tuple[int, ...]
    read: Read
    part: ReadPart | None = None  # None: a tensor that nobody reads in parts
    packed: Callable[[], PackedLinear] | None = None  # a linear over the stored bytes, on the CPU; None: not packed


@dataclass(frozen=True)
class TensorTable:
    """All tensors of one network as a set of files holds them."""

    origin: str  # for messages
    entries: Mapping[str, TensorEntry]
    params: DiTParams | TextEncoderParams | None = None  # where the files state them (GGUF)
    tokenizer_json: str | None = field(default=None, repr=False)  # where it is embedded
    release: Callable[[], None] = lambda: None  # gives what was read of the files back to the system

    def names(self) -> list[str]:
        return list(self.entries)

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self.entries[name].read(dtype)

    def part(self, name: str, dtype: torch.dtype, device: torch.device | str, first: int, last: int) -> torch.Tensor:
        """Rows of the first axis (experts, tokens) without the rest; strides may be any."""
        read = self.entries[name].part
        assert read is not None, f"{name} is not read in parts"
        return read(dtype, device, first, last)


# transformer ---------------------------------------------------------------------------------------------------------


def open_transformer(paths: Sequence[Path]) -> TensorTable:
    """safetensors (plain, MXFP8, scaled FP8, bitsandbytes' NF4 and int8) or GGUF.

    Raises CheckpointError naming another model.
    """
    files = TensorFiles(paths)
    if not detect.is_transformer(files.names()):
        raise CheckpointError(f"{files.origin}: {detect.identify(files.names())}, expected a Lens transformer")
    prefix = detect.transformer_prefix(files.names())
    entries: dict[str, TensorEntry] = {}
    for stored in _wanted(files, prefix):
        name = stored.removeprefix(prefix)
        if name == "scaled_fp8" or _owner(files, stored) is not None:
            continue  # a marker of the whole file, or consumed with the weight it belongs to
        entries[name] = _transformer_entry(files, stored)
    params = gguf_keys.transformer_params(files.metadata, files.origin) if files.format is FileFormat.gguf else None
    return TensorTable(files.origin, entries, params, release=files.release)


def _transformer_entry(files: TensorFiles, stored: str) -> TensorEntry:
    """A weight in whichever packing it is stored; GGUF's are read by the same code as its plain ones."""
    found = _packed_weight(files, stored)
    if found is None or files.format is FileFormat.gguf:
        return replace(_plain(files, stored), packed=found.make if found is not None else None)
    make = found.make
    return TensorEntry(found.shape, lambda dtype: make().decoded(dtype), packed=make)


def _owner(files: TensorFiles, stored: str) -> str | None:
    """The weight that a tensor only describes; None: it describes none, and stands for itself."""
    match = _BESIDE.search(stored)
    weight = None if match is None else stored[: match.start()] + ".weight"
    return weight if weight is not None and weight in files else None


def _packed_weight(files: TensorFiles, stored: str) -> PackedWeight | None:
    """What the first packing that knows a tensor says of it; None: it is plain, or only ever decoded whole.

    Raises CheckpointError for a packing whose parts do not fit, or that lens does not know.
    """
    return next((found for scheme in _PACKINGS if (found := scheme.load().find(files, stored))), None)


# text encoder --------------------------------------------------------------------------------------------------------


def open_text_encoder(paths: Sequence[Path]) -> TensorTable:
    """GPT-OSS from safetensors (plain, OpenAI's MXFP4, Comfy's NVFP4) or llama.cpp's GGUF."""
    files = TensorFiles(paths)
    if not detect.is_text_encoder(files.names()):
        raise CheckpointError(f"{files.origin}: {detect.identify(files.names())}, expected a GPT-OSS text encoder")
    return _text_gguf(files) if files.format is FileFormat.gguf else _text_safetensors(files)


def _text_safetensors(files: TensorFiles) -> TensorTable:
    prefix = next(p for p in detect.TEXT_PREFIXES if f"{p}layers.0.self_attn.sinks" in files)
    entries: dict[str, TensorEntry] = {}
    tokenizer: str | None = None
    for stored in files.names():
        if stored == "tokenizer_json":
            tokenizer = bytes(files.raw(stored).numpy().tobytes()).decode("utf-8")
        elif stored == "lm_head.weight":
            entries[stored] = _plain(files, stored)
        elif not stored.startswith(prefix):
            if not stored.startswith(_OTHER_PARTS):
                entries[stored] = _plain(files, stored)
        else:
            name = "model." + stored.removeprefix(prefix)
            _text_entry(files, stored, name, entries)
    return TensorTable(files.origin, entries, None, tokenizer, files.release)


def _text_entry(files: TensorFiles, stored: str, name: str, entries: dict[str, TensorEntry]) -> None:
    """Put the public entry of one stored tensor into `entries`; scales are taken with their weight."""
    match = re.search(r"\.mlp\.experts\.(?:gate_up_proj|down_proj)", name)
    end = "" if match is None else name[match.end() :]
    stem, public = stored.removesuffix(end), name.removesuffix(end)
    if end in _EXPERTS_BESIDE and stem + _EXPERTS_BESIDE[end] in files:
        return
    if end in _PACKED_EXPERTS:
        entries[public] = _PACKED_EXPERTS[end](files, stem)
    else:  # plain, or something unknown that the strict check will name
        entries[public + "_bias" if end == ".bias" else name] = _plain(files, stored)


def _mxfp4_experts(files: TensorFiles, stem: str) -> TensorEntry:
    """OpenAI's."""
    blocks, scales = stem + "_blocks", stem + "_scales"

    def read(dtype: torch.dtype) -> torch.Tensor:
        return block_scaled.mxfp4_experts(files.raw(blocks), files.raw(scales), dtype)

    return TensorEntry(_mxfp4_shape(files, blocks, scales), read, _mxfp4_part(files, blocks, scales))


def _nvfp4_experts(files: TensorFiles, stem: str) -> TensorEntry:
    """ComfyUI's. Raises CheckpointError where the marker names another packing."""
    comfyui.check_marker(files, stem, ("nvfp4",))
    names = weight, scale, outer = stem + ".weight", stem + ".weight_scale", stem + ".weight_scale_2"

    def read(dtype: torch.dtype) -> torch.Tensor:
        return block_scaled.nvfp4_experts(files.raw(weight), files.raw(scale), files.raw(outer), dtype)

    return TensorEntry(_nvfp4_shape(files, *names), read, _nvfp4_part(files, *names))


# Ends of the experts' stored names: what is read in another form, and what only describes such a tensor.
_PACKED_EXPERTS: Mapping[str, Callable[[TensorFiles, str], TensorEntry]] = {
    "_blocks": _mxfp4_experts,
    ".weight": _nvfp4_experts,
}
_EXPERTS_BESIDE = {
    "_scales": "_blocks",
    ".weight_scale": ".weight",
    ".weight_scale_2": ".weight",
    ".comfy_quant": ".weight",
    ".input_scale": ".weight",
}


def _mxfp4_shape(files: TensorFiles, blocks: str, scales: str) -> tuple[int, ...]:
    shape = files.shape(blocks)
    if scales not in files:
        raise CheckpointError(f"{files.origin}: tensor {scales!r} is missing")
    good = len(shape) == 4 and shape[3] == 16 and files.shape(scales) == shape[:3]
    if not good or files.kind(blocks) != "U8" or files.kind(scales) != "U8":
        raise CheckpointError(
            f"{files.origin}: {blocks!r} {list(shape)} with scales {list(files.shape(scales))} is no MXFP4 tensor"
        )
    return shape[0], shape[2] * block_scaled.MXFP4_BLOCK, shape[1]


def _nvfp4_shape(files: TensorFiles, weight: str, scale: str, outer: str) -> tuple[int, ...]:
    for name in (scale, outer):
        if name not in files:
            raise CheckpointError(f"{files.origin}: tensor {name!r} is missing")
    shape = files.shape(weight)
    good = len(shape) == 3 and files.kind(weight) == "U8" and files.kind(scale) == "F8_E4M3"
    if good:
        per_expert = block_scaled.padded(shape[1], 2 * shape[2] // block_scaled.NVFP4_BLOCK)
        good = 2 * shape[2] % block_scaled.NVFP4_BLOCK == 0 and math.prod(files.shape(scale)) == shape[0] * per_expert
        good = good and files.kind(outer) == "F32" and math.prod(files.shape(outer)) in (1, shape[0])
    if not good:
        raise CheckpointError(
            f"{files.origin}: {weight!r} {list(shape)} ({files.kind(weight)}) with scales "
            f"{list(files.shape(scale))} ({files.kind(scale)}) is no NVFP4 tensor"
        )
    return shape[0], 2 * shape[2], shape[1]


def _mxfp4_part(files: TensorFiles, blocks: str, scales: str) -> ReadPart:
    def part(dtype: torch.dtype, device: torch.device | str, first: int, last: int) -> torch.Tensor:
        pairs = zip(files.raw(blocks)[first:last], files.raw(scales)[first:last], strict=True)
        return _joined([block_scaled.mxfp4_expert(b.to(device), s.to(device), dtype) for b, s in pairs])

    return part


def _nvfp4_part(files: TensorFiles, weight: str, scale: str, outer: str) -> ReadPart:
    def part(dtype: torch.dtype, device: torch.device | str, first: int, last: int) -> torch.Tensor:
        packed = files.raw(weight)
        scales = files.raw(scale).reshape(len(packed), -1)
        per_expert = files.raw(outer).reshape(-1).expand(len(packed))
        return _joined(
            [
                block_scaled.nvfp4_expert(packed[e].to(device), scales[e].to(device), per_expert[e].to(device), dtype)
                for e in range(first, last)
            ]
        )

    return part


def _joined(experts: list[torch.Tensor]) -> torch.Tensor:
    """Some (O, I) -> (E, I, O); one alone is not copied."""
    return (experts[0][None] if len(experts) == 1 else torch.stack(experts)).mT


def _text_gguf(files: TensorFiles) -> TensorTable:
    if "token_embd.weight" not in files:
        raise CheckpointError(f"{files.origin}: tensor 'token_embd.weight' is missing")
    params = gguf_keys.text_params(files.metadata, files.shape("token_embd.weight")[0], files.origin)
    renamed = gguf_keys.text_names(params.num_hidden_layers)
    entries: dict[str, TensorEntry] = {}
    for stored in files.names():
        if stored in renamed:
            entries[renamed[stored]] = _plain(files, stored)
        elif not _is_expert(stored):
            entries[stored] = _plain(files, stored)
    for index in range(params.num_hidden_layers):
        block, experts = f"blk.{index}.", f"model.layers.{index}.mlp.experts."
        absent = [block + s for s in gguf_keys.EXPERT_SUFFIXES if block + s not in files]
        if absent:
            raise CheckpointError(f"{files.origin}: tensor {absent[0]!r} is missing")
        gate, up, down = (f"{block}ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
        gate_bias, up_bias = f"{block}ffn_gate_exps.bias", f"{block}ffn_up_exps.bias"
        for one, two in ((gate, up), (gate_bias, up_bias)):
            if files.shape(one) != files.shape(two):
                raise CheckpointError(
                    f"{files.origin}: {one!r} is {list(files.shape(one))}, {two!r} is {list(files.shape(two))}"
                )
        rows, inner, hidden = files.shape(gate)
        entries[experts + "gate_up_proj"] = TensorEntry(
            (rows, hidden, 2 * inner), _gate_up(files, gate, up), _gate_up_part(files, gate, up)
        )
        entries[experts + "gate_up_proj_bias"] = TensorEntry(
            (rows, 2 * inner), _gate_up_bias(files, gate_bias, up_bias)
        )
        rows, hidden, inner = files.shape(down)
        entries[experts + "down_proj"] = TensorEntry(
            (rows, inner, hidden), _transposed(files, down), _transposed_part(files, down)
        )
    return TensorTable(files.origin, entries, params, files.metadata.get(gguf_keys.HF_TOKENIZER_KEY), files.release)


def _is_expert(stored: str) -> bool:
    return stored.startswith("blk.") and stored.split(".", 2)[-1] in gguf_keys.EXPERT_SUFFIXES


def _gate_up(files: TensorFiles, gate: str, up: str) -> Read:
    """Two (E, O, I) -> (E, I, 2O), gate in the even, up in the odd outputs."""

    def read(dtype: torch.dtype) -> torch.Tensor:
        experts, outputs, inputs = files.shape(gate)
        out = torch.empty(experts, inputs, 2 * outputs, dtype=dtype)
        out[:, :, 0::2] = files.floats(gate, dtype).transpose(1, 2)
        out[:, :, 1::2] = files.floats(up, dtype).transpose(1, 2)
        return out

    return read


def _gate_up_part(files: TensorFiles, gate: str, up: str) -> ReadPart:
    def part(dtype: torch.dtype, device: torch.device | str, first: int, last: int) -> torch.Tensor:
        both = [files.part(name, dtype, device, first, last) for name in (gate, up)]
        return torch.stack(both, dim=2).flatten(1, 2).mT

    return part


def _transposed_part(files: TensorFiles, name: str) -> ReadPart:
    return lambda dtype, device, first, last: files.part(name, dtype, device, first, last).mT


def _gate_up_bias(files: TensorFiles, gate: str, up: str) -> Read:
    return lambda dtype: torch.stack((files.floats(gate, dtype), files.floats(up, dtype)), dim=-1).flatten(1)


def _transposed(files: TensorFiles, name: str) -> Read:
    return lambda dtype: files.floats(name, dtype).transpose(1, 2).contiguous()


# autoencoder ---------------------------------------------------------------------------------------------------------


def open_vae(paths: Sequence[Path], levels: int) -> TensorTable:
    """safetensors with diffusers' or Black Forest Labs' names; `levels`: number of resolutions of the network."""
    files = TensorFiles(paths)
    if not detect.is_vae(files.names()):
        raise CheckpointError(f"{files.origin}: {detect.identify(files.names())}, expected a FLUX.2 autoencoder")
    prefix = vae_keys.prefix_of(files.names())
    stored_names = _wanted(files, prefix)
    bfl = vae_keys.is_bfl(name.removeprefix(prefix) for name in stored_names)
    entries: dict[str, TensorEntry] = {}
    for stored in stored_names:
        name = stored.removeprefix(prefix)
        if bfl:
            name = vae_keys.to_diffusers(name, levels)
        shape = files.shape(stored)
        if vae_keys.is_attention_linear(name) and len(shape) == 4 and shape[2:] == (1, 1):
            entries[name] = TensorEntry(shape[:2], _squeezed(files, stored))
        elif name == "bn.num_batches_tracked":
            entries[name] = TensorEntry(shape, _integer(files, stored))
        else:
            entries[name] = _plain(files, stored)
    return TensorTable(files.origin, entries)


def _squeezed(files: TensorFiles, stored: str) -> Read:
    return lambda dtype: files.floats(stored, dtype).flatten(1)


def _integer(files: TensorFiles, stored: str) -> Read:
    return lambda _dtype: files.raw(stored).to(torch.int64)


# shared --------------------------------------------------------------------------------------------------------------


def _plain(files: TensorFiles, stored: str) -> TensorEntry:
    return TensorEntry(
        files.shape(stored),
        lambda dtype: files.floats(stored, dtype),
        lambda dtype, device, first, last: files.part(stored, dtype, device, first, last),
    )


def _wanted(files: TensorFiles, prefix: str) -> list[str]:
    """Stored names of one part: with a prefix, the other known parts of a full checkpoint are left aside."""
    if not prefix:
        return files.names()
    return [name for name in files.names() if name.startswith(prefix) or not name.startswith(_OTHER_PARTS)]
