"""One GGUF, opened at most once by whoever needs it first: the reasoner, the text features, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from backend.errors import UsageError
from backend.types import Encoder

if TYPE_CHECKING:
    from backend.cache.store import Store
    from backend.checkpoints.resolve import ModelFiles
    from backend.text.llama import LlamaModel


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
    """What llama.cpp can open: a language model in one GGUF file."""
    return len(files) == 1 and files[0].suffix.lower() == ".gguf"


class SharedLlama:
    """Calling it gives the opened model, the same one each time; closing gives its memory back. A context manager."""

    def __init__(self, gguf: Path, *, context: int, prefixes: Store | None = None) -> None:
        """`context`: tokens that the longest conversation of all users needs, its reply included. `prefixes`: as
        `LlamaModel` has it."""
        self.gguf, self._context, self._prefixes = gguf, context, prefixes
        self._model: LlamaModel | None = None

    def __call__(self) -> LlamaModel:
        """Raises what `LlamaModel` raises for a file that it cannot open."""
        if self._model is None:
            from backend.text.llama import LlamaModel  # llama.cpp and torch, only where somebody asks

            self._model = LlamaModel(self.gguf, context=self._context, prefixes=self._prefixes)
        return self._model

    @property
    def opened(self) -> bool:
        return self._model is not None

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None

    def __enter__(self) -> SharedLlama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
