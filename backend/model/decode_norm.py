"""Group norm of a picture that is seen in pieces: first its statistics, then the norm of any of its rows.

torch's own group norm wants the whole picture at once, and on CUDA it leaves the channels-last layout and comes back.
torch's batch norm has both halves as operations of their own, with float32 statistics beside a bfloat16 picture: what
it measures per channel is put together per group here.

Legend: C channels, G groups, K pieces; pictures are (1, C, H, W), channels-last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.model.decode_plan import NORM_ELEMENTS

# Where torch has both operations fused; elsewhere they are written out, in float32.
FUSED = ("cpu", "cuda")


@dataclass(frozen=True)
class MeasuredNorm:
    """A group norm with the statistics of one picture, and the activation behind it. Everything float32, (C,)."""

    mean_C: Tensor
    variance_C: Tensor
    weight_C: Tensor
    bias_C: Tensor
    eps: float
    silu: bool

    def __call__(self, rows_1CHW: Tensor) -> Tensor:
        """A new tensor in the dtype of `rows_1CHW`."""
        if rows_1CHW.device.type in FUSED:
            return self._fused(rows_1CHW)
        return self._written_out(rows_1CHW)

    def overwrite(self, picture_1CHW: Tensor, rows: int) -> None:
        """Normalise in place, a few rows at a time: `rows`, or on a processor as many as its cache holds."""
        for part in _parts(picture_1CHW, rows):
            part.copy_(self(part))

    def _fused(self, rows: Tensor) -> Tensor:
        out = F.batch_norm(
            rows, self.mean_C, self.variance_C, self.weight_C, self.bias_C, training=False, momentum=0.0, eps=self.eps
        )
        return F.silu(out, inplace=True) if self.silu else out

    def _written_out(self, rows: Tensor) -> Tensor:
        scale = self.weight_C * torch.rsqrt(self.variance_C + self.eps)
        shift = self.bias_C - self.mean_C * scale
        out = rows.float() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return (F.silu(out, inplace=True) if self.silu else out).to(rows.dtype)


def measure(norm: nn.GroupNorm, strips: Iterable[Tensor], *, silu: bool = True) -> MeasuredNorm:
    """Statistics over all `strips` (1, C, rows, W) together, which are looked at once each, in order."""
    counts: list[int] = []
    means: list[Tensor] = []
    variances: list[Tensor] = []
    for strip in strips:
        for part in _parts(strip, strip.shape[2]):
            mean_C, variance_C = channel_statistics(part)
            counts.append(part.shape[2] * part.shape[3])
            means.append(mean_C)
            variances.append(variance_C)
    mean_C, variance_C = combine(counts, torch.stack(means), torch.stack(variances), norm.num_groups)
    return MeasuredNorm(mean_C, variance_C, norm.weight.float(), norm.bias.float(), norm.eps, silu)


def channel_statistics(part_1CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel, float32 (C,)."""
    if part_1CHW.device.type not in FUSED:
        variance_C, mean_C = torch.var_mean(part_1CHW.float(), dim=(0, 2, 3), correction=0)
        return mean_C, variance_C
    # Without running statistics a bfloat16 picture would get bfloat16 ones; these are thrown away.
    running = part_1CHW.new_zeros(2, part_1CHW.shape[1], dtype=torch.float32)
    mean_C, variance_C = torch.batch_norm_update_stats(part_1CHW, running[0], running[1], 0.0)
    return mean_C, variance_C


def combine(counts: list[int], mean_KC: Tensor, variance_KC: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Statistics of pieces and channels -> of their groups, repeated for each channel, float32 (C,) twice.

    Sums of squared distances from the common mean, so that nothing cancels where the mean is large; in float64 where
    the device has it.
    """
    wide = torch.float32 if mean_KC.device.type == "mps" else torch.float64
    mean, variance = (part.to(wide).unflatten(1, (groups, -1)) for part in (mean_KC, variance_KC))
    share = _shares(counts, sum(counts) * mean.shape[2], mean)
    mean_G = (share * mean).sum(dim=(0, 2))
    variance_G = (share * (variance + (mean - mean_G.view(1, -1, 1)).square())).sum(dim=(0, 2))
    return tuple(part.float().repeat_interleave(mean.shape[2]) for part in (mean_G, variance_G))  # type: ignore[return-value]


def _shares(counts: list[int], total: int, like: Tensor) -> Tensor:
    """counts / total as (K, 1, 1), in the dtype and on the device of `like`.

    Filled in run by run of equal counts, two or three of them: to copy a list there would have the host wait for the
    device, at each of 30 norms a picture.
    """
    share = like.new_empty(len(counts), 1, 1)
    start = 0
    for count, run in groupby(counts):
        start, first = start + len(list(run)), start
        share[first:start] = count / total
    return share


def _parts(picture_1CHW: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Views of at most `rows` rows; on a processor of at most NORM_ELEMENTS, which also keeps float32 sums short."""
    if picture_1CHW.device.type == "cpu":
        rows = min(rows, max(1, NORM_ELEMENTS // (picture_1CHW.shape[1] * picture_1CHW.shape[3])))
    return picture_1CHW.split(rows, dim=2)
