"""Networks where the memory plan wants them: blocks behind a stream, and the autoencoder only while it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from backend.model.block_stream import StreamedBlocks
from backend.model.transformer import LensBlock, LensTransformer2DModel
from backend.residency import SLOTS


def stream_blocks(network: LensTransformer2DModel, device: torch.device, *, packed: bool) -> StreamedBlocks[LensBlock]:
    """The blocks of a network on the CPU as a stream to `device`, where the rest of the network goes.

    `packed`: from pinned memory, else from where they are. Raises what `StreamedBlocks` does.
    """
    source = StreamedBlocks(list(network.blocks()), device, slots=SLOTS, packed=packed)
    for name, part in network.named_children():
        if name != "transformer_blocks":
            part.to(device)
    return source


@contextmanager
def making_room(source: StreamedBlocks[LensBlock] | None, guest: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it the stream's slots are free and `guest`, which lives on the CPU, is on `device`. None: nothing to do,
    the guest is there."""
    if source is None:
        yield
        return
    source.release()
    home = guest.state_dict()
    # On a GPU as `checkpoint.load_vae` lays it there.
    cast(Any, guest).to(device, **({"memory_format": torch.channels_last} if device.type == "cuda" else {}))
    try:
        yield
    finally:
        guest.load_state_dict(home, assign=True)
