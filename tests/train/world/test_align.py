"""Labels of the tokens and the loss over them.

Trustworthy because the labels are compared with the drawn pixels of a scene whose things and background are told apart
by colour alone, and because the loss must teach a block something that its own output did not say before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from backend.sizes import GRID
from train.world.align import THINGS, TINTS, Aligner, token_labels
from train.world.drawing import render
from train.world.grid import on_grid
from train.world.scenes import COLOURS, Background, Scene, Thing


def scene(*things: Thing, width: float = 1.0) -> Scene:
    return Scene(
        width=width, height=1.0, style="flat", background=Background(plain="cream"), things=things,
        groups=tuple((i, 1) for i in range(len(things))), layout="pair",
    )  # fmt: skip


def test_labels_stand_where_the_things_are_drawn() -> None:
    """At the centre of a labelled token the picture has the thing's colour; elsewhere the background's."""
    two = scene(
        Thing(kind="ball", colour="red", size="large", x=0.5, y=0.5, r=0.4),
        Thing(kind="ball", colour="blue", size="medium", x=1.5, y=0.4, r=0.2),
        width=2.0,
    )
    width, height = 512, 256
    labels = token_labels(two, width, height).reshape(height // GRID, width // GRID, 2)
    picture = np.asarray(render(two, width, height)).astype(int)
    centres = picture[GRID // 2 :: GRID, GRID // 2 :: GRID]
    assert set(np.unique(labels[..., 0])) == {0, THINGS["ball"]}
    for colour in ("red", "blue"):
        there = labels[..., 1] == TINTS[colour]
        near = np.abs(centres - COLOURS[colour]).sum(-1) < 200
        assert there.sum() > 10
        assert (near & there).sum() >= 0.8 * there.sum()  # a ball has a lighter spot
        assert not (near & ~there & (labels[..., 0] == 0)).any()


def test_what_stands_inside_another_thing_counts() -> None:
    nested = scene(
        Thing(kind="cat", colour="black", size="medium", x=0.5, y=0.5, r=0.2),
        Thing(kind="ring", colour="green", size="large", x=0.5, y=0.5, r=0.45),
    )
    labels = token_labels(nested, 256, 256).reshape(16, 16, 2)
    assert tuple(labels[8, 8]) == (THINGS["cat"], TINTS["black"])
    assert tuple(labels[8, 2]) == (THINGS["ring"], TINTS["green"])
    assert tuple(labels[0, 0]) == (0, 0)


@pytest.mark.parametrize("word", ["OPEN", "TAXIS", "UP"])
def test_letters_are_labelled_where_they_are_drawn(word: str) -> None:
    """On the token grid: each letter's ink lies in the tokens that bear its label, and every one of them has some."""
    sign = Thing(kind="sign", colour="red", size="large", x=0.52, y=0.55, r=0.4, word=word)
    there = on_grid(scene(sign), 16)
    labels = token_labels(there, 256, 256).reshape(16, 16, 2)[..., 0]
    blank = replace(there, things=(replace(there.things[0], word=""),))
    ink = (np.asarray(render(there, 256, 256)) != np.asarray(render(blank, 256, 256))).any(-1)
    columns = [np.unique(np.nonzero(labels == THINGS[letter])[1]) for letter in dict.fromkeys(word)]
    assert all(len(each) >= 2 for each in columns)
    letters = np.isin(labels, [THINGS[letter] for letter in word])
    assert letters.sum() == 4 * len(word)
    pixels = letters.repeat(GRID, 0).repeat(GRID, 1)
    assert ink[~pixels].sum() <= 0.02 * ink.sum()  # a row of pixels, where a letter is rounded up
    assert ink.reshape(16, GRID, 16, GRID).any((1, 3))[letters].mean() > 0.9


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), x


def test_the_loss_reaches_the_block_and_teaches_it() -> None:
    torch.manual_seed(0)
    block = Block()
    aligner = Aligner(block, 8)
    assert not [name for name in block.state_dict() if "align" in name]  # a checkpoint of the model stays a model
    x = torch.randn(2, 6, 4)
    labels = torch.stack(((x[..., 0] > 0).long(), 2 * (x[..., 1] > 0).long()), dim=-1)
    optimizer = torch.optim.Adam([*block.parameters(), *aligner.parameters()], lr=0.05)
    losses: list[float] = []
    for _ in range(150):
        block(x)
        loss = aligner(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    untaught = float(np.log(len(THINGS) + 1) + np.log(len(TINTS) + 1))
    assert abs(losses[0] - untaught) < 1e-4
    assert losses[-1] < 0.1
