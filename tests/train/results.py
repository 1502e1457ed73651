"""Results of an evaluation, made up."""

from __future__ import annotations

from train.evals.nano import EvalResult


def result(kind: str, n: int, right: bool, seed: int = 0) -> EvalResult:
    """Picture 0 of prompt `n` of a kind."""
    return EvalResult(
        id=f"{kind}-{n:02d}",
        kind=kind,
        index=0,
        asked="",
        prompt="",
        seed=seed,
        right=right,
        reason="",
        found=[],
        seconds=0,
    )
