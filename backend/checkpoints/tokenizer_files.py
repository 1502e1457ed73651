"""The tokenizer of a model, from wherever its files keep it: tokenizer.json, inside a safetensors file, or a GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from backend.checkpoints.gguf_keys import HF_TOKENIZER_KEY
from backend.checkpoints.headers import FileFormat, FileHeader, read_header
from backend.checkpoints.resolve import ModelFiles
from backend.errors import CheckpointError
from backend.foreign import documents

# The split expression of o200k, as gpt-oss's tokenizer.json states it; llama.cpp knows it as "gpt-4o".
O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types


def _empty() -> Tokenizer:
    """A byte-level BPE with gpt-oss's split and no pieces yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(O200K_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of `files`. Raises CheckpointError where there is none or it has more ids than the network."""
    if files.tokenizer:
        path = files.tokenizer[0]
        tokenizer = _parse(_read_text(path), str(path))
    else:
        path = files.text_encoder[0]
        tokenizer = _embedded(files.text_encoder)
    rows = files.preset.params.text.vocab_size
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= rows:
        raise CheckpointError(f"{path}: token id {largest} has no row in the text encoder's embedding of {rows}")
    return tokenizer


def gguf_tokenizer(header: FileHeader) -> Tokenizer:
    """The tokenizer that llama.cpp's own fields of a GGUF describe. Raises CheckpointError for any but gpt-oss's kind.

    llama.cpp's own tokenising is no substitute: it marks four of harmony's control tokens as ordinary text pieces, so
    that `<|start|>` typed by a person would become control even where special tokens are switched off.
    """
    return _from_gguf(header.metadata, str(header.path))


def _embedded(text_encoder: tuple[Path, ...]) -> Tokenizer:
    for path in text_encoder:
        header = read_header(path)
        if header.format is FileFormat.gguf:
            stored = header.metadata.get(HF_TOKENIZER_KEY)
            return _parse(stored, str(path)) if stored is not None else _from_gguf(header.metadata, str(path))
        if "tokenizer_json" in header.tensors:
            from backend.checkpoints.tensor_files import TensorFiles  # torch: 1 s that a GGUF does not need

            raw = TensorFiles((path,)).raw("tokenizer_json").numpy().tobytes()
            return _parse(raw.decode("utf-8", errors="strict"), str(path))
    raise CheckpointError(f"{text_encoder[0]}: no tokenizer inside", hint="put its tokenizer.json beside it")


def _from_gguf(metadata: Mapping[str, Any], origin: str) -> Tokenizer:
    """llama.cpp's own fields -> the same byte-level BPE; only the o200k split, which is gpt-oss's, is known here."""
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split != "gpt-4o":
        raise CheckpointError(f"{origin}: tokenizer {kind!r} with split {split!r}, expected 'gpt2' with 'gpt-4o'")
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    merges = metadata.get("tokenizer.ggml.merges")
    if not tokens or not types or merges is None or len(tokens) != len(types):
        raise CheckpointError(f"{origin}: tokens, token types and merges do not fit each other")
    table = json.loads(_empty().to_str())
    # Filled in as JSON and parsed once: 200,000 pieces given to the library twice cost 1.5 s more.
    table["model"]["vocab"] = {text: n for n, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1}
    table["model"]["merges"] = [merge.split(" ", 1) for merge in merges]
    table["added_tokens"] = [  # with their ids as stored: the library itself would number them anew
        {
            "id": n, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kind == _CONTROL,
        }
        for n, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    return _parse(json.dumps(table), origin)


def _read_text(path: Path) -> str:
    try:
        return documents.read_text(path)
    except (OSError, documents.Unreadable) as error:
        raise CheckpointError(f"{path}: {documents.reason(error)}") from error


def _parse(text: str, origin: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise CheckpointError(f"{origin}: no tokenizer.json ({error})") from error
