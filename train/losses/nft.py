"""DiffusionNFT: reinforcement learning on the forward process, without a sampler's likelihood. Pure functions.

Lens paper, Appendix D, "RL Details"; it numbers no equation, the numbers are ours:

    (1) r  = 1/2 + 1/2 clip[ (R - mean of R over the prompt's pictures) / Z, -1, 1 ]
    (2) v+ = (1 - beta) v_old + beta v_theta
    (3) v- = (1 + beta) v_old - beta v_theta
    (4) L  = E[ r |v+ - v|^2 + (1 - r) |v- - v|^2 ]

What the paper leaves open is taken from the method's own code (Zheng et al., arXiv 2509.16117; NVlabs/DiffusionNFT
24af555): Z is `clip` = 5 standard deviations of the whole epoch's rewards, and the loss is in the form of clean
pictures, each side divided by its own mean error, which is held fixed ("adaptive time weighting"):

    (5) x+- = x_t - t v+-,   w+- = max(mean |x+- - x0|, 1e-5)
    (6) L  = clip mean[ r (x+ - x0)^2 / w+  +  (1 - r) (x- - x0)^2 / w- ] / beta

At v_theta = v_old the gradient of (6) is that of A mean[(x - x0)^2 / w], A the advantage, for every beta, while the
value does not depend on r: a flat curve of this loss is normal.

Legend: B pairs of a picture and a time, N image tokens, C packed channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from train.losses.sums import clean, near, picture_mean, precise, rms

LEAST_ERROR = 1e-5  # of (5), in units of the latent: a picture that is predicted exactly does not divide by zero


def optimality(advantage: Tensor, clip: float) -> Tensor:
    """Turn advantages, in standard deviations, into the probabilities of (1), of the same shape: `clip` gives 1.

    An advantage of 0 gives 1/2, which has no gradient at v_theta = v_old: a picture without a verdict teaches nothing.
    """
    return 0.5 + 0.5 * (advantage / clip).clamp(-1, 1)


def implicit_velocities(v: Tensor, v_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return v+ of (2) and v- of (3); the gradient flows through `v` alone."""
    v, old = precise(v), precise(v_old.detach())
    return (1 - beta) * old + beta * v, (1 + beta) * old - beta * v


def policy_losses(
    v_BNC: Tensor,
    v_old_BNC: Tensor,
    x_t_BNC: Tensor,
    x0_BNC: Tensor,
    t_B: Tensor,
    r_B: Tensor,
    *,
    beta: float,
    clip: float,
    adaptive: bool = True,
) -> Tensor:
    """(B,) loss (6) of each pair, in float32; the gradient flows through `v_BNC` alone.

    `adaptive` off: w = 1, which is (4) times t^2 clip / beta.
    """
    x_t, x0, r = x_t_BNC.detach(), precise(x0_BNC.detach()), precise(r_B.detach())
    positive, negative = (_error(clean(x_t, v, t_B), x0, adaptive) for v in implicit_velocities(v_BNC, v_old_BNC, beta))
    return clip / beta * (r * positive + (1 - r) * negative)


def _error(estimate: Tensor, x0: Tensor, adaptive: bool) -> Tensor:
    """(B,) mean squared error of a clean picture, over its own mean absolute error (5), which is held fixed."""
    error = estimate - x0
    squared = picture_mean(error.square())
    return squared / picture_mean(error.detach().abs()).clamp(min=LEAST_ERROR) if adaptive else squared


def kl_losses(v_BNC: Tensor, v_ref_BNC: Tensor) -> Tensor:
    """(B,) mean squared distance to the reference's velocity, the KL of two flows but for its weight in t.

    Between `v_BNC` and the old policy's velocity it is how far the policy moved: 0 by definition on the first gradient
    step after a copy, a fault of the schedule where it is 0 for a whole epoch.
    """
    return picture_mean((precise(v_BNC) - precise(v_ref_BNC.detach())).square())


def norm_ratio(v_BNC: Tensor, v_ref_BNC: Tensor) -> Tensor:
    """(B,) |v| / |v_ref| over a picture, without gradient: this training inflates it by 5 to 15 % (NormGuard)."""
    return rms(v_BNC.detach()) / rms(v_ref_BNC.detach())


def norm_hinge_losses(v_BNC: Tensor, v_ref_BNC: Tensor) -> Tensor:
    """(B,) squared excess of the velocity's root mean square over the reference's, 0 where it is not longer.

    NormGuard (arXiv 2606.27771): active only where |v| > |v_ref|, so that the norm is held and nothing else. The
    square, which starts without a kink and has the KL's unit, is our choice: the abstract does not say the form.
    """
    return (rms(v_BNC) - rms(v_ref_BNC.detach())).relu().square()


@dataclass(frozen=True, kw_only=True)
class OldDecay:
    """How much of the old policy stays after an epoch: d_i = min(start + slope max(i - flat, 0), most).

    i counts gradient steps from 0; d = 0 copies the current policy.
    """

    start: float = 0.0
    slope: float = 0.0  # per gradient step
    flat: int = 0  # gradient steps
    most: float = 0.0

    def at(self, step: int) -> float:
        """Return d at gradient step `step`."""
        return min(self.start + self.slope * max(step - self.flat, 0), self.most)


OLD_DECAYS = {
    "copy": OldDecay(),  # on-policy: the old policy is the last epoch's current one
    "linear": OldDecay(slope=0.001, most=0.5),  # DiffusionNFT's first; what the paper's min(0.001, 0.5) must mean
    "constant": OldDecay(start=0.001, most=0.5),  # the paper as it is printed
    "delayed": OldDecay(slope=0.0075, flat=75, most=0.999),  # DiffusionNFT's second, of its OCR recipe
    "centred": OldDecay(start=0.25, slope=0.005, most=0.999),  # CRD, arXiv 2603.14128
}


def follow(old: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """Move the old policy's tensors in place: old = decay old + (1 - decay) current.

    Adapters: the two factors each by themselves, as in the method's code, not their product.
    """
    near(old, current, 1 - decay)
