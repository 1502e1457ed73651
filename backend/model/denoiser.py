"""The velocity of one picture along one schedule: the exact savings over calling the network at every step.

What does not change from step to step is made once and serves every seed: the embedded text, the positions, the
modulation. Each branch of guidance runs by itself in its own length, so nothing is padded and no mask keeps attention
from its fast kernels; at guidance 1 there is one branch. The last block leaves out the text that nobody reads. The
blocks are passed over once a step, both branches through each: a streamed block is brought to the device once.

Shapes: N image tokens, L text tokens, T text-encoder layers, F their width, C packed channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend import sampling
from backend.model.blocks import BlockSource
from backend.model.modulation import Folded
from backend.model.positions import rope_table
from backend.model.transformer import LensTransformer2DModel


@dataclass(frozen=True)
class Branch:
    """What a branch of guidance sees besides the picture."""

    text_1LD: Tensor  # embedded; L may be 0
    rope: Tensor  # (N + L, K/2, 2)


class Denoiser:
    """Velocity (1, N, C) of (1, N, C) at a step. Call it within `torch.inference_mode`."""

    def __init__(
        self,
        network: LensTransformer2DModel,
        folded: Folded,
        grid: tuple[int, int],
        conditional_1LTF: Tensor,
        unconditional_1LTF: Tensor | None = None,
        *,
        guidance: float = 1.0,
        source: BlockSource | None = None,
    ) -> None:
        """`grid`: latent height and width. `unconditional_1LTF`: features of a negative prompt; None: no text tokens;
        not used at guidance 1. `source`: None: the network's own blocks, which are then on its device.

        The network may be without its modulation layers.
        """
        self.network, self.folded, self.grid, self.guidance = network, folded, grid, guidance
        self.source = network if source is None else source
        features = [conditional_1LTF]
        if guidance != 1.0:
            features.append(conditional_1LTF[:, :0] if unconditional_1LTF is None else unconditional_1LTF)
        with torch.no_grad():
            self.branches = tuple(self._branch(text) for text in features)

    def __call__(self, x_1NC: Tensor, sigma: float) -> Tensor:
        """As `sampling.denoise` calls it. Raises ValueError for a sigma that is not of the schedule."""
        return self.velocity(x_1NC, self.folded.sigmas.index(sigma))

    def velocity(self, x_1NC: Tensor, step: int) -> Tensor:
        """Guided where there are two branches, then in float32; else in the network's dtype."""
        h, w = self.grid
        if x_1NC.shape[:2] != (1, h * w):
            raise ValueError(f"{list(x_1NC.shape[:2])} image tokens do not fill one latent of {h} x {w}")
        image = self.network.img_in(x_1NC.to(self.network.img_in.weight.dtype))
        images = [image] * len(self.branches)
        texts = [branch.text_1LD for branch in self.branches]
        last = self.network.params.num_layers - 1
        for index, block in enumerate(self.source.blocks()):
            modulation = self.folded.block(step, index)
            for i, branch in enumerate(self.branches):
                images[i], texts[i] = block(images[i], texts[i], modulation, branch.rope, text_unread=index == last)
        velocities = [self._output(image, step) for image in images]
        return velocities[0] if len(velocities) == 1 else sampling.guide(*velocities, self.guidance)

    def _branch(self, text_1LTF: Tensor) -> Branch:
        weight = self.network.img_in.weight
        rope = rope_table(self.network.params, *self.grid, text_1LTF.shape[1], weight.device)
        return Branch(self.network.embed_text(text_1LTF.to(weight.device, weight.dtype)), rope)

    def _output(self, image: Tensor, step: int) -> Tensor:
        return self.network.proj_out(self.network.norm_out.modulated(image, self.folded.final(step)))
