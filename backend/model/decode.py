"""The decoder of the FLUX.2 autoencoder in little memory: the same numbers as its plain `forward`, up to float order.

What it does otherwise: every tensor lies channels-last; the statistics of a group norm are taken first, over the whole
picture, and then norm and activation are applied to a few rows at a time; convolutions run in horizontal strips with
one row of their neighbours; attention sees a limited number of queries at once; results overwrite what nobody reads
any more. What is kept and what is computed twice is the `DecodePlan`'s choice (`backend.model.decode_plan`). This is
not tiling: no statistic and no neighbour is approximated.

Legend: C channels, H height, W width, N = H W positions. One picture at a time, so tensors are (1, C, H, W); "rows"
are counted in H, from `a` or `lo` up to but not including `b` or `hi`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.model.autoencoder import AutoencoderKLFlux2, Resnet, VaeAttention
from backend.model.decode_norm import measure
from backend.model.decode_plan import DecodePlan, StagePlan, plan_decode, score_rows

Rows = Callable[[int, int], Tensor]  # (lo, hi) -> those rows


def decode_latent(vae: AutoencoderKLFlux2, z_BCHW: Tensor, plan: DecodePlan | None = None) -> Tensor:
    """(B, Z, H/8, W/8) -> pictures (B, 3, H, W), about [-1, 1], in the dtype of the weights.

    plan: made for this size; None: the least work, whatever memory it takes. Where gradients are recorded, `plan` must
    be None and the plain statement runs. Not-a-number and infinity reach the picture, so that a caller can refuse it.
    """
    if torch.is_grad_enabled():
        if plan is not None:
            raise ValueError("a plan overwrites activations that a gradient needs")
        return vae.decoder(vae.post_quant_conv(z_BCHW))
    scale = 1 << (len(vae.params.block_out_channels) - 1)
    batch, _, h, w = z_BCHW.shape
    if plan is None:
        plan = plan_decode(vae.params, h * scale, w * scale, z_BCHW.element_size(), device=z_BCHW.device.type)
    pictures = [_decode_one(vae, z_BCHW[i : i + 1], plan) for i in range(batch)]
    return pictures[0] if batch == 1 else torch.cat(pictures)


def _decode_one(vae: AutoencoderKLFlux2, z_1CHW: Tensor, plan: DecodePlan) -> Tensor:
    decoder = vae.decoder
    # 1. The middle, whole: at an eighth of the side it is small.
    z = z_1CHW.contiguous(memory_format=torch.channels_last)
    x = Activation(decoder.conv_in(vae.post_quant_conv(z)))
    before, attention, after = decoder.mid_block.parts()
    whole = StagePlan(rows=x.height)
    add_block(x, before, whole)
    if attention is not None:
        attend(x.tensor, attention)
    add_block(x, after, whole)
    # 2. The stages, each at twice the side of the one before.
    for stage, choice in zip(decoder.stages(), plan.stages, strict=True):
        if x.up is not None and choice.keep_input:
            x.compute(choice.rows)
        for block in stage.blocks():
            add_block(x, block, choice)
        x.up = stage.upsampling()
    # 3. Colours.
    rows = plan.stages[-1].rows
    norm = measure(decoder.conv_norm_out, x.strips(rows))

    def colours(a: int, b: int) -> Tensor:
        return convolve(decoder.conv_out, lambda lo, hi: norm(x.rows(lo, hi)), a, b, x.height)

    return collect(colours, x.height, rows)


class Activation:
    """What flows through the decoder, with exactly one owner, so that replacing it frees it.

    With `up` set it stands for that convolution of its tensor at twice the side, computed where rows are asked for.
    """

    def __init__(self, tensor_1CHW: Tensor) -> None:
        self.tensor = tensor_1CHW
        self.up: nn.Conv2d | None = None

    @property
    def height(self) -> int:
        return self.tensor.shape[2] * (1 if self.up is None else 2)

    def rows(self, lo: int, hi: int) -> Tensor:
        """A view of the kept rows, or freshly computed ones."""
        if self.up is None:
            return self.tensor[:, :, lo:hi]
        return convolve(self.up, self._doubled, lo, hi, self.height)

    def strips(self, rows: int) -> Iterator[Tensor]:
        return (self.rows(a, b) for a, b in cuts(self.height, rows))

    def compute(self, rows: int) -> None:
        """Let the upsampled picture take the place of the one it is computed from."""
        self.tensor = collect(self.rows, self.height, rows)
        self.up = None

    def _doubled(self, lo: int, hi: int) -> Tensor:
        small = self.tensor[:, :, lo // 2 : (hi + 1) // 2]
        return F.interpolate(small, scale_factor=2.0, mode="nearest")[:, :, lo % 2 : lo % 2 + hi - lo]


# residual blocks -----------------------------------------------------------------------------------------------------


def add_block(x: Activation, block: Resnet, plan: StagePlan) -> None:
    """Let the block's output take the place of its input."""
    if block.conv_shortcut is not None or x.up is not None:
        x.tensor, x.up = _replaced(x, block, plan.rows), None
    elif plan.keep_inner:
        _add_kept(x, block, plan.rows)
    else:
        _add_recomputed(x, block, plan.rows)


def _inner(x: Activation, block: Resnet, rows: int) -> Tensor:
    """What the second convolution reads, whole: the first one's result, normalised and activated in place."""
    first = measure(block.norm1, x.strips(rows))

    def make(a: int, b: int) -> Tensor:
        return convolve(block.conv1, lambda lo, hi: first(x.rows(lo, hi)), a, b, x.height)

    inner = collect(make, x.height, rows)
    measure(block.norm2, (inner[:, :, a:b] for a, b in cuts(x.height, rows))).overwrite(inner, rows)
    return inner


def _add_kept(x: Activation, block: Resnet, rows: int) -> None:
    """x += the block's two convolutions, with what is between them whole in memory."""
    inner = _inner(x, block, rows)
    for a, b in cuts(x.height, rows):
        x.rows(a, b).add_(convolve(block.conv2, lambda lo, hi: inner[:, :, lo:hi], a, b, x.height))


def _replaced(x: Activation, block: Resnet, rows: int) -> Tensor:
    """The block's output, which overwrites what was between its convolutions: x has other channels, or is not kept."""
    inner, height = _inner(x, block, rows), x.height

    def shortcut(a: int, b: int) -> Tensor:
        strip = x.rows(a, b)
        return strip if block.conv_shortcut is None else block.conv_shortcut(strip)

    if rows >= height:  # nothing to overwrite row by row: the second convolution's result is the output
        inner = block.conv2(inner)
        return inner.add_(shortcut(0, height))
    above: Tensor | None = None  # the row just above the strip, before it was overwritten
    for a, b in cuts(height, rows):
        window = inner[:, :, a : b + 1]  # an empty piece before it would make the joined rows row-major
        window = window if above is None else torch.cat([above, window], dim=2)
        above = inner[:, :, b - 1 : b].clone()
        out = _convolve_window(block.conv2, window, a, b, height)
        del window
        inner[:, :, a:b] = out.add_(shortcut(a, b))
        del out
    return inner


def _add_recomputed(x: Activation, block: Resnet, rows: int) -> None:
    """x += the block's two convolutions, the first one run once for its statistics and once to be used.

    The sums overwrite rows of x that the next strip's first convolution would read; so the two rows of its result that
    both strips need are carried over.
    """
    height = x.height
    first = measure(block.norm1, x.strips(rows))

    def inner(a: int, b: int) -> Tensor:
        return convolve(block.conv1, lambda lo, hi: first(x.rows(lo, hi)), a, b, height)

    second = measure(block.norm2, (inner(a, b) for a, b in cuts(height, rows)))
    window: Tensor | None = None
    for a, b in cuts(height, rows):
        known, wanted = (a + 1 if a else 0), min(b + 1, height)
        if known < wanted:
            more = second(inner(known, wanted))
            window = more if window is None else torch.cat([window, more], dim=2)
        assert window is not None, "the first strip wants its own rows"
        x.rows(a, b).add_(_convolve_window(block.conv2, window, a, b, height))
        window = window[:, :, b - 1 - max(a - 1, 0) :].clone()


# attention -----------------------------------------------------------------------------------------------------------


def attend(x_1CHW: Tensor, attention: VaeAttention) -> None:
    """x += attention of every position to every other: one head as wide as the picture is deep."""
    _, channels, h, w = x_1CHW.shape
    n_NC = measure(attention.group_norm, [x_1CHW], silu=False)(x_1CHW).permute(0, 2, 3, 1).reshape(h * w, channels)
    q, k, v = attention.to_q(n_NC), attention.to_k(n_NC), attention.to_v(n_NC)
    del n_NC
    if x_1CHW.device.type == "cpu":  # its kernel takes any head size, in blocks, with float32 scores
        q = F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]
    else:
        q = attend_in_chunks(q, k, v)
    del k, v
    q = attention.to_out[0](q)
    x_1CHW.add_(q.view(1, h, w, channels).permute(0, 3, 1, 2))


def attend_in_chunks(q_NC: Tensor, k_NC: Tensor, v_NC: Tensor) -> Tensor:
    """softmax(q k / sqrt(C)) v for a few queries at a time, scores in float32; overwrites and returns q.

    No flash kernel takes a head of 512, and the one that does would leave a GPU mostly idle with a single head; the
    two products are plain matrix products instead.
    """
    positions, channels = q_NC.shape
    for q in q_NC.split(score_rows(positions, q_NC.element_size())):
        scores = _scores(q, k_NC).mul_(channels**-0.5)
        scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
        total = scores.sum(dim=1, keepdim=True)
        q.copy_((scores.to(q.dtype) @ v_NC).div_(total))
    return q_NC


def _scores(q_MC: Tensor, k_NC: Tensor) -> Tensor:
    """(M, N) float32, never rounded to less: a score of 10 in bfloat16 is off by up to 0.03, its weight by 3 %."""
    if q_MC.is_cuda and q_MC.dtype != torch.float32:
        return torch.mm(q_MC, k_NC.t(), out_dtype=torch.float32)
    return q_MC.float() @ k_NC.float().t()


# strips --------------------------------------------------------------------------------------------------------------


def cuts(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """(a, b) of each strip from top to bottom."""
    return ((a, min(a + rows, height)) for a in range(0, height, rows))


def collect(make: Rows, height: int, rows: int) -> Tensor:
    """All rows, made strip by strip. A single strip is not copied."""
    if rows >= height:
        return make(0, height)
    strip = make(0, rows)
    shape = (1, strip.shape[1], height, strip.shape[3])
    whole = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=torch.channels_last)
    whole[:, :, :rows] = strip
    del strip
    for a, b in cuts(height, rows):
        if a:
            whole[:, :, a:b] = make(a, b)
    return whole


def convolve(conv: nn.Conv2d, source: Rows, a: int, b: int, height: int) -> Tensor:
    """Rows [a, b) of a 3x3 convolution of a picture of `height` rows; `source` is asked for one row more each way."""
    return _convolve_window(conv, source(max(a - 1, 0), min(b + 1, height)), a, b, height)


def _convolve_window(conv: nn.Conv2d, window_1CHW: Tensor, a: int, b: int, height: int) -> Tensor:
    """Do what `convolve` does with a window that is there already: rows [a - 1, b + 1), none outside the picture.

    Zeros stand above and below a picture, not above and below a strip. At the border of the picture torch puts them on
    both sides, and the row next to the wrong zeros is left out.
    """
    inside = a > 0 and b < height
    out = F.conv2d(window_1CHW, conv.weight, conv.bias, padding=(0 if inside else 1, 1))
    return out[:, :, 0 if inside else min(a, 1) :][:, :, : b - a]
