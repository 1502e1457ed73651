"""One thing to measure. Light ring: standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from backend.types import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Case:
    """A complete request, and whether its model is to have random weights."""

    request: GenerationRequest
    random: bool = False
    text_tokens: int = 200  # of the random features; a model from files encodes the request's prompt
