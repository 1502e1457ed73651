"""The loss on pictures that are never trained on, at fixed times with fixed noise: comparable across steps and runs.

Legend: B pictures of one pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from backend.sizes import GRID
from train.run.batch import Batch, Grid, Loaded

TIMES = 8  # at which pictures are judged: (i + 1/2) / 8

Held = Sequence[tuple[Grid, Loaded]]


@torch.no_grad()
def validate(losses: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
    """`validation`: the mean over all rows; where there are several shapes, `validation_WxH` of each as well.

    `losses`: a pass -> (B,). All ranks must call where weights are sharded.
    """
    total, count = 0.0, 0
    shapes: dict[Grid, tuple[float, int]] = {}
    for batch in batches:
        found, rows = float(losses(batch).sum()), len(batch.x0_BNC)
        total, count = total + found, count + rows
        before = shapes.get(batch.grid, (0.0, 0))
        shapes[batch.grid] = before[0] + found, before[1] + rows
    out = {"validation": total / count}
    if len(shapes) > 1:
        for (h, w), (found, rows) in sorted(shapes.items()):
            out[f"validation_{w * GRID}x{h * GRID}"] = found / rows
    return out


def at_times_in_turn(held: Held, device: torch.device) -> Iterator[Batch]:
    """Each picture once, at the next of the times: for many pictures. The noise belongs to its place in `held`."""
    count = 0
    for number, (grid, loaded) in enumerate(held):
        rows = len(loaded.x0_BNC)
        generator = torch.Generator().manual_seed(rows + 1000 * number)
        times = torch.arange(count, count + rows) % TIMES
        yield _judged(_on(loaded, device), grid, times, generator)
        count += rows


def at_all_times(held: Held, device: torch.device, at_once: int) -> Iterator[Batch]:
    """Each single picture at all of the times, `at_once` a pass: for few pictures. The noise belongs to its name."""
    for grid, loaded in held:
        digest = hashlib.blake2b(f"validation {loaded.names[0]}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        ready = _on(loaded, device)
        for first in range(0, TIMES, at_once):
            times = torch.arange(first, min(first + at_once, TIMES))
            rows = Loaded(
                ready.x0_BNC.expand(len(times), -1, -1),
                ready.text_BLTF.expand(len(times), -1, -1, -1),
                ready.mask_BL.expand(len(times), -1),
                ready.names * len(times),
            )
            yield _judged(rows, grid, times, generator)


def _on(loaded: Loaded, device: torch.device) -> Loaded:
    tensors = {name: getattr(loaded, name).to(device) for name in ("x0_BNC", "text_BLTF", "mask_BL")}
    return replace(loaded, **tensors)


def _judged(loaded: Loaded, grid: Grid, times: Tensor, generator: torch.Generator) -> Batch:
    """A pass at (times + 1/2) / TIMES."""
    x0_BNC = loaded.x0_BNC
    return Batch(
        x0_BNC=x0_BNC,
        eps_BNC=torch.randn(x0_BNC.shape, generator=generator).to(x0_BNC.device),
        t_B=((times + 0.5) / TIMES).to(x0_BNC.device),
        text_BLTF=loaded.text_BLTF,
        mask_BL=loaded.mask_BL,
        grid=grid,
        weights_B=torch.ones(len(x0_BNC), device=x0_BNC.device),
        names=loaded.names,
    )
