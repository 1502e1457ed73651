"""Writes the transformer and the text encoder as GGUF: how Lens-Nano is stored, and how a fine-tune can be shipped.

The transformer goes out tensor by tensor, so that the published one needs the memory of its largest matrix. The text
encoder's file is llama.cpp's `gpt-oss`, so llama.cpp and torch read the same bytes. Writes are atomic.
Legend: E experts, H hidden width, I expert width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from backend.checkpoints.gguf_keys import (
    HF_TOKENIZER_KEY,
    TEXT_ARCH,
    TRANSFORMER_ARCH,
    text_header,
    text_names,
    transformer_header,
)
from backend.disk import replacing
from backend.errors import CheckpointError
from backend.model.tensors import Shapes, text_encoder_shapes, transformer_shapes
from backend.packing.ggml_write import K_TYPES, pack
from backend.params import DiTParams, TextEncoderParams

QUANTS = {  # name -> (ggml type, file type for general.file_type); what llama.cpp can run
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "BF16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q5_0": (gguf.GGMLQuantizationType.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "Q6_K": (gguf.GGMLQuantizationType.Q6_K, gguf.LlamaFileType.MOSTLY_Q6_K),
    "Q5_K": (gguf.GGMLQuantizationType.Q5_K, gguf.LlamaFileType.MOSTLY_Q5_K_S),
    "Q4_K": (gguf.GGMLQuantizationType.Q4_K, gguf.LlamaFileType.MOSTLY_Q4_K_S),
}
HALF_MAX = 65504.0  # largest float16

# Control tokens of the harmony format, looked up by content: (GGUF key, content, must be there).
_ROLES = (
    ("tokenizer.ggml.bos_token_id", "<|startoftext|>", False),
    ("tokenizer.ggml.eos_token_id", "<|return|>", True),
    ("tokenizer.ggml.padding_token_id", "<|endoftext|>", False),
)

Array = NDArray[Any]


def write_transformer_gguf(
    path: Path | str,
    state: Mapping[str, torch.Tensor],
    params: DiTParams,
    *,
    quant: str = "Q8_0",
    metadata: Mapping[str, str | int | float | bool] | None = None,
) -> None:
    """Write the transformer under its public tensor names, parameters as `lens.*` keys (architecture "lens").

    Every 2-D weight is quantised where its width allows it: see `stream_transformer_gguf`. `metadata`: further keys,
    for instance {"general.name": "Lens-Nano", "general.license": "mit"}.
    Raises CheckpointError for a missing, extra, misshapen or non-finite tensor, FileError if it cannot be written.
    """
    _check(state, transformer_shapes(params), Path(path))
    stream_transformer_gguf(path, state.__getitem__, params, quant=quant, metadata=metadata)


def stream_transformer_gguf(
    path: Path | str,
    read: Callable[[str], torch.Tensor],
    params: DiTParams,
    *,
    quant: str,
    plain: Callable[[str], bool] = lambda name: False,
    metadata: Mapping[str, str | int | float | bool] | None = None,
    on_tensor: Callable[[int], None] = lambda nbytes: None,
) -> Counter[str]:
    """Write the transformer, asking `read` for one public tensor at a time; how many matrices have which type.

    2-D weights for which `plain` is true are stored in BF16. Others have the type `quant` where their input width
    divides into its blocks (32, or 256 for the K types); else Q8_0 where 32 divides it, else F16. Vectors (norms,
    biases: 0.1 % of the bytes) are F32. `on_tensor` is told the bytes of each tensor written; what it raises ends the
    writing and leaves nothing behind, as every other error does.
    Raises CheckpointError for a non-finite tensor, FileError if it cannot be written.
    """
    target = Path(path)
    kind, file_type = _quant(quant)
    writer = gguf.GGUFWriter(None, TRANSFORMER_ARCH)
    _add_keys(writer, {"general.type": "model", **transformer_header(params)}, metadata)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(int(file_type))
    kinds = {
        name: _kind_for(shape, gguf.GGMLQuantizationType.BF16 if plain(name) else kind)
        for name, shape in transformer_shapes(params).items()
    }
    for name, shape in transformer_shapes(params).items():
        stored = gguf.quant_shape_to_byte_shape(shape, kinds[name])
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kinds[name])

    def packed() -> Iterator[Array]:
        for name, found in kinds.items():
            array = _packed(name, _float32(read(name)), found, target)
            yield array
            on_tensor(array.nbytes)

    _finish(writer, target, packed())
    return Counter(found.name for name, found in kinds.items() if len(transformer_shapes(params)[name]) == 2)


def transformer_gguf_bytes(params: DiTParams, quant: str, plain: Callable[[str], bool]) -> int:
    """Bytes that the tensors of such a file take; the header adds less than 1 MB."""
    kind, _ = _quant(quant)
    kinds = gguf.GGMLQuantizationType
    return sum(
        math.prod(gguf.quant_shape_to_byte_shape(shape, _kind_for(shape, kinds.BF16 if plain(name) else kind)))
        for name, shape in transformer_shapes(params).items()
    )


def write_text_encoder_gguf(
    path: Path | str,
    state: Mapping[str, torch.Tensor],
    params: TextEncoderParams,
    tokenizer_json: str,
    *,
    dtype: str = "F16",
    chat_template: str | None = None,
    metadata: Mapping[str, str | int | float | bool] | None = None,
) -> None:
    """Write the GPT-OSS network and its tokenizer as llama.cpp's `gpt-oss`.

    `state`: keys of Hugging Face's GptOssForCausalLM, experts dequantised, the head included. `tokenizer_json`: the
    text of a tokenizer.json with a byte-level BPE; it is stored whole as well, because llama.cpp's own fields lose
    the split expression. `dtype`: F32, F16, BF16 or a quantised type of QUANTS, for matrices; router, norms, biases
    and sinks are always F32, as in llama.cpp's converter.
    Raises CheckpointError for wrong tensors, a tokenizer that does not fit, or parameters that llama.cpp would
    silently run differently.
    """
    target = Path(path)
    if params.swiglu_limit != 7.0:
        raise CheckpointError(f"{target}: llama.cpp fixes gpt-oss's swiglu_limit at 7.0, this network has another")
    _check(state, text_encoder_shapes(params), target)
    kind, file_type = _quant(dtype)
    writer = gguf.GGUFWriter(None, TEXT_ARCH)
    _add_keys(writer, {"general.type": "model", **text_header(params)}, metadata)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(int(file_type))
    _add_tokenizer(writer, tokenizer_json, params.vocab_size, target)
    if chat_template:
        writer.add_chat_template(chat_template)
    for name, array in _text_tensors(state, params.num_hidden_layers):
        exact = array.ndim == 1 or name.endswith(".bias") or "ffn_gate_inp" in name
        _add_tensor(writer, name, array, gguf.GGMLQuantizationType.F32 if exact else kind, target)
    _finish(writer, target)


def _text_tensors(state: Mapping[str, torch.Tensor], layers: int) -> Iterator[tuple[str, Array]]:
    """The public tensors in GGUF's form: experts (E, out, in), gate and up apart."""
    for theirs, ours in text_names(layers).items():
        yield theirs, _float32(state[ours])
    for index in range(layers):
        experts = f"model.layers.{index}.mlp.experts."
        gate_up = _float32(state[experts + "gate_up_proj"])  # (E, H, 2I), even outputs gate, odd outputs up
        bias = _float32(state[experts + "gate_up_proj_bias"])  # (E, 2I)
        for offset, part in ((0, "gate"), (1, "up")):
            yield f"blk.{index}.ffn_{part}_exps.weight", gate_up[:, :, offset::2].transpose(0, 2, 1)
            yield f"blk.{index}.ffn_{part}_exps.bias", bias[:, offset::2]
        yield f"blk.{index}.ffn_down_exps.weight", _float32(state[experts + "down_proj"]).transpose(0, 2, 1)


def _check(state: Mapping[str, torch.Tensor], expected: Shapes, path: Path) -> None:
    """Exactly the tensors of the table, finite: a shipped file is read by others, so nothing is let through."""
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{path}: not written: {len(missing)} tensors missing, {len(extra)} unexpected, "
            f"first {(missing or extra)[0]!r}"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(f"{path}: not written: {name!r} is {list(state[name].shape)}, expected {list(shape)}")
        if not torch.isfinite(state[name]).all():
            raise CheckpointError(f"{path}: not written: {name!r} has values that are not finite")


def _quant(name: str) -> tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]:
    if name.upper() not in QUANTS:
        raise CheckpointError(f"{name!r} is no type that can be written", hint=f"one of {', '.join(QUANTS)}")
    return QUANTS[name.upper()]


def _float32(tensor: torch.Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float32).numpy()


def _add_tensor(writer: gguf.GGUFWriter, name: str, array: Array, kind: gguf.GGMLQuantizationType, path: Path) -> None:
    kind = _kind_for(array.shape, kind)
    packed = _packed(name, array, kind, path)
    writer.add_tensor(name, packed, raw_shape=gguf.quant_shape_to_byte_shape(array.shape, kind), raw_dtype=kind)


def _kind_for(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """The type a tensor gets where most have `kind`: told from its shape, before it is read."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
        return kind
    return types.Q8_0 if kind in K_TYPES and shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0] == 0 else types.F16


def _packed(name: str, array: Array, kind: gguf.GGMLQuantizationType, path: Path) -> Array:
    """A float32 tensor as the bytes of its type, U8 with the leading axes kept. Raises CheckpointError."""
    types = gguf.GGMLQuantizationType
    array = np.ascontiguousarray(array)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path}: not written: {name!r} has values that are not finite")
    if kind is types.F16 and np.abs(array).max(initial=0.0) > HALF_MAX:
        raise CheckpointError(f"{path}: {name!r} does not fit float16", hint="write it as BF16 or F32")
    rows = array.reshape(-1, array.shape[-1])
    return pack(rows, kind).reshape(*array.shape[:-1], -1)


def _add_keys(
    writer: gguf.GGUFWriter,
    header: Mapping[str, Any],
    extra: Mapping[str, str | int | float | bool] | None,
) -> None:
    for key, value in {**header, **(extra or {})}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer_json: str, vocab_size: int, path: Path) -> None:
    """llama.cpp's fields: `gpt2` byte-level BPE with the o200k split (`gpt-4o`), and the whole JSON beside them."""
    table = json.loads(tokenizer_json)
    model = table.get("model", {})
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise CheckpointError(f"{path}: the tokenizer is no byte-level BPE, so llama.cpp cannot run it")
    tokens: dict[int, tuple[str, gguf.TokenType]] = {
        number: (text, gguf.TokenType.NORMAL) for text, number in model["vocab"].items()
    }
    ids: dict[str, int] = {}
    for added in table.get("added_tokens", ()):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
        ids[added["content"]] = added["id"]
    if tokens and max(tokens) >= vocab_size:
        raise CheckpointError(f"{path}: token id {max(tokens)} has no row in an embedding of {vocab_size}")
    rows = [tokens.get(n, (f"[PAD{n}]", gguf.TokenType.UNUSED)) for n in range(vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_types([int(kind) for _, kind in rows])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    for key, content, needed in _ROLES:
        if content in ids:
            writer.add_uint32(key, ids[content])
        elif needed:
            raise CheckpointError(f"{path}: the tokenizer has no control token {content!r}")
    writer.add_add_bos_token(False)
    writer.add_string(HF_TOKENIZER_KEY, tokenizer_json)


def _finish(writer: gguf.GGUFWriter, path: Path, tensors: Iterator[Array] | None = None) -> None:
    """`tensors`: the data of what was announced, in that order; None: the writer holds it."""
    with replacing(path) as temporary:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            if tensors is None:
                writer.write_tensors_to_file()
            else:
                writer.write_ti_data_to_file()
                for array in tensors:
                    writer.write_tensor_data(array)
        finally:
            writer.close()
