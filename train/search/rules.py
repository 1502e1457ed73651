"""How strict a search is, as one frozen record.

Light ring: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.config import within


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What `train.search.gate` decides by."""

    alpha: float = 0.05  # chance, over the whole search, that a candidate that is no better is promoted
    block: int = 32  # validation prompts between two looks
    losing: float = 0.1  # a candidate this significantly worse than the prompt in force leaves; 0: none does
    gain: float = 0.03  # the gain that a candidate should still be able to have …
    hopeless: float = 20.0  # … it leaves once the odds against that are so high; 0: none does

    def __post_init__(self) -> None:
        within(self, 1e-6, 0.5, "alpha")
        within(self, 1, 100_000, "block")
        within(self, 0, 0.5, "losing")
        within(self, 0, 0.5, "gain")
        within(self, 0, 1e9, "hopeless")
