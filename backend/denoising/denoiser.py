"""The velocity of one picture along one schedule: the exact savings over calling the network at every step.

What does not change from step to step is made once and serves every seed: the embedded text, the positions, the
modulation. Each branch of guidance runs by itself in its own length, so nothing is padded and no mask keeps attention
from its fast kernels; at guidance 1 there is one branch. The last block leaves out the text that nobody reads. The
blocks are passed over once a step, both branches through each: a streamed block is brought to the device once.

A step is a function of tensors alone (`_step`), so a GPU may record it and replay it (`backend.kernels.graphs`).

Shapes: N image tokens, L text tokens, T text-encoder layers, F their width, C packed channels, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backend import sampling
from backend.denoising.modulation import Folded
from backend.kernels.attention import AttentionShape, Backend, Choices, using
from backend.kernels.graphs import GraphKey, Graphs, Inputs
from backend.model.positions import rope_table
from backend.model.transformer import LensBlock, LensTransformer2DModel


@dataclass(frozen=True)
class Branch:
    """What a branch of guidance sees besides the picture."""

    text_1LD: Tensor  # embedded; L may be 0
    rope: Tensor  # (N + L, K/2, 2)


class Denoiser:
    """Velocity (1, N, C) of (1, N, C) at a step."""

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
        attention: Choices | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """`grid`: latent height and width. `unconditional_1LTF`: features of a negative prompt; None: no text tokens;
        not used at guidance 1. `source`: None: the network's own blocks, which are then on its device.

        `attention`: the measured choice of a kernel; None: torch's own. `graphs`: of this network; None, or with a
        `source`: steps are launched one operation after the other. The network may be without its modulation layers.
        """
        self.network, self.folded, self.grid, self.guidance = network, folded, grid, guidance
        self.source = network if source is None else source
        features = [conditional_1LTF]
        if guidance != 1.0:
            features.append(conditional_1LTF[:, :0] if unconditional_1LTF is None else unconditional_1LTF)
        with torch.inference_mode():
            self.branches = tuple(self._branch(text) for text in features)
        # One kernel for all branches: they differ by a few text tokens, and switching costs more.
        self.backend = Backend.torch if attention is None else attention.choose(self._shape())
        self.graphs = graphs if source is None else None
        self._key = GraphKey(
            grid, tuple(branch.text_1LD.shape[1] for branch in self.branches), guidance,
            network.img_in.weight.dtype, self.backend,
        )  # fmt: skip

    def __call__(self, x_1NC: Tensor, sigma: float) -> Tensor:
        """As `sampling.denoise` calls it. Raises ValueError for a sigma that is not of the schedule."""
        return self.velocity(x_1NC, self.folded.sigmas.index(sigma))

    @torch.inference_mode()
    def velocity(self, x_1NC: Tensor, step: int) -> Tensor:
        """Guided where there are two branches, then in float32; else in the network's dtype."""
        h, w = self.grid
        if x_1NC.shape[:2] != (1, h * w):
            raise ValueError(f"{list(x_1NC.shape[:2])} image tokens do not fill one latent of {h} x {w}")
        inputs = {"picture": x_1NC, "modulation": self.folded.table_SW[step : step + 1]}
        for i, branch in enumerate(self.branches):
            inputs[f"text {i}"], inputs[f"rope {i}"] = branch.text_1LD, branch.rope
        with using(self.backend):
            return self._step(inputs) if self.graphs is None else self.graphs.run(self._key, inputs, self._step)

    def _step(self, inputs: Inputs) -> Tensor:
        """One step's velocity of nothing but its inputs and the weights."""
        folded = Folded((0.0,), inputs["modulation"], self.folded.dim)  # of this step alone
        image = self.network.img_in(inputs["picture"].to(self.network.img_in.weight.dtype))
        branches = range(len(self.branches))
        images, texts = [image for _ in branches], [inputs[f"text {i}"] for i in branches]
        last = self.network.params.num_layers - 1
        for index, block in enumerate(self.source.blocks()):
            modulation = folded.block(0, index)
            for i in branches:
                images[i], texts[i] = block(
                    images[i], texts[i], modulation, inputs[f"rope {i}"], text_unread=index == last
                )
        velocities = [self._output(image, folded.final(0)) for image in images]
        if len(velocities) == 1:
            return velocities[0]
        conditional, unconditional = velocities
        return sampling.guide(conditional, unconditional, self.guidance)

    def _branch(self, text_1LTF: Tensor) -> Branch:
        weight = self.network.img_in.weight
        rope = rope_table(self.network.params, *self.grid, text_1LTF.shape[1], weight.device)
        return Branch(self.network.embed_text(text_1LTF.to(weight.device, weight.dtype)), rope)

    def _output(self, image: Tensor, modulation_BD2: Tensor) -> Tensor:
        return self.network.proj_out(self.network.norm_out.modulated(image, modulation_BD2))

    def _shape(self) -> AttentionShape:
        """What attention is given, in the branch with the most text."""
        params = self.network.params
        tokens = max(branch.rope.shape[0] for branch in self.branches)
        return AttentionShape(
            heads=params.num_attention_heads,
            queries=tokens,
            keys=tokens,
            head_size=params.attention_head_dim,
            dtype=self.network.img_in.weight.dtype,
        )


class BlockSource(Protocol):
    """One pass over a transformer's blocks. A complete `LensTransformer2DModel` on the device is one itself."""

    def blocks(self) -> Iterator[LensBlock]:
        """Every block in order, ready to run until the next one is asked for. A pass is always finished or closed."""
        ...
