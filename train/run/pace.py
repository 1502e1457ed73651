"""How fast a run goes: pictures a second, what is left, the share of the machine's peak."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence

import torch

from backend.params import DiTParams
from train.run import costs
from train.run.batch import Batch
from train.run.distributed import Ranks


class Pace:
    """Pictures a second since the last line of the log, encoding and all; what is left; the share of the peak."""

    def __init__(self, params: DiTParams, ranks: Ranks, steps: int, start: int, *, passes: int = 3) -> None:
        """`steps`: of the whole run. `passes`: products a weight takes part in: forward, and backward for its input and
        for itself; 2 where weights are frozen."""
        self.params, self.world, self.steps, self.passes = params, ranks.world, steps, passes
        self.pictures, self.flops, self.step, self.clock = 0, 0.0, start, time.monotonic()
        on_gpu = ranks.device.type == "cuda"
        self.peak = costs.peak_of(torch.cuda.get_device_name(ranks.device)) if on_gpu else None

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Leave out what is no training."""
        began = time.monotonic()
        yield
        self.clock += time.monotonic() - began

    def count(self, batches: Sequence[Batch]) -> None:
        """This rank's passes of one step; every rank does about the same."""
        for batch in batches:
            real = int((batch.weights_B > 0).sum())
            self.pictures += real
            text = batch.mask_BL.shape[1]
            self.flops += self.passes * real * costs.forward_flops(self.params, batch.x0_BNC.shape[1], text)

    def values(self, step: int) -> dict[str, float]:
        """Numbers for the log; begins to count anew. MFU counts no recomputation, as is usual."""
        seconds = max(time.monotonic() - self.clock, 1e-9)
        out = {
            "pictures_per_s": self.world * self.pictures / seconds,
            "tflops": self.flops / seconds / 1e12,
            "eta_s": (self.steps - step) * seconds / max(1, step - self.step),
        }
        if self.peak is not None:
            out["mfu"] = self.flops / seconds / self.peak
        self.pictures, self.flops, self.step, self.clock = 0, 0.0, step, time.monotonic()
        return out
