"""Where the denoiser's blocks come from: all of them on the device, or brought there one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from backend.model.transformer import LensBlock


class BlockSource(Protocol):
    """One pass over a transformer's blocks. A complete `LensTransformer2DModel` on the device is one itself."""

    def blocks(self) -> Iterator[LensBlock]:
        """Every block in order, ready to run until the next one is asked for. A pass is always finished or closed."""
        ...
