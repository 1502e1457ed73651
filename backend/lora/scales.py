"""The scale that a LoRA file itself states: alpha / rank, from whichever place its writer chose.

Standard library only; the scalars named `alpha` are the only tensors that are read.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from backend.checkpoints.headers import FileHeader
from backend.errors import CheckpointError

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_METADATA = "lora_adapter_metadata"  # diffusers: PEFT's config as JSON, its keys under "transformer." or bare


class Scales:
    """alpha / rank of each module: from its own alpha, else from PEFT's config, else from the header, else 1."""

    def __init__(self, header: FileHeader) -> None:
        self._header = header
        self._config = _peft_config(header)
        meta = header.metadata
        # Two keys of SceneWorks and LoboForge. kohya's ss_network_alpha only repeats its tensors.
        alpha, rank = meta.get("alpha"), meta.get("rank")
        self._alpha = None if alpha is None else _number(header.path, "alpha", alpha)
        self._rank = None if rank is None else _number(header.path, "rank", rank)

    def factor(self, module: str, alpha: str | None, rank: int | None) -> float:
        """`alpha`: stored name of the module's own; `rank`: of its factors, None where nothing is factorised."""
        if alpha is not None:
            # LyCORIS: an alpha belongs to a rank; a LoKr of two whole matrices has none and ignores it.
            return _scalar(self._header, alpha) / rank if rank else 1.0
        if self._config is not None:
            stated = self._configured(self._config, module, rank)
            if stated is not None:
                return stated
        of = rank or self._rank
        if self._alpha is None or of is None:
            return 1.0
        return self._alpha / of

    def _configured(self, config: Mapping[str, Any], module: str, rank: int | None) -> float | None:
        path = self._header.path
        alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", config.get("alpha")))
        if alpha is None:
            return None
        of = rank or _number(path, "r", _pattern(config.get("rank_pattern"), module, config.get("r")))
        return _number(path, "alpha", alpha) / (math.sqrt(of) if config.get("use_rslora") else of)


def _peft_config(header: FileHeader) -> Mapping[str, Any] | None:
    """PEFT's own words about the adapter: in the header, or in the file that PEFT puts beside adapter_model."""
    beside = sidecar(header.path)
    origin, text = f"{header.path}: {PEFT_METADATA}", header.metadata.get(PEFT_METADATA)
    if text is None and beside is not None:
        try:
            origin, text = str(beside), beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{beside}: cannot be read: {error}") from error
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin}: no JSON") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{origin}: no table")
    table = cast("dict[str, Any]", found)
    under = {key.removeprefix("transformer."): value for key, value in table.items() if key.startswith("transformer.")}
    return under or table


def sidecar(path: Path) -> Path | None:
    """The adapter_config.json that decides the scale of PEFT's adapter_model.safetensors; None: the file says all."""
    beside = path.with_name(PEFT_CONFIG)
    return beside if path.name == PEFT_FILE and beside.is_file() else None


def _pattern(patterns: object, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, ends the module's name after a dot or is all of it."""
    if isinstance(patterns, dict):
        for key, value in cast("dict[str, Any]", patterns).items():
            try:
                if re.fullmatch(rf"(.*\.)?({key})", module):
                    return value
            except re.error:
                if key == module:
                    return value
    return default


def _number(path: Path, key: str, value: object) -> float:
    try:
        number = float(cast("str", value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (key in ("rank", "r") and number <= 0):
        raise CheckpointError(f"{path}: its header states {key} = {value!r}")
    return number


def _scalar(header: FileHeader, name: str) -> float:
    """One stored number, without torch."""
    tensor = header.tensors[name]
    layout = {"F32": "<f", "F16": "<e", "F64": "<d", "BF16": "<H", "I64": "<q", "I32": "<i"}.get(tensor.dtype)
    if layout is None or tensor.nbytes != struct.calcsize(layout):
        raise CheckpointError(f"{header.path}: {name!r} is {list(tensor.shape)} ({tensor.dtype}), expected one number")
    with header.path.open("rb") as file:
        file.seek(tensor.start)
        raw = file.read(tensor.nbytes)
    if tensor.dtype == "BF16":  # the upper half of a float32
        layout, raw = "<f", b"\0\0" + raw
    value = float(struct.unpack(layout, raw)[0])
    if not math.isfinite(value):
        raise CheckpointError(f"{header.path}: {name!r} is {value}")
    return value
