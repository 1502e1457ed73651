"""What may compute the text features of a model: known from its files' names, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backend.errors import UsageError
from backend.types import Encoder

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles


def choose_encoder(wanted: Encoder, files: ModelFiles) -> Encoder:
    """exact or llama. Raises UsageError where llama.cpp cannot read the model's text encoder."""
    if wanted is not Encoder.llama:
        return Encoder.exact
    if not is_one_gguf(files.text_encoder):
        found = files.text_encoder[0].name
        raise UsageError(
            f"--encoder llama needs the text encoder of {files.name} as one GGUF file; found {found}",
            hint="put a gpt-oss GGUF in its place, or use --encoder exact, which reads every format",
        )
    return Encoder.llama


def is_one_gguf(files: Sequence[Path]) -> bool:
    """Whether llama.cpp can open it: a language model in one GGUF file."""
    return len(files) == 1 and files[0].suffix.lower() == ".gguf"
