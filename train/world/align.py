"""Alignment: a middle block's image tokens must say what stands where they are. A loss for the first hours of a run.

REPA (Yu et al. 2024, arXiv 2410.06940) pulls a diffusion transformer's hidden states towards those of a pretrained
vision network and learns several times faster. Drawn scenes need no such network: what covers each token is known, so
a linear map of the hidden state names the kind and the colour of the thing there, or the letter of a sign. The map is
thrown away afterwards. Not part of the Lens paper.
"""

from __future__ import annotations

from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from backend.sizes import GRID
from train.world.lettering import CENTRE, HEIGHT, pitch, slots
from train.world.scenes import COLOURS, CONTAINERS, Scene
from train.world.things import KINDS

# Class 0 of both is "no thing".
THINGS = {name: i + 1 for i, name in enumerate(dict.fromkeys((*KINDS, *CONTAINERS, "sign", *ascii_uppercase)))}
TINTS = {name: i + 1 for i, name in enumerate(COLOURS)}


def token_labels(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """(N, 2) kind and colour at the centre of each token of a `width` x `height` picture, row by row.

    A thing covers the disc of its half-size; of two over one token the smaller counts: it stands inside the other. A
    letter of a sign covers its slot.
    """
    short = min(width, height)
    x = (np.arange(width // GRID) + 0.5) * GRID / short
    y = (np.arange(height // GRID) + 0.5) * GRID / short
    labels = np.zeros((len(y), len(x), 2), np.uint8)
    for thing in sorted(scene.things, key=lambda thing: -thing.r):
        inside = (x[None, :] - thing.x) ** 2 + (y[:, None] - thing.y) ** 2 < thing.r**2
        labels[inside] = THINGS[thing.kind], TINTS[thing.colour]
        word = thing.word or ""
        rows = abs(y - thing.y - CENTRE * thing.r) < HEIGHT / 2 * thing.r
        for letter, place in zip(word, slots(len(word)), strict=True):
            columns = abs(x - thing.x - place * thing.r) < pitch(len(word)) / 2 * thing.r
            labels[rows[:, None] & columns[None, :]] = THINGS[letter], TINTS["black"]
    return labels.reshape(-1, 2)


class Aligner(nn.Module):
    """Watches the image tokens after one block, and reads kind and colour from them."""

    def __init__(self, block: nn.Module, width: int) -> None:
        """`block` returns (image, text). It is watched by a hook, which torch.compile keeps."""
        super().__init__()
        self.to_kind = nn.Linear(width, len(THINGS) + 1)
        self.to_colour = nn.Linear(width, len(TINTS) + 1)
        for answer in (self.to_kind, self.to_colour):  # no random numbers: a run is a function of its config
            nn.init.zeros_(answer.weight)
            nn.init.zeros_(answer.bias)
        self._seen: list[Tensor] = []
        block.register_forward_hook(self._watch)

    def _watch(self, _block: nn.Module, _arguments: object, output: tuple[Tensor, Tensor]) -> None:
        self._seen[:] = output[:1]

    def forward(self, labels_BN2: Tensor) -> Tensor:
        """Cross-entropy of both answers over all tokens of the last forward pass."""
        (image,) = self._seen
        hidden = F.layer_norm(image.float(), image.shape[-1:])
        kind, colour = labels_BN2.long().unbind(-1)
        answers = ((self.to_kind, kind), (self.to_colour, colour))
        return sum(
            (F.cross_entropy(to(hidden).flatten(0, 1), right.flatten()) for to, right in answers), hidden.new_zeros(())
        )
