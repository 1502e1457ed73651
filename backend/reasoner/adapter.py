"""The adapter of a local reasoner: low-rank updates of its language model's weights, applied for rewriting only.

The language model is the text encoder as well, whose features may not change; so what it has to learn for rewriting
lies in a file of its own beside it. The file names the weights that it was trained on and fits no others.
"""

from __future__ import annotations

from pathlib import Path

from backend.checkpoints.headers import FileFormat, read_header
from backend.checkpoints.identity import known_sha256
from backend.checkpoints.layouts import REASONER_ADAPTER, reasoner_adapter
from backend.errors import CheckpointError

BASE_KEY = "lens.adapter.base_sha256"  # of the language model's file
_HINT = "go without: LENS_REASONER__ADAPTER=false; the model's own reasoner is then as it was"


def adapter_sha256(text_encoder: tuple[Path, ...]) -> str | None:
    """SHA-256 of the adapter beside a model's language model; None: there is none."""
    path = reasoner_adapter(text_encoder)
    return None if path is None else known_sha256(path)


def fitting_adapter(gguf: Path, sha256: str) -> Path:
    """The adapter beside a language model, once it is known to be the one that was planned with, and made for it.

    Raises CheckpointError where it is not, is damaged, or is no adapter.
    """
    path = gguf.with_name(REASONER_ADAPTER)
    if not path.is_file() or known_sha256(path) != sha256:
        raise CheckpointError(f"{path}: it was changed while lens ran", hint="run the command again")
    header = read_header(path)
    if header.format is not FileFormat.gguf or header.metadata.get("general.type") != "adapter":
        raise CheckpointError(f"{path}: no adapter in GGUF", hint=_HINT)
    if header.metadata.get(BASE_KEY) != known_sha256(gguf):
        raise CheckpointError(f"{path}: it was made for another language model than {gguf.name} beside it", hint=_HINT)
    return path
