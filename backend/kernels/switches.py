"""Switches for the code that only a GPU runs: each one turns a single piece off, or names which of several is taken.

Every row is an environment variable, so that the first run on a card that nobody has tried can be narrowed down
without touching the code: with all of them at `plain`, what computes there is what computes on a CPU. Whoever has a
piece to choose asks its row here, and nowhere else is one of these variables read. `--compile` is its own switch.

Light ring: standard library only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from backend.errors import UsageError

AUTO = "auto"  # the default of every row


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One piece of code that can be chosen."""

    name: str  # the environment variable
    what: str  # one phrase: what is chosen
    auto: str  # what is taken without a word
    others: dict[str, str]  # value -> what it does, the plain one first

    @property
    def plain(self) -> str:
        """The value that takes nothing a CPU does not take."""
        return next(iter(self.others))

    @property
    def value(self) -> str:
        """What the environment says; `AUTO` where it says nothing. Raises UsageError naming the known values."""
        text = os.environ.get(self.name, "").strip().lower() or AUTO
        if text != AUTO and text not in self.others:
            known = ", ".join((AUTO, *self.others))
            raise UsageError(f"{self.name} = {text!r} is no value of it", hint=f"one of {known}")
        return text

    @property
    def is_plain(self) -> bool:
        return self.value == self.plain


KERNELS = Switch(
    name="LENS_KERNELS",
    what="the pointwise operations of the transformer",
    auto="Triton's kernels on a CUDA device where they work, torch's elsewhere",
    others={"plain": "torch's everywhere"},
)
ATTENTION = Switch(
    name="LENS_ATTENTION",
    what="the attention kernel on a CUDA device",
    auto="the fastest exact one, as measured on the card",
    others={
        "torch": "torch's own choice, nothing is measured",
        "fa4": "FlashAttention 4",
        "fa3": "FlashAttention 3",
        "cudnn": "cuDNN's",
        "flash": "FlashAttention 2, within torch",
        "efficient": "torch's memory-efficient one",
        "math": "plain products, every score in memory",
    },
)
GRAPHS = Switch(
    name="LENS_GRAPHS",
    what="CUDA graphs of whole steps",
    auto="made where the memory plan has room for them",
    others={"off": "none are made"},
)
STREAM = Switch(
    name="LENS_STREAM",
    what="the copies of blocks that are streamed to a CUDA device",
    auto="on a stream of their own, ahead of the arithmetic",
    others={
        "plain": "at once, where the arithmetic stands",
        "off": "blocks are never streamed: what does not fit on the card is refused",
    },
)
FP8 = Switch(
    name="LENS_FP8",
    what="the products of --quant fp8",
    auto="by the fp8 units of a card that has them",
    others={"plain": "the same roundings, multiplied in float32"},
)

SWITCHES = (KERNELS, ATTENTION, GRAPHS, STREAM, FP8)


def check() -> None:
    """Raises UsageError where any switch has a value that it does not know."""
    for switch in SWITCHES:
        _ = switch.value
