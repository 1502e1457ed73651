"""Text features of prompts that are finite in number: made once, an encoder's layer at a time, and kept on the disk.

Heavy ring: torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor

from backend.cache import tensors
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles
from backend.text.features import FeatureSource
from backend.types import Encoder
from train.batches.encoders import VERSION, feature_dtype
from train.batches.keeper import Keeper

AT_ONCE = 64  # texts that share one pass over the text encoder's layers


class KeptTexts:
    """What a model's text encoder makes of texts; the encoder is in memory only while something is missing."""

    def __init__(self, folder: Path, files: ModelFiles, device: torch.device, say: Callable[[str], None]) -> None:
        params, dtype = files.preset.params, feature_dtype(device)
        width = (len(params.dit.selected_layer_index), params.text.hidden_size)
        self.device, self.say, self.most = device, say, params.text.template.room
        self._keeper = Keeper(folder, width, dtype, say)
        self._features = FeatureSource(files=files, encoder=Encoder.exact, dtype=dtype, device=device)
        self._about = tensors.cache_key(
            {
                "code": VERSION,
                "torch": version("torch"),
                "processor": tensors.processor(device),
                "weights": files_sha256(files.text_encoder),
                "tokenizer": files_sha256(files.tokenizer) if files.tokenizer else None,
                "network and template": asdict(params.text),
                "blocks": list(params.dit.selected_layer_index),
            }
        )

    def fill(self, texts: Sequence[str]) -> None:
        """Make and keep what is not kept yet. Raises FileError (no space), CheckpointError, NumericsError."""
        self._keeper.open()
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            # Also finds damaged files, which are then made again.
            for text, found in zip(some, self._rows(some), strict=True):
                if len(found) >= self.most:
                    self.say(f"longer than the {self.most} tokens that are read, cut: {shorten(text, 60)}")

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """(L, T, F) of each, on the device."""
        # Made while training only where a file was removed meanwhile; then they come from inference mode.
        return [rows.to(self.device).clone() for rows in self._rows(texts)]

    def _rows(self, texts: Sequence[str]) -> list[Tensor]:
        def make(places: Sequence[int]) -> list[Tensor]:
            found = self._features.features([texts[place] for place in places], lambda _: nullcontext())
            return [rows[0] for rows in found]

        return self._keeper.rows([tensors.cache_key({"network": self._about, "what": text}) for text in texts], make)
